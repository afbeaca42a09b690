"""Calls that are cut short: by Ctrl-C, by the interpreter's exit, by close(), by fork()."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import package_tools
import pytest
import raw

from qla_runtime import Engine, InputError, _core

TESTS = Path(__file__).parent
SOON = 2.0
"""Seconds between a signal and the end of what it interrupts, on a machine that runs other tests too."""


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> str:
    package = package_tools.tiny_package(hidden=128, heads=4, layers=3, max_positions=512)
    return str(package.save(tmp_path_factory.mktemp("package")))


def script(text: str, *arguments: str) -> subprocess.Popen:
    """A Python program that can import the test tools."""
    preamble = f"import sys\nsys.path.insert(0, {str(TESTS)!r})\n"
    return subprocess.Popen(
        [sys.executable, "-c", preamble + textwrap.dedent(text), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(process: subprocess.Popen, seconds: float = 60) -> str:
    """Standard output of a program that must end well, and in time."""
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        pytest.fail(f"still running after {seconds} s: {process.communicate()[1]}")
    assert process.returncode == 0, f"exit status {process.returncode}: {err}"
    return out


# ---- the interpreter's exit ------------------------------------------------------------------------


@pytest.mark.parametrize("threads, streams", [(1, 1), (2, 1), (1, 2)])
def test_daemon_threads_inside_calls_do_not_disturb_the_exit(path, threads, streams):
    """Some wait for their turn, some for the GIL, some compute."""
    processes = [
        script(
            """
            import threading, time
            from qla_runtime import Engine
            engine = Engine(sys.argv[1], num_threads=int(sys.argv[2]), streams=int(sys.argv[3]))
            def work():
                while True:
                    engine.forward([[1] * 100] * 4)
            for _ in range(3):
                threading.Thread(target=work, daemon=True).start()
            time.sleep(0.1)
            """,
            path, str(threads), str(streams),
        )
        for _ in range(7)
    ]  # fmt: skip
    for process in processes:
        finished(process)


@pytest.mark.parametrize("call", ["_core.Engine(sys.argv[1]).close()", "_core.top_spans(*SEARCH)"])
def test_daemon_threads_in_native_calls_do_not_disturb_the_exit(path, call):
    processes = [
        script(
            f"""
            import threading, time
            import numpy as np
            from qla_runtime import _core
            TOKENS = 400
            SEARCH = (
                np.zeros((TOKENS, 2), np.float32), np.ones(TOKENS, np.uint8), np.array([0, TOKENS], np.int64),
                np.array([0, 1], np.int64), np.array([0], np.int64), 30, 1, 0,
            )
            def work():
                while True:
                    {call}
            for _ in range(3):
                threading.Thread(target=work, daemon=True).start()
            time.sleep(0.1)
            """,
            path,
        )
        for _ in range(5)
    ]
    for process in processes:
        finished(process)


# ---- Ctrl-C ----------------------------------------------------------------------------------------


@pytest.fixture
def interrupted():
    """Interrupts this thread after a delay; gives the seconds from the signal to the KeyboardInterrupt."""

    def measure(call, delay: float = 0.3) -> float:
        sent = []

        def send() -> None:
            sent.append(time.perf_counter())
            os.kill(os.getpid(), signal.SIGINT)

        timer = threading.Timer(delay, send)
        with pytest.raises(KeyboardInterrupt):
            timer.start()
            call()
        late = time.perf_counter() - sent[0]
        timer.join()
        return late

    return measure


@pytest.mark.parametrize("threads", [1, 2])
def test_ctrl_c_ends_a_long_native_call(path, interrupted, threads):
    engine = _core.Engine(path, num_threads=threads)
    small = raw.random_batch([30, 7], 101, 2)
    want = raw.run(engine, small)["last_hidden"].tobytes()
    batch = raw.random_batch([512] * 5_000, 101, 2)  # many chunks, a minute or more
    assert interrupted(lambda: raw.run(engine, batch, want={"logits"})) < SOON
    assert raw.run(engine, small)["last_hidden"].tobytes() == want


def test_ctrl_c_ends_a_long_chunk(tmp_path, interrupted):
    """A chunk has 4,096 tokens; on the reference kernels a few layers of a wide model take many seconds for it."""
    package = package_tools.tiny_package(hidden=512, heads=8, layers=3, intermediate=2048, max_positions=512)
    engine = _core.Engine(str(package.save(tmp_path)), num_threads=2, isa="ref")
    batch = raw.random_batch([512] * 8, 101, 2)
    assert interrupted(lambda: raw.run(engine, batch, want={"logits"})) < SOON


def test_ctrl_c_ends_a_long_call_over_texts(interrupted):
    engine = Engine.from_pretrained()
    context = "Ann came to Oslo on Monday. " * 400
    assert interrupted(lambda: engine.answer(["who came?"] * 1000, [context] * 1000), 1.0) < 3 * SOON
    assert engine.answer("Who came?", "Ann came to Oslo on Monday.")["answer"] == "Ann"


def test_ctrl_c_ends_the_wait_for_a_turn(path, interrupted):
    engine = _core.Engine(path, num_threads=1, streams=1)
    batch = raw.random_batch([512] * 40, 101, 2)
    busy = threading.Event()

    def occupy() -> None:
        while not busy.is_set():
            raw.run(engine, batch, want={"logits"})

    holders = [threading.Thread(target=occupy) for _ in range(3)]
    for holder in holders:
        holder.start()
    try:
        waiting = raw.random_batch([512] * 5_000, 101, 2)
        assert interrupted(lambda: raw.run(engine, waiting, want={"logits"})) < SOON
    finally:
        busy.set()
        for holder in holders:
            holder.join()


def test_a_signal_handler_that_returns_does_not_end_the_call(path):
    engine = _core.Engine(path, num_threads=1)
    batch = raw.random_batch([512] * 200, 101, 2)
    want = raw.run(engine, batch, want={"logits"})["logits"].tobytes()
    calls = []
    before = signal.signal(signal.SIGALRM, lambda *_: calls.append(time.perf_counter()))
    signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
    try:
        got = raw.run(engine, batch, want={"logits"})["logits"].tobytes()
        ended = time.perf_counter()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert got == want
    assert calls and calls[0] < ended, "the handler ran during the call"


def test_a_signal_handler_that_calls_the_busy_engine_is_refused(path):
    """It would wait for the call that it interrupts."""
    engine = _core.Engine(path, num_threads=1)
    small = raw.random_batch([5], 101, 2)

    def handler(*_: object) -> None:
        raw.run(engine, small)

    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
    try:
        with pytest.raises(InputError, match="called from inside one of its own calls"):
            raw.run(engine, raw.random_batch([512] * 5_000, 101, 2), want={"logits"})
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert np.isfinite(raw.run(engine, small)["logits"]).all()


def test_calls_on_other_threads_go_on_when_the_main_thread_is_interrupted(path, interrupted):
    engine = _core.Engine(path, num_threads=1, streams=2)
    batch = raw.random_batch([512] * 80, 101, 2)
    want = raw.run(engine, batch, want={"logits"})["logits"].tobytes()
    results = []
    other = threading.Thread(
        target=lambda: results.append(raw.run(engine, batch, want={"logits"})["logits"].tobytes())
    )
    other.start()
    interrupted(lambda: raw.run(engine, raw.random_batch([512] * 5_000, 101, 2), want={"logits"}), 0.1)
    other.join()
    assert results == [want]


def test_ctrl_c_ends_a_long_call_in_a_child_forked_by_another_thread(path):
    """The forking thread is the child's main thread."""
    process = script(
        """
        import os, signal, threading, time, warnings
        import raw
        from qla_runtime import _core
        warnings.simplefilter("ignore", DeprecationWarning)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        engine = _core.Engine(sys.argv[1], num_threads=1)
        def fork():
            child = os.fork()
            if child == 0:
                signal.setitimer(signal.ITIMER_REAL, 0.5)
                try:
                    raw.run(engine, raw.random_batch([512] * 50_000, 101, 2), want={"logits"})
                except KeyboardInterrupt:
                    os._exit(0)
                os._exit(1)
            print(os.waitpid(child, 0)[1])
        signal.signal(signal.SIGALRM, signal.default_int_handler)
        thread = threading.Thread(target=fork)
        thread.start()
        thread.join()
        """,
        path,
    )
    assert finished(process) == "0\n"


# ---- close -----------------------------------------------------------------------------------------


def test_a_closed_engine_refuses_calls(path):
    engine = _core.Engine(path)
    assert not engine.closed
    engine.close()
    engine.close()
    assert engine.closed
    for call in (engine.explain, lambda: engine.config_json, lambda: raw.run(engine, raw.random_batch([5], 101))):
        with pytest.raises(InputError, match="the engine is closed"):
            call()
    assert engine.info["layers"] == 3


def test_closing_lets_running_calls_finish(path):
    engine = _core.Engine(path, num_threads=2)
    batch = raw.random_batch([512] * 40, 101, 2)
    want = raw.run(engine, batch, want={"logits"})["logits"].tobytes()
    results, begun = [], threading.Event()

    def call() -> None:
        begun.set()
        try:
            results.append(raw.run(engine, batch, want={"logits"})["logits"].tobytes())
        except InputError:
            results.append(want)  # closed before it began

    callers = [threading.Thread(target=call) for _ in range(3)]
    for caller in callers:
        caller.start()
    begun.wait()
    engine.close()
    for caller in callers:
        caller.join()
    assert results == [want] * 3


# ---- fork ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads, streams", [(1, 1), (2, 1), (2, 2)])
def test_fork_in_the_middle_of_other_threads_calls(path, threads, streams):
    """The child has copies of locks whose holders it lacks; it answers, and opens engines, all the same."""
    process = script(
        """
        import os, threading, time, warnings
        import raw
        from qla_runtime import _core
        warnings.simplefilter("ignore", DeprecationWarning)  # fork with threads: what is tested
        path, threads, streams = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
        engine = _core.Engine(path, num_threads=threads, streams=streams)
        batch = raw.random_batch([9, 100, 33], 101, 2)
        want = raw.run(engine, batch)["last_hidden"].tobytes()
        done = threading.Event()
        def calls():
            while not done.is_set():
                raw.run(engine, batch)
        def opens():
            while not done.is_set():
                _core.Engine(path, num_threads=threads)
        for target in (calls, calls, calls, opens):
            threading.Thread(target=target).start()
        for _ in range(30):
            time.sleep(0.003)
            child = os.fork()
            if child == 0:
                same = raw.run(engine, batch)["last_hidden"].tobytes() == want
                fresh = raw.run(_core.Engine(path), batch)["last_hidden"].tobytes() == want
                os._exit(0 if same and fresh else 1)
            deadline = time.monotonic() + 30
            while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < deadline:
                time.sleep(0.001)
            if ended == (0, 0):
                os.kill(child, 9)
                os.waitpid(child, 0)
            if ended != (child, 0):
                print("the child", "hangs" if ended == (0, 0) else f"ends with {ended[1]}", file=sys.stderr)
                os._exit(1)
        done.set()
        """,
        path, str(threads), str(streams),
    )  # fmt: skip
    finished(process, 300)
