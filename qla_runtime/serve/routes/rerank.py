"""Reranking: text-embeddings-inference's ``texts``, and the ``documents`` of Cohere, Jina and vLLM.

One body tells which of the two a client speaks, on each of ``/rerank``, ``/v1/rerank`` and ``/v2/rerank``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any
from uuid import uuid4

from qla_runtime.engine import Engine
from qla_runtime.serve.batcher import Outcome
from qla_runtime.serve.bodies import Either, Field, Flag, ListOf, MapOf, Number, Record, Text, Whole
from qla_runtime.serve.errors import INVALID, ServeError
from qla_runtime.serve.inputs import LIMIT, TRUNCATE, check_direction, many
from qla_runtime.serve.operations import RANKS, Asked, Operation, Reply, characters, work
from qla_runtime.serve.options import ServeOptions
from qla_runtime.tasks.labels import LabelTask, ranked
from qla_runtime.tasks.prepared import Call
from qla_runtime.tasks.results import Relevance

TAG = "Rerank"


def rerank_body(options: ServeOptions) -> Either:
    """The body of ``/rerank``: either form."""
    query = Field(Text(blank=False), help="What is looked for.", example="What is Deep Learning?")
    tei = work(
        {
            "query": query,
            "texts": Field(many(options), help="What is ordered.", example=["Deep Learning is ..."]),
            **TRUNCATE,
            "raw_scores": Field(Flag(), False, "Give logits."),
            "return_text": Field(Flag(), False, "Give each text beside its score."),
        },
        told_by="texts",
    )
    document = Either((Text(), MapOf(Text(), "text")))
    cohere = work(
        {
            "query": query,
            "documents": Field(
                ListOf(document, most=options.max_client_batch_size, limit=LIMIT),
                help="What is ordered: texts, or objects with a `text`.",
                example=["Deep Learning is ..."],
            ),
            "top_n": Field(Whole(1), None, "Give the best so many."),
            "return_documents": Field(Flag(), False, "Give each document beside its score."),
            "rank_fields": Field(ListOf(Text()), None, "The fields of a document that are read, in this order."),
            "max_tokens_per_doc": Field(
                Whole(1), None, "Documents are cut where the model's own limit is; a lower one is refused."
            ),
            "priority": Field(Whole(0), None, "Not used: first come, first served."),
            **TRUNCATE,
        }
    )
    return Either((tei, cohere), _refuse)


def _refuse(value: Any, where: str) -> str | None:
    if isinstance(value, dict) and "texts" not in value and "documents" not in value:
        return "the body has neither texts nor documents; send what is to be ordered under one of these names"
    return None


async def rerank(asked: Asked) -> Reply:
    """``[{"index", "score", "text"?}]`` for ``texts``, Cohere's object for ``documents``."""
    return await (_of_texts(asked) if "texts" in asked.body else _of_documents(asked, "1"))


async def rerank_v2(asked: Asked) -> Reply:
    """The same, with Cohere's version 2."""
    return await (_of_texts(asked) if "texts" in asked.body else _of_documents(asked, "2"))


async def _of_texts(asked: Asked) -> Reply:
    texts = asked.body["texts"]
    outcome = await _relevances(asked, texts, "texts", raw_scores=asked.body["raw_scores"])
    content = [{"index": found["index"], "score": found["score"]} for found in ranked(outcome.results)]
    if asked.body["return_text"]:
        content = [{"index": e["index"], "text": texts[e["index"]], "score": e["score"]} for e in content]
    return _reply(asked, content, outcome, texts)


async def _of_documents(asked: Asked, version: str) -> Reply:
    body = asked.body
    documents = body["documents"]
    texts = [_read(document, body["rank_fields"], f"documents[{i}]") for i, document in enumerate(documents)]
    outcome = await _relevances(asked, texts, "documents", check=_check_tokens(body["max_tokens_per_doc"]))
    results: list[dict[str, Any]] = []
    for found in ranked(outcome.results, body["top_n"]):
        result: dict[str, Any] = {"index": found["index"], "relevance_score": found["score"]}
        if body["return_documents"]:
            document = documents[found["index"]]
            result["document"] = {"text": document} if isinstance(document, str) else document
        results.append(result)
    content = {
        "id": str(uuid4()),
        "model": asked.model.name,
        "results": results,
        "meta": {"api_version": {"version": version}, "tokens": {"input_tokens": outcome.tokens}},
        "usage": {"prompt_tokens": outcome.tokens, "total_tokens": outcome.tokens},
    }
    return _reply(asked, content, outcome, texts)


def _read(document: str | Mapping[str, str], fields: Sequence[str] | None, where: str) -> str:
    """The text of a document."""
    if isinstance(document, str):
        return document
    wanted = fields or ["text"]
    missing = [name for name in wanted if name not in document]
    if missing:
        raise ServeError(
            INVALID,
            f"{where} has no {missing[0]!r}; send a text, or an object with {', '.join(wanted)}",
            field=where,
        )
    return "\n".join(document[name] for name in wanted)


def _check_tokens(most: int | None) -> Callable[[Engine], None]:
    def check(engine: Engine) -> None:
        if most is not None and most < engine.max_length:
            raise ServeError(
                INVALID,
                f"max_tokens_per_doc is {most}; this server cuts a query and a document together at "
                f"{engine.max_length} tokens. Leave it out, or send shorter documents",
                field="max_tokens_per_doc",
            )

    return check


async def _relevances(
    asked: Asked,
    texts: Sequence[str],
    what: str,
    *,
    raw_scores: bool = False,
    check: Callable[[Engine], None] = lambda engine: None,
) -> Outcome[Relevance]:
    body, engine = asked.body, asked.model.engine

    def make() -> Call[Relevance]:
        check(engine)
        check_direction(engine, body["truncation_direction"])
        task = engine.as_task(LabelTask, "rank")
        return replace(task.rank(body["query"], texts, truncate=asked.truncate, raw_scores=raw_scores), what=what)

    return await asked.run(make)


def _reply(asked: Asked, content: Any, outcome: Outcome[Relevance], texts: Sequence[str]) -> Reply:
    return Reply(content, outcome, len(texts) * len(asked.body["query"]) + characters(texts))


_RANKS = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {"index": {"type": "integer"}, "text": {"type": "string"}, "score": {"type": "number"}},
        "required": ["index", "score"],
    },
}
_COHERE = {
    "type": "object",
    "properties": {
        "id": {"type": "string"},
        "model": {"type": "string"},
        "results": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "index": {"type": "integer"},
                    "relevance_score": {"type": "number"},
                    "document": MapOf(Text(), "text").schema(),
                },
                "required": ["index", "relevance_score"],
            },
        },
        "meta": {"type": "object"},
        "usage": Record({name: Field(Number()) for name in ("prompt_tokens", "total_tokens")}).schema(),
    },
    "required": ["id", "model", "results", "meta", "usage"],
}
REPLY = {"anyOf": [_RANKS, _COHERE]}


def operations(options: ServeOptions) -> list[Operation]:
    """The routes."""
    body = rerank_body(options)
    summary = "Texts by how well they answer a query, best first."
    return [
        Operation(path, answer, summary, REPLY, body=body, ability=RANKS, tag=TAG)
        for path, answer in (("/rerank", rerank), ("/v1/rerank", rerank), ("/v2/rerank", rerank_v2))
    ]
