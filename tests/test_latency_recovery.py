"""Processes that start together on a crowded machine, measured for real: `full` comes back once it is quiet."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # bench/ is no part of an installed package
from bench import latency_recovery  # noqa: E402


@pytest.mark.slow
@pytest.mark.parametrize("shared", [True, False], ids=["one cache", "a cache each"])
@pytest.mark.parametrize("processes", [2, 3, 4, 6])
def test_full_is_back_within_the_stated_calls(processes, shared):
    row = latency_recovery.crowd(processes, shared)
    if not row["steady"]:
        pytest.skip("the machine was not quiet: full took different times before and after")
    assert row["full_after"] is not None and row["full_after"] <= latency_recovery.CALLS, row
    assert row["full_at_the_end"] >= 8, row
    assert row["new_process"] is not None, row
