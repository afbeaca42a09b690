"""Reads numbers of any type that a caller may pass as floats."""

from __future__ import annotations

import math
from numbers import Complex, Real
from typing import Any


def as_float(value: Any) -> float:
    """The float nearest to a real number, and NaN for anything else.

    A real number is one of Python, NumPy, ``fractions`` or ``decimal``, or an array or tensor without an axis that
    holds one. Booleans, texts and masked entries are no numbers. A number too large for a float becomes infinite.
    """
    if not _looks_real(value):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf
    except Exception:  # an object's own __float__ may raise anything
        return math.nan


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
