"""The routes of text-embeddings-inference: its own examples, and the engine's bits behind them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from package_tools import edit_json, tiny_package

from qla_runtime import Engine

pytest.importorskip("starlette", reason="needs the extra [serve]")
if TYPE_CHECKING:
    from route_tools import Running

SENTENCES = ["A man is eating food.", "What is Deep Learning?", ""]
PAIRS = [["abc"], ["abc", "de"], ["hello there"]]


def vectors(found: Any) -> np.ndarray:
    return np.array(found, np.float32)


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [  # each request body that TEI's own documentation shows
        ("/embed", {"inputs": "What is Deep Learning?"}, 200),
        ("/embed", {"inputs": ["Today is a sunny day", "I like you"]}, 200),
        ("/embed", {"inputs": "x", "truncate": False, "truncation_direction": "Right", "prompt_name": None}, 200),
        ("/embed_all", {"inputs": "What is Deep Learning?"}, 200),
        ("/predict", {"inputs": "I like you.", "raw_scores": False, "truncate": False}, 200),
        ("/predict", {"inputs": ["What is the difference?", "A pair."]}, 200),
        ("/predict", {"inputs": [["I like you."], ["I hate pineapples"]]}, 200),
        ("/rerank", {"query": "What is Deep Learning?", "texts": ["Deep Learning is not...", "is..."]}, 200),
        ("/similarity", {"inputs": {"source_sentence": "a", "sentences": ["b"]}, "parameters": None}, 200),
        ("/tokenize", {"inputs": "test", "add_special_tokens": True, "prompt_name": None}, 200),
        ("/decode", {"ids": [0, 2], "skip_special_tokens": True}, 200),
        ("/embeddings", {"input": "What is Deep Learning?", "model": None, "user": None}, 200),
        ("/embed", {"inputs": []}, 400),
    ],
)
def test_bodies_of_its_documentation(server: Running, path: str, body: dict, status: int):
    assert server.post(path, body).status == status


def test_embed_gives_the_engines_bits(server: Running):
    engine = server.engines["minilm"]
    expected = engine.encode(SENTENCES, normalize_embeddings=True)
    assert np.array_equal(vectors(server.ok("/embed", {"inputs": SENTENCES})), expected)
    assert np.array_equal(vectors(server.ok("/embed", {"inputs": SENTENCES[0]})), expected[:1])


def test_embed_options(server: Running):
    engine = server.engines["minilm"]
    short = server.ok("/embed", {"inputs": SENTENCES, "dimensions": 16, "normalize": False})
    assert np.array_equal(vectors(short), engine.encode(SENTENCES, truncate_dim=16))
    fast = server.post("/embed", {"inputs": SENTENCES, "length": "fast"})
    assert np.array_equal(vectors(fast.json), engine.encode(SENTENCES, "fast", normalize_embeddings=True))
    assert fast.headers["x-qla-length"] == "fast"


def test_a_text_that_is_too_long(server: Running):
    words = " ".join(["word"] * 300)
    cut = server.post("/embed", {"inputs": ["short", words]})
    assert cut.status == 200
    assert cut.headers["x-qla-truncated"] == "1"
    refused = server.post("/embed", {"inputs": ["short", words], "truncate": False})
    assert refused.status == 422
    assert refused.json["error_type"] == "Validation"
    assert "inputs[1] has more than 256 tokens" in refused.json["error"]
    assert '"truncate": true' in refused.json["error"]


def test_prompts(tmp_path, server: Running):
    from route_tools import running

    folder = tiny_package("embedding").save(tmp_path / "package")
    edit_json(folder, "config.json", lambda config: config.update(prompts={"query": "find: "}))
    engine = Engine(folder, num_threads=1)
    with running({"own": engine}) as own:
        found = own.ok("/embed", {"inputs": "abc", "prompt_name": "query"})
        tokens = own.ok("/tokenize", {"inputs": "abc", "prompt_name": "query", "add_special_tokens": False})
        unknown = own.post("/embed", {"inputs": "abc", "prompt_name": "other"})
    assert np.array_equal(vectors(found)[0], engine.encode("abc", prompt_name="query", normalize_embeddings=True))
    assert "".join(token["text"] for token in tokens[0]) == "find:abc"
    assert unknown.status == 422
    assert "'query'" in unknown.json["error"]


def test_embed_all_gives_every_tokens_state(server: Running):
    engine = server.engines["minilm"]
    found = server.ok("/embed_all", {"inputs": SENTENCES, "length": "fast"})
    ids = [[token["id"] for token in row] for row in server.ok("/tokenize", {"inputs": SENTENCES})]
    states = engine.forward(ids, length="fast").last_hidden_state
    for row, expected in zip(found, states, strict=True):
        assert np.array_equal(vectors(row), expected)


def test_similarity_is_the_cosine(server: Running):
    source, *others = engine_vectors = server.engines["minilm"].encode(SENTENCES)
    body = {"inputs": {"source_sentence": SENTENCES[0], "sentences": SENTENCES[1:]}}
    assert len(engine_vectors) == 3
    cosines = [other @ source / np.linalg.norm(source) / np.linalg.norm(other) for other in others]
    # 384 products, added in another order.
    assert np.allclose(server.ok("/similarity", body), cosines, atol=16 * 2.0**-24)


def test_predict_one_text_a_pair_and_a_mixed_batch(server: Running):
    engine = server.engines["labels"]
    expected = [engine.classify(*texts, top_k=None)["scores"] for texts in PAIRS]
    found = server.ok("/predict", {"inputs": PAIRS})
    assert found == expected
    assert server.ok("/predict", {"inputs": "abc"}) == expected[0]
    assert server.ok("/predict", {"inputs": ["abc", "de"]}) == expected[1]


def test_predict_raw_scores_are_logits(server: Running):
    engine = server.engines["labels"]
    ids = [token["id"] for token in server.ok("/tokenize", {"inputs": "abc", "model": "labels"})[0]]
    (logits,) = engine.forward([ids]).logits
    found = server.ok("/predict", {"inputs": "abc", "raw_scores": True})
    by_label = {entry["label"]: entry["score"] for entry in found}
    assert np.array_equal(vectors([by_label[label] for label in engine.labels]), logits)
    assert [entry["score"] for entry in found] == sorted(by_label.values(), reverse=True)


def test_tokens_and_their_text(server: Running):
    text = "Zürich isn't far."
    (tokens,) = server.ok("/tokenize", {"inputs": text, "model": "minilm"})
    assert [token["special"] for token in tokens] == [True] + [False] * (len(tokens) - 2) + [True]
    assert tokens[0] == {"id": 101, "text": "[CLS]", "special": True, "start": None, "stop": None}
    assert all(token["text"] == text[token["start"] : token["stop"]] for token in tokens[1:-1])
    ids = [token["id"] for token in tokens]
    assert server.ok("/decode", {"ids": [ids, ids[:1]], "model": "minilm"}) == ["zurich isn ' t far.", ""]
    assert len(server.ok("/tokenize", {"inputs": "a " * 400, "model": "minilm"})[0]) == 402  # nothing is cut
    unknown = server.post("/decode", {"ids": [30522], "model": "minilm"})
    assert (unknown.status, "30521" in unknown.json["error"]) == (422, True)


def test_headers_say_what_ran(server: Running):
    found = server.post("/embed", {"inputs": ["abc", "defg"]})
    names = "time tokens characters type".split()
    assert {f"x-compute-{name}" for name in names} <= found.headers.keys()
    assert {f"x-{name}-time" for name in ("total", "tokenization", "queue", "inference")} <= found.headers.keys()
    assert found.headers["x-compute-characters"] == "7"
    engine = server.engines["minilm"]
    tokens = [len(row) for row in server.ok("/tokenize", {"inputs": ["abc", "defg"], "model": "minilm"})]
    assert found.headers["x-compute-tokens"] == str(sum(tokens))
    assert found.headers["x-qla-macs"] == str(sum(map(engine.macs, tokens)))
    assert found.headers["x-qla-length"] == "full"
    assert "x-qla-budget-met" not in found.headers


def test_length_by_field_and_by_alias(server: Running):
    by_field = server.post("/embed", {"inputs": "hello there", "model": "minilm", "length": "balanced"})
    by_alias = server.post("/embed", {"inputs": "hello there", "model": "minilm:balanced"})
    assert by_field.headers["x-qla-length"] == by_alias.headers["x-qla-length"] == "balanced"
    assert by_field.content == by_alias.content
    spelled = server.post("/embed", {"inputs": "hello there", "length": "tokens(5, 5, 4, 4, 3, 2)"})
    assert spelled.headers["x-qla-length"] == "tokens(5%2C 5%2C 4%2C 4%2C 3%2C 2)"


def test_a_budget_and_a_loss_choose_the_length(server: Running):
    generous = server.post("/embed", {"inputs": "hello there", "latency_ms": 60_000})
    assert generous.headers["x-qla-budget-met"] == "true"
    cheap = server.post("/embed", {"inputs": "hello there", "max_loss": 100})
    dear = server.post("/embed", {"inputs": "hello there", "max_loss": 0})
    assert int(cheap.headers["x-qla-macs"]) < int(dear.headers["x-qla-macs"])


def test_every_path_stands_behind_a_models_name_too(server: Running):
    path = "/models/minilm/embed"
    assert server.ok(path, {"inputs": "abc"}) == server.ok("/embed", {"inputs": "abc"})
    assert server.get("/models/ranker/info").json["model_id"] == "ranker"
    assert server.get("/models/ranker/health").status == 200
    assert server.post("/models/nobody/embed", {"inputs": "abc"}).status == 404


def test_info_has_what_its_clients_read(server: Running):
    found = server.get("/models/minilm/info").json
    assert found["model_type"] == {"embedding": {"pooling": "mean"}}
    assert (found["max_input_length"], found["max_client_batch_size"]) == (256, 32)
    assert [entry["name"] for entry in found["lengths"]] == ["full", "balanced", "fast"]
    assert server.get("/info").json["model_type"] == {"question-answering": {}}
    kinds = {name: next(iter(server.get(f"/models/{name}/info").json["model_type"])) for name in server.engines}
    assert kinds["labels"] == "classifier"
    assert kinds["ranker"] == "reranker"


def test_health(server: Running):
    for path in ("/health", "/ping", "/ready"):
        assert (server.get(path).status, server.get(path).content) == (200, b"")
