"""A run's log as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qla_runtime.drawing import require_matplotlib
from qla_runtime.errors import InputError
from qla_runtime.training.run_folder import read_log

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_NO_LOSS = {"step", "epoch", "seconds", "seconds_left", "learning_rate", "gradient_norm", "tokens_per_second"}
SMOOTHED = 9
"""Points of the log in a running mean."""


def plot(folder: str | Path, out: str | Path) -> None:
    """Draws losses (and accuracy, where it was measured) over steps.

    Args:
        folder: the run.
        out: the picture; its suffix says which format (.png, .svg, .pdf).

    Raises:
        InputError: the run has no log yet, or the picture cannot be written.
        UnsupportedError: matplotlib is not installed.
    """
    entries = read_log(folder)
    if all("accuracy" in entry for entry in entries):
        raise InputError(f"{folder}: log.jsonl holds no losses; train first")
    try:
        draw(entries).savefig(out, dpi=150)
    except (OSError, ValueError) as error:
        raise InputError(f"{out}: cannot be written ({error})") from error


def draw(entries: Sequence[Mapping[str, Any]]) -> Figure:
    """The picture of a log's lines, of which at least one holds losses.

    Raises:
        UnsupportedError: matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    losses = [entry for entry in entries if "accuracy" not in entry]
    figures = [entry for entry in entries if "accuracy" in entry]
    drawing = Figure(figsize=(8, 6 if figures else 3.5), layout="constrained")
    axes = drawing.subplots(2 if figures else 1, 1, sharex=True, squeeze=False)[:, 0]
    for name in [name for name in losses[0] if name not in _NO_LOSS]:
        steps, values = _series(losses, name)
        (line,) = axes[0].plot(steps, values, alpha=0.25, linewidth=1)
        axes[0].plot(steps, _smooth(values), color=line.get_color(), label=name)
    axes[0].set(ylabel="loss", yscale="log")
    axes[0].legend()
    if figures:
        measured = [{"step": entry["step"], **entry["accuracy"]} for entry in figures]
        for name in figures[0]["accuracy"]:
            axes[1].plot(*_series(measured, name), "o-", label=name)
        axes[1].set(ylabel="percent")
        axes[1].legend()
    axes[-1].set(xlabel="step")
    for axis in axes:
        axis.grid(alpha=0.3)
    return drawing


def _series(entries: Sequence[Mapping[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    found = [(entry["step"], entry[name]) for entry in entries if name in entry]
    steps, values = zip(*found, strict=True)
    return np.array(steps), np.array(values)


def _smooth(values: np.ndarray) -> np.ndarray:
    """Mean of the last :data:`SMOOTHED` values, or of as many as there are."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    last = np.arange(1, len(values) + 1)
    first = np.maximum(0, last - SMOOTHED)
    return (sums[last] - sums[first]) / (last - first)
