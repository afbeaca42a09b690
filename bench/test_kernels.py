"""Every kernel by pytest-benchmark, on every instruction set present: one core, times by the C++ program itself.

    pytest bench/test_kernels.py --benchmark-json=kernels.json --benchmark-group-by=param:name

kernel_bench is built by CMake when tests are collected, into build/bench or QLA_BENCH_BUILD. `extra_info` carries
TOPS, GB/s and the share of the dot-product peak of the same run; `qla bench kernels` prints them as a table.
"""

from __future__ import annotations

import os
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from bench import kernels

BUILD = Path(os.environ.get("QLA_BENCH_BUILD", kernels.BUILD))


class ProgramClock:
    """A timer for pytest-benchmark that shows the seconds which kernel_bench measured, and no pipe or process."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


CLOCK = ProgramClock()


def key(one: dict[str, Any]) -> tuple[str, str]:
    return f"{one['operation']} {one['case']}", one["isa"]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if {"name", "isa"} <= set(metafunc.fixturenames):
        metafunc.parametrize(("name", "isa"), [key(one) for one in kernels.cases(kernels.build(BUILD))])


@pytest.fixture(scope="session")
def measured() -> dict[tuple[str, str], dict[str, Any]]:
    """All kernels, measured in one run so that their rounds interleave."""
    return {key(one): one for one in kernels.run(kernels.build(BUILD))}


@pytest.mark.benchmark(timer=CLOCK)
def test_kernel(benchmark, measured: dict[tuple[str, str], dict[str, Any]], name: str, isa: str) -> None:
    one = measured[name, isa]
    ns = median(one["ns"])
    tops = 2e-3 * one["macs"] / ns
    peak = measured.get(("peak registers", isa))
    benchmark.extra_info.update(
        isa=isa,
        kernel=one["kernel"],
        tops=tops,
        gb_per_second=one["bytes"] / ns,
        share_of_peak=tops / (2e-3 * peak["macs"] / median(peak["ns"])) if peak else None,
    )
    rounds = iter(one["ns"])

    def one_round() -> None:
        CLOCK.seconds += 1e-9 * next(rounds)

    benchmark.pedantic(one_round, rounds=len(one["ns"]), iterations=1)
