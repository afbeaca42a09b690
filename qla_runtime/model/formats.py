"""How weights become integers: what training, conversion and a checkpoint's config say about it, in one place.

A format is written down in a checkpoint's ``config.json`` (the entry :data:`KEY`), so that conversion quantizes
a weight as training did. Each ``quantize`` runs on numpy arrays and on torch tensors alike: the same lines tell
the fake-quantized model (:mod:`qla_runtime.model.fake_quantized`) what a weight will be, and make the package.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from qla_runtime.errors import InputError
from qla_runtime.model.limits import SMALLEST_NORMAL

KEY = "qat"
"""The entry of a checkpoint's ``config.json`` that holds a :class:`ModelFormat`."""

LINEARS = ("qkv", "output", "ffn_in", "ffn_out")
"""The quantized linear modules of an encoder layer, in the order a token meets them."""

BITS = ("w8a8", "w2a8")
GRANULARITIES = ("channel", "matrix")
QUANTIZERS = ("engine", "paper")

TERNARY_CLIP = 2.5
"""Ternary weights are clipped to +- this before they are quantized (TernaryBERT, arXiv 2009.12812, its code)."""


@dataclass(frozen=True)
class LinearFormat:
    """How the weight of a linear module is quantized; its input is u8, by the engine.

    Attributes:
        type: ``w8a8``: int8, one scale per output channel. ``w2a8``: ternary, by Ternary Weight Networks
            (arXiv 1605.04711).
        granularity: of ternary weights, one scale per output ``channel`` or one per ``matrix``.
        clip: weights are clipped to +- this first; None for int8, which covers the largest.
    """

    type: str = "w8a8"
    granularity: str = "channel"
    clip: float | None = None

    @classmethod
    def ternary(cls, granularity: str = "channel") -> LinearFormat:
        """Ternary weights with the papers' clip."""
        return cls("w2a8", granularity, TERNARY_CLIP)

    @property
    def runs(self) -> bool:
        """Whether the engine can run it."""
        if self.type == "w8a8":
            return self == LinearFormat()
        clips = isinstance(self.clip, (int, float)) and self.clip > 0
        return self.type == "w2a8" and self.granularity in GRANULARITIES and clips

    def quantize(self, weight: Any) -> tuple[Any, Any]:
        """Whole numbers and their scales: ``weight`` is about ``codes * scale``.

        Args:
            weight: (N, K) float32, a numpy array or a torch tensor; the results are of the same kind.

        Returns:
            codes, (N, K) float32, in [-127, 127] or [-1, 1]; scale, (N, 1) float32, positive.
        """
        if self.type == "w2a8":
            return _ternary(weight, self.granularity == "matrix", self.clip)
        # neural-compressor's rule: 127.5 steps. A channel of zeros gets the least step that it knows.
        xp = _library(weight)
        scale = xp.clip(_largest(weight) / 127.5, float(np.finfo(np.float32).eps), None)
        return xp.clip(xp.round(weight / scale), -127, 127), scale


@dataclass(frozen=True)
class WordFormat:
    """How the word embeddings are quantized, each row with a scale of its own.

    Attributes:
        type: ``int8``, or ``ternary`` as linear modules may be.
    """

    type: str = "int8"

    @property
    def clip(self) -> float | None:
        """Rows are clipped to +- this first."""
        return TERNARY_CLIP if self.type == "ternary" else None

    def quantize(self, rows: Any) -> tuple[Any, Any]:
        """As :meth:`LinearFormat.quantize`, of (V, H) rows."""
        if self.type == "ternary":
            return _ternary(rows, False, self.clip)
        xp = _library(rows)
        scale = _largest(rows) / 127
        # A row that is zero, or nearly: its scale would be no normal float32.
        scale = xp.where(scale >= SMALLEST_NORMAL, scale, xp.ones_like(scale))
        return xp.clip(xp.round(rows / scale), -127, 127), scale


INT8_WORDS = WordFormat()


@dataclass(frozen=True)
class ModelFormat:
    """How a whole model is quantized.

    Attributes:
        linears: per layer, by name of :data:`LINEARS`.
        words: the word embeddings.
        quantizers: where training rounded activations: as the ``engine`` does, or at the points of the ``paper``.
    """

    linears: tuple[Mapping[str, LinearFormat], ...]
    words: WordFormat = INT8_WORDS
    quantizers: str = "engine"

    @classmethod
    def of(
        cls,
        layers: int,
        bits: str,
        *,
        granularity: str = "channel",
        keep_w8a8: Sequence[int] = (),
        ternary_words: bool = False,
        quantizers: str = "engine",
    ) -> ModelFormat:
        """The same format in all layers, but for those that stay int8.

        Args:
            layers: of the encoder.
            bits: one of :data:`BITS`.
            granularity: of ternary weights, one of :data:`GRANULARITIES`.
            keep_w8a8: layers whose weights are int8 whatever ``bits`` says; the first is 0.
            ternary_words: whether the word embeddings are ternary.
            quantizers: one of :data:`QUANTIZERS`.
        """
        wanted = LinearFormat.ternary(granularity) if bits == "w2a8" else LinearFormat()
        formats = [LinearFormat() if i in keep_w8a8 else wanted for i in range(layers)]
        linears = tuple(dict.fromkeys(LINEARS, each) for each in formats)
        return cls(linears, WordFormat("ternary" if ternary_words else "int8"), quantizers)

    def to_json(self) -> dict[str, Any]:
        """The entry of ``config.json``."""
        return {
            "quantizers": self.quantizers,
            "words": asdict(self.words),
            "linears": [{name: asdict(format) for name, format in layer.items()} for layer in self.linears],
        }

    @classmethod
    def from_json(cls, entry: Any, layers: int) -> ModelFormat:
        """Reads the entry of ``config.json`` again.

        Raises:
            InputError: it holds what :meth:`to_json` does not write, or not for so many layers.
        """
        try:
            linears = tuple({name: LinearFormat(**layer[name]) for name in LINEARS} for layer in entry["linears"])
            found = cls(linears, WordFormat(**entry["words"]), entry["quantizers"])
        except (TypeError, KeyError, AttributeError) as error:
            raise InputError(f"config.json: {KEY} is damaged ({error!r}). {_REMEDY}") from error
        if found.to_json() != entry or len(linears) != layers:
            raise InputError(f"config.json: {KEY} does not describe the {layers} layers of this model. {_REMEDY}")
        for format in (format for layer in linears for format in layer.values()):
            if not format.runs:
                raise InputError(f"config.json: {KEY} holds {format}, which the engine cannot run. {_REMEDY}")
        if found.words.type not in ("int8", "ternary") or found.quantizers not in QUANTIZERS:
            raise InputError(
                f"config.json: {KEY} holds {found.words} and quantizers {found.quantizers!r}, which the engine "
                f"cannot run. {_REMEDY}"
            )
        return found


_REMEDY = "Train by qla train qat of this version, or remove the entry to convert the weights as float ones"


def _ternary(weight: Any, whole: bool, clip: float | None) -> tuple[Any, Any]:
    """Ternary Weight Networks: -1, 0, 1 by a threshold of 0.7 mean|w|, and the mean of what lies above it.

    The means are taken in double, so that numpy and torch, which add in other orders, find the same float32.
    """
    xp = _library(weight)
    if clip is not None:
        weight = xp.clip(weight, -clip, clip)
    axis = (0, 1) if whole else (1,)
    size = xp.abs(weight)
    threshold = 0.7 * xp.mean(size, axis=axis, keepdims=True, dtype=xp.float64)
    above = size > xp.asarray(threshold, dtype=xp.float32)
    total = xp.sum(size * above, axis=axis, keepdims=True, dtype=xp.float64)
    mean = total / xp.clip(xp.sum(above, axis=axis, keepdims=True), 1, None)
    mean = xp.broadcast_to(xp.asarray(mean, dtype=xp.float32), (weight.shape[0], 1))
    # Of zeros, or nearly, the scale would be no normal float32.
    lives = mean >= SMALLEST_NORMAL
    return xp.sign(weight) * (above & lives), xp.where(lives, mean, xp.ones_like(mean))


def _largest(weight: Any) -> Any:
    """(N, 1): max|row|."""
    xp = _library(weight)
    return xp.amax(xp.abs(weight), axis=1, keepdims=True)


def _library(array: Any) -> Any:
    """numpy or torch, whichever made the array: of what is called here, both have the same functions."""
    if isinstance(array, np.ndarray):
        return np
    import torch

    return torch
