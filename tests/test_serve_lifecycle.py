"""How a server starts and ends: draining, workers that die, and what keeps it from starting."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import serve_tools
from serve_tools import EMBEDDER, Served

SECONDS = 30


class Caller(threading.Thread):
    """A client that sends one request after another on one connection, until the server says good-bye.

    Attributes:
        bodies: of all answers.
        lost: errors of requests that were on their way.
    """

    def __init__(self, served: Served) -> None:
        super().__init__(daemon=True)
        self.served = served
        self.bodies: list[bytes] = []
        self.lost: list[Exception] = []

    def run(self) -> None:
        connection = self.served.connect()
        while True:
            try:
                connection.connect() if connection.sock is None else None
            except OSError:
                return  # it listens no more
            try:
                answer = serve_tools.exchange(connection, "POST", "/embed", {"inputs": "the same text"})
            except (OSError, http.client.HTTPException) as error:
                self.lost.append(error)
                connection.close()
                continue
            self.bodies.append(answer.body if answer.status == 200 else b"")
            if answer.headers.get("connection") == "close":
                connection.close()


def children(pid: int) -> list[int]:
    """Processes that a process has started, and that live."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def workers(served: Served) -> list[int]:
    return [pid for pid in children(served.process.pid) if "spawn_main" in command_line(pid)]


def command_line(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text()
    return ""


def wait_until(holds, what: str) -> None:
    end = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < end, what
        time.sleep(0.02)


# ---------------------------------------------------------------------------------------------- the end


@pytest.mark.parametrize("more", [(), ("--workers", "2")], ids=["one process", "two workers"])
def test_sigterm_under_load_loses_nothing(more):
    with serve_tools.running(EMBEDDER, "--drain-s", "0.5", *more) as served:
        callers = [Caller(served) for _ in range(8)]
        for caller in callers:
            caller.start()
        wait_until(lambda: all(len(caller.bodies) > 5 for caller in callers), "no answers")
        assert served.terminate() == 0
        for caller in callers:
            caller.join(SECONDS)
        assert [caller.lost for caller in callers] == [[]] * 8
        assert len({body for caller in callers for body in caller.bodies}) == 1


def test_not_ready_while_it_drains():
    with serve_tools.running(EMBEDDER, "--drain-s", "1.5") as served:
        assert served.get("/ready").status == 200
        served.process.send_signal(signal.SIGTERM)
        wait_until(lambda: served.get("/ready").status == 503, "it stays ready")
        found = served.embed("a request that comes late")
        assert found.status == 200 and found.headers["connection"] == "close"
        assert served.get("/health").status == 200
        assert served.process.wait(SECONDS) == 0


@pytest.mark.slow
def test_a_second_signal_ends_it_at_once():
    with serve_tools.running(EMBEDDER, "--drain-s", "60") as served:
        served.process.send_signal(signal.SIGINT)
        wait_until(lambda: served.get("/ready").status == 503, "it stays ready")
        began = time.monotonic()
        assert served.terminate() == 0
        assert time.monotonic() - began < 10


# --------------------------------------------------------------------------------------------- workers


def test_a_killed_worker_is_replaced():
    with serve_tools.running(EMBEDDER, "--workers", "2", "--drain-s", "0") as served:
        expected = served.embed("a text").body
        first, second = workers(served)
        os.kill(first, signal.SIGKILL)
        answers = [answer for _ in range(20) if (answer := asked(served)) is not None]
        assert len(answers) >= 19, "a connection may have been the dead worker's; others are the second's"
        assert set(answers) == {expected}
        wait_until(lambda: len(workers(served)) == 2, "no new worker")
        os.kill(second, signal.SIGKILL)
        wait_until(lambda: asked(served) == expected, "the new worker does not serve")
        assert any(f"worker {first} ended with status -9" in line for line in served.errors)


def asked(served: Served) -> bytes | None:
    with contextlib.suppress(OSError, http.client.HTTPException):
        return served.embed("a text").body
    return None


@pytest.mark.slow
def test_workers_share_the_weights():
    with serve_tools.running(EMBEDDER, "--workers", "2", "--drain-s", "0") as served:
        for worker in workers(served):
            mapped = [
                line for line in Path(f"/proc/{worker}/maps").read_text().splitlines() if "safetensors" in line
            ]
            assert mapped and all(line.split()[1].startswith("r--") for line in mapped)


@pytest.mark.slow
def test_workers_leave_with_their_parent():
    with serve_tools.running(EMBEDDER, "--workers", "2", "--drain-s", "0") as served:
        left = workers(served)
        served.process.kill()
        wait_until(lambda: not any("spawn_main" in command_line(pid) for pid in left), "they stay")


def test_metrics_are_of_all_workers():
    with serve_tools.running(EMBEDDER, "--workers", "2", "--drain-s", "0") as served:
        for i in range(20):
            assert served.embed(f"text {i}").status == 200
        wait_until(lambda: served.metric("te_request_success") == 20, "requests are missing")


# ------------------------------------------------------------------------------------------- no start


def failing(*arguments: str) -> str:
    command = [sys.executable, "-m", "qla_runtime.cli", "serve", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and "Traceback" not in done.stderr
    return done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(("no-such-package",), "no-such-package"),
     (("a=all-minilm-l6-v2", "a=minilm-l6-squad"), "another package is called 'a'"),
     (("all-minilm-l6-v2", "minilm-l6-squad", "--workers", "0"), "--workers is 0"),
     (("all-minilm-l6-v2", "--keep-latency", "20", "--keep-latency-floor", "quick"), "no length config of"),
     (("all-minilm-l6-v2", "--keep-latency-floor", "fast"), "without --keep-latency"),
     (("a:b=all-minilm-l6-v2",), "without a colon")],
)  # fmt: skip
def test_what_cannot_start(arguments, said):
    assert said in failing(*arguments, "--port", "0")


def test_without_the_extra():
    program = (
        "import sys; sys.modules['uvicorn'] = None; from qla_runtime.cli import main; sys.exit(main(['serve']))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "qla serve needs uvicorn" in done.stderr
    assert "pip install 'qla_runtime[serve]'" in done.stderr


def test_a_port_that_is_taken():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert "cannot be listened on (Address already in use)" in failing(
            EMBEDDER, "--port", str(taken.getsockname()[1])
        )
