"""Numbers of a caller, whatever type they come in, as floats; and bad ones shown in a message."""

from __future__ import annotations

import math
from numbers import Complex, Real
from typing import Any

SHOWN = 60
"""Characters of a bad value that a message shows."""


def as_float(value: Any) -> float:
    """The float nearest to a real number; NaN for anything else.

    Real numbers are those of Python, NumPy, ``fractions`` and ``decimal``, and arrays and tensors of one
    number without an axis. Booleans, texts and masked entries are none. A number beyond the floats is infinite.
    """
    if not _looks_real(value):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf
    except Exception:  # an object's own __float__ may raise anything
        return math.nan


def shown(value: Any) -> str:
    """``repr(value)`` for a message: on one line, and not longer than ``SHOWN`` characters."""
    try:
        text = " ".join(repr(value).split())
    except ValueError:  # Python writes no integers of more than some thousand digits
        text = f"an integer of {value.bit_length()} bits" if isinstance(value, int) else type(value).__name__
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."


def _looks_real(value: Any) -> bool:
    if isinstance(value, (bool, str, bytes, bytearray)):
        return False
    if isinstance(value, Complex) and not isinstance(value, Real):
        return False  # NumPy would drop the imaginary part
    dtype = getattr(value, "dtype", None)
    if dtype is None:
        return True
    number = "int" in str(dtype) or "float" in str(dtype)
    return number and getattr(value, "shape", ()) == () and not getattr(value, "mask", False)
