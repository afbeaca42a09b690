"""Several processes that serve one socket."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING

from prometheus_client.multiprocess import mark_process_dead

from qla_runtime.errors import QlaError
from qla_runtime.serve.listener import let_in_no_more
from qla_runtime.serve.options import ServeOptions
from qla_runtime.serve.process import SIGNALS, opened, run

if TYPE_CHECKING:
    from multiprocessing.context import SpawnProcess

RESTART_S = 1.0
"""Seconds until a worker that died is replaced."""


class Workers:
    """Processes that serve one listening socket. One that dies is replaced.

    Args:
        packages: as for :func:`qla_runtime.serve.lifecycle.serve`.
        options: as for :func:`qla_runtime.serve.lifecycle.serve`.
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
    run(models, options, listener, lambda: parent.send("serving"), alone=False)


def _leave_with(parent: Connection) -> None:
    """Stops this worker when its parent is gone."""
    with contextlib.suppress(EOFError, OSError):
        parent.recv()
    os.kill(os.getpid(), signal.SIGTERM)
