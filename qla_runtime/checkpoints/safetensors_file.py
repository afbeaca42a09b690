"""Reads safetensors files of checkpoints with numpy alone, so that conversion needs no other library.

The format (https://github.com/huggingface/safetensors): u64 length of the header, the header as JSON (name ->
dtype, shape, data_offsets), and the data without a gap.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qla_runtime.checkpoints.json_files import first_line
from qla_runtime.errors import InputError

_MAX_HEADER = 100_000_000
"""Bytes; the format's own limit."""
_BITS = {"F64": 64, "F32": 32, "F16": 16, "BF16": 16, "BOOL": 8, "C64": 64}
_BITS |= {f"{sign}{bits}": bits for sign in "IU" for bits in (8, 16, 32, 64)}
_NUMPY = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies in a file."""

    dtype: str
    """The format's code, such as ``BF16``."""
    shape: tuple[int, ...]
    begin: int
    """Bytes from the beginning of the file."""
    end: int


def read_entries(file: Path) -> dict[str, Entry]:
    """All tensors of a file, none of them read.

    Raises:
        InputError: the file cannot be read, or is no whole safetensors file.
    """
    try:
        with open(file, "rb") as opened:
            size = os.fstat(opened.fileno()).st_size
            length = int.from_bytes(opened.read(8), "little")
            text = opened.read(length) if length <= _MAX_HEADER else b""
    except OSError as error:
        raise _damaged(file, first_line(error)) from error
    if size < 8 or len(text) != length:
        raise _damaged(file, "its header is cut off")
    try:
        header = json.loads(text.decode())
    except (ValueError, RecursionError) as error:
        raise _damaged(file, first_line(error)) from error
    if not isinstance(header, dict):
        raise _damaged(file, "its header is no JSON object")
    header.pop("__metadata__", None)
    entries = {name: _entry(file, name, fields, 8 + length) for name, fields in header.items()}
    end = 8 + length
    for entry in sorted(entries.values(), key=lambda entry: (entry.begin, entry.end)):
        if entry.begin != end:
            raise _damaged(file, "its tensors do not lie one after another")
        end = entry.end
    if end != size:
        raise _damaged(file, f"it has {size} bytes, and by its header {end}")
    return entries


def read_floats(file: Path, entries: Mapping[str, Entry]) -> dict[str, NDArray[np.float32]]:
    """Tensors of a file as float32.

    Args:
        file: as :func:`read_entries` found it.
        entries: name -> where it lies; of dtype F64, F32, F16 or BF16.

    Returns:
        Arrays of their own shapes; those stored as F32 are read-only views of the mapped file.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        mapped = np.memmap(file, np.uint8, "r")
    except (OSError, ValueError) as error:
        raise _damaged(file, first_line(error)) from error
    return {name: _floats(mapped[entry.begin : entry.end], entry) for name, entry in entries.items()}


def _floats(stored: NDArray[np.uint8], entry: Entry) -> NDArray[np.float32]:
    values = stored.view(_NUMPY[entry.dtype]).reshape(entry.shape)
    if entry.dtype == "BF16":  # the upper half of a float32
        return (values.astype(np.uint32) << 16).view(np.float32)
    with np.errstate(over="ignore"):  # an infinity is refused with the tensor's name
        return values.astype(np.float32, copy=False)


def _entry(file: Path, name: str, fields: Any, data: int) -> Entry:
    try:
        dtype, shape = fields["dtype"], tuple(fields["shape"])
        begin, end = fields["data_offsets"]
        whole = isinstance(dtype, str) and all(type(n) is int and n >= 0 for n in (*shape, begin, end))
    except (KeyError, TypeError, ValueError):
        whole = False
    if not whole:
        raise _damaged(file, f"the header's entry {name[:80]!r} has another form")
    # Of a dtype that is not known here the size is not checked: no model with it converts.
    bits = math.prod(shape) * _BITS[dtype] if dtype in _BITS else 8 * (end - begin)
    if begin > end or bits != 8 * (end - begin):
        raise _damaged(file, f"{name[:80]!r} has {end - begin} bytes, which do not fit its dtype and shape")
    return Entry(dtype, shape, data + begin, data + end)


def _damaged(file: Path, what: str) -> InputError:
    return InputError(f"{file.name}: no whole safetensors file: {what}. Fetch it again")
