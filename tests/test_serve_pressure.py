"""--keep-latency: which config runs, and that only requests that leave the choice to the server are lowered."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

pytest.importorskip("prometheus_client", reason="the server needs the extra [serve]")

from qla_runtime import Engine, InputError
from qla_runtime.serve.options import ServeOptions
from qla_runtime.serve.pressure import CLIMB, Pressure
from qla_runtime.serve.served import Models, Wants
from qla_runtime.tasks.answer import AnswerTask

CONTEXT = "The bridge was built in 1901 by an engineer from Vienna, and it still stands. " * 12
LATENCY = 1.0


@pytest.fixture(scope="module")
def reader() -> Engine:
    return Engine.from_pretrained("minilm-l6-squad", num_threads=1)


@pytest.fixture
def pressure(reader: Engine) -> Pressure:
    return Pressure(reader, LATENCY, None)


def waiting(pressure: Pressure, full: float) -> np.ndarray:
    """Seconds of a queue that takes ``full`` seconds with every token kept."""
    return full * np.linspace(1.0, 0.4, len(pressure.candidates))


def choose(pressure: Pressure, full: float, wait: float = 0.0) -> str:
    seconds = waiting(pressure, full)
    return pressure.choose(seconds, seconds, wait).name


def test_from_full_down_to_the_floor(reader):
    ladder = Pressure(reader, LATENCY, None).candidates
    assert ladder[0].name == "full"
    assert all(a.macs > b.macs for a, b in zip(ladder, ladder[1:], strict=False))
    floored = Pressure(reader, LATENCY, "balanced").candidates
    assert floored[-1].name == "balanced" and len(floored) < len(ladder)


def test_a_floor_that_leaves_nothing(reader):
    with pytest.raises(InputError, match="between full and full"):
        Pressure(reader, LATENCY, "full")


def test_the_best_that_fits(pressure):
    assert choose(pressure, 0.5) == "full"
    seconds = waiting(pressure, 1.5)
    chosen = pressure.choose(seconds, seconds, 0.0)
    number = pressure.candidates.index(chosen)
    assert seconds[number] <= LATENCY < seconds[number - 1]


def test_the_floor_where_nothing_fits(pressure):
    assert choose(pressure, 50.0) == pressure.candidates[-1].name


def test_a_wait_counts(pressure):
    assert choose(pressure, 0.5, wait=0.4) == "full"
    assert choose(pressure, 0.5, wait=0.6) != "full"


def test_down_at_once_and_up_step_by_step(pressure):
    lowest = len(pressure.candidates) - 1
    choose(pressure, 50.0)
    steps = [pressure.candidates.index(pressure.current)]
    for _ in range(lowest):
        choose(pressure, 0.1)
        steps.append(pressure.candidates.index(pressure.current))
    assert steps == list(range(lowest, -1, -1))


def test_a_load_at_the_limit_does_not_make_it_jump(pressure):
    """Just above the latency and just below it, in turns: one config for both."""
    choose(pressure, 1.05 * LATENCY)
    found = {choose(pressure, share * LATENCY) for share in (0.95, 1.05) * 20}
    assert len(found) == 1 and found != {"full"}
    assert 0.95 > CLIMB


def test_the_pace_of_the_machine_counts(pressure):
    """Batches that take twice as long as predicted."""
    assert choose(pressure, 0.8) == "full"
    for _ in range(40):
        pressure.ran(0.1, 0.2)
    assert choose(pressure, 0.8) != "full"


def test_sequences_beyond_the_package_s_own_length_have_a_price(pressure, reader):
    most = reader.info["max_positions"]
    assert most > reader.max_length
    assert (pressure.costs.of([most]) > pressure.costs.of([reader.max_length])).all()


def test_streams_share_the_queue(reader):
    two = Pressure(reader, LATENCY, None, streams=2)
    seconds = waiting(two, 1.6)
    assert two.choose(seconds, seconds / 10, 0.0).name == "full"


# ------------------------------------------------------------------------------------ in a server's batches


def flood(reader: Engine, wants: Wants, **options: Any) -> list[Any]:
    """The outcomes of requests that come at once."""
    models = Models({"reader": reader}, ServeOptions(max_batch_tokens=1000, **options))
    model = models.get(None)

    async def all_at_once() -> list[Any]:
        return await asyncio.gather(
            *(
                model.run(lambda: reader.as_task(AnswerTask).answer("Who built the bridge?", CONTEXT), wants)
                for _ in range(16)
            )
        )

    try:
        return asyncio.run(all_at_once())
    finally:
        models.close()


def test_a_latency_that_cannot_be_kept_goes_down_to_the_floor(reader):
    found = flood(reader, Wants(), keep_latency=0.0, keep_latency_floor="balanced")
    assert {outcome.lengths[0] for outcome in found} == {"balanced"}
    expected = reader.answer("Who built the bridge?", CONTEXT, "balanced")
    assert all(outcome.results == [expected] for outcome in found)


def test_a_latency_that_is_kept_costs_nothing(reader):
    assert {outcome.lengths[0] for outcome in flood(reader, Wants(), keep_latency=1e6)} == {"full"}


@pytest.mark.parametrize("wants", [Wants(length="full"), Wants(max_loss=0.0), Wants(latency_ms=1e6)])
def test_a_request_that_chooses_is_not_lowered(reader, wants):
    assert {outcome.lengths[0] for outcome in flood(reader, wants, keep_latency=0.0)} == {"full"}


def test_without_the_option_nothing_is_lowered(reader):
    assert {outcome.lengths[0] for outcome in flood(reader, Wants())} == {"full"}
