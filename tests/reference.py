"""The encoder once more, slow and obviously right: numpy in double precision, one sequence, plain loops.

It shares no code with the project's modules; tests compare them with it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

_erf = np.vectorize(math.erf, otypes=[np.float64])


@dataclass
class Trace:
    """What one sequence of n tokens went through."""

    hidden_states: list[np.ndarray]
    """layers + 1 arrays (n, H): after the embeddings and after each layer, dropped rows carried."""
    kept: list[list[int]]
    """Per layer, the original positions that entered the feed-forward, ascending."""
    scores: list[np.ndarray]
    """Per layer, the column sums of the tokens that entered it."""


def layer_norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, eps: float) -> np.ndarray:
    centered = x - x.mean(-1, keepdims=True)
    return centered / np.sqrt((centered**2).mean(-1, keepdims=True) + eps) * weight + bias


def encode(
    tensors: dict[str, np.ndarray],
    *,
    layers: int,
    heads: int,
    eps: float,
    position_offset: int,
    ids: np.ndarray,
    type_ids: np.ndarray,
    rule: str = "ratio",
    values: tuple[float, ...] | None = None,
    keep_cls: bool = True,
) -> Trace:
    """Runs the encoder with drop-and-restore.

    Args:
        tensors: float arrays under the package's names, weights (N, K) unpacked and unquantized.
        ids, type_ids: (n,) integers.
        rule, values, keep_cls: the length config; ``values=None`` keeps every token.
    """
    tensors = {name: np.asarray(tensor, np.float64) for name, tensor in tensors.items()}
    n0 = len(ids)

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        return layer_norm(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"], eps)

    def linear(x: np.ndarray, name: str) -> np.ndarray:
        return x @ tensors[f"{name}.weight"].T + tensors[f"{name}.bias"]

    x = norm(
        tensors["embeddings.word.weight"][ids]
        + tensors["embeddings.position.weight"][position_offset : position_offset + n0]
        + tensors["embeddings.token_type.weight"][type_ids],
        "embeddings.norm",
    )
    positions = list(range(n0))
    restored = x.copy()
    trace = Trace([restored.copy()], [], [])
    for i in range(layers):
        layer = f"layers.{i}"
        query, key, value = np.split(linear(x, f"{layer}.qkv"), 3, axis=1)
        context = np.zeros_like(x)
        scores = np.zeros(len(x))
        width = x.shape[1] // heads
        for head in range(heads):
            columns = slice(head * width, (head + 1) * width)
            logits = query[:, columns] @ key[:, columns].T / math.sqrt(width)
            powers = np.exp(logits - logits.max(1, keepdims=True))
            probabilities = powers / powers.sum(1, keepdims=True)
            context[:, columns] = probabilities @ value[:, columns]
            scores += probabilities.sum(0)
        y = norm(x + linear(context, f"{layer}.output"), f"{layer}.attention_norm")

        if values is not None:
            wanted = math.ceil(values[i] * n0 - 1e-6) if rule == "ratio" else int(values[i])
            count = min(len(x), max(2, wanted))
            ranking = sorted(range(len(x)), key=lambda j: (not (keep_cls and j == 0), -scores[j], j))
            rows = sorted(ranking[:count])
            y = y[rows]
            positions = [positions[row] for row in rows]

        inner = linear(y, f"{layer}.ffn_in")
        inner = 0.5 * inner * (1 + _erf(inner / math.sqrt(2)))
        x = norm(y + linear(inner, f"{layer}.ffn_out"), f"{layer}.ffn_norm")
        restored[positions] = x
        trace.hidden_states.append(restored.copy())
        trace.kept.append(list(positions))
        trace.scores.append(scores)
    return trace
