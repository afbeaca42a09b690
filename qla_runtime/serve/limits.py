"""Whom a server lets in: the key, the size of a body, and how many requests are in work.

How long a client may take to send a request is the affair of :mod:`qla_runtime.serve.process`.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Callable, Mapping
from time import perf_counter
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qla_runtime.errors import shown
from qla_runtime.serve import metrics, request_log
from qla_runtime.serve.batcher import overloaded
from qla_runtime.serve.errors import ENCODED, OVERLOADED, TOO_LARGE, UNAUTHORIZED, ServeError, dialect_of
from qla_runtime.serve.options import ServeOptions
from qla_runtime.serve.served import Models

GONE = "qla.gone"
"""The key of a request's scope under which :func:`gone` finds whether the client has left."""

REST_BYTES, REST_S = 64_000_000, 2.0
"""How much of a body that is refused is read, and for how many seconds, before the connection is closed."""

OPEN = frozenset({"/", "/health", "/ready", "/ping", "/metrics"})
"""GET requests to these need no key: what asks is a load balancer, or Prometheus."""


def gone(scope: Mapping[str, Any]) -> Callable[[], bool]:
    """What :meth:`ServedModel.run` takes as ``gone``, from the scope of a request (``request.scope``)."""
    found: Callable[[], bool] = scope.get(GONE, _never)
    return found


class Limits:
    """ASGI middleware that answers, in the dialect of the path, what does not get in.

    A body is read before its request counts as one in work, so that slow clients take no place from others.

    Args:
        app: what stands behind.
        direct: where POST requests to a path go without a detour over ``app``.
        models: of the server.
        options: its limits.
    """

    def __init__(self, app: ASGIApp, direct: Mapping[str, ASGIApp], models: Models, options: ServeOptions) -> None:
        self._app, self._direct, self._models = app, direct, models
        self._options = options
        self._key = None if options.api_key is None else f"Bearer {options.api_key}".encode()
        self._in_work = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request, or passes it on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif scope["method"] == "POST":
            await self._work(scope, receive, Response(send, self._models.stopping))
        else:
            response = Response(send, self._models.stopping)
            try:
                if scope["path"] not in OPEN:
                    self._check_key(scope)
            except ServeError as error:
                return await refusal(scope, error)(scope, receive, response)
            await self._app(scope, receive, response)

    async def _work(self, scope: Scope, receive: Receive, response: Response) -> None:
        """Answers a request of the routes that work, and counts it."""
        began = perf_counter()
        body = b""
        try:
            self._check_key(scope)
            _check_plain(scope)
            read = await self._body(scope, receive)
            if read is None:
                return  # the client has left
            body = read
            if self._in_work >= self._options.max_concurrent_requests:
                full = overloaded(self._options, self._models.batcher.retry_after())
                raise ServeError(OVERLOADED, str(full), retry_after=full.retry_after)
            self._in_work += 1
            try:
                app = self._direct.get(scope["path"])
                if app is None:
                    app = self._app
                else:
                    scope["path_params"] = {}
                await app(scope, _replayed(body, receive), response)
            finally:
                self._in_work -= 1
        except ServeError as error:
            if error.kind in (TOO_LARGE, UNAUTHORIZED, ENCODED):
                # What is left of a body would be read as the next request.
                response.closes |= not await _thrown_away(scope, receive, self._options.read_timeout_s / 2)
            await refusal(scope, error)(scope, receive, response)
        finally:
            seconds = perf_counter() - began
            if response.status is not None:
                metrics.request_done(response.status, seconds)
            if self._options.log_requests:
                request_log.write(scope, response.status, response.headers, seconds, len(body))

    def _check_key(self, scope: Scope) -> None:
        if self._key is None:
            return
        sent = _header(scope, b"authorization")
        if sent is None or not hmac.compare_digest(sent.strip(), self._key):
            what = "has no API key" if sent is None else "has another API key"
            raise ServeError(UNAUTHORIZED, f"the request {what}; send the header Authorization: Bearer KEY")

    async def _body(self, scope: Scope, receive: Receive) -> bytes | None:
        """The whole body; None where the client has left before its end."""
        most = self._options.max_payload_bytes
        length = _header(scope, b"content-length")
        if length is not None and length.isdigit() and int(length) > most:
            raise self._too_large(f"{int(length)} bytes")
        parts: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            part = message.get("body", b"")
            size += len(part)
            if size > most:
                raise self._too_large(f"more than {most} bytes")
            parts.append(part)
            if not message.get("more_body", False):
                return parts[0] if len(parts) == 1 else b"".join(parts)

    def _too_large(self, size: str) -> ServeError:
        return ServeError(
            TOO_LARGE,
            f"the body has {size}, and this server takes {self._options.max_payload_bytes} "
            "(--max-payload-bytes); send fewer or shorter texts at once",
        )


class Response:
    """``send`` of a request, which remembers what was sent.

    Attributes:
        closes: whether the client is asked to close the connection.
        status: of the response; None before it begins.
        headers: of the response.
    """

    __slots__ = ("_send", "closes", "headers", "status")

    def __init__(self, send: Send, closes: bool) -> None:
        self._send = send
        self.closes = closes
        self.status: int | None = None
        self.headers: list[tuple[bytes, bytes]] = []

    async def __call__(self, message: Message) -> None:
        """Sends a message."""
        if message["type"] == "http.response.start":
            self.status, self.headers = message["status"], message["headers"]
            if self.closes:
                message["headers"] = [*self.headers, (b"connection", b"close")]
        await self._send(message)


def refusal(scope: Scope, error: ServeError) -> JSONResponse:
    """The response for an error, in the dialect of the request's path."""
    body = dialect_of(scope["path"]).body(error)
    return JSONResponse(body, error.kind.status, headers=error.headers)


async def _thrown_away(scope: Scope, receive: Receive, most_s: float) -> bool:
    """Reads what is left of a body, and tells whether that was all of it.

    Many clients send the whole body before they read the response. To close the connection before would have them
    report a broken pipe.
    """
    if _header(scope, b"expect") is not None:  # this client waits for leave to send
        return False
    try:
        return await asyncio.wait_for(_rest(receive), min(REST_S, most_s))
    except asyncio.TimeoutError:
        return False


async def _rest(receive: Receive) -> bool:
    size = 0
    while size < REST_BYTES:
        message = await receive()
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            return True
        size += len(message.get("body", b""))
    return False


def _check_plain(scope: Scope) -> None:
    encoding = _header(scope, b"content-encoding")
    if encoding not in (None, b"", b"identity"):
        assert encoding is not None
        said = shown(encoding.decode("latin-1"))
        raise ServeError(
            ENCODED, f"content-encoding is {said}, and this server reads plain bodies alone; send JSON as it is"
        )


def _header(scope: Scope, name: bytes) -> bytes | None:
    return next((value for key, value in scope["headers"] if key == name), None)


def _replayed(body: bytes, receive: Receive) -> Receive:
    """``receive`` for a body that has been read; then the connection's own."""
    read = False

    async def replay() -> Message:
        nonlocal read
        if read:
            return await receive()
        read = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


def _never() -> bool:
    return False
