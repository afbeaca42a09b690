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


def embedding_scale(table: np.ndarray) -> np.ndarray:
    """(V,) float32 scales of a (V, H) table: max|row| / 127, and 1 for a row of zeros."""
    largest = np.abs(table).max(axis=1)
    return np.where(largest > 0, largest / 127, 1).astype(np.float32)


def pack(weight: np.ndarray) -> np.ndarray:
    """(N, K) int8 to (K/64, N/16, 16, 16, 4): ``packed[k/64][n/16][(k%64)/4][n%16][k%4] = weight[n][k]``."""
    n, k = weight.shape
    blocks = weight.reshape(n // 16, 16, k // 64, 16, 4)
    return np.ascontiguousarray(blocks.transpose(2, 0, 3, 1, 4))


def unpack(packed: np.ndarray) -> np.ndarray:
    """The inverse of :func:`pack`."""
    blocks_k, blocks_n = packed.shape[:2]
    return np.ascontiguousarray(packed.transpose(1, 3, 0, 2, 4)).reshape(blocks_n * 16, blocks_k * 64)


def pad16(vector: np.ndarray) -> np.ndarray:
    """A vector padded with zeros to a multiple of 16 entries, which is 64 bytes of float32."""
    return np.pad(vector, (0, -len(vector) % 16))
