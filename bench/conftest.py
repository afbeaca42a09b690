"""pytest-benchmark keeps its history by CPU, since figures of two machines don't compare.

pytest bench/test_encoder.py --benchmark-autosave          adds a run to .benchmarks/<cpu>/
pytest bench/test_encoder.py --benchmark-compare           compares with the last one there
"""

from __future__ import annotations

import re

import pytest

from bench import machine

UNSET = "file://./.benchmarks"
"""What pytest-benchmark stores to where nobody says otherwise."""


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    if config.option.benchmark_storage == UNSET:
        cpu = re.sub(r"\W+", "-", machine.cpu_model()).strip("-").lower()
        config.option.benchmark_storage = f"{UNSET}/{cpu}-{machine.facts()['cpus']}-cpus"
