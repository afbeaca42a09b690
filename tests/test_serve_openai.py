"""OpenAI's embeddings and models over plain HTTP; test_serve_clients.py has its client."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

import numpy as np
import pytest

pytest.importorskip("starlette", reason="needs the extra [serve]")
if TYPE_CHECKING:
    from route_tools import Running

SENTENCES = ["A man is eating food.", "A woman plays the violin."]


def test_numbers_and_base64_are_the_engines_bits(server: Running):
    expected = server.engines["minilm"].encode(SENTENCES, normalize_embeddings=True)
    numbers = server.ok("/v1/embeddings", {"input": SENTENCES, "model": "minilm"})
    packed = server.ok("/v1/embeddings", {"input": SENTENCES, "model": "minilm", "encoding_format": "base64"})
    assert np.array_equal(np.array([e["embedding"] for e in numbers["data"]], np.float32), expected)
    decoded = [np.frombuffer(base64.b64decode(e["embedding"]), "<f4") for e in packed["data"]]
    assert np.array_equal(decoded, expected)
    assert [e["index"] for e in numbers["data"]] == [0, 1]
    assert (numbers["object"], numbers["data"][0]["object"], numbers["model"]) == ("list", "embedding", "minilm")


def test_usage_counts_tokens(server: Running):
    found = server.ok("/v1/embeddings", {"input": SENTENCES, "model": "minilm"})
    tokens = sum(map(len, server.ok("/tokenize", {"inputs": SENTENCES, "model": "minilm"})))
    assert found["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}


def test_dimensions_are_cut_and_of_length_one(server: Running):
    found = server.ok("/v1/embeddings", {"input": "abc", "model": "minilm", "dimensions": 64, "user": "me"})
    vector = np.array(found["data"][0]["embedding"], np.float32)
    expected = server.engines["minilm"].encode("abc", truncate_dim=64, normalize_embeddings=True)
    assert np.array_equal(vector, expected)
    assert np.linalg.norm(vector) == pytest.approx(1)
    refused = server.post("/v1/embeddings", {"input": "abc", "model": "minilm", "dimensions": 385})
    assert refused.status == 422
    assert "dimensions is 385; it must be an integer from 1 to 384" in refused.json["error"]["message"]


@pytest.mark.parametrize("ids", [[101, 2054, 102], [[101, 2054, 102], [101, 102]]])
def test_token_ids_are_refused_by_naming_langchains_option(server: Running, ids: list):
    found = server.post("/v1/embeddings", {"input": ids, "model": "minilm"})
    assert found.status == 422
    error = found.json["error"]
    assert error["param"] == "input"
    assert "check_embedding_ctx_length=False" in error["message"]


def test_models(server: Running):
    found = server.get("/v1/models").json
    assert [model["id"] for model in found["data"]] == list(server.engines)
    one = server.get("/v1/models/minilm:fast").json
    assert (one["id"], one["object"], one["task"]) == ("minilm:fast", "model", "embedding")
    assert server.get("/v1/models/gpt").status == 404


@pytest.mark.parametrize(
    ("body", "status", "kind", "code"),
    [
        ({"input": "abc", "model": "text-embedding-3-small"}, 404, "invalid_request_error", "model_not_found"),
        ({"input": "abc", "model": "minilm:tiny"}, 404, "invalid_request_error", "model_not_found"),
        ({"input": "abc", "model": "squad"}, 424, "server_error", None),
        ({"input": [], "model": "minilm"}, 400, "invalid_request_error", None),
        ({"model": "minilm"}, 422, "invalid_request_error", None),
        ({"input": "abc", "encoding_format": "int8"}, 422, "invalid_request_error", None),
    ],
)
def test_errors_are_openais(server: Running, body: dict, status: int, kind: str, code: str | None):
    found = server.post("/v1/embeddings", body)
    assert found.status == status
    error = found.json["error"]
    assert (error["type"], error["code"]) == (kind, code)
    assert error["message"]
