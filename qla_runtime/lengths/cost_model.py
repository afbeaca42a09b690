"""What a call will take on this machine: a small model of time, fitted to a few measured calls.

The time of a ragged call is a sum of five counts, each with a price in seconds that is not negative. The counts
are those of ``length.count_macs``, taken apart: a MAC of a linear layer and one of attention do not cost the
same, and a row costs something whatever is multiplied.
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
"""What a call is made of, in the order of a model's prices."""

FIT_SECONDS = 0.6
"""No new round of measured calls begins later than this. The first round is always finished, so the fit of a
model many times larger than MiniLM takes as long as four calls of its longest sequence."""

MAX_ROUNDS = 9
"""Rounds of measured calls; the median of nine ignores four disturbed ones."""

REST_SECONDS = 5e-4
"""Before each measured call: a call that comes when nothing ran has threads to wake and finds caches colder."""

MIN_MARGIN = 0.10
"""Least share that predictions are raised by: calls on an idle machine scatter by a few percent, and texts of
answers are put together after the native call that is measured."""

MAX_MARGIN = 0.5
"""Most that one badly predicted call may raise all predictions by; more says that the machine was not idle."""

MAX_SURE_MARGIN = 0.25
"""A fit with a larger margin is doubtful: the machine was busy."""

MIN_RUNNING = 0.8
"""Least share of a measured call for which the calling thread ran. On an idle machine it runs or spins nearly all
the time; beside other processes it waits for a core, or for a thread of its own that waits for one."""

SHAPES = 9
"""Different calls that are measured."""

Prepare = Callable[[Sequence[int], LengthConfig], Callable[[], object]]
"""Sequence lengths and the config to run them with -> the call to be timed."""


@dataclass(frozen=True)
class CostModel:
    """Predicts the time of a call from its sequences' lengths and their length config.

    Attributes:
        layers: layers of the model.
        hidden: its channels.
        intermediate: channels inside its feed-forward part.
        prices: seconds per unit of each of :data:`COUNTS`; none is negative.
        margin: share to add where a prediction must hold: the worst that the fit fell short of a measured call,
            within ``MIN_MARGIN`` and ``MAX_MARGIN``.
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
        """:meth:`seconds` of each config with the margin, (configs,): nearly all calls on an idle machine stay
        below it. All configs at once and nothing checked, because a budget pays for the prediction too."""
        return (1 + self.margin) * (_counts(self.hidden, self.intermediate, lengths, configs) @ self.prices)


@dataclass(frozen=True)
class Fit:
    """A cost model and how it came about.

    Attributes:
        model: the cost model.
        made: when it was fitted, in seconds since 1970.
        doubt: in words, why its predictions may be wrong; empty where nothing speaks against it.
    """

    model: CostModel
    made: float
    doubt: str = ""


# --------------------------------------------------------------------------------------------- fitting


class Survey:
    """Measures calls that tell the prices apart, one at a time, in turn.

    A budget speaks of an idle engine, so every call begins after a rest.

    Args:
        prepare: makes a call that can be timed.
        info: the model's shape, as ``_core.Engine.info`` gives it.
        longest: tokens of the longest sequence to measure.
        clock: seconds from any beginning.
        cpu_clock: seconds for which the calling thread ran, from any beginning.
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
        """How often each call had its turn."""
        return self._turns // len(self._shapes)

    @property
    def upcoming(self) -> tuple[list[int], LengthConfig]:
        """Lengths and config of the call whose turn it is."""
        return self._shapes[self._turns % len(self._shapes)]

    def warm_up(self) -> None:
        """Runs the longest call, so that its memory is there."""
        self._calls[-1]()

    def measure(self) -> None:
        """Measures the call whose turn it is."""
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
        """Passes over the call whose turn it is."""
        self._turns += 1

    def fit(self) -> Fit | None:
        """A cost model fitted to the calls' medians; None where too many calls were passed over."""
        known = [i for i, times in enumerate(self._times) if 2 * len(times) > self.rounds]
        if len(known) <= len(COUNTS):
            return None
        times = np.maximum([np.median(self._times[i]) for i in known], 1e-9)
        hidden, intermediate = self._info["hidden"], self._info["intermediate"]
        counts = np.vstack([_counts(hidden, intermediate, n, [c]) for n, c in (self._shapes[i] for i in known)])
        # Divided by the times, the fit minimizes relative errors: short calls count as much as long ones.
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
    """Measures rounds of calls on this machine and fits a model to them. Takes about ``FIT_SECONDS``.

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

    Where the optimum is not zero it is a plain least-squares solution of those columns alone; with a handful of
    columns all subsets can be tried.
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
    """Calls that tell the prices apart: short and long, one and many sequences, dropping and not."""
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
    """A call with each config in units of :data:`COUNTS`: (configs, counts)."""
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
    """``LengthConfig.kept`` of all configs and every length in ``n`` at once: (configs, layers, lengths)."""
    values = np.array([config.values for config in configs])[:, :, None]
    of_length = np.array([config.rule == "ratio" for config in configs])[:, None, None]
    wanted = np.where(of_length, np.ceil(values * n - 1e-6), values)
    return np.minimum(n, np.maximum(MIN_KEPT, wanted))
