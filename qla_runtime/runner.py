"""How calls run: which length configs, in which batches, and whether a latency budget was met."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from qla_runtime import _core, arrays, stages
from qla_runtime.errors import InputError, UnsupportedError
from qla_runtime.fork_safe import importing, lazy
from qla_runtime.lengths import policies
from qla_runtime.lengths.configs import (
    Escalate,
    LatencyBudget,
    Length,
    LengthConfig,
    LengthPlan,
    MaxLoss,
    NamedLength,
    resolve,
)
from qla_runtime.lengths.cost_model import CostModel
from qla_runtime.lengths.table import LengthTable
from qla_runtime.lengths.timekeeper import Timekeeper
from qla_runtime.progress import Progress, in_steps, reported
from qla_runtime.ragged import Ragged
from qla_runtime.tasks.prepared import Call, Prepared
from qla_runtime.tasks.results import confidence, fact, note

Result = TypeVar("Result")


class Runner:
    """Runs the calls of an engine. Safe to use from several threads.

    Args:
        core: the native engine.
        package: the package folder.
        settings: the ``task`` object of its ``config.json``.

    Attributes:
        times: the cost model, and what calls under a budget say about it.
    """

    def __init__(self, core: _core.Engine, package: Path, settings: Mapping[str, Any]) -> None:
        self._core, self._info, self._settings = core, core.info, settings
        self._profile = stages.asked_for()
        self._named_plans: dict[str | None, LengthPlan] = {}
        self.times = Timekeeper(
            package,
            core.explain,
            partial(_random_call, core, self._info),  # not a method: a cycle would keep the memory
            self._info,
            settings["max_length"],
        )

    @lazy
    def table(self) -> LengthTable:
        """The length configs of the package."""
        return LengthTable(json.loads(self._core.length_configs_json), self._info, self._settings)

    @lazy
    def best_first(self) -> list[NamedLength]:
        """What a latency budget chooses from."""
        return policies.best_first(self.table.distinct)

    def warm_up(self) -> None:
        """Makes the memory to work in, and measures where there is no cost model that holds."""
        _random_call(self._core, self._info, [self._settings["max_length"]], self.table.configs["full"])()
        self.times.refresh()
        _ = self.best_first

    # ---------------------------------------------------------------------------------------- calls

    def plan(
        self, length: Length, latency_ms: float | None, count: int, runs_once: str
    ) -> LengthPlan | LatencyBudget:
        """What a call over ``count`` inputs runs, as far as that is known before they are tokenized.

        Args:
            length: as the caller gave it.
            latency_ms: as the caller gave it.
            count: inputs of the call.
            runs_once: as in :class:`Call`.

        Raises:
            InputError: a length that does not fit.
            UnsupportedError: a policy that needs more than the call or the package has.
        """
        if length is None or isinstance(length, str):
            named = self._named_plans.get(length) if latency_ms is None else None
            if named is not None:
                return named.over(count)
        plan = resolve(length, latency_ms, count, self.table.configs, self._info["layers"])
        if isinstance(plan, Escalate):
            raise UnsupportedError(
                f"Escalate repeats what a confidence shows to be unsure, and {runs_once}; pass a name, a "
                "LengthConfig or another policy as length="
            )
        if isinstance(plan, MaxLoss):
            return policies.within_loss(plan, self.table.distinct).plan(count)
        if isinstance(plan, LengthPlan):
            plan = self.table.with_accuracies(plan)
            # Names alone: of configs that are spelled out there is no end.
            if count == 1 and (length is None or (isinstance(length, str) and length in self.table.configs)):
                self._named_plans[length] = plan
        return plan

    def results(
        self, call: Call[Result], length: Length, latency_ms: float | None, began: float, progress: Progress
    ) -> list[Result]:
        """The results of a call, one per input.

        Args:
            call: its checked arguments.
            length: as the caller gave it.
            latency_ms: as the caller gave it.
            began: ``perf_counter`` when the call began.
            progress: as the caller gave it.
        """
        if isinstance(length, Escalate) and call.runs_once is None:
            return self._escalated(call, length, latency_ms, began, progress)
        plan = self.plan(length, latency_ms, call.count, call.runs_once or "")
        results = [result for part in self.parts(call, plan, began, progress) for result in part]
        if isinstance(plan, LatencyBudget):
            _stamp(results, plan.deadline(began))
        return results

    def parts(
        self, call: Call[Result], plan: LengthPlan | LatencyBudget, began: float, progress: Progress
    ) -> Iterator[list[Result]]:
        """The results of a call, slice by slice: each slice is tokenized, run and read.

        Memory does not grow with the call, unless it has a budget: then all of it is tokenized before the choice.
        """
        parts = call.parts() if progress is False else in_steps(call.parts())
        with reported(progress, call.count) as done:
            prepared: Iterable[Prepared[Result]]
            if isinstance(plan, LengthPlan):
                prepared, ran = (call.prepare(part).planned(plan.part(part), began) for part in parts), _nothing
            else:
                prepared, ran = self._settled([call.prepare(part).planned(plan, began) for part in parts])
            for each in prepared:
                results = self._alone(each)
                done(each.count)
                yield results
            ran()

    def run(self, prepared: Sequence[Prepared[Result]]) -> list[list[Result]]:
        """Runs everything as one batch; as ``Engine.run``."""
        if not prepared:
            raise InputError("there is nothing to run; give at least one of what prepare() made")
        for i, each in enumerate(prepared):
            if not isinstance(each, Prepared):
                raise InputError(f"prepared[{i}] is of type {type(each).__name__}; give what prepare() made")
            if each.plan is None and each.deadline is None:
                raise InputError(f"prepared[{i}] has no length config and no deadline; make it with prepare()")
        settled, ran = self._settled(prepared)
        results = self._together(settled)
        ran()
        for each, found in zip(settled, results, strict=True):
            if each.deadline is not None:
                _stamp(found, each.deadline)
        return results

    def _escalated(
        self,
        call: Call[Result],
        policy: Escalate,
        latency_ms: float | None,
        began: float,
        progress: Progress,
    ) -> list[Result]:
        """The results of the cheap config, those that are unsure replaced by those of the dear one.

        Each says which configs ran for it, and what they cost together.
        """
        resolve(policy, latency_ms, call.count, self.table.configs, self._info["layers"])  # refuses what is wrong
        threshold = policies.threshold(policy, self.table.thresholds)
        results = self.results(call, policy.cheap, None, began, progress)
        for result in results:
            note(result, ran=[fact(result, "length")])
        unsure = [i for i, result in enumerate(results) if confidence(result) < threshold]
        if unsure:
            dear = self.results(call.only(unsure), policy.dear, None, began, progress)
            for i, result in zip(unsure, dear, strict=True):
                note(
                    result,
                    ran=[*fact(results[i], "ran"), fact(result, "length")],
                    macs=fact(results[i], "macs") + fact(result, "macs"),
                )
                results[i] = result
        return results

    # -------------------------------------------------------------------------------------- batches

    def _settled(
        self, prepared: Sequence[Prepared[Result]]
    ) -> tuple[Sequence[Prepared[Result]], Callable[[], None]]:
        """Everything with a plan: what has none gets the best config for what is left until the earliest deadline.

        Returns:
            What to run, and what to call when it has run: the next budget then knows how long this one took.
        """
        waiting = [each for each in prepared if each.plan is None]
        if not waiting:
            return prepared, _nothing
        end = min(each.deadline for each in waiting if each.deadline is not None)
        model, pace = self.times.model, self.times.pace.ratio
        others = _safe_seconds(model, prepared)
        chosen, expected = policies.within_time(
            self.best_first,
            model,
            np.concatenate([np.diff(each.batch.offsets) for each in waiting]),
            lambda: end - perf_counter() - pace * others,
            pace,
        )
        decided = perf_counter()

        def ran() -> None:
            took = perf_counter() - decided
            self.times.saw(expected + others / (1 + model.margin), took, lambda: end - perf_counter())

        return [each if each.plan else replace(each, plan=chosen.plan(each.count)) for each in prepared], ran

    def _alone(self, prepared: Prepared[Result]) -> list[Result]:
        """The results of one Prepared, from a native run of its own."""
        plan = _plan_of(prepared)
        index = _rows(prepared, range(len(plan.configs))) if len(plan.configs) > 1 else None
        return prepared.read(self.native_run(prepared.batch, plan.configs, index, prepared.want), plan)

    def _together(self, prepared: Sequence[Prepared[Result]]) -> list[list[Result]]:
        """Per Prepared its results, from one native run."""
        if len(prepared) == 1:
            return [self._alone(prepared[0])]
        batch = Ragged.concatenated([each.batch for each in prepared])
        configs: dict[LengthConfig, int] = {}
        numbers = [[configs.setdefault(c, len(configs)) for c in _plan_of(each).configs] for each in prepared]
        index = np.concatenate([_rows(each, known) for each, known in zip(prepared, numbers, strict=True)])
        want = frozenset().union(*(each.want for each in prepared))
        found = self.native_run(batch, list(configs), index, want)
        results = []
        first = 0
        for each in prepared:
            sequences = slice(first, first + each.batch.count)
            mine = arrays.part(found, batch.offsets, sequences, self._settings["kind"])
            results.append(each.read(mine, _plan_of(each)))
            first = sequences.stop
        return results

    def native_run(
        self,
        batch: Ragged,
        configs: Sequence[LengthConfig],
        index: NDArray[np.int32] | None,
        want: Set[str],
    ) -> arrays.Arrays:
        """One native run, whose stages are reported where the environment asks for them.

        Args:
            batch: the sequences.
            configs: what they run with.
            index: int32 (sequences,): which of ``configs`` each has; None: all have the only one.
            want: names of the arrays to give.
        """
        if self._profile:
            want = want | {"stages"}
        lengths = [config.to_native() for config in configs]
        found = self._core.run(batch.ids, batch.offsets, batch.type_ids, lengths, index, want)
        if self._profile:
            stages.report(stages.by_name(found["stages"]), batch.count, len(batch.ids))
        return found


def _stamp(results: Sequence[Any], deadline: float) -> None:
    """Notes in results whether the deadline is kept if the call ends now."""
    met = perf_counter() <= deadline
    for result in results:
        note(result, budget_met=met)


def _nothing() -> None:
    """After a run that nothing was predicted for."""


def _plan_of(prepared: Prepared[Any]) -> LengthPlan:
    assert prepared.plan is not None, "the plan is settled before anything runs"
    return prepared.plan


def _rows(prepared: Prepared[Any], numbers: Sequence[int]) -> NDArray[np.int32]:
    """int32 (sequences,): of the config that each sequence runs with, its entry in ``numbers``."""
    of_input = [numbers[which] for which in _plan_of(prepared).index]
    return np.repeat(np.array(of_input, np.int32), np.diff(prepared.inputs))


def _safe_seconds(model: CostModel, prepared: Sequence[Prepared[Any]]) -> float:
    """What the cost model predicts, with its margin, for all that has a plan; 0.0 for nothing."""
    lengths: dict[LengthConfig, list[int]] = {}
    for each in prepared:
        if each.plan is not None:
            sizes = np.split(np.diff(each.batch.offsets), each.inputs[1:-1])
            for which, of_input in zip(each.plan.index, sizes, strict=True):
                lengths.setdefault(each.plan.configs[which], []).extend(of_input.tolist())
    return sum(float(model.safe_seconds(sizes, [config])[0]) for config, sizes in lengths.items())


def _random_call(
    core: _core.Engine, info: Mapping[str, Any], lengths: Sequence[int], config: LengthConfig
) -> Callable[[], object]:
    """A native call over random ids, ready to be timed."""
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    with importing():
        random = np.random.default_rng(0)
    ids = random.integers(0, info["vocab_size"], offsets[-1], dtype=np.int32)
    native = [config.to_native()]
    return lambda: core.run(ids, offsets, None, native, None, {"logits", "macs"})
