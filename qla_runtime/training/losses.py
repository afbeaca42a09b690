"""What a task is trained for, and how far a student's outputs are from a teacher's. For every recipe.

Outputs are those of :meth:`qla_runtime.model.float_model.Model.forward`: (B, n, 2) for span QA, (B, labels) for
classification and regression, (B, n, labels) for token classification, (B, H) for embeddings. Everything is
computed in float32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from qla_runtime.errors import InputError
from qla_runtime.model.float_model import ForwardRecord
from qla_runtime.model.spec import TaskSpec
from qla_runtime.training.data import UNTAGGED, Batch

_NEVER = -1e4
"""A logit whose probability is exactly 0 in float32, and whose product with it is 0 and not NaN."""


_LEAST = 1e-6
"""Votes below this are alike: a vote is a sum of heads x queries probabilities."""


def check_task(task: TaskSpec) -> None:
    """Raises InputError for a task that has no losses here."""
    if task.problem == "multi_label":
        raise InputError(
            "the checkpoint does multi-label classification; training covers span QA, single-label "
            "classification, regression, token classification and sentence embedding"
        )


def task_loss(task: TaskSpec, outputs: Tensor, batch: Batch) -> Tensor:
    """Mean loss against the labels: cross-entropy (for spans the mean of start's and end's), squared error.

    A span's softmax runs over the real tokens: the runtime has no padding that could take a share.
    """
    assert batch.labels is not None  # embeddings alone have none, and no loss against them
    if task.kind == "span-qa":
        logits = span_logits(outputs, batch.mask)
        return F.cross_entropy(logits.flatten(0, 1), batch.labels.flatten())
    if task.kind == "token-classification":
        tagged = tagged_tokens(batch)
        total = F.cross_entropy(outputs[tagged].float(), batch.labels[tagged], reduction="sum")
        return total / max(1, int(tagged.sum()))  # of words without a token, a batch has no tag at all
    if task.problem == "regression":
        return F.mse_loss(outputs.float()[:, 0], batch.labels)
    return F.cross_entropy(outputs.float(), batch.labels)


def divergence(task: TaskSpec, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
    """How far the student is from the teacher, meaned over the batch; 0 where they agree.

    KL(teacher || student) at temperature 1 over start and over end logits (their mean), over class logits, or over
    those of each token that has a tag;
    squared error for regression; 1 - cosine for embeddings.

    The direction is the usual one of distillation: the student must put probability wherever the teacher
    does. The published code of the Length-Adaptive Transformer computes KL(student || teacher), by passing
    the teacher where ``kl_div`` expects the student; QuaLA's, by its indices, never distils the end logits.
    """
    teacher = teacher.detach()
    if task.kind == "embedding":
        return (1 - F.cosine_similarity(student.float(), teacher.float(), dim=-1)).mean()
    if task.kind == "span-qa":
        student, teacher = (span_logits(x, batch.mask).flatten(0, 1) for x in (student, teacher))
    elif task.kind == "token-classification":
        tagged = tagged_tokens(batch)
        student, teacher = student[tagged], teacher[tagged]
    elif task.problem == "regression":
        return F.mse_loss(student.float(), teacher.float())
    student, teacher = student.float().log_softmax(-1), teacher.float().log_softmax(-1)
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True)


def tagged_tokens(batch: Batch) -> Tensor:
    """(B, n) bool: tokens that have a tag, which are the first ones of words."""
    assert batch.labels is not None  # token classification trains on files with tags
    return batch.labels != UNTAGGED


def importance(task: TaskSpec, teacher: Tensor, batch: Batch, layers: int) -> list[Tensor]:
    """What each layer should keep, for span QA: per layer (B, n) float32, weights of the original positions.

    The tokens that the teacher would answer with, by their share of its start and end probability; and the
    question and the special tokens, evenly, with a sum that falls from nearly 1 in the first layer to 0 in the
    last, where the context has read them.
    """
    answer = span_logits(teacher.detach(), batch.mask).softmax(-1).mean(1)
    assert batch.framing is not None  # span_features gives it
    framing = batch.framing / batch.framing.sum(1, keepdim=True)
    return [answer + (1 - layer / layers) * framing for layer in range(1, layers + 1)]


def vote_loss(
    record: ForwardRecord, weights: Sequence[Tensor], mask: Tensor, keep_cls: bool, margin: float
) -> Tensor:
    """How far the tokens that matter are from surviving: what teaches attention to vote for them.

    A token is dropped where its column sum is among the lowest, and no gradient passes through that choice: the
    distance of a sub-model's outputs alone never tells a layer that it voted out the answer, or the question.
    Here it costs, in every layer that drops, a token's weight times what its vote lacks, in logarithms, to lead
    the lowest vote that was kept by ``margin``.

    Args:
        record: of a dropping pass, with ``scores`` and ``kept``.
        weights: per layer that ran (B, n), of every original position.
        mask: (B, n) bool, True on tokens.
        keep_cls: the first token survives without votes.
        margin: in units of log vote.

    Returns:
        The mean over sequences and layers, a scalar.
    """
    total, real = mask.new_zeros((), dtype=torch.float32), mask
    positions = torch.arange(mask.shape[1], device=mask.device).expand_as(mask)
    for scores, kept, weight in zip(record.scores, record.kept, weights, strict=True):
        survives = kept >= 0
        count = survives.sum(1, keepdim=True)
        ranked = scores.detach().masked_fill(~real, -1.0)
        here = weight.gather(1, positions) * (real & (count < real.sum(1, keepdim=True)))
        if keep_cls:
            ranked[:, 0] = torch.inf
            here[:, 0] = 0.0
        lowest = ranked.sort(dim=1, descending=True).values.gather(1, count - 1)
        lacking = F.relu(margin + lowest.clamp_min(_LEAST).log() - scores.clamp_min(_LEAST).log())
        total = total + (here * lacking).sum(1).mean()
        positions, real = kept.clamp_min(0), survives
    return total / max(1, len(record.scores))  # LayerDrop may leave every layer out


def hidden_distance(
    student: Sequence[Tensor], teacher: Sequence[Tensor], kept: Sequence[Tensor], mask: Tensor
) -> Tensor:
    """How far the tokens that a sub-model keeps are from what they are when nothing is dropped.

    Outputs say of a span model only where its answer begins and ends; this says of every surviving token, after
    every layer, what it should have become without the tokens that are missing.

    Args:
        student: per layer that ran (B, n, H), its restored outputs in a dropping pass.
        teacher: the same layers' outputs in a frozen model, with every token.
        kept: per layer that ran, as in :class:`~qla_runtime.model.float_model.ForwardRecord`.
        mask: (B, n) bool, True on tokens.

    Returns:
        The mean over layers of the squared distance over kept tokens, relative to their squared length; a scalar.
    """
    total = mask.new_zeros((), dtype=torch.float32)
    for state, target, rows in zip(student, teacher, kept, strict=True):
        # Surplus places of short sequences all write to one column more, which is cut off.
        places = torch.where(rows >= 0, rows, mask.shape[1])
        alive = mask.new_zeros((mask.shape[0], mask.shape[1] + 1)).scatter(1, places, True)[:, :-1, None]
        target = target.float() * alive
        total = total + ((state.float() * alive - target) ** 2).sum() / (target**2).sum()
    return total / max(1, len(kept))  # LayerDrop may leave every layer out


def relation_distance(
    student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor], heads: int, mask: Tensor
) -> Tensor:
    """KL(teacher || student) of how tokens relate to each other: softmax(X Y^T / sqrt(d)), head by head.

    Padding is out of the softmax, and its rows do not count. Every head and every token of a sequence weighs the
    same, and so does every sequence of the batch.

    Args:
        student: X and Y, (B, n, H) each; X alone twice relates a projection to itself.
        teacher: the same; H may be another, and gets no gradient.
        heads: parts that H is cut into, of d = H / heads.
        mask: (B, n) bool, True on tokens.

    Returns:
        A scalar.
    """
    ours, theirs = (_relation(*pair, heads, mask) for pair in (student, teacher))
    distance = F.kl_div(ours, theirs.detach(), reduction="none", log_target=True).sum(-1).mean(1)
    return ((distance * mask).sum(1) / mask.sum(1)).mean()


def _relation(left: Tensor, right: Tensor, heads: int, mask: Tensor) -> Tensor:
    """(B, heads, n, n) float32: logarithms of a relation, of keys in the last dimension."""
    with torch.autocast(left.device.type, enabled=False):
        x, y = (part.float().unflatten(-1, (heads, -1)).transpose(1, 2) for part in (left, right))
        logits = x @ y.transpose(-1, -2) / math.sqrt(x.shape[-1])
        return logits.masked_fill(~mask[:, None, None, :], _NEVER).log_softmax(-1)


def span_logits(outputs: Tensor, mask: Tensor) -> Tensor:
    """(B, n, 2) -> (B, 2, n) float32: start and end logits, padding out of the running."""
    return outputs.float().transpose(1, 2).masked_fill(~mask[:, None, :], _NEVER)
