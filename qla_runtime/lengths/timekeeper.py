"""Keeps the cost model of an engine, compares it with the times of real calls, and corrects it.

A prediction can be wrong for two reasons. The machine may run at another pace than when it was measured. The
:class:`Pace` follows such a change within some calls, and lives as long as the process. Or the fit itself may be
wrong, because the machine was busy when it was made. Then a new fit is made, and the stored file is replaced.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from qla_runtime.fork_safe import ForkSafeLock, lazy
from qla_runtime.lengths import cost_model
from qla_runtime.lengths.cost_cache import CostCache
from qla_runtime.lengths.cost_model import REST_SECONDS, CostModel, Fit, Prepare, Survey

WAIT_SECONDS = 3.0
"""How long a process waits for another process that fits the same model. A fit takes about 0.6 s."""

FRESH_SECONDS = 3.0
"""A new process takes a doubtful fit that is younger than this. A fit of its own would be as doubtful."""

CHECK_CALLS = 20
"""The number of calls with a budget between two checks of the fit."""

HOLDS = (0.75, 1.5)
"""Limits for the median ratio of a call's time to its prediction. Outside of them the fit does not hold."""

REFIT_ROUNDS = 3
"""Rounds of measured calls in a refit. One measured call follows each call with a budget, so a refit takes 27."""

MAX_PATIENCE = 64
"""After each refit the number of checks until the next one doubles, up to this many."""

TURNED = 1.5
"""A refit is worthwhile at once if the pace has changed by this factor since the last one."""

BOOKKEEPING_SECONDS = 5e-3
"""The time that must be left of a budget to read or write the stored fit, or to compute a new one."""


class Pace:
    """The current pace of the machine, as a ratio of real to predicted time: 1.2 is a fifth slower than the fit.

    Other processes on the machine, other calls on the same engine and the CPU's frequency change the pace within
    seconds. It is estimated from calls whose time was predicted. Several threads may use it, because an update
    that is lost does no harm.
    """

    SHARE = 0.1
    """The weight of the latest call. After twenty calls the ratio has made nine tenths of a change."""

    LIMITS = (0.5, 2.0)
    """Limits for the change that a single call can suggest. A call beyond them was probably interrupted."""

    LEAST = 1e-3
    """The lowest ratio. It prevents a division by zero where the clock stands still."""

    def __init__(self) -> None:
        self.ratio = 1.0

    def saw(self, expected: float, took: float) -> None:
        """Records a call of ``took`` seconds, for which :meth:`CostModel.seconds` gives ``expected``."""
        low, high = self.LIMITS
        change = min(high, max(low, took / (expected * self.ratio)))
        self.ratio = max(self.LEAST, self.ratio * (1 + self.SHARE * (change - 1)))


class Timekeeper:
    """The fit of an engine's cost model, the machine's pace, and the checks of both. It may be used by several
    threads and after a fork.

    Args:
        package: the package folder.
        description: gives ``_core.Engine.explain()``, by which fits of different engines are distinguished.
        prepare: makes the calls to be timed.
        info: the model's shape, as ``_core.Engine.info`` gives it.
        longest: the number of tokens of the longest sequence to measure.
    """

    def __init__(
        self,
        package: Path,
        description: Callable[[], str],
        prepare: Prepare,
        info: Mapping[str, Any],
        longest: int,
    ) -> None:
        self._package, self._description = package, description
        self._prepare, self._info, self._longest = prepare, info, longest
        self._fitting, self._refitting = ForkSafeLock(), ForkSafeLock()
        self._fit: Fit | None = None
        self._found = False  # whether the fit was found on disk
        self._patience = 1
        self._start_over()

    @property
    def model(self) -> CostModel:
        """The cost model. The first use makes a fit, or takes the one that another process has stored."""
        return self.fit.model

    @property
    def fit(self) -> Fit:
        """The fit behind :attr:`model`."""
        if self._fit is None:
            with self._fitting.held():
                if self._fit is None:
                    self._fit = self._load_or_fit()
        return self._fit

    def use(self, fit: Fit) -> None:
        """Uses this fit from now on."""
        self._fit = fit
        self._start_over()

    def refresh(self) -> None:
        """Makes a fit now if there is none, if the current one does not hold, or if it is doubtful and old."""
        fit = self.fit
        stale = fit.doubt and time.time() - fit.made > FRESH_SECONDS
        if stale or not self._holds():
            with self._fitting.held():
                new = self._load_or_fit(worse_than=fit)
                if fit.doubt or not new.doubt:
                    self.use(new)

    def saw(self, expected: float, took: float, left: Callable[[], float]) -> None:
        """Records the time of a call with a budget, and checks the fit now and then.

        A fit that does not hold is made anew, piece by piece: one measured call now, and one after each of the
        next calls. A piece runs only if it takes less than half of the time that is left of the budget.

        Args:
            expected: seconds that the model expects.
            took: seconds that the call took.
            left: gives the seconds until the call's budget ends.
        """
        self.pace.saw(expected, took)
        self._ratios.append(took / expected)
        self._calls += 1
        if self._survey is None and self._calls < self._check_at:
            if not self._turned():
                return
            self._patience = 1
        with self._refitting.tried() as alone:
            if alone:
                self._check(left)

    def describe(self) -> list[str]:
        """Lines for ``Engine.explain()``: the age of the fit, and how good it is."""
        fit = self._fit or self._cache.load(self._info)
        if fit is None:
            return ["no fit yet: warm_up(), or the first call under a budget, measures for about half a second"]
        source = "found on disk" if self._fit is None or self._found else "by this process"
        lines = [
            f"fitted {_ago(time.time() - fit.made)} ({source}); predictions are raised by {fit.model.margin:.0%}",
            f"doubtful: {fit.doubt}; it is replaced as calls allow" if fit.doubt else "nothing speaks against it",
        ]
        if self._ratios:
            lines.append(
                f"{self._calls} calls under a budget since: the last {len(self._ratios)} took "
                f"{median(self._ratios):.2f} of the prediction (median); the pace is {self.pace.ratio:.2f}"
            )
        return lines

    # ------------------------------------------------------------------------------------ inner rooms

    @lazy
    def _cache(self) -> CostCache:
        return CostCache.of(self._package, self._description())

    def _start_over(self) -> None:
        self.pace = Pace()
        self._ratios: deque[float] = deque(maxlen=CHECK_CALLS)
        self._calls, self._check_at = 0, CHECK_CALLS
        self._survey: Survey | None = None
        self._pace_then = 1.0

    def _turned(self) -> bool:
        """Whether the pace has changed by :data:`TURNED` since the last check of the fit."""
        change = self.pace.ratio / self._pace_then
        return self._calls >= CHECK_CALLS and not 1 / TURNED < change < TURNED

    def _holds(self) -> bool:
        return len(self._ratios) < CHECK_CALLS or HOLDS[0] <= median(self._ratios) <= HOLDS[1]

    def _load_or_fit(self, worse_than: Fit | None = None) -> Fit:
        """The stored fit if it is good or fresh, and newer than ``worse_than``; else a new fit."""
        cache = self._cache
        kept = self._usable(cache, worse_than)
        if kept is None:
            with cache.lock(WAIT_SECONDS) as alone:
                kept = self._usable(cache, worse_than)  # by the process that held the lock
                if kept is None:
                    self._found = False
                    return self._new_fit(cache, alone)
        self._found = True
        return kept

    def _usable(self, cache: CostCache, worse_than: Fit | None) -> Fit | None:
        kept = cache.load(self._info)
        if kept is None or (worse_than and kept.made <= worse_than.made):
            return None
        return kept if not kept.doubt or time.time() - kept.made < FRESH_SECONDS else None

    def _new_fit(self, cache: CostCache, alone: bool) -> Fit:
        fit = cost_model.fit(self._prepare, self._info, self._longest)
        if not alone:
            return replace(fit, doubt=fit.doubt or "another process measured at the same time")
        self._keep(cache, fit)
        return fit

    def _keep(self, cache: CostCache, fit: Fit) -> None:
        """Stores a fit, unless it is doubtful and the stored one is not."""
        kept = cache.load(self._info) if fit.doubt else None
        if kept is None or kept.doubt:
            cache.save(fit)

    def _check(self, left: Callable[[], float]) -> None:
        """Checks whether the fit holds, or continues a refit."""
        fit = self.fit
        if self._survey is None:
            if not fit.doubt and self._holds():
                self._patience = 1
                self._look_again_later()
            elif left() > BOOKKEEPING_SECONDS:
                self._begin_refit(fit)
        elif self._survey.rounds < REFIT_ROUNDS:
            self._measure_piece(self._survey, left)
        elif left() > BOOKKEEPING_SECONDS:
            self._end_refit(fit, self._survey.fit())

    def _begin_refit(self, fit: Fit) -> None:
        cache = self._cache
        kept = cache.load(self._info)
        if kept is not None and not kept.doubt and kept.made > fit.made:
            self._found = True
            self.use(kept)  # another process was quicker
            return
        # Calls that take less time than predicted show that the machine was busy when it was measured.
        if not fit.doubt and median(self._ratios) < HOLDS[0]:
            fit = replace(fit, doubt=f"later calls took {median(self._ratios):.2f} of its predictions")
            self._fit = fit
            if kept is not None and kept.made == fit.made:
                cache.save(fit)
        self._survey = Survey(self._prepare, self._info, self._longest)

    def _measure_piece(self, survey: Survey, left: Callable[[], float]) -> None:
        lengths, config = survey.upcoming
        needed = REST_SECONDS + self.pace.ratio * float(self.model.safe_seconds(lengths, [config])[0])
        if 2 * needed > left():
            survey.skip()
            return
        with self._cache.lock(0.0) as alone:
            if alone:
                survey.measure()

    def _end_refit(self, old: Fit, new: Fit | None) -> None:
        self._patience = min(2 * self._patience, MAX_PATIENCE)
        if new is not None and not (new.doubt and not old.doubt):
            self._keep(self._cache, new)
            self._found = False
            self.use(new)
        self._look_again_later()

    def _look_again_later(self) -> None:
        self._survey = None
        self._check_at = self._calls + self._patience * CHECK_CALLS
        self._pace_then = self.pace.ratio


def _ago(seconds: float) -> str:
    for size, unit in ((86_400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{max(seconds, 0):.0f} seconds ago"
