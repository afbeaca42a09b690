"""Statistics that several scores share: rank correlation, and how far a sample can be trusted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qla_runtime.errors import InputError


def spearman(a: ArrayLike, b: ArrayLike) -> float:
    """Rank correlation of two vectors, -1 to 1. Equal values share their mean rank.

    Returns:
        NaN where one of the vectors is constant, because the correlation is not defined there.
    """
    x, y = _ranks(np.asarray(a)), _ranks(np.asarray(b))
    x, y = x - x.mean(), y - y.mean()
    spread = np.sqrt((x @ x) * (y @ y))
    return float(x @ y / spread) if spread else float("nan")


def correlation(found: ArrayLike, truth: ArrayLike) -> float:
    """:func:`spearman`, but 0 for a model that gives everything the same score: it orders nothing."""
    value = spearman(found, truth)
    return value if np.isfinite(value) else 0.0


def sampling_error(metric: str, score: float, items: int) -> float:
    """The standard error of a score, in points: how much it would differ on another sample of the same size.

    Args:
        metric: ``spearman``, or the name of a mean of values from 0 to 1, such as ``f1`` and ``accuracy``.
        score: the score of the sample, in percent.
        items: the size of the sample.
    """
    share = min(max(score / 100, -1.0), 1.0)
    if metric == "spearman":
        # Fisher's transformation has the error 1.03 / sqrt(n - 3); its slope here is 1 - share^2.
        return 100 * (1 - share**2) * 1.03 / math.sqrt(max(items - 3, 1))
    # Values from 0 to 1 vary the most when each is 0 or 1.
    return 100 * math.sqrt(max(share, 0.0) * (1 - max(share, 0.0)) / items)


def check_varied(answers: Sequence[Any], data: str) -> None:
    """Refuses test data whose answers are all the same.

    Args:
        answers: the right answer of each item.
        data: the name of the data, for the message.

    Raises:
        InputError: all answers are equal, so that the data cannot tell one model or config from another.
    """
    if len(set(answers)) < 2:
        same = f"have the answer {answers[0]!r}" if len(answers) else "are missing"
        raise InputError(
            f"{data}: all {len(answers)} items {same}, which tells no config from another; give more varied data"
        )


def _ranks(values: NDArray[Any]) -> NDArray[np.float64]:
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[which]
