"""What ``forward`` accepts, checked and flattened: ragged lists, or a rectangle with a right-padded mask."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qla_runtime.errors import InputError, shown
from qla_runtime.ragged import Ragged

Ids = Sequence[Sequence[int]] | Sequence[ArrayLike] | ArrayLike

_INT32 = np.iinfo(np.int32)


def ragged(input_ids: Ids, attention_mask: Ids | None, token_type_ids: Ids | None) -> Ragged:
    """The three arguments of ``forward`` -> one ragged batch without a padding token.

    Args:
        input_ids: a list (or another ordered collection) of integer sequences, or a 2-D integer array or tensor.
        attention_mask: the same shape, 1 on tokens and 0 on the padding that follows them; None: every id is
            a token.
        token_type_ids: the same shape; None: all 0.

    Raises:
        InputError: not integers, not two-dimensional, an empty batch or row, shapes that differ, a mask with
            holes or with padding on the left, or a number that does not fit in 32 bits.
    """
    rows = _rows(input_ids, "input_ids")
    types = None if token_type_ids is None else _like(token_type_ids, rows, "token_type_ids")
    if attention_mask is not None:
        lengths = [_real_length(i, mask) for i, mask in enumerate(_like(attention_mask, rows, "attention_mask"))]
        rows = [row[:n] for row, n in zip(rows, lengths, strict=True)]
        types = types and [row[:n] for row, n in zip(types, lengths, strict=True)]
    offsets = np.zeros(len(rows) + 1, np.int64)
    np.cumsum([len(row) for row in rows], out=offsets[1:])
    type_ids = None if types is None else _int32(types, offsets, "token_type_ids")
    return Ragged(_int32(rows, offsets, "input_ids"), offsets, type_ids)


def _rows(value: Any, name: str, *, booleans: bool = False) -> list[NDArray[Any]]:
    """A rectangle or a collection of sequences -> one integer vector per sequence, none of them empty."""
    value = _ordered(value, name, "a list of integer sequences or a 2-D integer array")
    if not isinstance(value, (list, tuple)):
        value = _array(value, name)
        if value.ndim == 1 and value.dtype == object and len(value) and isinstance(value[0], Iterable):
            value = list(value)  # sequences of different lengths
        elif value.ndim != 2:
            raise InputError(
                f"{name} has {value.ndim} dimensions; it must have 2 (sequences, tokens). Wrap a single "
                "sequence in a list"
            )
    if len(value) == 0:
        raise InputError(f"{name} is empty; give at least one sequence")
    return [_row(row, f"{name}[{i}]", booleans) for i, row in enumerate(value)]


def _row(value: Any, where: str, booleans: bool) -> NDArray[Any]:
    if getattr(value, "ndim", 0) == 0 and isinstance(value, (int, float, np.generic, np.ndarray)):
        raise InputError(
            f"{where} is {shown(value)}, a single value; it must be a sequence. Wrap a single sequence in a list"
        )
    value = _ordered(value, where, "a sequence of integers")
    types = set(map(type, value)) if isinstance(value, (list, tuple)) else set()
    if not booleans and types & {bool, np.bool_}:
        raise InputError(f"{where} holds True or False; ids are integers. Convert it on purpose with int()")
    row = _array(value, where)
    if row.ndim != 1:
        raise InputError(f"{where} has {row.ndim} dimensions; it must have 1 (tokens). Squeeze the others away")
    if row.size == 0:
        raise InputError(f"{where} is an empty sequence; leave it out or give it at least one token")
    if booleans and row.dtype.kind == "b":
        return row.astype(np.int8)
    if types == {int}:
        # Integers beyond 64 bits, which numpy keeps as objects or rounds to floats.
        return row if row.dtype.kind in "iu" else np.array(value, object)
    if row.dtype.kind not in "iu":
        raise InputError(
            f"{where} has dtype {row.dtype}; it must hold integers. Convert it on purpose with astype(int)"
        )
    return row


def _ordered(value: Any, name: str, wanted: str) -> Any:
    """``value`` where it is a collection with an order; an iterator is read into a list."""
    if isinstance(value, np.ma.MaskedArray):
        raise InputError(
            f"{name} is a masked array, whose masked entries are no ids; pass .filled() ids and an attention_mask"
        )
    if isinstance(value, Mapping):
        raise InputError(f"{name} is of type {type(value).__name__}; it must be {wanted}. Pass its ['input_ids']")
    if isinstance(value, (set, frozenset)):
        raise InputError(f"{name} is of type {type(value).__name__}, which has no order; it must be {wanted}")
    if isinstance(value, (str, bytes, np.generic)) or not (
        isinstance(value, Iterable) or hasattr(value, "__array__")
    ):
        raise InputError(f"{name} is {shown(value)}; it must be {wanted}")
    return value if hasattr(value, "__len__") else list(value)


def _array(value: Any, where: str) -> NDArray[Any]:
    """The collection as an array; a torch tensor on another device is refused in its own words."""
    try:
        return np.asarray(value)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        reason = "" if isinstance(value, (list, tuple)) else f" ({error})"
        raise InputError(
            f"{where} is no sequence of integers{reason}; give a list or an array of token ids"
        ) from None


def _like(value: Any, rows: list[NDArray[Any]], name: str) -> list[NDArray[Any]]:
    """``value`` as rows of the same lengths as ``rows``."""
    others = _rows(value, name, booleans=name == "attention_mask")
    if len(others) != len(rows):
        raise InputError(f"{name} has {len(others)} rows for {len(rows)} sequences; give one row per sequence")
    for i, (other, row) in enumerate(zip(others, rows, strict=True)):
        if len(other) != len(row):
            raise InputError(f"{name}[{i}] has {len(other)} entries for {len(row)} input_ids; give one per id")
    return others


def _real_length(i: int, mask: NDArray[Any]) -> int:
    """Tokens of row ``i``, once its mask is known to be ones and then zeros."""
    if not ((mask == 0) | (mask == 1)).all():
        raise InputError(
            f"attention_mask[{i}] holds {shown(int(mask[(mask != 0) & (mask != 1)][0]))}; it may hold 0 and 1 only"
        )
    length = int(mask.sum())
    if length == 0:
        raise InputError(
            f"attention_mask[{i}] has no 1, so the sequence is empty; leave it out or give it a token"
        )
    if not mask[:length].all():
        hole = int(np.argmin(mask))
        what = "padding on the left" if hole == 0 else "a hole"
        raise InputError(
            f"attention_mask[{i}] has {what} (a 0 at position {hole} before its last 1); masks must be "
            "right-padded. Use padding_side='right', or pass the sequences unpadded as lists"
        )
    return length


def _int32(rows: list[NDArray[Any]], offsets: NDArray[np.int64], name: str) -> NDArray[np.int32]:
    # Mixing signed and unsigned 64-bit rows would round them to floats.
    flat = np.concatenate([row if row.dtype != np.uint64 else row.astype(object) for row in rows])
    if flat.min() < _INT32.min or flat.max() > _INT32.max:
        at = int(np.flatnonzero((flat < _INT32.min) | (flat > _INT32.max))[0])
        row = int(np.searchsorted(offsets, at, side="right")) - 1
        where = f"{name}[{row}][{at - int(offsets[row])}]"
        raise InputError(
            f"{where} is {shown(int(flat[at]))}, which does not fit in 32 bits; ids are numbers from 0 to the "
            "vocabulary's size. Check the tokenizer"
        )
    return flat.astype(np.int32)
