"""What a cross-encoder's score is made of its logit: torch's activations, by name and in numpy.

The names are those of ``activation`` in a package's ``config.json`` (``docs/file-format.md``).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]


def _sigmoid(x: Values) -> Values:
    return 0.5 * (1.0 + np.tanh(0.5 * x))  # no overflow at either end


def _normal_cdf(x: Values) -> Values:
    return 0.5 * (1.0 + np.vectorize(math.erf, otypes=[np.float64])(x / math.sqrt(2.0)))


ACTIVATIONS: dict[str, Callable[[Values], Values]] = {
    "identity": lambda x: x,
    "sigmoid": _sigmoid,
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0.0),
    "relu6": lambda x: np.clip(x, 0.0, 6.0),
    "leaky_relu": lambda x: np.where(x > 0.0, x, 0.01 * x),
    "elu": lambda x: np.where(x > 0.0, x, np.expm1(np.minimum(x, 0.0))),
    "gelu": lambda x: x * _normal_cdf(x),
    "silu": lambda x: x * _sigmoid(x),
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
