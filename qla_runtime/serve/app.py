"""The table of routes, and what becomes of a request on its way through one.

Every route stands at its path and, for a server of several models, behind ``/models/NAME``. A response has the
dialect of its route also where it is an error, and no error says what the code looks like inside.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send

from qla_runtime.errors import QlaError
from qla_runtime.serve import page
from qla_runtime.serve.errors import INTERNAL, NOT_ALLOWED, NOT_FOUND, TEI, Dialect, ServeError, dialect_of
from qla_runtime.serve.json_text import parse
from qla_runtime.serve.limits import gone
from qla_runtime.serve.openapi import document
from qla_runtime.serve.operations import (
    ANY,
    WANTS,
    Asked,
    Operation,
    Reply,
    as_serve_error,
    choose_model,
    headers,
    named_model,
)
from qla_runtime.serve.options import ServeOptions
from qla_runtime.serve.refusals import ClientGone
from qla_runtime.serve.routes import hub, info, openai, rerank, tei
from qla_runtime.serve.served import Models, ServedModel, Wants

LOG = logging.getLogger("qla_runtime.serve")


def operations(options: ServeOptions) -> list[Operation]:
    """Every route but the model's own task, those first that are asked most."""
    return [
        *tei.operations(options),
        *openai.operations(options),
        *rerank.operations(options),
        *info.operations(options),
        *page.operations(options),
    ]


def routes(models: Models, options: ServeOptions) -> list[BaseRoute]:
    """Every route of the server.

    Args:
        models: what it serves.
        options: its limits.
    """
    table = operations(options)
    own = OwnTask(models, options)
    endpoints = [(operation, Endpoint(operation, models, options)) for operation in table]
    found: list[BaseRoute] = [
        Route(operation.path, endpoint, methods=[operation.method]) for operation, endpoint in endpoints
    ]
    found += [Route(path, own, methods=["POST"]) for path in ("/", "/invocations")]
    found.append(Route("/", page.response(models, options), methods=["GET"]))
    found += [
        Route(f"/models/{{model:path}}{operation.path}", endpoint, methods=[operation.method])
        for operation, endpoint in endpoints
        if operation.per_model
    ]
    openapi = orjson.dumps(document(table, own.tasks, models, api_key=options.api_key is not None))
    found.append(Route("/openapi.json", Fixed(openapi), methods=["GET"]))
    found.append(Route("/models/{model:path}", own, methods=["POST"]))
    return found


# --------------------------------------------------------------------------------------------- endpoints


@dataclass(frozen=True)
class Endpoint:
    """The ASGI application of a route. It reads the body itself: a wrapper around it would cost as much again."""

    operation: Operation
    models: Models
    options: ServeOptions

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await answered(scope, receive, send, self._reply)

    async def _reply(self, scope: Scope, body: bytes) -> Reply:
        operation = self.operation
        fields: Mapping[str, Any] = {} if operation.body is None else operation.body.read(parse(body), "")
        name = named_model(scope["path_params"].get("model"), fields.get("model"))
        model = choose_model(self.models, name, operation.ability, operation.path)
        return await operation.answer(asked(scope, model, fields, self.models, self.options))


class OwnTask:
    """The ASGI application of POST / and POST /models/NAME: what the model is for."""

    def __init__(self, models: Models, options: ServeOptions) -> None:
        self._models, self._options = models, options
        self.tasks = hub.own_tasks(options)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await answered(scope, receive, send, self._reply)

    async def _reply(self, scope: Scope, body: bytes) -> Reply:
        parsed = parse(body)
        named = parsed.get("model") if isinstance(parsed, dict) else None
        in_body = named if isinstance(named, str) else None  # the body's description refuses what is no text
        name = named_model(scope["path_params"].get("model"), in_body)
        model = choose_model(self._models, name, ANY, "/")
        own = self.of(model)
        return await own.answer(asked(scope, model, own.body.read(parsed, ""), self._models, self._options))

    def of(self, model: ServedModel) -> hub.Own:
        """What a model does."""
        return next(own for own in self.tasks if own.ability.fits(model.engine))


@dataclass(frozen=True)
class Fixed:
    """An ASGI application that always sends the same JSON."""

    content: bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await respond(send, 200, self.content)


def asked(
    scope: Scope, model: ServedModel, fields: Mapping[str, Any], models: Models, options: ServeOptions
) -> Asked:
    """A request whose model is known."""
    given = {name: fields[name] for name in WANTS if fields.get(name) is not None}
    return Asked(model, fields, Wants(**given) if given else _NOTHING, options, models, gone(scope))


_NOTHING = Wants()


# ------------------------------------------------------------------------------------------- responses


async def answered(scope: Scope, receive: Receive, send: Send, reply: Callable[[Scope, bytes], Any]) -> None:
    """Answers a request: with what ``reply`` gives, or with its error in the path's dialect."""
    body = await read_body(receive)
    if body is None:
        return
    try:
        found: Reply = await reply(scope, body)
        await respond(send, found.status, _rendered(found), headers(found), found.media_type)
    except ClientGone:
        return
    except QlaError as error:
        await fail(send, as_serve_error(error), dialect_of(scope["path"]))
    except Exception:
        LOG.exception("%s %s failed", scope["method"], scope["path"])
        await fail(send, ServeError(INTERNAL, "the server failed; its log says why"), dialect_of(scope["path"]))


async def read_body(receive: Receive) -> bytes | None:
    """The request's body; None where the client leaves before its end."""
    message = await receive()
    if message["type"] == "http.request" and not message.get("more_body", False):
        whole: bytes = message.get("body", b"")
        return whole
    parts = []
    while message["type"] == "http.request":
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)
        message = await receive()
    return None


async def no_route(request: Request, error: Exception) -> Response:
    """What a path without a route, or a method that it has not, is answered with."""
    assert isinstance(error, HTTPException)
    path = request.url.path
    if error.status_code == NOT_ALLOWED.status:
        allowed = (error.headers or {}).get("Allow", "another method")
        found = ServeError(NOT_ALLOWED, f"{request.method} {path} is not served; send {allowed}")
    else:
        found = ServeError(NOT_FOUND, f"{path} is no path of this server; /openapi.json lists them")
    return JSONResponse(dialect_of(path).body(found), found.kind.status, headers=error.headers)


FAILURES = {HTTPException: no_route}
"""Starlette's ``exception_handlers``."""


async def fail(send: Send, error: ServeError, dialect: Dialect = TEI) -> None:
    """Sends an error."""
    more = [(name.encode(), value.encode()) for name, value in error.headers.items()]
    await respond(send, error.kind.status, orjson.dumps(dialect.body(error)), more)


async def respond(
    send: Send,
    status: int,
    content: bytes,
    more: Sequence[tuple[bytes, bytes]] = (),
    media_type: str = "application/json",
) -> None:
    """Sends a response in one piece."""
    start = [(b"content-type", media_type.encode()), (b"content-length", str(len(content)).encode()), *more]
    await send({"type": "http.response.start", "status": status, "headers": start})
    await send({"type": "http.response.body", "body": content})


def _rendered(reply: Reply) -> bytes:
    if isinstance(reply.content, bytes):
        return reply.content
    return orjson.dumps(reply.content, option=orjson.OPT_SERIALIZE_NUMPY)
