"""How a policy becomes length configs.

The policies themselves (``LatencyBudget``, ``MaxLoss``, ``Escalate``) are values in
:mod:`qla_runtime.lengths.configs`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from qla_runtime.errors import UnsupportedError
from qla_runtime.lengths.configs import Escalate, MaxLoss, NamedLength
from qla_runtime.lengths.cost_model import CostModel

UNCALIBRATED = 0.5
"""Escalate's threshold where neither the caller nor the package has one."""


def threshold(policy: Escalate, stored: Mapping[tuple[Any, Any], float]) -> float:
    """The policy's own threshold, else the package's for its two names, else :data:`UNCALIBRATED`.

    Args:
        policy: the policy.
        stored: the thresholds of the package's :class:`~qla_runtime.lengths.table.LengthTable`.
    """
    if policy.threshold is not None:
        return policy.threshold
    cheap, dear = (c.name if isinstance(c, NamedLength) else c for c in (policy.cheap, policy.dear))
    return stored.get((cheap, dear), UNCALIBRATED)


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
    least = next(value for c, value in measured if c.name == "full") - policy.points
    return min((c for c, value in measured if value >= least), key=lambda c: c.macs)


def best_first(candidates: Sequence[NamedLength]) -> list[NamedLength]:
    """By accuracy where the package tells it (of several configs, on the same data as ``full``; others are left
    out), else by MACs."""
    measured = _measured(candidates)
    if measured:
        return [c for c, _ in sorted(measured, key=lambda pair: (-pair[1], pair[0].macs))]
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
    chosen = int(
        fits[0] if fits.size else np.lexsort((np.array([candidate.macs for candidate in ranked]), needed))[0]
    )
    return ranked[chosen], float(needed[chosen]) / (1 + model.margin)


def compares(candidates: Sequence[NamedLength]) -> bool:
    """Whether accuracies, and not MACs, tell which of these is better: ``full`` and another were measured on
    the same data."""
    return bool(_measured(candidates))


def _measured(candidates: Sequence[NamedLength]) -> list[tuple[NamedLength, float]]:
    """Candidates whose accuracy compares with that of ``full``, and the accuracy; empty where no other than
    ``full`` has one."""
    full = next((c for c in candidates if c.name == "full"), None)
    if full is None or full.accuracy is None:
        return []
    same = (full.accuracy.metric, full.accuracy.data)
    measured = [
        (c, c.accuracy.value) for c in candidates if c.accuracy and (c.accuracy.metric, c.accuracy.data) == same
    ]
    return measured if len(measured) > 1 else []
