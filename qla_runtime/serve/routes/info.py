"""What the server serves, and whether it is well."""

from __future__ import annotations

from functools import partial
from typing import Any

import qla_runtime
from qla_runtime.engine import Engine
from qla_runtime.serve.errors import UNHEALTHY, ServeError
from qla_runtime.serve.metrics import render
from qla_runtime.serve.operations import RANKS, Asked, Operation, Reply
from qla_runtime.serve.options import ServeOptions

TAG = "The server"


async def info(asked: Asked) -> Reply:
    """text-embeddings-inference's fields, and ours behind them."""
    engine, options = asked.model.engine, asked.options
    content = {
        "model_id": asked.model.name,
        "model_sha": None,
        "model_dtype": "int8",
        "model_type": _model_type(engine),
        "max_concurrent_requests": options.max_concurrent_requests,
        "max_input_length": engine.max_length,
        "max_batch_tokens": options.max_batch_tokens,
        "max_batch_requests": None,
        "max_client_batch_size": options.max_client_batch_size,
        "auto_truncate": options.auto_truncate,
        "tokenization_workers": 1,
        "version": qla_runtime.__version__,
        "sha": None,
        "docker_label": None,
        "package": engine.name,
        "task": engine.task,
        "models": [model.name for model in asked.models],
        "lengths": [
            {
                "name": entry.name,
                "macs_share": entry.macs_share,
                "accuracy": entry.accuracy.to_json() if entry.accuracy else None,
            }
            for entry in engine.lengths.values()
        ],
        "prompts": engine.prompts,
    }
    return Reply(content)


def _model_type(engine: Engine) -> dict[str, Any]:
    """Its name for the kinds of model that it has, and the hub's name of the task for others."""
    if engine.task == "embedding":
        return {"embedding": {"pooling": engine.task_settings["pooling"]}}
    if engine.task == "span-qa":
        return {"question-answering": {}}
    labels = {
        "id2label": {str(i): name for i, name in enumerate(engine.labels)},
        "label2id": {name: i for i, name in enumerate(engine.labels)},
    }
    if engine.task == "token-classification":
        return {"token-classification": labels}
    return {"reranker" if RANKS.fits(engine) else "classifier": labels}


_INFO = {
    "type": "object",
    "properties": {
        "model_id": {"type": "string"},
        "model_dtype": {"type": "string"},
        "model_type": {"type": "object"},
        "max_concurrent_requests": {"type": "integer"},
        "max_input_length": {"type": "integer"},
        "max_batch_tokens": {"type": "integer"},
        "max_client_batch_size": {"type": "integer"},
        "auto_truncate": {"type": "boolean"},
        "version": {"type": "string"},
        "task": {"type": "string"},
        "models": {"type": "array", "items": {"type": "string"}},
        "lengths": {"type": "array", "items": {"type": "object"}},
        "prompts": {"type": "object"},
    },
    "required": ["model_id", "model_type", "max_input_length", "max_client_batch_size", "version"],
}


async def health(asked: Asked) -> Reply:
    """The process answers."""
    return Reply(b"", media_type="text/plain; charset=utf-8")


async def ready(asked: Asked) -> Reply:
    """The server takes requests."""
    if not asked.models.ready:
        raise ServeError(UNHEALTHY, "the server is stopping; send requests to another one", retry_after=1)
    return Reply(b"", media_type="text/plain; charset=utf-8")


async def metrics(asked: Asked) -> Reply:
    """What Prometheus reads."""
    content, media_type = render()
    return Reply(content, media_type=media_type)


def operations(options: ServeOptions) -> list[Operation]:
    """The routes."""
    make = partial(Operation, method="GET", tag=TAG)
    return [
        make("/info", info, "The model, its length configs and the server's limits.", _INFO),
        make("/health", health, "200 while the process answers.", None),
        make("/ping", health, "The same, as SageMaker asks.", None, per_model=False),
        make("/metrics", metrics, "Figures for Prometheus.", None, per_model=False),
        make("/ready", ready, "200 while the server takes requests, 503 once it is stopping.", None),
    ]
