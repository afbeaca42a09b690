"""A running server for tests of its routes, and a client that knows no protocol but HTTP and JSON."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import uvicorn

from qla_runtime import Engine
from qla_runtime.serve import create_app
from qla_runtime.serve.options import ServeOptions
from qla_runtime.serve.served import Models


@dataclass(frozen=True)
class Response:
    status: int
    headers: dict[str, str]
    content: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.content)


@dataclass(frozen=True)
class Running:
    """A server, and the engines behind it."""

    port: int
    engines: Mapping[str, Engine]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def send(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Response:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, {"content-type": "application/json", **headers})
            found = connection.getresponse()
            return Response(found.status, {k.lower(): v for k, v in found.getheaders()}, found.read())
        finally:
            connection.close()

    def post(self, path: str, body: Any, **headers: str) -> Response:
        return self.send("POST", path, json.dumps(body).encode(), **headers)

    def get(self, path: str) -> Response:
        return self.send("GET", path)

    def ok(self, path: str, body: Any) -> Any:
        """The JSON of a response that must be a result."""
        found = self.post(path, body)
        assert found.status == 200, found.content
        return found.json


@contextmanager
def running(engines: Mapping[str, Engine], **options: Any) -> Iterator[Running]:
    """A server on a free port, in threads of this process."""
    chosen = ServeOptions(port=0, **options)
    models = Models(dict(engines), chosen)
    config = uvicorn.Config(create_app(models, chosen), port=0, log_level="warning", lifespan="off", ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            time.sleep(0.005)
        yield Running(server.servers[0].sockets[0].getsockname()[1], engines)
    finally:
        server.should_exit = True
        thread.join()
        models.close()
