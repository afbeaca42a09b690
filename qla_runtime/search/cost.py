"""What a length config costs, as a share of what keeping every token costs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from qla_runtime.engine import Engine
from qla_runtime.lengths.configs import LengthConfig
from qla_runtime.ragged import Ragged

TIMED_SEQUENCES = 32
REPEATS = 5

Cost = Callable[[LengthConfig], float]


def macs_share(macs: Callable[[int, LengthConfig], int], lengths: NDArray[np.int64], layers: int) -> Cost:
    """Cost in arithmetic over sequences of the given real lengths: exact, the same on every machine.

    Args:
        macs: multiply-accumulates of one sequence of so many tokens.
        lengths: (sequences,) tokens of each.
        layers: entries of a config.
    """
    different, counts = np.unique(lengths, return_counts=True)
    weighted = list(zip(different.tolist(), counts.tolist(), strict=True))

    def total(config: LengthConfig) -> int:
        return sum(count * macs(length, config) for length, count in weighted)

    full = total(LengthConfig.ratio([1.0] * layers))
    return lambda config: total(config) / full


def time_share(engine: Engine, sequences: Ragged) -> Cost:
    """Cost in wall time of one call over a fixed ragged batch of :data:`TIMED_SEQUENCES` of the sequences.

    Each measurement runs the config and ``full`` in turns, :data:`REPEATS` times after one turn to warm up,
    and divides the medians: a machine that slows down slows both.
    """
    rows = np.linspace(0, sequences.count - 1, min(TIMED_SEQUENCES, sequences.count)).astype(int)
    ids = [_row(sequences.ids, sequences, row) for row in rows]
    types = None
    if sequences.type_ids is not None:
        types = [_row(sequences.type_ids, sequences, row) for row in rows]
    full = LengthConfig.ratio([1.0] * engine.layers)

    def seconds(config: LengthConfig) -> float:
        began = time.perf_counter()
        engine.forward(ids, token_type_ids=types, length=config)
        return time.perf_counter() - began

    def share(config: LengthConfig) -> float:
        if config == full:
            return 1.0
        turns = [(seconds(config), seconds(full)) for _ in range(1 + REPEATS)][1:]
        ours, whole = (statistics.median(column) for column in zip(*turns, strict=True))
        return ours / whole

    return share


def _row(values: NDArray[np.int32], sequences: Ragged, row: int) -> NDArray[np.int32]:
    return values[sequences.offsets[row] : sequences.offsets[row + 1]]
