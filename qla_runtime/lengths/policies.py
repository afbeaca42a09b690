"""How a policy becomes length configs.

The policies themselves (``LatencyBudget``, ``MaxLoss``, ``Escalate``) are values in
:mod:`qla_runtime.lengths.configs`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qla_runtime.errors import InputError, UnsupportedError, shown
from qla_runtime.lengths.configs import Escalate, LengthConfig, MaxLoss, NamedLength, check_amount
from qla_runtime.lengths.cost_model import CostModel

if TYPE_CHECKING:
    from qla_runtime.engine import Engine
    from qla_runtime.evaluation.squad import Question

Result = TypeVar("Result")


UNCALIBRATED = 0.5
"""Escalate's threshold where neither the caller nor the package has one."""


def with_threshold(policy: Escalate, package: Mapping[str, Any]) -> Escalate:
    """The policy with its threshold settled: its own, else that of ``length_configs.json`` for its two names."""
    if policy.threshold is not None:
        return policy
    pair = tuple(c.name if isinstance(c, NamedLength) else c for c in (policy.cheap, policy.dear))
    stored = {(entry["cheap"], entry["dear"]): entry["threshold"] for entry in package.get("escalations", ())}
    return replace(policy, threshold=stored.get(pair, UNCALIBRATED))


# --------------------------------------------------------------------------------------------- choosing


def within_loss(policy: MaxLoss, candidates: Sequence[NamedLength]) -> NamedLength:
    """The cheapest candidate, by MACs, that loses at most ``policy.points`` against ``full``.

    Raises:
        UnsupportedError: the package does not tell the accuracy of ``full`` and of another config on the same
            data.
    """
    measured = _measured(candidates)
    if not measured:
        raise UnsupportedError(
            f"MaxLoss({policy.points:g}) needs the accuracy of 'full' and of at least one other config on the "
            "same data, and this package does not hold them; measure with `qla search`, or pass a config's name"
        )
    least = _full(measured).accuracy.value - policy.points
    return min((c for c in measured if c.accuracy.value >= least), key=lambda c: c.macs)


def best_first(candidates: Sequence[NamedLength]) -> list[NamedLength]:
    """By accuracy where the package tells it (of several configs, on the same data as ``full``; others are left
    out), else by MACs."""
    measured = _measured(candidates)
    if measured:
        return sorted(measured, key=lambda c: (-c.accuracy.value, c.macs))
    return sorted(candidates, key=lambda c: -c.macs)


def within_time(
    ranked: Sequence[NamedLength],
    model: CostModel,
    lengths: ArrayLike,
    left: Callable[[], float],
    pace: float = 1.0,
) -> tuple[NamedLength, float]:
    """The first candidate predicted, with the model's margin, to run in the time that is left, else the fastest.

    Args:
        ranked: what there is to choose from, best first.
        model: predicts times.
        lengths: tokens of each sequence of the call.
        left: seconds until the budget ends, asked once times are predicted, which takes some itself.
        pace: how many times as long as the model says calls take at the moment.

    Returns:
        The candidate, and the seconds that the model expects it to take.
    """
    needed = model.safe_seconds(lengths, [candidate.config for candidate in ranked])
    fits = np.flatnonzero(pace * needed <= left())
    # A call of nothing but overhead is predicted alike with every config; fewer MACs are then the safer guess.
    chosen = int(fits[0] if fits.size else np.lexsort(([candidate.macs for candidate in ranked], needed))[0])
    return ranked[chosen], float(needed[chosen]) / (1 + model.margin)


def escalate(
    first: list[Result],
    confidence: Callable[[Result], float],
    threshold: float,
    again: Callable[[list[int]], list[Result]],
    merge: Callable[[Result, Result], Result],
) -> list[Result]:
    """Results of a cheap run, those below the threshold replaced by a second run.

    Args:
        first: results of the cheap run.
        confidence: how sure a result is, 0 to 1.
        threshold: results with less confidence are repeated.
        again: runs the inputs of these numbers with the dear config.
        merge: a cheap and a dear result of the same input -> the one to report.
    """
    unsure = [i for i, result in enumerate(first) if confidence(result) < threshold]
    merged = list(first)
    if unsure:
        for i, result in zip(unsure, again(unsure), strict=True):
            merged[i] = merge(first[i], result)
    return merged


def compares(candidates: Sequence[NamedLength]) -> bool:
    """Whether accuracies, and not MACs, tell which of these is better: ``full`` and another were measured on
    the same data."""
    return bool(_measured(candidates))


def _full(candidates: Sequence[NamedLength]) -> NamedLength | None:
    return next((c for c in candidates if c.name == "full"), None)


def _measured(candidates: Sequence[NamedLength]) -> list[NamedLength]:
    """Candidates whose accuracy compares with that of ``full``; empty where no other than ``full`` has one."""
    full = _full(candidates)
    if full is None or full.accuracy is None:
        return []
    same = (full.accuracy.metric, full.accuracy.data)
    measured = [c for c in candidates if c.accuracy and (c.accuracy.metric, c.accuracy.data) == same]
    return measured if len(measured) > 1 else []


# ------------------------------------------------------------------------------------------ calibrating


def calibrate_escalation(
    engine: Engine,
    questions: Sequence[Question],
    cheap: str | LengthConfig,
    dear: str | LengthConfig,
    max_loss: float = 0.5,
) -> float:
    """The lowest ``threshold`` for ``Escalate(cheap, dear, threshold)`` that loses little on these questions.

    Choose on other questions than you report on: the loss on these is a little flattered.

    Args:
        engine: a span-qa model.
        questions: as ``evaluate.read_squad`` gives them.
        cheap: the first config.
        dear: the config of the second run.
        max_loss: points of F1 that the mean may lie below that of ``dear`` alone.

    Raises:
        InputError: no questions, or ``max_loss`` is negative or not a finite number.
        UnsupportedError: the model does not answer questions.
    """
    if not questions:
        raise InputError("there are no questions to calibrate on; give at least one, better some hundreds")
    _check_loss(max_loss)
    texts, contexts = [q.question for q in questions], [q.context for q in questions]

    def run(length: str | LengthConfig) -> tuple[list[float], list[float]]:
        results = engine.answer(texts, contexts, length)
        pairs = zip(results, questions, strict=True)
        f1 = [100 * question.f1(result["answer"]) for result, question in pairs]
        return [result["score"] for result in results], f1

    confidences, cheap_f1 = run(cheap)
    return escalation_threshold(confidences, cheap_f1, run(dear)[1], max_loss)


def escalation_threshold(
    confidences: ArrayLike, cheap_scores: ArrayLike, dear_scores: ArrayLike, max_loss: float
) -> float:
    """The lowest threshold at which escalating stays within ``max_loss`` of running ``dear`` on everything.

    Args:
        confidences: of the cheap run, one per input, 0 to 1.
        cheap_scores: how good the cheap result is, one per input, in any unit.
        dear_scores: how good the dear result is.
        max_loss: how far the mean score may lie below the mean of ``dear_scores``.

    Returns:
        0.0 where nothing needs to be repeated, 1.0 where all must be that is not certain.

    Raises:
        InputError: empty, unequal numbers, a confidence outside 0 to 1, or a ``max_loss`` that is negative or
            not a finite number.
    """
    max_loss = _check_loss(max_loss)
    sure, cheap, dear = (
        _numbers(values, what)
        for values, what in (
            (confidences, "confidences"),
            (cheap_scores, "cheap scores"),
            (dear_scores, "dear scores"),
        )
    )
    if not len(sure) or sure.shape != cheap.shape or sure.shape != dear.shape:
        raise InputError(
            f"there are {sure.size} confidences, {cheap.size} cheap and {dear.size} dear scores; give one of each "
            "per input, and at least one"
        )
    if not ((sure >= 0) & (sure <= 1)).all():
        raise InputError("confidences must lie between 0 and 1; give the scores that the cheap run reported")
    order = np.argsort(sure, kind="stable")
    sure, gain = sure[order], (dear - cheap)[order]
    # Loss after repeating the k least sure, for k = 0 to all.
    loss = np.append(np.cumsum(gain[::-1])[::-1], 0.0) / len(sure)
    thresholds = np.append(sure, 1.0)
    # Equal confidences are repeated together: a threshold repeats those strictly below it.
    separates = np.concatenate([[True], sure[1:] > sure[:-1], [True]])
    thresholds[0] = 0.0
    return float(thresholds[np.argmax(separates & (loss <= max_loss + 1e-9))])


def _check_loss(max_loss: Any) -> float:
    return check_amount("max_loss", max_loss, "points")


def _numbers(values: ArrayLike, what: str) -> NDArray[np.float64]:
    """One number per input; else InputError."""
    try:
        numbers = np.asarray(values, np.float64)
    except (TypeError, ValueError, OverflowError):
        numbers = np.array([np.nan])
    if numbers.ndim != 1 or np.ma.is_masked(values) or not np.isfinite(numbers).all():
        raise InputError(f"{what} are {shown(values)}; give one finite number per input")
    return numbers
