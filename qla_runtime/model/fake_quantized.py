"""The float model with the engine's roundings in it: what quantization-aware training trains.

:func:`fake_quantize` changes a :class:`~qla_runtime.model.float_model.Model` in place. Its parameters stay as they
are, the float32 masters, under the same names; what is computed with them is rounded where and how the engine
rounds (docs/numerics.md):

- the inputs of linear modules, u8 per token, asymmetric (kernels/rowwise.h);
- their weights and the word embeddings, by :mod:`qla_runtime.model.formats`;
- Q per query and K per key, symmetric, and V per column over the sequence, each from bfloat16; probabilities, u8
  relative to their row's largest (kernels/attention.h).

Products are those of whole numbers, in float32 or, under autocast, in bfloat16, which holds each factor exactly.
The engine's polynomials for the exponential and GELU are here as well, as they move
values to other codes. Only the order of sums and roundings in float32 differs.

What turns a value into a code is exact: torch computes ``127.0 / x`` as ``127.0 * (1 / x)``, with two roundings,
so a tensor is divided, and the product is taken in double, as the engine rounds it once. It matters because Q, K
and V have 8 significant bits: half of the largest, and many other values, lie at a tie.

Gradients pass straight through every rounding and every polynomial, and are zero where a value was clipped.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qla_runtime.model.float_model import Arithmetic, Layer, Model
from qla_runtime.model.formats import LinearFormat, ModelFormat, WordFormat

LEAST_GELU = -0.1712
"""The engine's stand-in for the least input of FFN 2: kLeastGelu of kernels/kernels.h."""
_NO_RANGE = 1e-30
"""Rows whose range is no larger have scale 0, and their codes are 0."""
_EXPONENTIAL = tuple(map(float.fromhex, ("-0x1.b24c66p+4", "0x1.68d00cp+7", "-0x1.5f36a4p+8", "0x1.c4c822p+8")))
"""Of m = 1 + f: 255 * 2^f / m, highest power first (kernels/attention.h)."""
_MOST_WEIGHT = sum(_EXPONENTIAL)
"""The largest weight of a row, nearly 255: the polynomial at m = 1."""
_LEAST_EXPONENT = -200.0
"""Of 2: such a weight is 0 in float32."""
_GELU = tuple(
    map(float.fromhex, ("0x1.59e0f6p-17", "-0x1.accd0ep-12", "0x1.b47018p-8", "-0x1.e88cc2p-5", "0x1.939276p-2"))
)
"""Of z^2: (Phi(z) - 1/2) / z, highest power first (kernels/gemm_epilogue.h)."""
_GELU_BOUND = 3.42
PAPER_CLIP = 2.5
"""Activations are clipped to +- this at the paper's points."""

Rounding = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Activations -> whole numbers around zero and their scale, whose product they are about. No gradient passes."""


def fake_quantize(model: Model, format: ModelFormat, first_token: int | None = None) -> Model:
    """Makes a model round as it computes.

    Args:
        model: in float; changed in place.
        format: its weights' formats, and where activations are rounded.
        first_token: the token that stands before every text, such as [CLS]; at the first position a package holds
            it without a rounding error.

    Returns:
        The model.
    """
    paper = format.quantizers == "paper"
    words = model.encoder.embeddings.word
    model.encoder.embeddings.word = _Words(words, format.words, first_token)
    for layer, formats in zip(model.encoder.layers, format.linears, strict=True):
        assert isinstance(layer, Layer)
        for name, linear_format in formats.items():
            rounding: Rounding = per_tensor if paper else after_gelu if name == "ffn_out" else per_token
            clip = PAPER_CLIP if paper else None
            setattr(layer, name, _Linear(getattr(layer, name), linear_format, rounding, clip))
        layer.arithmetic = _PaperArithmetic() if paper else _EngineArithmetic()
    model.format = format
    return model


class _StraightThrough(torch.autograd.Function):
    """Its second argument, with the gradient of its first."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rounded: Tensor) -> Tensor:
        return rounded.view_as(rounded)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


def _straight_through(x: Tensor, rounded: Tensor) -> Tensor:
    return _StraightThrough.apply(x, rounded)


class _RoundedProduct(torch.autograd.Function):
    """``x @ weight.T`` of rounded factors, with the gradients of unrounded ones.

    What autograd would make of the roundings one by one costs more time than the products: it keeps and passes
    over a matrix for each scale. Here scales cancel, and the products of both directions take the same codes.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, format: LinearFormat, rounding: Rounding, dtype: torch.dtype
    ) -> Tensor:
        codes, scale = rounding(x)
        weights, steps = format.quantize(weight)
        codes, weights = codes.to(dtype), weights.to(dtype)
        ctx.clip = format.clip
        ctx.save_for_backward(codes, scale, weights, steps, weight)
        return F.linear(codes, weights).float().mul_(scale).mul_(steps[:, 0])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        codes, scale, weights, steps, weight = ctx.saved_tensors
        of_input = ((gradients[0] * steps[:, 0]).to(weights.dtype) @ weights).float()
        rows = (gradients[0] * scale).to(codes.dtype).flatten(0, -2)
        of_weight = (rows.T @ codes.flatten(0, -2)).float()
        if ctx.clip is not None:
            of_weight.masked_fill_(weight.abs() > ctx.clip, 0.0)
        return of_input, of_weight, None, None, None


class _Linear(nn.Module):
    """A linear module whose input and weight are rounded; the same parameters."""

    def __init__(self, linear: Any, format: LinearFormat, rounding: Rounding, clip: float | None):
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self.format, self.rounding, self.clip = format, rounding, clip

    def forward(self, x: Tensor) -> Tensor:
        x = x.float()
        if self.clip is not None:
            x = x.clamp(-self.clip, self.clip)
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else torch.float32
        return _RoundedProduct.apply(x, self.weight, self.format, self.rounding, dtype) + self.bias


class _Words(nn.Module):
    """Word embeddings, rounded row by row."""

    def __init__(self, embedding: Any, format: WordFormat, first_token: int | None):
        super().__init__()
        self.weight = embedding.weight
        self.format, self.first_token = format, first_token

    def forward(self, ids: Tensor) -> Tensor:
        rows = F.embedding(ids, self.weight)
        if self.format.clip is not None:
            rows = rows.clamp(-self.format.clip, self.format.clip)
        with torch.no_grad():
            codes, scale = self.format.quantize(rows.flatten(0, 1))
        rounded = _straight_through(rows, (codes * scale).view_as(rows))
        if self.first_token is None:
            return rounded
        exact = ids[:, :1, None] == self.first_token
        return torch.cat([torch.where(exact, rows[:, :1], rounded[:, :1]), rounded[:, 1:]], 1)


# ---------------------------------------------------------------------------------------- activations


def per_token(x: Tensor, least: float | None = None) -> tuple[Tensor, Tensor]:
    """u8 with a zero point, per row.

    Args:
        x: (..., n).
        least: the least value, in place of each row's own.

    Returns:
        (..., n) float32 whole numbers in [-255, 255], the zero point taken off; (..., 1) scales.
    """
    with torch.no_grad():
        high = x.amax(-1, keepdim=True).clamp_min_(0.0)
        low = x.amin(-1, keepdim=True).clamp_max_(0.0) if least is None else torch.full_like(high, least)
        span = high - low
        lives = span > _NO_RANGE
        inverse = torch.where(lives, torch.full_like(span, 255.0) / span, 0.0)
        zero = (-low * inverse).round_()
        codes = (x.double() * inverse).add_(zero).round_().clamp_(0.0, 255.0).sub_(zero).float()
        return codes, torch.where(lives, span / 255.0, 0.0)


def after_gelu(x: Tensor) -> tuple[Tensor, Tensor]:
    """:func:`per_token`, with the least value that the engine takes GELU to have."""
    return per_token(x, LEAST_GELU)


def per_tensor(x: Tensor) -> tuple[Tensor, Tensor]:
    """The paper's: symmetric, with one scale for the whole tensor, padding included."""
    with torch.no_grad():
        return _symmetric(x, x.abs().amax())


def _polynomial(coefficients: tuple[float, ...], x: Tensor) -> Tensor:
    total = x * coefficients[0] + coefficients[1]
    for coefficient in coefficients[2:]:
        total.mul_(x).add_(coefficient)
    return total


def _clipped_per_tensor(x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.float().clamp(-PAPER_CLIP, PAPER_CLIP)
    return _symmetric(x, x.detach().abs().amax())


def _symmetric(x: Tensor, largest: Tensor) -> tuple[Tensor, Tensor]:
    """s8 by the largest magnitude, which broadcasts against ``x``."""
    with torch.no_grad():
        lives = largest > _NO_RANGE
        inverse = torch.where(lives, torch.full_like(largest, 127.0) / largest, 0.0)
        codes = (x.double() * inverse).round_().float()
    return _straight_through(x * inverse, codes), torch.where(lives, largest / 127.0, 0.0)


def _bfloat16(x: Tensor) -> Tensor:
    """Rounded to bfloat16, in float32."""
    return _straight_through(x.float(), x.detach().bfloat16().float())


class _EngineArithmetic(Arithmetic):
    """As the engine has it."""

    def logits(self, query: Tensor, key: Tensor) -> Tensor:
        (q, q_scale), (k, k_scale) = (_per_row(_bfloat16(x)) for x in (query, key))
        scale = q_scale / math.sqrt(query.shape[-1]) * k_scale.transpose(-1, -2)
        return (q @ k.transpose(-1, -2)).float() * scale

    def probabilities(self, logits: Tensor) -> Tensor:
        with torch.no_grad():
            exponent = ((logits - logits.amax(-1, keepdim=True)) * math.log2(math.e)).clamp_min(_LEAST_EXPONENT)
            whole = exponent.floor()
            mantissa = 1.0 + (exponent - whole)
            weights = torch.exp2(whole) * mantissa * _polynomial(_EXPONENTIAL, mantissa)
            found = weights / weights.sum(-1, keepdim=True)
        return _straight_through(logits.softmax(-1), found)

    def context(self, probabilities: Tensor, value: Tensor, real: Tensor | None) -> Tensor:
        probabilities, value = probabilities.float(), _bfloat16(value)
        if real is not None:
            value = value * real[:, None, :, None]
        v, v_scale = _symmetric(value, value.detach().abs().amax(-2, keepdim=True))
        with torch.no_grad():
            largest = probabilities.amax(-1, keepdim=True)
            codes = (probabilities * (_MOST_WEIGHT / largest)).round()
        weights = _straight_through(probabilities * (_MOST_WEIGHT / largest), codes)
        return (weights @ v).float() * (largest / _MOST_WEIGHT * v_scale)

    def gelu(self, x: Tensor) -> Tensor:
        x = x.float()
        with torch.no_grad():
            bounded = x.clamp(-_GELU_BOUND, _GELU_BOUND)
            found = _polynomial(_GELU, bounded * bounded).mul_(bounded).add_(0.5).mul_(x)
        return _straight_through(F.gelu(x), found)


def _per_row(x: Tensor) -> tuple[Tensor, Tensor]:
    return _symmetric(x, x.detach().abs().amax(-1, keepdim=True))


class _PaperArithmetic(Arithmetic):
    """Q, K, probabilities and V with one scale per tensor."""

    def logits(self, query: Tensor, key: Tensor) -> Tensor:
        (q, q_scale), (k, k_scale) = _clipped_per_tensor(query), _clipped_per_tensor(key)
        return (q @ k.transpose(-1, -2)).float() * (q_scale * k_scale / math.sqrt(query.shape[-1]))

    def context(self, probabilities: Tensor, value: Tensor, real: Tensor | None) -> Tensor:
        (p, p_scale), (v, v_scale) = _clipped_per_tensor(probabilities), _clipped_per_tensor(value)
        return (p @ v).float() * (p_scale * v_scale)
