"""The length configs a new package starts with, before a search on its own task finds better ones."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from qla_runtime.errors import InputError
from qla_runtime.lengths.configs import LengthConfig

# Kept tokens of 384 per layer, found by evolutionary search for QuaLA-MiniLM (arXiv 2210.17114): -0.17 F1 at
# 63 % and -0.95 F1 at 54 % of the arithmetic, for a model trained to drop. Read as shares of a sequence's own
# length they are a start, not a promise.
PUBLISHED = {
    "balanced": (375, 331, 283, 213, 127, 18),
    "fast": (315, 251, 242, 159, 142, 33),
}
PUBLISHED_LENGTH = 384


def default_configs(layers: int) -> dict[str, LengthConfig]:
    """``full`` and the published shapes; for other depths than six, the shapes stretched over the layers."""
    centers = (np.arange(6) + 0.5) / 6
    at = (np.arange(layers) + 0.5) / layers
    configs = {"full": LengthConfig.ratio([1.0] * layers, keep_cls=True)}
    for name, counts in PUBLISHED.items():
        ratios = np.interp(at, centers, np.asarray(counts) / PUBLISHED_LENGTH)
        configs[name] = LengthConfig.ratio(ratios.tolist(), keep_cls=True)
    return configs


def with_full(configs: Mapping[str, LengthConfig], layers: int) -> dict[str, LengthConfig]:
    """A caller's configs, checked against the model's depth, after the ``full`` that every package has.

    Raises:
        InputError: something that is no LengthConfig, or one without an entry per layer.
    """
    for name, config in configs.items():
        if not isinstance(config, LengthConfig):
            raise InputError(f"length_configs[{name!r}] is {config!r}; it must be a LengthConfig")
        config.check_layers(layers)
    full = {"full": default_configs(layers)["full"]}
    return full | dict(configs) | full
