"""Numbers of a caller, whatever type they come in, as floats."""

from __future__ import annotations

import math
from numbers import Complex, Real
from typing import Any


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
