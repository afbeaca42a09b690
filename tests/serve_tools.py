"""A real `qla serve` in a process of its own, for all tests of the server, and a small client."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

pytest.importorskip("starlette", reason="the server needs the extra [serve]")
pytest.importorskip("uvicorn", reason="the server needs the extra [serve]")
pytest.importorskip("prometheus_client", reason="the server needs the extra [serve]")

EMBEDDER = "all-minilm-l6-v2"
READER = "minilm-l6-squad"
START_SECONDS = 60


@dataclass
class Answer:
    """A response: its status, its headers in lower case, its body."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Served:
    """A running server."""

    process: subprocess.Popen[str]
    host: str = ""
    port: int = 0
    errors: list[str] = field(default_factory=list)  # lines of standard error

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def connect(self, timeout: float = 30.0) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(self.host, self.port, timeout=timeout)

    def get(self, path: str, headers: Mapping[str, str] | None = None) -> Answer:
        return self.ask("GET", path, None, headers)

    def post(self, path: str, body: Any, headers: Mapping[str, str] | None = None) -> Answer:
        return self.ask("POST", path, body, headers)

    def ask(self, method: str, path: str, body: Any, headers: Mapping[str, str] | None = None) -> Answer:
        """One request on a connection of its own. A body that is no bytes is sent as JSON."""
        with contextlib.closing(self.connect()) as connection:
            return exchange(connection, method, path, body, headers)

    def embed(self, inputs: Any, **fields: Any) -> Answer:
        return self.post("/embed", {"inputs": inputs, **fields})

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels."""
        lines = self.get("/metrics").body.decode().splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if re.match(rf"{name}(\{{|\s)", line))

    def terminate(self) -> int:
        """SIGTERM, and the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(START_SECONDS)


def exchange(
    connection: http.client.HTTPConnection,
    method: str,
    path: str,
    body: Any = None,
    headers: Mapping[str, str] | None = None,
) -> Answer:
    """One request on an open connection."""
    sent = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    connection.request(method, path, sent, {"content-type": "application/json", **(headers or {})})
    response = connection.getresponse()
    found = {name.lower(): value for name, value in response.getheaders()}
    return Answer(response.status, found, response.read())


@contextlib.contextmanager
def running(*arguments: str, environment: Mapping[str, str] | None = None) -> Iterator[Served]:
    """`qla serve ARGUMENTS` on a free port, until the block ends; it must then end with status 0.

    The block may end it itself.
    """
    command = [sys.executable, "-m", "qla_runtime.cli", "serve", *arguments, "--port", "0"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **(environment or {})},
    )
    served = Served(process)
    threading.Thread(target=_listen, args=(served,), daemon=True).start()
    try:
        end = time.monotonic() + START_SECONDS
        while not served.port:
            assert process.poll() is None, f"it ended with {process.returncode}: {served.errors}"
            assert time.monotonic() < end, f"not started: {served.errors}"
            time.sleep(0.01)
        yield served
        if process.poll() is None:
            assert served.terminate() == 0, served.errors
        assert not any("Traceback" in line for line in served.errors), served.errors
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def _listen(served: Served) -> None:
    assert served.process.stderr is not None
    with served.process.stderr as lines:
        for line in lines:
            served.errors.append(line)
            if found := re.match(r"serving http://(.+):(\d+)$", line.rstrip()):
                served.host, served.port = found[1], int(found[2])
