"""Closing an engine: its memory goes, later calls say so, and calls under way end as usual."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
from package_tools import tiny_package

from qla_runtime import Engine, InputError
from qla_runtime.lifetime import Lifetime
from qla_runtime.trace import trace

KINDS = ("span-qa", "sequence-classification", "token-classification", "embedding")
TEXTS = [f"text number {i}" for i in range(200)]


@pytest.fixture
def package(tmp_path) -> Path:
    return tiny_package("embedding").save(tmp_path / "package")


def mapped(package: Path) -> bool:
    """Whether this process maps the package's weights."""
    return str(package / "model.safetensors") in Path("/proc/self/maps").read_text()


def test_the_memory_is_unmapped(package):
    engine = Engine(package)
    vector = engine.encode("ada")
    assert mapped(package) and not engine.closed
    engine.close()
    assert not mapped(package) and engine.closed
    engine.close()
    assert vector.shape == (64,) and np.isfinite(vector).all(), "results are the caller's"
    assert engine.name and engine.task == "embedding" and "tiny" in repr(engine)


def test_the_last_reference_closes_too(package):
    """There is no cycle that would keep the memory until a garbage collection."""
    Engine(package).encode("ada")
    assert not mapped(package)


def test_with(package):
    with Engine(package) as engine:
        engine.encode("ada")
    assert engine.closed and not mapped(package)
    with pytest.raises(InputError, match="closed"), engine:
        pass
    with pytest.raises(ZeroDivisionError), Engine(package) as engine:
        raise ZeroDivisionError
    assert engine.closed and not mapped(package)


def test_later_calls_say_so(tmp_path):
    calls = {
        "span-qa": [lambda e: e.answer("who?", "ada"), lambda e: trace(e, "who?", "ada")],
        "sequence-classification": [lambda e: e.classify("ada")],
        "token-classification": [lambda e: e.tag("ada")],
        "embedding": [lambda e: e.encode("ada"), lambda e: e.encode([])],
    }
    every = [
        lambda e: e.forward([[1, 2]]),
        lambda e: e.explain(),
        lambda e: e.warm_up(),
        lambda e: e.lengths,
        lambda e: e.cost_model,
    ]
    for kind in KINDS:
        engine = Engine(tiny_package(kind).save(tmp_path / kind))
        engine.close()
        for call in calls[kind] + every:
            with pytest.raises(InputError, match=r"the engine is closed.*open it again with Engine\(path\)"):
                call(engine)


def test_a_call_under_way_in_another_thread_ends_as_usual(package):
    expected = Engine(package).encode(TEXTS)
    engine = Engine(package)
    inside, closed = threading.Event(), threading.Event()
    found: list[np.ndarray] = []

    def wait(_: int) -> None:
        inside.set()
        assert closed.wait(60)

    caller = threading.Thread(target=lambda: found.append(engine.encode(TEXTS, progress=wait)))
    caller.start()
    assert inside.wait(60)
    engine.close()
    assert engine.closed and mapped(package)
    with pytest.raises(InputError, match="closed"):
        engine.encode("ada")
    closed.set()
    caller.join(60)
    assert np.array_equal(found[0], expected)
    assert not mapped(package)


def test_a_call_that_closes_its_own_engine_ends_as_usual(package):
    engine = Engine(package)
    expected = engine.encode(TEXTS)
    assert np.array_equal(engine.encode(TEXTS, progress=lambda _: engine.close()), expected)
    assert engine.closed and not mapped(package)


def test_a_call_that_fails_does_not_keep_the_engine(package):
    engine = Engine(package)

    def fail(_: int) -> None:
        engine.close()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        engine.encode(TEXTS, progress=fail)
    assert not mapped(package)


def test_a_forked_child_closes_although_calls_of_its_parent_run(package):
    """The calls of other threads do not go on in the child: nothing keeps the memory there."""
    engine = Engine(package)
    inside, forked = threading.Event(), threading.Event()

    def wait(_: int) -> None:
        inside.set()
        assert forked.wait(60)

    caller = threading.Thread(target=lambda: engine.encode(TEXTS, progress=wait))
    caller.start()
    assert inside.wait(60)
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        engine.encode("ada")
        engine.close()
        os._exit(int(mapped(package)))
    forked.set()
    caller.join(60)
    assert os.waitpid(child, 0)[1] == 0
    engine.close()
    assert not mapped(package)


def test_a_call_that_forks_closes_in_both_processes(package):
    """The call of the thread that forks goes on in both."""
    engine, children = Engine(package), []

    def fork(_: int) -> None:
        if not children:
            children.append(os.fork())
            engine.close()
            assert mapped(package), "the call is running"

    engine.encode(TEXTS, progress=fork)
    if children[0] == 0:
        os._exit(int(mapped(package)))
    assert os.waitpid(children[0], 0)[1] == 0 and not mapped(package)


def test_a_call_that_is_part_of_a_running_one_is_not_refused():
    life = Lifetime()
    assert not life.enter()
    assert not life.close(), "a call is running"
    assert not life.enter(), "made by the running call"
    assert not life.leave()
    assert life.leave(), "the last one of a closed engine"
    assert life.enter(), "refused from now on"
