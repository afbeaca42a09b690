"""Predicts how long a call takes on this machine, by a small model that is fitted to a few measured calls.

The predicted time of a ragged call is a sum over five counts. Each count has a price in seconds, which is not
negative. ``configs.count_macs`` adds up MACs of linear layers and of attention. Here they are two counts, because
they do not take the same time. Calls, sequences and rows have prices of their own.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qla_runtime.errors import InputError, shown
from qla_runtime.lengths.configs import MIN_KEPT, LengthConfig

COUNTS = ("calls", "sequences", "rows", "linear_macs", "attention_macs")
"""The counts of a call, in the order of a model's prices."""

FIT_SECONDS = 0.6
"""No new round of measured calls begins after this time. The first round is always finished. So the fit of a model
many times larger than MiniLM takes as long as four calls of its longest sequence."""

MAX_ROUNDS = 9
"""Most rounds of measured calls. A median of nine ignores four disturbed calls."""

REST_SECONDS = 5e-4
"""A pause before each measured call. A call on an idle engine has to wake threads, and its caches are colder."""

MIN_MARGIN = 0.10
"""The smallest share that predictions are raised by. Calls on an idle machine scatter by a few percent, and the
texts of answers are put together after the native call, which alone is measured."""

MAX_MARGIN = 0.5
"""The largest share that predictions are raised by. A call that was predicted worse shows a busy machine."""

MAX_SURE_MARGIN = 0.25
"""A fit with a larger margin is doubtful, because the machine was probably busy."""

MIN_RUNNING = 0.8
"""The smallest share of the measured time for which the calling thread must have run. On an idle machine it runs
or spins nearly all the time. Beside other processes it waits for a core, or for a thread that waits for one."""

SHAPES = 9
"""The number of different calls that are measured."""

Prepare = Callable[[Sequence[int], LengthConfig], Callable[[], object]]
"""Makes the call to be timed from the lengths of its sequences and their length config."""


@dataclass(frozen=True)
class CostModel:
    """Predicts the time of a call from its sequences' lengths and their length config.

    Attributes:
        layers: the number of the model's layers.
        hidden: the width of the model.
        intermediate: the width inside its feed-forward part.
        prices: seconds per unit of each of :data:`COUNTS`; none is negative.
        margin: the share to add to a prediction that must hold. It is the largest share by which a measured call
            took longer than the fit says, limited to ``MIN_MARGIN`` and ``MAX_MARGIN``.
    """

    layers: int
    hidden: int
    intermediate: int
    prices: tuple[float, ...]
    margin: float

    def seconds(self, lengths: ArrayLike, config: LengthConfig) -> float:
        """Expected time in seconds of a call over sequences of ``lengths`` tokens, from token ids to logits.

        Raises:
            InputError: no lengths, one below 1, or a config that is not for the model's layers.
        """
        config.check_layers(self.layers)
        try:
            tokens = np.asarray(lengths, np.float64)
        except (TypeError, ValueError, OverflowError):
            tokens = np.array([])
        if np.ma.is_masked(lengths) or not tokens.size or not (np.isfinite(tokens) & (tokens >= 1)).all():
            raise InputError(
                f"lengths are {shown(lengths)}; give the tokens of one sequence or more, each at least 1"
            )
        return float((_counts(self.hidden, self.intermediate, lengths, [config]) @ self.prices)[0])

    def safe_seconds(self, lengths: ArrayLike, configs: Sequence[LengthConfig]) -> NDArray[np.float64]:
        """Upper estimates in seconds of a call with each of the configs: float64 (configs,), :meth:`seconds` plus
        the margin. Nearly all calls on an idle machine stay below.

        A latency budget includes the prediction. So this handles all configs at once, and checks nothing.
        """
        return (1 + self.margin) * (_counts(self.hidden, self.intermediate, lengths, configs) @ self.prices)


@dataclass(frozen=True)
class Fit:
    """A cost model, and how far it can be trusted.

    Attributes:
        model: the cost model.
        made: when it was fitted, in seconds since 1970.
        doubt: why its predictions may be wrong, in words; empty for a good fit.
    """

    model: CostModel
    made: float
    doubt: str = ""


# --------------------------------------------------------------------------------------------- fitting


class Survey:
    """Measures a series of calls, one at a time, in turn. Together they determine the prices.

    A latency budget is defined for an idle engine. So there is a pause before every measured call.

    Args:
        prepare: makes the calls.
        info: the model's shape, as ``_core.Engine.info`` gives it.
        longest: the number of tokens of the longest sequence to measure.
        clock: gives wall time in seconds.
        cpu_clock: gives the seconds for which the calling thread ran.
    """

    def __init__(
        self,
        prepare: Prepare,
        info: Mapping[str, Any],
        longest: int,
        clock: Callable[[], float] = time.perf_counter,
        cpu_clock: Callable[[], float] = time.thread_time,
    ) -> None:
        self._info, self._clock, self._cpu_clock = info, clock, cpu_clock
        self._shapes = _shapes(longest, info["layers"])
        self._calls = [prepare(lengths, config) for lengths, config in self._shapes]
        self._times: list[list[float]] = [[] for _ in self._shapes]
        self._turns = 0
        self._wall = self._ran = 0.0

    @property
    def rounds(self) -> int:
        """How often each of the calls had its turn."""
        return self._turns // len(self._shapes)

    @property
    def upcoming(self) -> tuple[list[int], LengthConfig]:
        """The lengths and the config of the next call."""
        return self._shapes[self._turns % len(self._shapes)]

    def warm_up(self) -> None:
        """Runs the longest call, so that its memory is allocated."""
        self._calls[-1]()

    def measure(self) -> None:
        """Measures the next call."""
        which = self._turns % len(self._shapes)
        time.sleep(REST_SECONDS)
        began, cpu_began = self._clock(), self._cpu_clock()
        self._calls[which]()
        took = self._clock() - began
        self._ran += self._cpu_clock() - cpu_began
        self._wall += took
        self._times[which].append(took)
        self._turns += 1

    def skip(self) -> None:
        """Leaves out the next call in this round."""
        self._turns += 1

    def fit(self) -> Fit | None:
        """A cost model fitted to the medians of the calls; None where too many calls were left out."""
        known = [i for i, times in enumerate(self._times) if 2 * len(times) > self.rounds]
        if len(known) <= len(COUNTS):
            return None
        times = np.maximum([np.median(self._times[i]) for i in known], 1e-9)
        hidden, intermediate = self._info["hidden"], self._info["intermediate"]
        counts = np.vstack([_counts(hidden, intermediate, n, [c]) for n, c in (self._shapes[i] for i in known)])
        # The division by the times makes the fit minimize relative errors: short calls count as much as long ones.
        prices = nnls(counts / times[:, None], np.ones(len(times)))
        short = float((times / np.maximum(counts @ prices, 1e-12) - 1).max())
        margin = min(MAX_MARGIN, max(MIN_MARGIN, short))
        model = CostModel(self._info["layers"], hidden, intermediate, tuple(prices.tolist()), margin)
        return Fit(model, time.time(), self._doubt(margin))

    def _doubt(self, margin: float) -> str:
        running = self._ran / max(self._wall, 1e-9)
        if running < MIN_RUNNING:
            return f"the machine was busy: the measured calls ran for {running:.0%} of their time"
        if margin > MAX_SURE_MARGIN:
            return f"a measured call took {margin:.0%} longer than the fit says"
        return ""


def fit(
    prepare: Prepare,
    info: Mapping[str, Any],
    longest: int,
    clock: Callable[[], float] = time.perf_counter,
    cpu_clock: Callable[[], float] = time.thread_time,
) -> Fit:
    """Measures rounds of calls on this machine and fits a model to them. It takes about ``FIT_SECONDS``.

    Args:
        prepare: as for :class:`Survey`.
        info: as for :class:`Survey`.
        longest: as for :class:`Survey`.
        clock: as for :class:`Survey`.
        cpu_clock: as for :class:`Survey`.
    """
    survey = Survey(prepare, info, longest, clock, cpu_clock)
    deadline = clock() + FIT_SECONDS
    survey.warm_up()
    while not survey.rounds or (survey.rounds < MAX_ROUNDS and clock() < deadline):
        for _ in range(SHAPES):
            survey.measure()
    found = survey.fit()
    assert found is not None, "every call was measured"
    return found


def nnls(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """The ``x`` without a negative entry that minimizes ``|a x - b|``.

    The optimum is the plain least-squares solution on the columns where it is not zero. With a handful of columns
    all subsets can be tried.
    """
    best, least = np.zeros(a.shape[1]), float(b @ b)
    scale = np.maximum(np.abs(a).max(axis=0), 1e-300)  # counts differ by nine orders of magnitude
    for chosen in itertools.product((False, True), repeat=a.shape[1]):
        x = np.zeros(a.shape[1])
        columns = np.array(chosen)
        x[columns] = np.linalg.lstsq(a[:, columns] / scale[columns], b, rcond=None)[0] / scale[columns]
        error = float(((a @ x - b) ** 2).sum())
        if (x >= 0).all() and error < least:
            best, least = x, error
    return best


def _shapes(longest: int, layers: int) -> list[tuple[list[int], LengthConfig]]:
    """Calls that determine the prices: short and long, of one and of many sequences, with and without dropping."""
    full = LengthConfig.ratio([1.0] * layers)
    steep = LengthConfig.ratio(np.linspace(1.0, 0.1, layers + 1)[1:])
    short, quarter, half = min(8, longest), max(2, longest // 4), max(2, longest // 2)
    return [
        ([short], full),
        ([short] * 16, full),
        ([max(2, longest // 8)], full),
        ([quarter] * 3, full),
        ([quarter] * 3, steep),
        ([half], full),
        ([half], steep),
        ([longest], steep),
        ([longest], full),
    ]


def _counts(
    hidden: int, intermediate: int, lengths: ArrayLike, configs: Sequence[LengthConfig]
) -> NDArray[np.float64]:
    """The :data:`COUNTS` of a call with each of the configs: float64 (configs, counts)."""
    n, repeats = np.unique(np.asarray(lengths, np.float64), return_counts=True)
    after = _kept(n, configs)
    before = np.concatenate([np.broadcast_to(n, after[:, :1].shape), after[:, :-1]], axis=1)
    rows = n + (before + after).sum(axis=1)
    # The engine projects attention's output for kept rows only.
    linear = 3 * before * hidden * hidden + after * hidden * (hidden + 2 * intermediate)
    attention = 2 * before * before * hidden
    per_config = np.empty((len(configs), len(COUNTS)))
    per_config[:, 0] = 1.0
    per_config[:, 1] = repeats.sum()
    per_config[:, 2] = rows @ repeats
    per_config[:, 3] = linear.sum(axis=1) @ repeats
    per_config[:, 4] = attention.sum(axis=1) @ repeats
    return per_config


def _kept(n: NDArray[np.float64], configs: Sequence[LengthConfig]) -> NDArray[np.float64]:
    """``LengthConfig.kept`` for all configs and all lengths ``n`` at once: float64 (configs, layers, lengths)."""
    values = np.array([config.values for config in configs])[:, :, None]
    of_length = np.array([config.rule == "ratio" for config in configs])[:, None, None]
    wanted = np.where(of_length, np.ceil(values * n - 1e-6), values)
    return np.minimum(n, np.maximum(MIN_KEPT, wanted))
