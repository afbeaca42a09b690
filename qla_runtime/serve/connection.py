"""One connection of a client."""

from __future__ import annotations

import asyncio
import json

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from qla_runtime.serve.limits import GONE

MOST_HEAD = 65_536
"""Bytes of a request's first line and headers, about. The parser joins the pieces of a header one by one, so that
an endless one would take all of the processor, too."""


class Protocol(HttpToolsProtocol):
    """uvicorn's HTTP connection, which also knows since when it waits for a request, and whether its client left.

    It answers a request that asks for another protocol (``Upgrade: h2c``, as Java's client sends with each) as if
    it had not asked. uvicorn would lose the body.

    Attributes:
        waits_since: when the request began whose end has not come, as the event loop's clock says; None while
            there is none.
        lost: whether the client has left.
    """

    waits_since: float | None = None
    lost = False
    head: int | None = None
    """Bytes of the head that is on its way; None where none is."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client connects: its first request should come."""
        super().connection_made(transport)  # type: ignore[arg-type]
        self.waits_since = self.loop.time()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has left."""
        self.lost = True
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes come: a part of a request, or several requests."""
        self._unset_keepalive_if_required()
        try:
            while data:
                data = self._fed(data)
        except httptools.HttpParserError:
            message = "this is no HTTP/1.1 request; check its first line, headers and length"
            self._refuse("400 Bad Request", message)

    def _fed(self, data: bytes) -> bytes:
        """Has the parser read bytes, and gives those that it has to read then."""
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as asked:
            if not self._asks_for_another():
                raise httptools.HttpParserError("CONNECT is for proxies") from None
            version = self.parser.get_http_version().encode()
            head = [b"%s %s HTTP/%s\r\n" % (self.parser.get_method(), self.url, version)]
            head += [b"%s: %s\r\n" % header for header in self.headers if header[0] != b"upgrade"]
            self.parser = httptools.HttpRequestParser(self)  # the other one may have ended with the connection
            return b"".join([*head, b"\r\n", data[asked.args[0] :]])
        if self.head is not None:
            self.head += len(data)
            if self.head > MOST_HEAD:
                many = f"the request's first line and headers have more than {MOST_HEAD} bytes; send fewer"
                self._refuse("431 Request Header Fields Too Large", many)
        return b""

    def _asks_for_another(self) -> bool:
        """Whether the parser will stop behind the head, for another protocol to go on."""
        return self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT"

    def on_message_begin(self) -> None:
        """The first line of a request comes."""
        self.head = 0
        if self.waits_since is None:
            self.waits_since = self.loop.time()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """The head of a request is there."""
        self.head = None
        if self._asks_for_another():
            return
        self.scope[GONE] = self._is_lost  # type: ignore[literal-required]
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """A request is there."""
        if self._asks_for_another():
            return
        self.waits_since = None
        super().on_message_complete()

    def _is_lost(self) -> bool:
        return self.lost

    def give_up(self) -> None:
        """Closes the connection, because its request takes too long to come."""
        if self.waits_since is not None and self.cycle is not None and not self.cycle.response_started:
            self._refuse("408 Request Timeout", "the request took too long to come; send it again", "Timeout")
        self.transport.close()

    def _refuse(self, status: str, message: str, kind: str = "Validation") -> None:
        """Answers as text-embeddings-inference does, because no path is known, and closes the connection."""
        body = json.dumps({"error": message, "error_type": kind}, separators=(",", ":")).encode()
        head = f"HTTP/1.1 {status}\r\nconnection: close\r\ncontent-type: application/json\r\n"
        self.transport.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        self.transport.close()
