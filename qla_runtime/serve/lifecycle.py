"""How a server starts, works and ends: one process or several, and what SIGTERM does.

After SIGTERM ``/ready`` is false, and every response asks its client to close the connection. For ``drain_s``
seconds the server goes on, so that load balancers and clients with open connections can turn away without a loss.
Then it stops listening, answers what it has accepted, and exits with status 0. A second signal ends it at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import multiprocessing
import os
import signal
import socket
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING

import uvicorn
from prometheus_client.multiprocess import mark_process_dead
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from qla_runtime.engine import Engine
from qla_runtime.errors import InputError, QlaError
from qla_runtime.serve import create_app, metrics
from qla_runtime.serve.limits import GONE
from qla_runtime.serve.options import ServeOptions
from qla_runtime.serve.served import Models

if TYPE_CHECKING:
    from multiprocessing.context import SpawnProcess

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

SO_ATTACH_FILTER = 26
"""Of Linux (asm-generic/socket.h); Python has no name for it."""

RESTART_S = 1.0
"""Seconds until a worker that died is replaced."""


def serve(
    packages: Mapping[str, str | None], options: ServeOptions, announce: Callable[[str], None] | None = None
) -> None:
    """Serves until a signal ends it.

    Args:
        packages: what ``Engine.from_pretrained`` takes, by the names that clients call the models. The name
            ``""`` stands for the package's own.
        options: as on the command line.
        announce: is told the address once requests are answered.

    Raises:
        QlaError: a package cannot be opened, the address is taken, or a worker does not start.
    """
    with _listening(options) as listener:
        said = f"http://{_address(listener)}"
        if options.workers == 1:
            models = opened(packages, options)
            try:
                _run(models, options, listener, lambda: announce and announce(said), alone=True)
            finally:
                models.close()
        else:
            # What is wrong with a package is said once, and the cost model is measured while all is quiet.
            opened(packages, options).close()
            with tempfile.TemporaryDirectory(prefix="qla-metrics-") as folder:
                os.environ.setdefault(metrics.FOLDER, folder)
                Workers(packages, options, listener).run(lambda: announce and announce(said))


def opened(packages: Mapping[str, str | None], options: ServeOptions) -> Models:
    """The models of one worker, warmed up, with their share of the threads."""
    engines: dict[str, Engine] = {}
    for name, package in packages.items():
        threads = options.threads or Engine.from_pretrained(package).num_threads
        share = max(1, threads // (options.workers * options.streams))
        engine = Engine.from_pretrained(package, num_threads=share, streams=options.streams)
        called = name or engine.name
        if called in engines:
            raise InputError(f"two models are called {called!r}; name them apart, as in NAME=PACKAGE")
        engine.warm_up()
        engines[called] = engine
    return Models(engines, options)


def _run(
    models: Models, options: ServeOptions, listener: socket.socket, started: Callable[[], object], *, alone: bool
) -> None:
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
    Server(config, models, options, started, alone).run(sockets=[listener])


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


# --------------------------------------------------------------------------------------------- workers


class Workers:
    """Processes that serve one listening socket. One that dies is replaced.

    Args:
        packages: as for :func:`serve`.
        options: as for :func:`serve`.
        listener: their socket.
    """

    def __init__(self, packages: Mapping[str, str | None], options: ServeOptions, listener: socket.socket) -> None:
        self._packages, self._options, self._listener = packages, options, listener
        self._context = multiprocessing.get_context("spawn")
        self._alive: dict[SpawnProcess, Connection] = {}
        self._signals = 0
        self._stopped = 0.0

    def run(self, started: Callable[[], object]) -> None:
        """Runs them until a signal comes and all have ended.

        Raises:
            QlaError: one of the first does not start.
        """
        before = {each: signal.signal(each, self._stop) for each in SIGNALS}
        try:
            for _ in range(self._options.workers):
                self._start()
            if self._all_started():
                started()
                self._watch()
            self._join()
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)

    def _start(self) -> None:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(
            target=_work, args=(self._packages, self._options, self._listener, theirs), name="qla-worker"
        )
        process.start()
        theirs.close()
        self._alive[process] = ours
        if self._signals:  # it came before this worker was known
            process.terminate()

    def _stop(self, *_: object) -> None:
        self._signals += 1
        self._stopped = self._stopped or time.monotonic()
        for process in self._alive:
            process.terminate()

    def _all_started(self) -> bool:
        for process, pipe in list(self._alive.items()):
            while not self._signals and not pipe.poll(0.1):
                continue
            if self._signals:
                return False
            try:
                pipe.recv()
            except EOFError:
                process.join()
                self._stop()
                self._join()
                raise QlaError(
                    f"a worker ended with status {process.exitcode} before it served; start with --workers 1 to "
                    "see why"
                ) from None
        return True

    def _watch(self) -> None:
        while not self._signals:
            wait([process.sentinel for process in self._alive], timeout=0.5)
            for process in [process for process in self._alive if process.exitcode is not None]:
                if self._signals:
                    return
                print(
                    f"qla: worker {process.pid} ended with status {process.exitcode}; starting another",
                    file=sys.stderr,
                    flush=True,
                )
                self._alive.pop(process).close()
                mark_process_dead(process.pid)
                time.sleep(RESTART_S)
                if not self._signals:
                    self._start()

    def _join(self) -> None:
        """Ends the listening when the workers have drained, and waits for them."""
        drained = self._stopped + self._options.drain_s
        for process in self._alive:
            process.join(max(0.0, drained - time.monotonic()))
        let_in_no_more(self._listener)
        for process, pipe in self._alive.items():
            process.join()
            pipe.close()


def _work(
    packages: Mapping[str, str | None], options: ServeOptions, listener: socket.socket, parent: Connection
) -> None:
    """One worker, in a process of its own."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too, which passes it on as SIGTERM
    models = opened(packages, options)
    threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()
    try:
        _run(models, options, listener, lambda: parent.send("serving"), alone=False)
    finally:
        models.close()


def _leave_with(parent: Connection) -> None:
    """Stops this worker when its parent is gone."""
    with contextlib.suppress(EOFError, OSError):
        parent.recv()
    os.kill(os.getpid(), signal.SIGTERM)


# --------------------------------------------------------------------------------------------- sockets


@contextlib.contextmanager
def _listening(options: ServeOptions) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    with socket.socket(family) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((options.host, options.port))
        except OSError as error:
            raise InputError(
                f"--host {options.host} --port {options.port} cannot be listened on ({error.strerror}); give "
                "another address or port"
            ) from None
        yield listener


def let_in_no_more(listener: socket.socket) -> None:
    """Has the kernel drop whatever comes to a listening socket but not to its connections.

    To close the socket would reset connections that the kernel has made and nobody has accepted yet. After this
    none is added, so all of them can be accepted first. A client that comes later tries again after a second, and
    is then refused as from a closed port.
    """
    drop_all = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))  # BPF: return 0 bytes
    program = struct.pack("HP", 1, ctypes.addressof(drop_all))
    with contextlib.suppress(OSError):  # a system without filters: such a connection is reset
        listener.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)


def _address(listener: socket.socket) -> str:
    host, port, *_ = listener.getsockname()
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def packages_of(specs: Sequence[str]) -> dict[str, str | None]:
    """``NAME=PACKAGE`` or ``PACKAGE``, as the command line has them, for :func:`serve`.

    Raises:
        InputError: a name that occurs twice.
    """
    found: dict[str, str | None] = {}
    for spec in specs:
        name, equals, package = spec.partition("=")
        if not equals:
            name, package = "", spec
        if name in found:
            raise InputError(
                f"{spec}: another package is called {name!r}; name packages apart, as in NAME=PACKAGE"
                if name
                else f"{spec} is a second package without a name; write NAME={spec}"
            )
        found[name] = package
    return found
