"""Float32 weights to the bytes the kernels read: docs/file-format.md, model.safetensors. Numpy only."""

from __future__ import annotations

import numpy as np


def quantize_rows(weight: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Symmetric int8 per row: round half to even, clipped to [-127, 127].

    neural-compressor spreads the largest weight of a channel over 127.5 steps. It is off by half a step
    whether it is stored as 127 or as -128, so clipping to the symmetric range costs nothing.

    Args:
        weight: (N, K) float32.
        scale: (N,) float32, positive.
    """
    return np.clip(np.rint(weight / scale[:, None]), -127, 127).astype(np.int8)


def exact_first_token(
    positions: np.ndarray, row: int, word: np.ndarray, stored: np.ndarray, scale: np.ndarray
) -> np.ndarray:
    """The position table with one row changed so that a known token at that position has no rounding error.

    A token that stands before every text, such as [CLS], always meets the first position, and the sum of the two
    rows is all that the encoder sees. Positions are float32, so they can hold what int8 rounds away.

    Args:
        positions: (P, H) float32.
        row: of the first position.
        word: (H,) float32, the token's embedding.
        stored: (H,) int8, the same as the package holds it.
        scale: () float32, its scale.
    """
    exact = positions.copy()
    exact[row] += word - stored * scale
    return exact


def pack(weight: np.ndarray) -> np.ndarray:
    """(N, K) int8 to (N/64, K/4, 64, 4): ``packed[n/64][k/4][n%64][k%4] = weight[n][k]``, the layout n64k4."""
    n, k = weight.shape
    return np.ascontiguousarray(weight.reshape(n // 64, 64, k // 4, 4).transpose(0, 2, 1, 3))


def unpack(packed: np.ndarray) -> np.ndarray:
    """The inverse of :func:`pack`."""
    blocks, quads = packed.shape[:2]
    return np.ascontiguousarray(packed.transpose(0, 2, 1, 3)).reshape(blocks * 64, quads * 4)


def pad16(vector: np.ndarray) -> np.ndarray:
    """A vector padded with zeros to a multiple of 16 entries, which is 64 bytes of float32."""
    return np.pad(vector, (0, -len(vector) % 16))
