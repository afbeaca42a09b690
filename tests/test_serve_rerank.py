"""Reranking: text-embeddings-inference's texts, and Cohere's, Jina's and vLLM's documents."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("starlette", reason="needs the extra [serve]")
if TYPE_CHECKING:
    from route_tools import Running

QUERY = "what is it?"
DOCUMENTS = ["a fish", "it is a dog", "", "nothing at all, and more of it"]
PATHS = ("/rerank", "/v1/rerank", "/v2/rerank")


def expected(server: Running, **options: Any) -> list[dict]:
    return server.engines["ranker"].rank(QUERY, DOCUMENTS, **options)


@pytest.mark.parametrize("path", PATHS)
def test_texts(server: Running, path: str):
    found = server.ok(path, {"query": QUERY, "texts": DOCUMENTS})
    assert found == [{"index": e["index"], "score": e["score"]} for e in expected(server)]
    with_text = server.ok(path, {"query": QUERY, "texts": DOCUMENTS, "return_text": True, "raw_scores": True})
    logits = expected(server, raw_scores=True)
    assert with_text == [{"index": e["index"], "text": DOCUMENTS[e["index"]], "score": e["score"]} for e in logits]


@pytest.mark.parametrize(("path", "version"), list(zip(PATHS, "112", strict=True)))
def test_documents(server: Running, path: str, version: str):
    found = server.ok(path, {"model": "ranker", "query": QUERY, "documents": DOCUMENTS, "top_n": 2})
    ranked = [{"index": e["index"], "relevance_score": e["score"]} for e in expected(server)[:2]]
    assert found["results"] == ranked
    assert found["model"] == "ranker"
    assert found["meta"]["api_version"] == {"version": version}
    assert found["usage"]["total_tokens"] == found["meta"]["tokens"]["input_tokens"] > 0
    assert isinstance(found["id"], str)


def test_documents_come_back_in_the_shape_they_came_in(server: Running):
    shaped = [DOCUMENTS[0], {"text": DOCUMENTS[1], "title": "A dog"}, DOCUMENTS[2], {"text": DOCUMENTS[3]}]
    found = server.ok("/rerank", {"query": QUERY, "documents": shaped, "return_documents": True})
    assert [(e["index"], e["relevance_score"]) for e in found["results"]] == [
        (e["index"], e["score"]) for e in expected(server)
    ]
    back = {e["index"]: e["document"] for e in found["results"]}
    assert back == {0: {"text": DOCUMENTS[0]}, 1: shaped[1], 2: {"text": ""}, 3: shaped[3]}


def test_rank_fields_are_read_in_their_order(server: Running):
    shaped = [{"text": "x", "title": "a fish"}, {"text": "it is", "title": "a dog"}]
    found = server.ok("/v1/rerank", {"query": QUERY, "documents": shaped, "rank_fields": ["title", "text"]})
    ranked = server.engines["ranker"].rank(QUERY, ["a fish\nx", "a dog\nit is"])
    assert [e["relevance_score"] for e in found["results"]] == [e["score"] for e in ranked]
    missing = server.post("/v1/rerank", {"query": QUERY, "documents": shaped, "rank_fields": ["body"]})
    assert (missing.status, "documents[0] has no 'body'" in missing.json["message"]) == (422, True)


def test_a_limit_of_tokens_per_document_that_would_change_the_score(server: Running):
    body = {"query": QUERY, "documents": DOCUMENTS}
    longest = server.engines["ranker"].max_length
    assert server.ok("/v2/rerank", {**body, "max_tokens_per_doc": 4096, "priority": 0})["results"]
    refused = server.post("/v2/rerank", {**body, "max_tokens_per_doc": longest - 1})
    assert (refused.status, "max_tokens_per_doc" in refused.json["message"]) == (422, True)


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("/rerank", {"query": QUERY}, 422, {"error"}),
        ("/v1/rerank", {"query": QUERY}, 422, {"message"}),
        ("/rerank", {"query": " ", "texts": ["a"]}, 422, {"error"}),
        ("/rerank", {"query": QUERY, "texts": []}, 400, {"error"}),
        ("/v2/rerank", {"query": QUERY, "documents": [{"title": "no text"}]}, 422, {"message"}),
        ("/rerank", {"query": QUERY, "texts": ["a"], "model": "labels"}, 424, {"error"}),
        ("/v1/rerank", {"query": QUERY, "documents": ["a"], "top_n": 0}, 422, {"message"}),
    ],
)
def test_errors(server: Running, path: str, body: dict, status: int, message: set[str]):
    found = server.post(path, body)
    assert found.status == status
    assert found.json.keys() >= message


@pytest.mark.parametrize("path", PATHS)
def test_a_query_that_is_long_counts_once_per_text(server: Running, path: str):
    """It is tokenized with each: 32 texts beside a query of a megabyte kept the tokenizer at work for minutes."""
    found = server.post(path, {"query": "word " * 20_000, "texts": ["a"] * 32})
    assert found.status == 413
    assert b"have 3200032 characters together, and this server takes 2000000" in found.content
    assert server.post(path, {"query": "word " * 2_000, "texts": ["a"] * 3}).status == 200
