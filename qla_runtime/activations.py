"""From logits to scores: softmax and sigmoid for labels, and torch's activations for cross-encoders, in numpy.

The names are those of ``activation`` in a package's ``config.json`` (``docs/file-format.md``).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]


def softmax(logits: NDArray[np.float32]) -> Values:
    """Over the last axis, in double: nearby scores stay apart, and which label wins is the logits' business."""
    powers: Values = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    probabilities: Values = powers / powers.sum(axis=-1, keepdims=True)
    return probabilities


def sigmoid(logits: NDArray[np.floating]) -> Values:
    """Of each element, in double, without overflow at either end."""
    return 0.5 * (1.0 + np.tanh(0.5 * logits.astype(np.float64)))


def _normal_cdf(x: Values) -> Values:
    values: Values = 0.5 * (1.0 + np.vectorize(math.erf, otypes=[np.float64])(x / math.sqrt(2.0)))
    return values


ACTIVATIONS: dict[str, Callable[[Values], Values]] = {
    "identity": lambda x: x,
    "sigmoid": sigmoid,
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0.0),
    "relu6": lambda x: np.clip(x, 0.0, 6.0),
    "leaky_relu": lambda x: np.where(x > 0.0, x, 0.01 * x),
    "elu": lambda x: np.where(x > 0.0, x, np.expm1(np.minimum(x, 0.0))),
    "gelu": lambda x: x * _normal_cdf(x),
    "silu": lambda x: x * sigmoid(x),
    "softplus": lambda x: np.logaddexp(0.0, x),
    "softsign": lambda x: x / (1.0 + np.abs(x)),
    "log_sigmoid": lambda x: -np.logaddexp(0.0, -x),
    "hard_sigmoid": lambda x: np.clip(x / 6.0 + 0.5, 0.0, 1.0),
    "hard_tanh": lambda x: np.clip(x, -1.0, 1.0),
}
"""Name -> the function, elementwise, with the parameters that torch gives it by default."""


def activate(name: str, logits: NDArray[np.float32]) -> Values:
    """Applies an activation of :data:`ACTIVATIONS` to logits of any shape, in double precision."""
    return ACTIVATIONS[name](logits.astype(np.float64))
