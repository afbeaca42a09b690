"""Processes that start together on a crowded machine, measured for real: `full` comes back once it is quiet."""

from __future__ import annotations

import pytest

recovery = pytest.importorskip("bench.latency_recovery", reason="bench/ is part of a source checkout only")


@pytest.mark.slow
@pytest.mark.parametrize("shared", [True, False], ids=["one cache", "a cache each"])
@pytest.mark.parametrize("processes", [2, 3, 4, 6])
def test_full_is_back_within_the_stated_calls(processes, shared):
    row = recovery.crowd(processes, shared)
    if not row["steady"]:
        pytest.skip("the machine was not quiet: full took different times before and after")
    assert row["full_after"] is not None and row["full_after"] <= recovery.CALLS, row
    assert row["full_at_the_end"] >= 8, row
    assert row["new_process"] is not None, row
