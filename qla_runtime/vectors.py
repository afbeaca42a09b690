"""What is done with sentence vectors after the model gave them: cut, normalize, compare."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qla_runtime.errors import InputError, shown

SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")
"""Names of ``similarity`` in a package's ``config.json``; both distances are negative, so that more is closer."""

_LEAST_LENGTH = 1e-12
"""A vector shorter than this is divided by this instead of by its length, as torch does."""
_BLOCK_ROWS = 64


def normalized(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Vectors (..., H) divided by their Euclidean length."""
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    shortened: NDArray[np.float32] = vectors / np.maximum(length, _LEAST_LENGTH)
    return shortened


def check_truncate_dim(value: Any, hidden: int) -> int | None:
    """How many of a vector's leading numbers to keep; None for all.

    Raises:
        InputError: no integer from 1 to ``hidden``.
    """
    if value is None:
        return None
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)) or not 1 <= value <= hidden:
        raise InputError(
            f"truncate_dim is {shown(value)}; it must be an integer from 1 to {hidden}, the numbers of a vector "
            "of this model. Leave it out (None) for what the model's own config says"
        )
    return int(value)


def similarity(name: str, first: ArrayLike, second: ArrayLike) -> NDArray[np.float32]:
    """Each vector of ``first`` against each of ``second``.

    Args:
        name: one of :data:`SIMILARITIES`.
        first: (n, H), or (H,) for one vector.
        second: (m, H), or (H,).

    Returns:
        float32 (n, m).

    Raises:
        InputError: not numbers, or not of one width.
    """
    a, b = _rows("first", first), _rows("second", second)
    if a.shape[1] != b.shape[1]:
        raise InputError(
            f"vectors of {a.shape[1]} and of {b.shape[1]} numbers cannot be compared; encode both with the same "
            "model and the same truncate_dim"
        )
    if name == "cosine":
        a, b = normalized(a), normalized(b)
    if name in ("cosine", "dot"):
        return a @ b.T
    order = {"euclidean": 2, "manhattan": 1}[name]
    out = np.empty((len(a), len(b)), np.float32)
    for start in range(0, len(a), _BLOCK_ROWS):  # the differences of all pairs would not fit into memory
        part = slice(start, start + _BLOCK_ROWS)
        out[part] = -np.linalg.norm(a[part, None] - b[None], ord=order, axis=-1)
    return out


def _rows(what: str, vectors: ArrayLike) -> NDArray[np.float32]:
    try:
        rows = np.atleast_2d(np.asarray(vectors, np.float32))
    except (TypeError, ValueError, OverflowError, RuntimeError):
        raise InputError(f"the {what} argument holds no vectors of one width; pass what encode() gave") from None
    if rows.ndim != 2:
        raise InputError(f"the {what} argument has {rows.ndim} dimensions; pass one vector or rows of vectors")
    return rows
