"""One line of JSON for every request, for ``--log-requests``."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from typing import Any

import orjson

FIGURES = (b"x-qla-", b"x-compute-", b"x-tokenization-", b"x-queue-", b"x-inference-")
"""Response headers that go into the line, under their names without ``x-``."""


def write(
    scope: Any, status: int | None, headers: Iterable[tuple[bytes, bytes]], seconds: float, received: int
) -> None:
    """Writes the line of a request to standard output.

    Args:
        scope: of the request.
        status: of the response; None where the client left before it.
        headers: of the response.
        seconds: from the request's head to the end of its response.
        received: bytes of its body.
    """
    line = {
        "time": round(time.time(), 3),
        "client": (scope.get("client") or [None])[0],
        "method": scope["method"],
        "path": scope["path"],
        "status": status,
        "ms": round(1e3 * seconds, 3),
        "bytes": received,
    }
    for name, value in headers:
        if name.startswith(FIGURES):
            line[name[2:].decode()] = _plain(value.decode("latin-1"))
    sys.stdout.buffer.write(orjson.dumps(line) + b"\n")  # one write, so that lines of workers do not mix
    sys.stdout.buffer.flush()


def _plain(value: str) -> int | str:
    return int(value) if value.isdigit() else value
