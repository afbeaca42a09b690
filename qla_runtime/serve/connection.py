"""One connection of a client."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from qla_runtime.serve.limits import GONE


class Protocol(HttpToolsProtocol):
    """uvicorn's HTTP connection, which also knows since when it waits for a request, and whether its client left.

    Attributes:
        waits_since: when the request began whose end has not come, as the event loop's clock says; None while
            there is none.
        lost: whether the client has left.
    """

    waits_since: float | None = None
    lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client connects: its first request should come."""
        super().connection_made(transport)  # type: ignore[arg-type]
        self.waits_since = self.loop.time()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has left."""
        self.lost = True
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        """The first line of a request comes."""
        if self.waits_since is None:
            self.waits_since = self.loop.time()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """The head of a request is there."""
        self.scope[GONE] = self._is_lost  # type: ignore[literal-required]
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """A request is there."""
        self.waits_since = None
        super().on_message_complete()

    def _is_lost(self) -> bool:
        return self.lost

    def give_up(self) -> None:
        """Closes the connection, because its request takes too long to come."""
        if self.waits_since is not None and self.cycle is not None and not self.cycle.response_started:
            self.transport.write(_timeout())
        self.transport.close()


def _timeout() -> bytes:
    body = b'{"error":"the request took too long to come; send it again","error_type":"Timeout"}'
    head = "HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body
