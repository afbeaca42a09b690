"""One process that serves: its models, and how it begins, drains and stops."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Mapping

import uvicorn

from qla_runtime.engine import Engine
from qla_runtime.errors import InputError
from qla_runtime.serve import create_app
from qla_runtime.serve.connection import Protocol
from qla_runtime.serve.listener import let_in_no_more
from qla_runtime.serve.options import ServeOptions
from qla_runtime.serve.served import Models

SIGNALS = (signal.SIGINT, signal.SIGTERM)

KEEP_ALIVE_S = 75
"""Seconds for which an idle connection stays open. Clients keep theirs for 60 at most, as a rule, so that none is
closed under a request."""

LAST_WORDS_S = 0.25
"""Seconds for connections that came just before the end of listening to be accepted, and again for what is on its
way on them."""

GRACE_S = 60
"""Seconds for responses that clients are slow to read, once the server stops."""

SWITCH_S = 5e-4
"""Python's switch interval. A runner that comes back from the engine waits for the event loop for so long at most;
the default is 5 ms."""


def opened(packages: Mapping[str, str | None], options: ServeOptions) -> Models:
    """The models of one worker, warmed up, with their share of the threads."""
    engines: dict[str, Engine] = {}
    for name, package in packages.items():
        engine = Engine.from_pretrained(package, num_threads=options.threads, streams=options.streams)
        share = max(1, engine.num_threads // (options.workers * options.streams))
        if share != engine.num_threads:
            engine = Engine.from_pretrained(package, num_threads=share, streams=options.streams)
        called = name or engine.name
        if called in engines:
            raise InputError(f"two models are called {called!r}; name them apart, as in NAME=PACKAGE")
        engine.warm_up()
        engines[called] = engine
    return Models(engines, options)


def run(
    models: Models, options: ServeOptions, listener: socket.socket, started: Callable[[], object], *, alone: bool
) -> None:
    """Serves until a signal comes, and everything that was accepted is answered.

    Args:
        models: what is served; closed in the end.
        options: of the server.
        listener: the socket.
        started: is called once the server listens.
        alone: whether no other process accepts connections from the same socket.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # requests are many; each is tokenized by one thread
    sys.setswitchinterval(SWITCH_S)
    config = uvicorn.Config(
        create_app(models, options),
        http=Protocol,
        loop="uvloop",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=GRACE_S,
    )
    try:
        Server(config, models, options, started, alone).run(sockets=[listener])
    finally:
        models.close()


class Server(uvicorn.Server):
    """uvicorn's server, which drains before it stops and gives up on slow clients.

    Args:
        config: of uvicorn.
        models: of the server.
        options: of the server.
        started: is called once the server listens.
        alone: whether no other process accepts connections from the same socket.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        models: Models,
        options: ServeOptions,
        started: Callable[[], object],
        alone: bool,
    ) -> None:
        super().__init__(config)
        self._models, self._options, self._tell, self._alone = models, options, started, alone

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals stop the server, and do not end the process with their own status."""
        loop = asyncio.get_running_loop()
        heard = SIGNALS if self._alone else (signal.SIGTERM,)  # a worker is told by its parent
        for each in heard:
            loop.add_signal_handler(each, self.stop)
        try:
            yield
        finally:
            for each in heard:
                loop.remove_signal_handler(each)

    def stop(self) -> None:
        """Begins to drain; a second call ends the server at once."""
        if self._models.stopping:
            self.should_exit = self.force_exit = True
            return
        self._models.stopping = True
        asyncio.get_running_loop().call_later(self._options.drain_s, self._end)

    def _end(self) -> None:
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listens, and says so."""
        await super().startup(sockets)
        self._tell()

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second."""
        latest = asyncio.get_running_loop().time() - self._options.read_timeout_s
        for connection in list(self.server_state.connections):
            assert isinstance(connection, Protocol)
            if connection.waits_since is not None and connection.waits_since < latest:
                connection.give_up()
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stops listening first. A request that is on its way by then is still answered."""
        if self.force_exit:
            return await super().shutdown(sockets)
        if self._alone:
            for listener in sockets or ():
                let_in_no_more(listener)
        await asyncio.sleep(LAST_WORDS_S)
        for server in self.servers:
            server.close()
        await asyncio.sleep(LAST_WORDS_S)
        await super().shutdown(sockets)
