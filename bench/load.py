"""A cheap HTTP client for load: closed loop (each client sends when it has its answer) or open loop (at a rate).

It shares the machine with the server that it measures, so it does little: requests are bytes that were made
before, and of a response it reads the status, the length and the body's checksum.
"""

from __future__ import annotations

import asyncio
import time
import zlib
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field

CLOSED = 0
"""The status of a request whose connection ended before its answer."""


@dataclass
class Record:
    """What a load saw.

    Attributes:
        seconds: of each answered request.
        statuses: how many answers had which status.
        sums: per request the checksums of its answers with status 200; more than one says that answers differ.
        took: seconds of the whole load.
    """

    seconds: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    sums: dict[int, set[int]] = field(default_factory=dict)
    took: float = 0.0

    @property
    def per_second(self) -> float:
        """Answers with status 200 per second."""
        return self.statuses[200] / self.took

    def quantile(self, share: float) -> float:
        """Seconds within which this share of the requests had its answer."""
        ordered = sorted(self.seconds)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def request(path: str, body: bytes) -> bytes:
    """A request as bytes."""
    head = f"POST {path} HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


class Client(asyncio.Protocol):
    """One connection, which has one request under way at a time."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._buffer = b""
        self._number = -1
        self._sent = 0.0
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        self._load.idle(self)

    def send(self, number: int, due: float) -> None:
        """Sends a request; its time counts from ``due``."""
        assert self.transport is not None
        self._number, self._sent, self._buffer = number, due, b""
        self.transport.write(self._load.requests[number])

    def data_received(self, data: bytes) -> None:
        self._buffer = self._buffer + data if self._buffer else data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        at = self._buffer.find(b"content-length: ")
        length = int(self._buffer[at + 16 : self._buffer.find(b"\r", at)])
        if len(self._buffer) < end + 4 + length:
            return
        now = time.perf_counter()
        body, status = self._buffer[end + 4 :], int(self._buffer[9:12])
        closes = b"connection: close" in self._buffer[:end]
        number, self._number = self._number, -1
        self._load.answered(number, status, body, now - self._sent)
        if closes:
            self.transport.close()  # type: ignore[union-attr]
        else:
            self._load.idle(self)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._number >= 0:
            self._load.answered(self._number, CLOSED, b"", 0.0)
        self._number = -1
        self._load.lost(self)


class Load:
    """Requests in turn, from some clients.

    Args:
        address: host and port.
        requests: as :func:`request` makes them.
        clients: connections.
        per_second: requests that begin per second, whether earlier ones are answered or not; None: each client
            begins one when it has its answer.
    """

    def __init__(
        self, address: tuple[str, int], requests: Sequence[bytes], clients: int, per_second: float | None = None
    ) -> None:
        self._address, self.requests = address, requests
        self._clients, self._per_second = clients, per_second
        self._idle: deque[Client] = deque()
        self._due: deque[float] = deque()
        self._next = 0
        self._begins = True
        self._under_way = 0
        self._counting = False
        self.record = Record()

    async def run(self, seconds: float, warm_up: float = 0.0) -> Record:
        """Sends for so long after the warm-up, and waits for all answers."""
        loop = asyncio.get_running_loop()
        for _ in range(self._clients):
            await loop.create_connection(lambda: Client(self), *self._address)
        await asyncio.sleep(warm_up)
        began = time.perf_counter()
        self._counting = True
        if self._per_second is None:
            await asyncio.sleep(seconds)
        else:
            await self._pace(self._per_second, began + seconds)
        self.record.took = time.perf_counter() - began
        if self._per_second is None:
            self._counting = False
        self._begins = False
        while self._under_way or (self._due and self._idle):
            await asyncio.sleep(0.01)
        for client in self._idle:
            if client.transport is not None:
                client.transport.close()
        return self.record

    async def _pace(self, per_second: float, end: float) -> None:
        due = time.perf_counter()
        while due < end:
            now = time.perf_counter()
            while due <= now:
                self._due.append(due)
                due += 1 / per_second
            while self._due and self._idle:
                self._send(self._idle.popleft(), self._due.popleft())
            await asyncio.sleep(max(0.0005, due - time.perf_counter()))

    def idle(self, client: Client) -> None:
        """A client has its answer."""
        if self._per_second is None and self._begins:
            self._send(client, time.perf_counter())
        elif self._due:
            self._send(client, self._due.popleft())
        else:
            self._idle.append(client)

    def answered(self, number: int, status: int, body: bytes, seconds: float) -> None:
        """A request is over."""
        self._under_way -= 1
        if status == 200:
            self.record.sums.setdefault(number, set()).add(zlib.crc32(body))
        if self._counting:
            self.record.statuses[status] += 1
            self.record.seconds.append(seconds)

    def lost(self, client: Client) -> None:
        """A connection has ended; another takes its place."""
        if client in self._idle:
            self._idle.remove(client)
        if self._begins:
            task = asyncio.get_running_loop().create_task(self._connect())
            self._tasks = {task, *getattr(self, "_tasks", ())}

    async def _connect(self) -> None:
        try:
            await asyncio.get_running_loop().create_connection(lambda: Client(self), *self._address)
        except OSError:
            return

    def _send(self, client: Client, due: float) -> None:
        number, self._next = self._next, (self._next + 1) % len(self.requests)
        self._under_way += 1
        client.send(number, due)
