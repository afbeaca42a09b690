"""The best length config at a given cost: hill climbing among configs that cost just that.

    python recipes/config_at_cost.py PACKAGE DATA --share 0.6 [--start VALUES ...] [--steps 45] [--sample 2700]

`qla search` draws a whole frontier, and few of its children land at any one cost. This takes one cost: it changes
two layers of one of the three best configs so far, brings it to the cost again, and measures. What it finds
is a good `--start` for `qla search`. DATA as there; of a SQuAD file the articles at odd positions (dev-select).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from qla_runtime import LengthConfig, QlaError
from qla_runtime.search.cost import macs_share
from qla_runtime.search.package import Package
from qla_runtime.search.selection import read_selection

GRID = 64

Values = tuple[float, ...]


def on_grid(values: ArrayLike) -> Values:
    """Multiples of 1/GRID from 1/GRID to 1 that do not rise."""
    rounded = np.clip(np.round(np.asarray(values, np.float64) * GRID), 1, GRID) / GRID
    return tuple(np.minimum.accumulate(rounded).tolist())


def at_cost(values: ArrayLike, share: float, cost: Callable[[Values], float]) -> Values:
    """All layers but the first scaled, so that the config costs ``share``, or a little less on the grid."""
    values = np.asarray(values, np.float64)
    low, high = 0.0, 2.0
    for _ in range(14):
        middle = (low + high) / 2
        scaled = on_grid(np.append(values[0], values[1:] * middle))
        low, high = (middle, high) if cost(scaled) <= share else (low, middle)
    return on_grid(np.append(values[0], values[1:] * low))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--share", type=float, required=True, help="of the MACs of keeping every token, below 1")
    parser.add_argument("--start", action="append", default=[], metavar="VALUES", help="ratios; repeatable")
    parser.add_argument("--steps", type=int, default=45, help="configs to try (default: 45)")
    parser.add_argument("--sample", type=int, default=2700, help="items that decide (default: 2700)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    try:
        package = Package(args.package)
        selection = read_selection(package, args.data, "odd").sample(args.sample)
        offsets = selection.sequences(package.text_encoder()).offsets
        layers = package.engine.layers
        share_of = macs_share(package.macs, np.diff(offsets), layers)
        starts = [[float(part) for part in text.split(",")] for text in args.start]
        for values in starts:
            LengthConfig.ratio(values).check_layers(layers)
    except (QlaError, ValueError) as error:
        sys.exit(f"error: {error}")

    def config(values: Values) -> LengthConfig:
        return LengthConfig.ratio(values, keep_cls=package.task["keep_cls"])

    def cost(values: Values) -> float:
        return share_of(config(values))

    found: dict[Values, float] = {}

    def measure(values: Values) -> None:
        if values in found:
            return
        found[values] = selection.score(package.engine, config(values))
        best = " <- best" if found[values] == max(found.values()) else ""
        shown = ",".join(f"{value:g}" for value in values)
        print(f"{shown}  cost {cost(values):.4f}  {selection.metric} {found[values]:.2f}{best}", flush=True)

    draw = np.random.default_rng(args.seed)
    for values in starts or [np.linspace(1, 0.1, layers)]:
        measure(at_cost(values, args.share, cost))
    for _ in range(args.steps):
        leaders = sorted(found, key=found.__getitem__)[-3:]
        values = np.array(leaders[draw.integers(len(leaders))])
        places = draw.choice(layers, 2, replace=False)
        values[places] += draw.choice([-4, -2, -1, 1, 2, 4], 2) / GRID
        measure(at_cost(on_grid(values), args.share, cost))


if __name__ == "__main__":
    main()
