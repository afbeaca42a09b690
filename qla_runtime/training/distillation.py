"""How far a student is from a teacher of its own shape, inside and out: the losses of quantization-aware training.

After "Understanding and Improving Knowledge Distillation for Quantization-Aware Training of Large Transformer
Encoders" (arXiv 2211.11014) and TernaryBERT (arXiv 2009.12812). What differs: padding takes no part in any mean;
theirs counts hidden states and attention scores of PAD tokens, too. Everything is computed in float32.

B sequences padded to n tokens, of which ``mask``, (B, n) bool, says which are real.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from qla_runtime.model.spec import TaskSpec
from qla_runtime.training.data import Batch
from qla_runtime.training.losses import divergence, span_logits, tagged_tokens

_LEAST = 1e-8
"""Probabilities below this are alike."""

LayerLoss = Callable[[Sequence[Tensor], Sequence[Tensor], Tensor], Tensor]
"""Of the student's and the teacher's layers, and the mask: a scalar."""


def prediction_loss(task: TaskSpec, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
    """Soft cross-entropy, - sum of softmax(teacher) * log softmax(student), meaned over the batch.

    Over class logits, for token classification those of tokens that have a tag; over start and over end logits,
    the mean of both. Squared error for regression, 1 - cosine
    for embeddings, which have no distribution.

    Args:
        task: what the outputs are.
        student, teacher: as in :meth:`qla_runtime.model.float_model.Model.forward`.
        batch: of both.
    """
    if task.kind == "embedding" or task.problem == "regression":
        return divergence(task, student, teacher, batch)
    if task.kind == "span-qa":
        student, teacher = (span_logits(x, batch.mask).flatten(0, 1) for x in (student, teacher))
    elif task.kind == "token-classification":
        tagged = tagged_tokens(batch)
        student, teacher = student[tagged], teacher[tagged]
    return F.cross_entropy(student.float(), teacher.float().softmax(-1))


def state_loss(student: Sequence[Tensor], teacher: Sequence[Tensor], mask: Tensor) -> Tensor:
    """Squared error of hidden states or of attention outputs: the mean over real tokens, summed over layers.

    Args:
        student, teacher: per layer (B, n, H).
        mask: (B, n).
    """
    total = mask.new_zeros((), dtype=torch.float32)
    for mine, theirs in zip(student, teacher, strict=True):
        total = total + F.mse_loss(mine.float()[mask], theirs.float()[mask])
    return total


def score_loss(student: Sequence[Tensor], teacher: Sequence[Tensor], mask: Tensor) -> Tensor:
    """TernaryBERT's: squared error of attention logits, the mean over pairs of real tokens, summed over layers.

    Args:
        student, teacher: per layer (B, heads, n, n), query by key.
        mask: (B, n).
    """
    pairs = _pairs(mask)
    total = mask.new_zeros((), dtype=torch.float32)
    for mine, theirs in zip(student, teacher, strict=True):
        real = pairs.expand_as(mine)
        total = total + F.mse_loss(mine.float()[real], theirs.float()[real])
    return total


def map_loss(student: Sequence[Tensor], teacher: Sequence[Tensor], mask: Tensor) -> Tensor:
    """KL(teacher || student) of attention probabilities: the mean over a sequence's real queries, then over
    sequences and heads; summed over layers. Probabilities are at least 1e-8.

    Args:
        student, teacher: per layer (B, heads, n, n), query by key.
        mask: (B, n).
    """
    pairs, lengths = _pairs(mask), mask.sum(1)[:, None]
    total = mask.new_zeros((), dtype=torch.float32)
    for mine, theirs in zip(student, teacher, strict=True):
        mine, theirs = mine.float().clamp_min(_LEAST), theirs.float().clamp_min(_LEAST)
        apart = theirs * (theirs.log() - mine.log()) * pairs
        total = total + (apart.sum((-1, -2)) / lengths).mean()
    return total


def _pairs(mask: Tensor) -> Tensor:
    """(B, 1, n, n) bool: query and key are both real."""
    return mask[:, None, :, None] & mask[:, None, None, :]


LAYER_LOSSES: dict[str, tuple[str, LayerLoss]] = {
    "hidden": ("hidden_states", state_loss),
    "score": ("attention_logits", score_loss),
    "map": ("attention_probabilities", map_loss),
    "output": ("attention_output", state_loss),
}
"""By name: what of a :class:`~qla_runtime.model.float_model.ForwardRecord` it compares, and how."""
