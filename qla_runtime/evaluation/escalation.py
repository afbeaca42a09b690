"""The threshold at which ``Escalate`` loses little, measured on questions with known answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qla_runtime.engine import Engine
from qla_runtime.errors import InputError, shown
from qla_runtime.evaluation.questions import Question
from qla_runtime.lengths.configs import LengthConfig, check_amount


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
        questions: as ``read_squad`` gives them.
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
