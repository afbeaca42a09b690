"""The load of `qla bench serve`: what it counts, against a server that fails on purpose. Figures mean nothing."""

from __future__ import annotations

import asyncio
import sys
import zlib
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # bench/ is no part of an installed package
from bench.load import CLOSED, Load, request  # noqa: E402


def load(*, fail_every: int, **options) -> tuple:
    """What a load sees of a server that echoes and leaves out answers, and how many requests came."""
    served = 0

    async def answer(reader, writer):
        nonlocal served
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.split(b"content-length: ")[1].split(b"\r\n")[0])
                body = await reader.readexactly(length)
                served += 1
                if served % fail_every == 0:
                    return
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (length, body))
        except asyncio.IncompleteReadError:
            return
        finally:
            writer.close()

    async def run():
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        address = server.sockets[0].getsockname()[:2]
        return await Load(address, [request("/", b"a"), request("/", b"bb")], **options).run(0.3)

    return asyncio.run(run()), served


def test_answers_and_what_is_lost_are_counted():
    record, served = load(fail_every=3, clients=4)
    assert set(record.statuses) == {200, CLOSED}
    assert sum(record.statuses.values()) == pytest.approx(served, abs=8)
    assert record.statuses[200] == pytest.approx(2 * record.statuses[CLOSED], abs=8)
    assert record.sums == {0: {zlib.crc32(b"a")}, 1: {zlib.crc32(b"bb")}}
    assert record.per_second == record.statuses[200] / record.took
    assert 0 < record.quantile(0.5) <= record.quantile(0.99)


def test_an_open_loop_begins_as_many_as_it_says():
    record, served = load(fail_every=10**9, clients=8, per_second=500.0)
    assert served == pytest.approx(150, abs=15)
    assert record.statuses == {200: served}
