"""Teams and streams: callers side by side, callers in line, and life after fork()."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import package_tools
import pytest
import raw

from qla_runtime import _core


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> str:
    package = package_tools.tiny_package(hidden=128, heads=4, layers=3)
    return str(package.save(tmp_path_factory.mktemp("package")))


@pytest.fixture(scope="module")
def batches():
    return [raw.random_batch([1 + (7 * i) % 60, 33, 5], 101, 2, seed=i) for i in range(12)]


@pytest.mark.parametrize("streams, threads", [(1, 1), (1, 2), (2, 1), (2, 2), (3, 1)])
def test_concurrent_callers_get_their_own_results(path, batches, streams: int, threads: int) -> None:
    want = [raw.run(_core.Engine(path, num_threads=1), b)["last_hidden"].tobytes() for b in batches]
    engine = _core.Engine(path, num_threads=threads, streams=streams)
    with ThreadPoolExecutor(6) as pool:  # more callers than streams: the rest wait in line
        jobs = [(i, pool.submit(raw.run, engine, batches[i])) for i in list(range(len(batches))) * 10]
        for i, job in jobs:
            assert job.result()["last_hidden"].tobytes() == want[i]


def test_a_bad_call_among_good_ones_harms_nobody(path, batches) -> None:
    engine = _core.Engine(path, num_threads=2, streams=2)
    want = raw.run(engine, batches[0])["last_hidden"].tobytes()
    ids, offsets, types = batches[0]
    bad = (np.full_like(ids, 10**6), offsets, types)

    def call(i: int) -> bool:
        if i % 3 == 0:
            with pytest.raises(ValueError, match="vocabulary"):
                raw.run(engine, bad)
            return True
        return raw.run(engine, batches[0])["last_hidden"].tobytes() == want

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(call, range(60)))


def _run_in_child(engine, batch, queue) -> None:
    queue.put(raw.run(engine, batch)["last_hidden"].tobytes())


def test_an_engine_opened_before_fork_works_in_the_child(path, batches) -> None:
    engine = _core.Engine(path, num_threads=2, streams=2)
    want = raw.run(engine, batches[0])["last_hidden"].tobytes()  # the parent's workers exist now
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    children = [context.Process(target=_run_in_child, args=(engine, batches[0], queue)) for _ in range(2)]
    for child in children:
        child.start()
    results = [queue.get(timeout=60) for _ in children]
    for child in children:
        child.join(timeout=60)
        assert child.exitcode == 0
    assert results == [want, want]
    assert raw.run(engine, batches[0])["last_hidden"].tobytes() == want


def test_more_threads_than_work(path) -> None:
    batch = raw.random_batch([1], 101, 2)
    want = raw.run(_core.Engine(path, num_threads=1), batch)["last_hidden"].tobytes()
    assert raw.run(_core.Engine(path, num_threads=16), batch)["last_hidden"].tobytes() == want


def test_threads_the_system_does_not_grant_are_an_error(path) -> None:
    """Stacks for 1000 threads do not fit a gigabyte of address space: a typed error, and no crash."""
    script = f"""
import resource, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import raw
from qla_runtime import UnsupportedError, _core
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
batch = raw.random_batch([5], 101, 2)
greedy = _core.Engine({path!r}, num_threads=1000)
for _ in range(2):
    try:
        raw.run(greedy, batch)
    except UnsupportedError as error:
        assert "of 1000 threads" in str(error) and "lower num_threads" in str(error), error
    else:
        raise SystemExit("1000 threads were granted")
raw.run(_core.Engine({path!r}, num_threads=2), batch)
"""
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
