"""OpenAI's embeddings and models, as ``openai`` for Python and its like send them."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qla_runtime.serve.bodies import Field, Text, Whole
from qla_runtime.serve.inputs import PROMPT_NAME, TRUNCATE, texts
from qla_runtime.serve.operations import EMBEDS, Asked, Operation, Reply, characters, work
from qla_runtime.serve.options import ServeOptions
from qla_runtime.serve.routes.tei import vectors
from qla_runtime.serve.served import ServedModel

TAG = "OpenAI"
NO_IDS = (
    ". LangChain's OpenAIEmbeddings sends token ids of OpenAI's models unless it is made with "
    "check_embedding_ctx_length=False"
)


async def embeddings(asked: Asked) -> Reply:
    body = {**asked.body, "normalize": True}
    outcome, inputs = await vectors(replace(asked, body=body), body["input"], "input")
    spelled = _base64 if body["encoding_format"] == "base64" else _as_it_is
    data = [
        {"object": "embedding", "index": i, "embedding": spelled(result["vector"])}
        for i, result in enumerate(outcome.results)
    ]
    usage = {"prompt_tokens": outcome.tokens, "total_tokens": outcome.tokens}
    content = {"object": "list", "data": data, "model": asked.model.name, "usage": usage}
    return Reply(content, outcome, characters(inputs))


def _base64(vector: NDArray[np.float32]) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()


def _as_it_is(vector: NDArray[np.float32]) -> NDArray[np.float32]:
    return vector


async def models(asked: Asked) -> Reply:
    return Reply({"object": "list", "data": [_model(model) for model in asked.models]})


async def one_model(asked: Asked) -> Reply:
    return Reply(_model(asked.model))


def _model(model: ServedModel) -> dict[str, Any]:
    engine = model.engine
    return {
        "id": model.name,
        "object": "model",
        "created": 0,
        "owned_by": "qla_runtime",
        "task": engine.task,
        "max_model_len": engine.max_length,
        "lengths": list(engine.lengths),
    }


MODEL: Mapping[str, Any] = {
    "type": "object",
    "properties": {
        "id": {"type": "string"},
        "object": {"const": "model"},
        "created": {"type": "integer"},
        "owned_by": {"type": "string"},
        "task": {"type": "string"},
        "max_model_len": {"type": "integer"},
        "lengths": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["id", "object", "created", "owned_by"],
}
_EMBEDDING = {
    "type": "object",
    "properties": {
        "object": {"const": "embedding"},
        "index": {"type": "integer"},
        "embedding": {"anyOf": [{"type": "array", "items": {"type": "number"}}, {"type": "string"}]},
    },
    "required": ["object", "index", "embedding"],
}
_EMBEDDINGS = {
    "type": "object",
    "properties": {
        "object": {"const": "list"},
        "data": {"type": "array", "items": _EMBEDDING},
        "model": {"type": "string"},
        "usage": {
            "type": "object",
            "properties": {"prompt_tokens": {"type": "integer"}, "total_tokens": {"type": "integer"}},
            "required": ["prompt_tokens", "total_tokens"],
        },
    },
    "required": ["object", "data", "model", "usage"],
}
_MODELS = {
    "type": "object",
    "properties": {"object": {"const": "list"}, "data": {"type": "array", "items": MODEL}},
    "required": ["object", "data"],
}


def operations(options: ServeOptions) -> list[Operation]:
    """The routes."""
    body = work(
        {
            "input": Field(
                texts(options, NO_IDS), help="A text, or a list of texts.", example="What is an encoder?"
            ),
            "encoding_format": Field(
                Text(choices=("float", "base64")), "float", "Numbers, or little-endian float32 in base64."
            ),
            "dimensions": Field(Whole(1, 65536), None, "Give the first so many numbers, brought to length 1."),
            "user": Field(Text(), None, "Not used."),
            "prompt_name": PROMPT_NAME,
            **TRUNCATE,
        }
    )
    summary = "Vectors of texts, of length 1."
    return [
        Operation("/v1/embeddings", embeddings, summary, _EMBEDDINGS, body=body, ability=EMBEDS, tag=TAG),
        Operation("/embeddings", embeddings, summary, _EMBEDDINGS, body=body, ability=EMBEDS, tag=TAG),
        Operation("/v1/models", models, "The served models.", _MODELS, method="GET", tag=TAG, per_model=False),
        Operation(
            "/v1/models/{model:path}",
            one_model,
            "One served model.",
            MODEL,
            method="GET",
            tag=TAG,
            per_model=False,
        ),
    ]
