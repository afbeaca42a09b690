"""The OpenAPI document of a server, made from its routes and its models."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import qla_runtime
from qla_runtime.serve.bodies import Kind, Schema
from qla_runtime.serve.errors import KINDS, Dialect, dialect_of
from qla_runtime.serve.inputs import cut_side
from qla_runtime.serve.operations import Ability, Operation
from qla_runtime.serve.routes.hub import TAG, Own
from qla_runtime.serve.served import Models, ServedModel

_ABOUT = """\
The routes of a running `qla serve`.

A route runs the first model that fits it. A body's `model` names another; `NAME:LENGTH` names one of its length
configs, too. Each route also stands behind `/models/NAME`, and POST `/models/NAME` is that model's own task.

`x-qla-length` of a response says which length configs ran, `x-qla-macs` what they cost in multiply-accumulates,
`x-qla-truncated` how many texts were cut, and `x-qla-budget-met` whether a `latency_ms` was kept.
"""

_HEADERS = {
    "x-qla-length": {"description": "The length configs that ran.", "schema": {"type": "string"}},
    "x-qla-macs": {"description": "Multiply-accumulates that ran.", "schema": {"type": "integer"}},
    "x-qla-truncated": {"description": "Texts that were cut.", "schema": {"type": "integer"}},
    "x-compute-tokens": {"description": "Tokens that ran.", "schema": {"type": "integer"}},
}
_STATUS = {
    400: "The body is not JSON, or a list is empty.",
    401: "The API key is missing or wrong.",
    404: "No such model.",
    413: "The body is too large.",
    415: "The body is compressed.",
    422: "The body is not what the route or the model takes.",
    424: "The model does something else.",
    429: "The server is overloaded; Retry-After says when to try again.",
    500: "The server failed.",
    503: "The server is stopping.",
}


def document(table: Sequence[Operation], own: Sequence[Own], models: Models, *, api_key: bool = False) -> Schema:
    """The document.

    Args:
        table: the routes; one that no served model fits is left out, and so is one that is not
            listed.
        own: what kinds of models do at POST /.
        models: what is served.
        api_key: whether requests need one.
    """
    paths: dict[str, Schema] = {}
    for operation in table:
        fitting = _fitting(operation.ability, models)
        if not fitting or not operation.listed:
            continue
        path = operation.path.replace(":path}", "}")
        found = _operation(operation.summary, operation.tag, operation.body, operation.reply, fitting, path)
        if "{model}" in path:
            found["parameters"] = [_model_parameter(fitting)]
        paths.setdefault(path, {})[operation.method.lower()] = found
    default = models.get(None)
    for path, model in [("/", default), *((f"/models/{model.name}", model) for model in models)]:
        does = next(each for each in own if each.ability.fits(model.engine))
        fitting = _fitting(does.ability, models) if path == "/" else [model]
        paths[path] = {"post": _operation(does.summary, TAG, does.body, does.reply, fitting, path)}
    found = {
        "openapi": "3.1.0",
        "info": {"title": "qla serve", "version": qla_runtime.__version__, "description": _ABOUT},
        "paths": paths,
    }
    if api_key:
        found["components"] = {"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}}
        for methods in paths.values():
            for method in methods.values():
                if "requestBody" in method:
                    method["security"] = [{"key": []}]
    return found


def _fitting(ability: Ability, models: Models) -> list[ServedModel]:
    return [model for model in models if ability.fits(model.engine)]


def _operation(
    summary: str,
    tag: str,
    body: Kind | None,
    reply: Mapping[str, Any] | None,
    models: Sequence[ServedModel],
    path: str,
) -> Schema:
    content = {"text/plain": {}} if reply is None else {"application/json": {"schema": reply}}
    ok: Schema = {"description": "Done.", "content": content}
    found: Schema = {"summary": summary, "tags": [tag], "responses": {"200": ok, **_failures(dialect_of(path))}}
    if body is not None:
        ok["headers"] = _HEADERS
        schema = _with_limits(body.schema(), models)
        found["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    return found


def _failures(dialect: Dialect) -> Schema:
    content = {"application/json": {"schema": dialect.schema}}
    statuses = sorted({kind.status for kind in KINDS} & _STATUS.keys())
    return {str(status): {"description": _STATUS[status], "content": content} for status in statuses}


def _model_parameter(models: Sequence[ServedModel]) -> Schema:
    schema = {"type": "string", "enum": [model.name for model in models]}
    return {"name": "model", "in": "path", "required": True, "schema": schema}


# ------------------------------------------------------------------------- what the served models allow


def _with_limits(schema: Any, models: Sequence[ServedModel]) -> Any:
    """The schema of a body with what these models allow: their names, length configs, widths."""
    if isinstance(schema, list):
        return [_with_limits(entry, models) for entry in schema]
    if not isinstance(schema, dict):
        return schema
    found = {name: _with_limits(entry, models) for name, entry in schema.items()}
    for name, entry in found.get("properties", {}).items():
        if name in _LIMITS and "type" in entry:
            entry |= _LIMITS[name](models)
    return found


def _one_of(names: Iterable[str]) -> Schema:
    return {"enum": [*dict.fromkeys(names), None]}


def _models(models: Sequence[ServedModel]) -> Schema:
    aliases = (f"{model.name}:{length}" for model in models for length in _lengths_of(model))
    return _one_of([*(model.name for model in models), *aliases])


def _lengths(models: Sequence[ServedModel]) -> Schema:
    return _one_of(length for model in models for length in _lengths_of(model))


def _lengths_of(model: ServedModel) -> list[str]:
    return [*model.engine.lengths, *model.engine.frontier]


def _prompts(models: Sequence[ServedModel]) -> Schema:
    return _one_of(name for model in models for name in model.engine.prompts)


def _sides(models: Sequence[ServedModel]) -> Schema:
    sides = (cut_side(model.engine) for model in models)
    return _one_of(spelled for side in sides for spelled in (side, side.capitalize()))


def _losses(models: Sequence[ServedModel]) -> Schema:
    """Nothing but null where no model's package compares accuracies."""
    figures = [[entry.accuracy for entry in model.engine.lengths.values()] for model in models]
    return {} if any(len(each) - each.count(None) > 1 for each in figures) else {"enum": [None]}


def _widths(models: Sequence[ServedModel]) -> Schema:
    return {"maximum": max(model.engine.info["hidden"] for model in models)}


def _strides(models: Sequence[ServedModel]) -> Schema:
    return {"maximum": max(model.engine.max_length for model in models) - 1}


def _windows(models: Sequence[ServedModel]) -> Schema:
    return {"maximum": max(model.engine.info["max_positions"] for model in models)}


def _most_tokens(models: Sequence[ServedModel]) -> Schema:
    return {"minimum": min(model.engine.max_length for model in models)}


_LIMITS: Mapping[str, Callable[[Sequence[ServedModel]], Schema]] = {
    "model": _models,
    "length": _lengths,
    "prompt_name": _prompts,
    "truncation_direction": _sides,
    "max_loss": _losses,
    "dimensions": _widths,
    "doc_stride": _strides,
    "max_seq_len": _windows,
    "max_tokens_per_doc": _most_tokens,
}
"""Fields of bodies, and what the models that a route may run add to their schema."""
