"""How the linear layers are quantized. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qla_runtime.errors import QlaError
from qla_runtime.model.formats import LinearFormat
from qla_runtime.model.pack import quantize_rows

ALGORITHMS = ("kl", "minmax")
"""neural-compressor's names: histogram with least quantization error; moving-average minimum and maximum."""


@dataclass(frozen=True)
class LinearScales:
    """How one linear layer is quantized."""

    weight_scale: NDArray[np.float32]
    """(N,), one per output channel."""
    low: float = 0.0
    high: float = 0.0
    """The input activation's range; it contains 0. Only static activations have one."""
    format: LinearFormat = LinearFormat()
    """What the weight becomes."""

    @property
    def input_scale(self) -> float:
        """Step of the unsigned 8-bit input, as a float32 value."""
        return float(np.float32(max(self.high - self.low, 1e-12) / 255.0))

    @property
    def input_zero_point(self) -> int:
        """The code of 0, 0..255."""
        return int(np.clip(np.rint(-self.low / self.input_scale), 0, 255))

    def codes(self, weight: NDArray[np.float32]) -> NDArray[np.int8]:
        """(N, K) of a weight; times the scales, about the weight."""
        if self.format.type == "w8a8":
            return quantize_rows(weight, self.weight_scale)
        return self.format.quantize(weight)[0].astype(np.int8)

    def united(self, other: LinearScales) -> LinearScales:
        """Covers both ranges; the weight scales must agree, being functions of the weights alone."""
        if not np.array_equal(self.weight_scale, other.weight_scale):
            raise QlaError("neural-compressor gave different weight scales for the same weights")
        return LinearScales(self.weight_scale, min(self.low, other.low), max(self.high, other.high))


Scales = Mapping[tuple[int, str], LinearScales]
"""(layer, name of :data:`qla_runtime.model.formats.LINEARS`) -> how it is quantized."""
