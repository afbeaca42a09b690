"""The OpenAPI document: made from the routes, and true, as schemathesis finds out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
from package_tools import tiny_package

from qla_runtime import Engine

pytest.importorskip("starlette", reason="needs the extra [serve]")
if TYPE_CHECKING:
    from route_tools import Running

# Why a body is refused that keeps to the document: what a schema cannot say.
UNSAID = (
    "names a length config, and the request asks for another",  # an alias of a length beside a length
    "has no token that the model knows",  # of a context
    "no context fits beside it",  # of a question
    "windows have",  # of a stride
    "without an aggregation_strategy",  # of a stride, too
    "this model's ids end at",
    "; send a text, or an object with",  # rank_fields and a document without them
    "hypothesis_template is",  # without {}
    "; it must be a text",  # of zero-shot classification, whose parameters stand beside pairs in the schema
)

KINDS = ("span-qa", "embedding", "sequence-classification", "token-classification", "ranker")


def post(document: dict, path: str) -> dict:
    body: dict = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    return body


def test_it_lists_every_route(server: Running):
    paths = server.get("/openapi.json").json["paths"]
    tei = {
        "/embed",
        "/embed_all",
        "/predict",
        "/rerank",
        "/similarity",
        "/tokenize",
        "/decode",
        "/info",
        "/health",
    }
    others = {"/v1/embeddings", "/embeddings", "/v1/models", "/v1/models/{model}", "/v1/rerank", "/v2/rerank"}
    own = {"/", *(f"/models/{name}" for name in server.engines)}
    assert paths.keys() == tei | others | own | {"/ping", "/ready", "/metrics"}


def test_it_names_models_lengths_and_widths(server: Running):
    document = server.get("/openapi.json").json
    fields = post(document, "/embed")["properties"]
    assert {"minilm", "minilm:fast", None} <= set(fields["model"]["enum"])
    assert "squad" not in fields["model"]["enum"]
    assert {"full", "balanced", "fast"} <= set(fields["length"]["enum"])
    assert fields["dimensions"]["maximum"] == 384
    assert post(document, "/")["properties"]["inputs"]["anyOf"][0]["required"] == ["question", "context"]


def test_a_route_without_a_model_is_left_out():
    from route_tools import running

    with running({"minilm": Engine.from_pretrained("all-minilm-l6-v2", num_threads=1)}) as server:
        paths = server.get("/openapi.json").json["paths"]
    assert "/embed" in paths
    assert not {"/predict", "/rerank", "/v1/rerank"} & paths.keys()


def test_it_says_that_a_key_is_needed(packages: dict[str, str]):
    from route_tools import running

    with running({"tags": Engine(packages["token-classification"], num_threads=1)}, api_key="secret") as server:
        refused = server.get("/openapi.json")
        assert (refused.status, refused.json["error_type"]) == (401, "Unauthorized")
        key = {"authorization": "Bearer secret"}
        document = server.send("GET", "/openapi.json", **key).json
        assert server.post("/", {"inputs": "abc"}).status == 401
        assert server.post("/", {"inputs": "abc"}, **key).status == 200
    assert document["paths"]["/"]["post"]["security"] == [{"key": []}]
    assert "security" not in document["paths"]["/health"]["get"]


@pytest.fixture(scope="module", params=KINDS)
def alone(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A server of one model: then each limit of the document is that model's, and exact."""
    from route_tools import running

    if request.param == "ranker":
        package = tiny_package("sequence-classification", problem="regression", labels=["relevance"])
    elif request.param == "sequence-classification":
        labels = ["contradiction", "neutral", "entailment"]
        package = tiny_package(request.param, problem="single_label", labels=labels)
    else:
        package = tiny_package(request.param)
    engine = Engine(package.save(tmp_path_factory.mktemp("alone")), num_threads=1)
    with running({"own": engine}) as server:
        yield server


def schemathesis_finds(server: Running, examples: int) -> dict[str, list[int]]:
    """Asks with what the document allows and with what it forbids, checks every response, and gives per route the
    statuses that were met."""
    schemathesis = pytest.importorskip("schemathesis", reason="needs the extra [clients]")
    import hypothesis
    from schemathesis.specs.openapi.checks import positive_data_acceptance

    settings = hypothesis.settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    found: dict[str, list[int]] = {}
    for result in schemathesis.openapi.from_url(f"{server.url}/openapi.json").get_all_operations():
        operation = result.ok()
        met = found.setdefault(operation.label, [])

        def ask(case: Any) -> None:
            response = case.call_and_validate(excluded_checks=[positive_data_acceptance])
            met.append(response.status_code)  # noqa: B023  called in this turn of the loop
            if case.meta.generation.mode.is_positive and response.status_code != 200:
                assert any(rule in response.text for rule in UNSAID), response.text

        modes = [schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE]
        for mode in modes if operation.body else modes[:1]:
            settings(hypothesis.given(case=operation.as_strategy(generation_mode=mode))(ask))()
    return found


def test_schemathesis(alone: Running):
    statuses = schemathesis_finds(alone, 3)
    assert "POST /" in statuses
    for route, met in statuses.items():
        assert 200 in met, route


@pytest.mark.slow
def test_schemathesis_at_length(alone: Running):
    statuses = schemathesis_finds(alone, 60)
    assert all(200 in met for met in statuses.values())
