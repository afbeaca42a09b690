"""Requests that are wrong: each gets a clear error in its client's dialect, and the next good one its result."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("starlette", reason="needs the extra [serve]")
if TYPE_CHECKING:
    from route_tools import Response, Running

GOOD = {"inputs": "The next good request."}
WORK = ("/embed", "/embed_all", "/predict", "/rerank", "/similarity", "/tokenize", "/decode", "/v1/embeddings")
WORK += ("/v1/rerank", "/v2/rerank", "/", "/models/minilm", "/models/minilm/embed")


@pytest.fixture(autouse=True)
def works_on(server: Running) -> Iterator[None]:
    """Whatever a test sends, the server answers the next good request."""
    yield
    assert server.post("/embed", GOOD).status == 200


def message(found: Response) -> str:
    body = found.json
    assert b"Traceback" not in found.content
    error = body.get("error", body.get("message"))
    return error["message"] if isinstance(error, dict) else error


def deep(depth: int) -> bytes:
    return b'{"inputs": ' + b"[" * depth + b"]" * depth + b"}"


@pytest.mark.parametrize("path", WORK)
@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "it is empty"),
        (b"inputs=hello", "Expecting value at character 0"),
        (b'{"inputs": "hello"', "at character"),
        (b'{"inputs": "\xff\xfe"}', "byte 12 is not UTF-8"),
        ('{"inputs": "hello"}'.encode("utf-16"), "is not UTF-8"),
        (b'{"inputs": NaN}', "NaN"),
        (b'{"inputs": "a", "latency_ms": Infinity}', "Infinity"),
        (b'{"inputs": ' + b"9" * 5000 + b"}", "thousands of digits"),
        (deep(100_000), "nested too deeply"),
    ],
    ids=["empty", "form", "cut", "latin-1", "utf-16", "nan", "infinity", "digits", "deep"],
)
def test_what_is_no_json(server: Running, path: str, body: bytes, words: str):
    found = server.send("POST", path, body)
    assert found.status == 400
    assert words in message(found)


@pytest.mark.parametrize("path", WORK)
@pytest.mark.parametrize("body", [[], "text", 3, None, {}, {"nothing": "known"}, {"inputs": {"inputs": {}}}])
def test_json_that_is_no_body(server: Running, path: str, body: Any):
    found = server.post(path, body)
    assert found.status == 422
    assert message(found)


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("/embed", {"inputs": []}, 400, "inputs is an empty list"),
        ("/v1/embeddings", {"input": []}, 400, "input is an empty list"),
        ("/rerank", {"query": "a", "texts": []}, 400, "texts is an empty list"),
        ("/predict", {"inputs": []}, 400, "inputs is an empty list"),
        ("/predict", {"inputs": [["a", "b", "c"]]}, 422, "inputs[0] has 3 entries, more than 2"),
        ("/predict", {"inputs": ["a", "b", "c"]}, 422, 'send several as [["first"], ["second"]]'),
        ("/predict", {"inputs": [["a"], "b"]}, 422, "inputs[1] is the text 'b'"),
        ("/embed", {"inputs": ["a", 3]}, 422, "inputs[1] is 3; it must be a text"),
        ("/embed", {"inputs": ["a", None]}, 422, "inputs[1] is null"),
        ("/embed", {"inputs": 3}, 422, "inputs is 3; it must be a text or a list of texts"),
        ("/embed", {"inputs": True}, 422, "inputs is true"),
        ("/embed", {"inputs": None}, 422, "inputs is null"),
        (
            "/embed",
            {"inputs": "a", "truncate": "yes"},
            422,
            "truncate is the text 'yes'; it must be true or false",
        ),
        ("/embed", {"inputs": "a", "truncation_direction": "left"}, 422, "cuts on the right"),
        ("/embed", {"inputs": "a", "truncation_direction": "up"}, 422, "'left', 'right'"),
        ("/embed", {"inputs": "a", "dimensions": 1.5}, 422, "dimensions is 1.5"),
        (
            "/embed",
            {"inputs": "a", "dimensions": 500},
            422,
            "dimensions is 500; it must be an integer from 1 to 384",
        ),
        ("/embed", {"inputs": "a", "lenght": "fast"}, 422, "lenght is no field of this route; it takes inputs"),
        ("/embed", {"inputs": "a", "prompt_name": "query:"}, 422, "query"),
        ("/similarity", {"inputs": {"source_sentence": "a"}}, 422, "inputs.sentences is missing"),
        ("/tokenize", {"inputs": {"a": "b"}}, 422, "inputs is an object"),
        ("/decode", {"ids": [1, -1]}, 422, "ids[1] is -1"),
        ("/decode", {"ids": ["hello"]}, 422, "ids[0] is the text 'hello'"),
        ("/", {"inputs": {"question": "Who?", "context": ""}}, 422, "inputs.context is ''"),
        ("/", {"inputs": {"question": "Who?"}}, 422, "inputs.context is missing"),
        ("/", {"inputs": "a text"}, 422, "an object with question and context"),
        ("/models/tags", {"inputs": "a", "parameters": {"beams": 3}}, 422, "parameters.beams is no field"),
    ],
)
def test_wrong_types_and_values(server: Running, path: str, body: dict, status: int, words: str):
    found = server.post(path, body)
    assert (found.status, words in message(found)) == (status, True), message(found)


@pytest.mark.parametrize("path", ["/embed", "/embed_all", "/tokenize", "/predict", "/models/minilm"])
@pytest.mark.parametrize("ids", [[101, 102], [[101, 102], [101, 102]]])
def test_ids_where_texts_belong(server: Running, path: str, ids: list):
    found = server.post(path, {"inputs": ids})
    assert found.status == 422
    assert "text" in message(found)


@pytest.mark.parametrize("field", ["inputs", "input", "texts", "documents"])
def test_ten_thousand_texts(server: Running, field: str):
    path = {"inputs": "/embed", "input": "/v1/embeddings"}.get(field, "/rerank")
    more = {"query": "a"} if path == "/rerank" else {}
    found = server.post(path, {field: ["a text"] * 10_000, **more})
    assert found.status == 422
    assert f"{field} has 10000 entries, more than 32; the server's --max-client-batch-size" in message(found)


def test_a_text_of_a_megabyte(server: Running):
    text = "word " * 200_000
    found = server.post("/embed", {"inputs": text})
    assert (found.status, found.headers["x-qla-truncated"]) == (200, "1")
    refused = server.post("/embed", {"inputs": text, "truncate": False})
    assert (refused.status, "256 tokens" in message(refused)) == (422, True)


@pytest.mark.parametrize("text", ["\ud800", "a\udfff"])
def test_half_a_surrogate_pair(server: Running, text: str):
    found = server.post("/embed", {"inputs": ["fine", text]})
    assert (found.status, "inputs[1] holds half a surrogate pair" in message(found)) == (422, True)


def test_a_key_twice(server: Running):
    found = server.send("POST", "/embed", b'{"inputs": "a", "inputs": "b"}')
    assert (found.status, "'inputs' twice" in message(found)) == (422, True)


@pytest.mark.parametrize("path", ["/embed", "/v1/embeddings", "/rerank", "/", "/tokenize"])
def test_an_unknown_model(server: Running, path: str):
    body = {"/v1/embeddings": {"input": "a"}, "/rerank": {"query": "a", "texts": ["b"]}}.get(path, {"inputs": "a"})
    found = server.post(path, {**body, "model": "gpt-4"})
    assert found.status == 404
    assert "use one of squad, minilm, labels, ranker, tags" in message(found)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"length": "tiny"}, "'tiny' is not one of this package's configs; it names full, balanced, fast"),
        ({"length": "ratio(1, 0.5)"}, "has 2 entries, but this model has 6 layers"),
        ({"length": "ratio(0)"}, "entry 0 is 0.0; it must be a share above 0"),
        ({"length": ""}, "''"),
        ({"length": ["fast"]}, "length is a list of 1 entries; it must be a text"),
        ({"length": "fast", "latency_ms": 5}, "length and latency_ms are given"),
        ({"latency_ms": 5, "max_loss": 1}, "latency_ms and max_loss are given"),
        ({"latency_ms": 0}, "latency_ms is 0; it must be a number above 0"),
        ({"latency_ms": -1}, "latency_ms is -1"),
        ({"latency_ms": "5"}, "latency_ms is the text '5'"),
        ({"max_loss": -0.5}, "max_loss is -0.5; it must be a number of at least 0"),
        ({"model": "minilm:fast", "length": "full"}, "names a length config"),
    ],
)
def test_lengths_that_do_not_fit(server: Running, more: dict, words: str):
    found = server.post("/embed", {"inputs": "a", **more})
    assert (found.status, words in message(found)) == (422, True), message(found)


def test_a_number_beyond_floats(server: Running):
    found = server.send("POST", "/embed", b'{"inputs": "a", "latency_ms": 1e999}')
    assert (found.status, "latency_ms is inf" in message(found)) == (422, True)


def test_a_loss_for_a_model_without_figures(server: Running):
    found = server.post("/predict", {"inputs": "a", "model": "labels", "max_loss": 1})
    assert found.status == 422
    assert message(found).startswith("max_loss (1) needs the accuracy of 'full'")


def test_an_alias_of_a_length_that_the_model_lacks(server: Running):
    found = server.post("/embed", {"inputs": "a", "model": "minilm:tiny"})
    assert (found.status, "has no length config 'tiny'" in message(found)) == (404, True)


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/embed", {"inputs": "a", "model": "squad"}, "squad is a span-qa model; name minilm instead"),
        ("/predict", {"inputs": "a", "model": "tags"}, "labels or ranker"),
        ("/rerank", {"query": "a", "texts": ["b"], "model": "labels"}, "a cross-encoder"),
        ("/models/squad/embed", {"inputs": "a"}, "/embed needs an embedding model"),
    ],
)
def test_a_model_of_another_task(server: Running, path: str, body: dict, words: str):
    found = server.post(path, body)
    assert (found.status, words in message(found)) == (424, True), message(found)
    assert found.json["error_type"] == "Backend"


def test_a_path_and_a_body_that_name_two_models(server: Running):
    found = server.post("/models/minilm/embed", {"inputs": "a", "model": "squad"})
    assert (found.status, "leave the body's model out" in message(found)) == (422, True)
    alias = server.post("/models/minilm/embed", {"inputs": "a", "model": "minilm:fast"})
    assert (alias.status, alias.headers["x-qla-length"]) == (200, "fast")


def test_paths_and_methods_that_are_not_served(server: Running):
    for path in ("/nothing", "/v1/chat/completions", "/models/minilm/nothing"):
        assert server.post(path, GOOD).status in (404, 405)
    assert message(server.get("/nothing")) == "/nothing is no path of this server; /openapi.json lists them"
    wrong = server.get("/embed")
    assert (wrong.status, wrong.headers["allow"], wrong.json["error_type"]) == (405, "POST", "MethodNotAllowed")


def test_a_path_with_a_slash_behind_it_leads_nowhere_else(server: Running):
    found = server.post("/embed/", GOOD)
    assert (found.status, message(found)) == (404, "/embed/ is no path of this server; /openapi.json lists them")


def test_a_byte_order_mark(server: Running):
    body = b"\xef\xbb\xbf" + json.dumps(GOOD).encode()
    assert server.send("POST", "/embed", body).json == server.post("/embed", GOOD).json


def test_dialects(server: Running):
    """The same fault, as each client reads it."""
    tei = server.post("/embed", {"inputs": []}).json
    assert tei.keys() == {"error", "error_type"}
    openai = server.post("/v1/embeddings", {"input": []}).json
    assert openai.keys() == {"error"}
    assert openai["error"].keys() == {"message", "type", "param", "code"}
    cohere = server.post("/v2/rerank", {"query": "a", "documents": []}).json
    assert cohere.keys() == {"message"}


def test_a_fault_of_the_server_shows_nothing_of_its_inside(server: Running, monkeypatch, caplog):
    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("a secret of the inside")

    engine = server.engines["minilm"]
    monkeypatch.setattr(engine, "as_task", fails)
    found = server.post("/embed", GOOD)
    monkeypatch.undo()
    assert found.status == 500
    assert json.loads(found.content)["error"] == "the server failed; its log says why"
    assert "a secret of the inside" in caplog.text
