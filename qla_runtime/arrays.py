"""The arrays that a native run gives: flat, over all tokens or all sequences of its batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qla_runtime import task_kinds

Arrays = Mapping[str, NDArray[Any]]
"""Name to array, as ``_core.Engine.run`` gives them.

For T tokens, S sequences, L layers and H channels: ``last_hidden`` float32 (T, H), ``logits`` float32 (T, outputs)
or (S, outputs), ``kept`` int32 (L, T), ``kept_counts`` int32 (L, S), ``hidden_states`` float32 (L + 1, T, H),
``scores`` float32 (L, T), ``macs`` int64 (S,), and ``stages`` float64, which are of the whole run.
"""

_TOKEN_AXIS = {"last_hidden": 0, "kept": 1, "hidden_states": 1, "scores": 1}
_SEQUENCE_AXIS = {"kept_counts": 1, "macs": 0}


def part(arrays: Arrays, offsets: NDArray[np.int64], sequences: slice, task_kind: str) -> Arrays:
    """What a run gave for some of its sequences. The arrays are views.

    Args:
        arrays: of the whole run.
        offsets: int64 (S + 1,): where the sequences of the run begin and end among its tokens.
        sequences: which ones, as a range from ``start`` to ``stop``.
        task_kind: of the model, which says whether it gives logits per token or per sequence.
    """
    tokens = slice(int(offsets[sequences.start]), int(offsets[sequences.stop]))
    of_tokens, of_sequences = dict(_TOKEN_AXIS), dict(_SEQUENCE_AXIS)
    (of_tokens if task_kinds.per_token(task_kind) else of_sequences)["logits"] = 0
    cut = dict(arrays)
    for axes, rows in ((of_tokens, tokens), (of_sequences, sequences)):
        for name in axes.keys() & arrays.keys():
            cut[name] = arrays[name][rows] if axes[name] == 0 else arrays[name][:, rows]
    return cut


def kept_positions(arrays: Arrays, offsets: NDArray[np.int64], sequence: int) -> list[NDArray[np.int32]]:
    """Per layer the positions that it kept of a sequence, ascending."""
    start = int(offsets[sequence])
    rows = zip(arrays["kept"], arrays["kept_counts"][:, sequence].tolist(), strict=True)
    return [row[start : start + count] for row, count in rows]
