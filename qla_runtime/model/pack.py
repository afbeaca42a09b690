"""Float32 weights to the bytes the kernels read: docs/file-format.md, model.safetensors. Numpy only."""

from __future__ import annotations

import numpy as np

from qla_runtime.errors import QlaError


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


def pack_ternary(weight: np.ndarray) -> np.ndarray:
    """(N, K) int8 of -1, 0 and 1 to (N/64, K/4, 16, 4) uint8, the weights of ``w2a8``: two bits each.

    Byte ``[n/64][k/4][c][k%4]`` holds ``weight[n][k] + 1`` of the columns n = 64 * block + 16 * j + c, that of
    column j in bits 2j and 2j + 1.
    """
    quads = pack(_codes(weight))
    return _four_a_byte(quads.reshape(*quads.shape[:2], 4, 16, 4), axis=2)


def unpack_ternary(packed: np.ndarray) -> np.ndarray:
    """The inverse of :func:`pack_ternary`."""
    blocks, quads = packed.shape[:2]
    return unpack(_weights(packed, axis=2).reshape(blocks, quads, 64, 4))


def pack_ternary_rows(table: np.ndarray) -> np.ndarray:
    """(V, H) int8 of -1, 0 and 1 to (V rounded up to a multiple of 4, H/4) uint8: ternary word embeddings.

    Byte ``16 * block + b`` of a row holds ``value + 1`` of the columns 64 * block + 16 * j + b, that of column j
    in bits 2j and 2j + 1. Rows of padding are zero bytes.
    """
    rows, columns = table.shape
    packed = _four_a_byte(_codes(table).reshape(rows, columns // 64, 4, 16), axis=2).reshape(rows, columns // 4)
    return np.pad(packed, ((0, -rows % 4), (0, 0)))


def unpack_ternary_rows(packed: np.ndarray, rows: int) -> np.ndarray:
    """The inverse of :func:`pack_ternary_rows`, for a table of so many rows."""
    blocks = packed[:rows].reshape(rows, -1, 16)
    return _weights(blocks, axis=2).reshape(rows, -1)


def _codes(weight: np.ndarray) -> np.ndarray:
    """Weights of -1, 0 and 1 as 0, 1 and 2."""
    if weight.size and not (weight.min() >= -1 and weight.max() <= 1):
        raise QlaError(f"ternary weights are -1, 0 and 1, not {weight.min()} to {weight.max()}")
    return (weight + 1).astype(np.uint8)


def _four_a_byte(codes: np.ndarray, axis: int) -> np.ndarray:
    """Joins the four codes along an axis, the first one lowest."""
    first, second, third, fourth = np.moveaxis(codes, axis, 0)
    return first | second << 2 | third << 4 | fourth << 6


def _weights(packed: np.ndarray, axis: int) -> np.ndarray:
    """The four weights of each byte along a new axis."""
    return np.stack([(packed >> shift & 3).astype(np.int8) - np.int8(1) for shift in (0, 2, 4, 6)], axis)


def pad16(vector: np.ndarray) -> np.ndarray:
    """A vector padded with zeros to a multiple of 16 entries, which is 64 bytes of float32."""
    return np.pad(vector, (0, -len(vector) % 16))
