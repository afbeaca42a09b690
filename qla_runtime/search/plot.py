"""The frontier as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qla_runtime.errors import InputError
from qla_runtime.search.evolve import Point

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COST_NAMES = {"macs": "arithmetic", "time": "time"}


def draw(
    points: Sequence[Point],
    best: Sequence[Point],
    named: Mapping[str, Point],
    *,
    cost: str,
    metric: str,
    data: str,
) -> Figure:
    """Accuracy over cost: everything measured, the constant-rate line, the frontier, the chosen.

    Args:
        points: everything measured on the sample.
        best: the frontier, cheapest first.
        named: the package's names for some of the points.
        cost: ``macs`` or ``time``.
        metric: what accuracy is.
        data: what it was measured on.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    constant = sorted((point.cost, point.accuracy) for point in points if point.origin == "constant")
    axes.plot(*_columns(points), ".", color="0.8", label="measured")
    axes.plot(*zip(*constant, strict=True), "s-", color="tab:orange", markersize=4, label="constant rate")
    # A budget between two points of the frontier buys the cheaper one: steps, not slopes.
    axes.plot(*_columns(best), "o-", drawstyle="steps-post", color="tab:blue", markersize=4, label="frontier")
    for name, point in named.items():
        axes.plot(point.cost, point.accuracy, "*", color="black", markersize=11)
        axes.annotate(name, (point.cost, point.accuracy), xytext=(7, -13), textcoords="offset points")
    axes.set(xlabel=f"{_COST_NAMES[cost]}, as a share of keeping every token", ylabel=f"{metric}, percent")
    axes.set_title(data, fontsize=9)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    return figure


def plot(out: Path, *arguments: Any, **facts: Any) -> None:
    """Writes the picture that :func:`draw` makes of the arguments, as a PNG.

    Raises:
        InputError: the picture cannot be written.
    """
    try:
        draw(*arguments, **facts).savefig(out, dpi=150)
    except (OSError, ValueError) as error:
        raise InputError(f"{out}: cannot be written ({error})") from error


def _columns(points: Sequence[Point]) -> tuple[list[float], list[float]]:
    return [point.cost for point in points], [point.accuracy for point in points]
