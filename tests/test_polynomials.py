"""The two polynomials of the kernels, read out of their headers, against the functions they stand for.

`pytest tests/test_polynomials.py -s` prints the figures that docs/numerics.md quotes.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest

KERNELS = Path(__file__).resolve().parents[1] / "kernels"


def coefficients(header: str, function: str) -> np.ndarray:
    """Of Horner's scheme, highest power first."""
    path = KERNELS / header
    if not path.is_file():
        pytest.skip("needs the kernels' source")
    body = path.read_text().split(f"f32x16 {function}(", 1)[1].split("\n}", 1)[0]
    return np.array([float.fromhex(x) for x in re.findall(r"-?0x1[.\da-f]*p[+-]\d+", body)], np.float32)


def fma(a: np.ndarray, b: np.ndarray, c: np.ndarray | np.float32) -> np.ndarray:
    """float32 in, float32 out; the product is exact in double."""
    return (a.astype(np.float64) * b + c).astype(np.float32)


def horner(series: np.ndarray, x: np.ndarray) -> np.ndarray:
    result = np.full_like(x, series[0])
    for c in series[1:]:
        result = fma(result, x, c)
    return result


def test_exponentials() -> None:
    series = coefficients("attention.h", "weights_from_exponents")
    e = np.linspace(-125, 0.125, 4_000_001)  # below, results leave the normal numbers
    t = ((127 + e) * 2.0**23).astype(np.float32)
    n = np.rint(t).astype(np.int32)
    m = ((n & 0x7FFFFF) | 0x3F800000).view(np.float32)
    got = (n.view(np.float32) * horner(series, m)).astype(np.float64)
    error = np.abs(got / (255 * np.exp2(t.astype(np.float64) / 2.0**23 - 127)) - 1).max()
    print(f"\nexponentials: largest relative error {error:.2e} over [-125, 0.125]")
    assert len(series) == 4
    assert error <= 6.7e-4


@pytest.mark.parametrize("limit", [7.0, 1e3, 1e7, 3e15])
def test_gelu(limit: float) -> None:
    series = coefficients("gemm_epilogue.h", "gelu")
    x = np.linspace(-limit, limit, 400_001).astype(np.float32)
    t = np.clip(x, np.float32(-3.42), np.float32(3.42))
    got = x * fma(horner(series, t * t), t, np.float32(0.5))
    exact = np.array([0.5 * v * math.erfc(-v / math.sqrt(2)) for v in x.astype(np.float64)])
    error = np.abs(got - exact)
    print(f"\ngelu: largest error {error.max():.2e} at x = {x[error.argmax()]:.3f} over [-{limit}, {limit}]")
    assert len(series) == 5
    assert got.min() >= np.float32(-0.1712)  # kLeastGelu
    # Beyond the clamp Phi is 1 or 0 up to its last roundings, which x multiplies.
    assert (error <= np.maximum(1.08e-3, 2e-7 * np.abs(x))).all()
