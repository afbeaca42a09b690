"""Lowers the length config while the queue is long, so that requests keep to a latency (``--keep-latency``).

The rule: of the package's configs, best first and down to the floor, the first one runs with which everything that
waits is predicted to be done within the latency. A lower config is taken at once. A higher one is taken step by
step, one per batch, and only while it would need less than :data:`CLIMB` of the latency. So a load near a limit
does not make the choice jump.

Only requests that leave the choice to the server are lowered. One that names a length, a budget or a loss runs as
it asks.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from qla_runtime.engine import Engine
from qla_runtime.errors import InputError, shown
from qla_runtime.fork_safe import lazy
from qla_runtime.lengths import policies
from qla_runtime.lengths.configs import NamedLength
from qla_runtime.lengths.timekeeper import Pace

CLIMB = 0.7
"""The share of the latency below which a better config must stay to be taken again."""


class Costs:
    """Seconds that sequences take with each of several configs, by the engine's cost model.

    Args:
        engine: whose.
        candidates: the configs.
    """

    def __init__(self, engine: Engine, candidates: Sequence[NamedLength]) -> None:
        self._engine, self._candidates = engine, candidates

    @lazy
    def by_tokens(self) -> NDArray[np.float64]:
        """Seconds of a sequence of n tokens: float64 (max_positions + 1, configs). The price of the call is left
        out, because batches share it."""
        model = self._engine.cost_model
        configs = [candidate.config for candidate in self._candidates]
        found = [model.safe_seconds([n], configs) for n in range(1, self._engine.info["max_positions"] + 1)]
        sure = np.array(found) / (1 + model.margin) - model.prices[0]
        return np.concatenate([np.zeros((1, len(configs))), sure])

    def of(self, tokens: Sequence[int]) -> NDArray[np.float64]:
        """Seconds of sequences of so many tokens with each config: float64 (configs,)."""
        seconds: NDArray[np.float64] = self.by_tokens[tokens].sum(axis=0)
        return seconds


class Pressure:
    """The choice for one model.

    Args:
        engine: of the model.
        latency_s: to keep.
        floor: the name of the lowest config to choose; None: the cheapest.
        streams: batches that run at once.

    Attributes:
        candidates: the configs, best first. The first is ``full``.
        costs: of these.

    Raises:
        InputError: the package has no config of the floor's name, or none but ``full``.
    """

    def __init__(self, engine: Engine, latency_s: float, floor: str | None, streams: int = 1) -> None:
        self.candidates = _ladder(engine, floor)
        self.costs = Costs(engine, self.candidates)
        self._latency, self._streams = latency_s, streams
        self._pace = Pace()
        self._step = 0

    @property
    def current(self) -> NamedLength:
        """The config that was chosen last."""
        return self.candidates[self._step]

    def choose(self, waiting: NDArray[np.float64], batch: NDArray[np.float64], oldest_wait: float) -> NamedLength:
        """The config for a batch.

        Args:
            waiting: float64 (configs,): seconds of all that waits, this batch included.
            batch: float64 (configs,): seconds of this batch.
            oldest_wait: seconds that its oldest request has waited.
        """
        # The youngest waits until all has run, the oldest until this batch has.
        pace = self._pace.ratio
        needed = np.maximum(pace * waiting / self._streams, oldest_wait + pace * batch)
        fits = np.flatnonzero(needed <= self._latency)
        wanted = int(fits[0]) if fits.size else len(self.candidates) - 1
        if wanted < self._step:
            wanted = self._step - 1 if needed[self._step - 1] <= CLIMB * self._latency else self._step
        self._step = wanted
        return self.candidates[wanted]

    def ran(self, expected: float, took: float) -> None:
        """Compares what a batch took with what :attr:`costs` say, in seconds."""
        if expected > 0:
            self._pace.saw(expected, took)


def _ladder(engine: Engine, floor: str | None) -> list[NamedLength]:
    """From ``full`` down to the floor, each cheaper than the one before."""
    named = {**engine.lengths, **engine.frontier}
    if floor is not None and floor not in named:
        raise InputError(
            f"--keep-latency-floor {shown(floor)} is no length config of {engine.name!r}; use one of "
            f"{', '.join(named)}"
        )
    least = 0 if floor is None else named[floor].macs
    steps = [named["full"]]
    for candidate in policies.best_first(list(named.values())):
        if least <= candidate.macs < steps[-1].macs:
            steps.append(candidate)
    if floor is not None and named[floor] not in steps:  # no better than a cheaper one; but it was asked for
        steps = [step for step in steps if step.macs > least] + [named[floor]]
    if len(steps) == 1:
        raise InputError(
            f"--keep-latency has nothing to choose from: {engine.name!r} has no length config "
            f"{'but full' if floor is None else f'between full and {floor}'}; find some with `qla search`"
        )
    return steps
