"""From texts to batches: questions, labelled texts, plain lines; tokenized once, batched by length.

A text is tokenized by the runtime's own :class:`~qla_runtime.texts.text_encoder.TextEncoder`, so training sees
exactly the windows that ``answer`` runs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from qla_runtime.bars import bar
from qla_runtime.errors import InputError
from qla_runtime.evaluation.tagging import Sentence, first_tokens
from qla_runtime.model.spec import EncoderSpec, TaskSpec
from qla_runtime.ragged import Ragged
from qla_runtime.texts.data_sets import Labelled
from qla_runtime.texts.squad import SpanQuestion
from qla_runtime.texts.text_encoder import TextEncoder, batches

if TYPE_CHECKING:
    import torch
    from torch import Tensor

UNTAGGED = -100
"""The tag of a token that has none: special tokens, and all but the first token of a word."""

PAD_TO = 16
"""Batches are as wide as a multiple of this many tokens: fewer shapes for the matrix library to prepare."""

Lengths = TypeVar("Lengths", int, NDArray[np.int64])


@dataclass(frozen=True)
class Batch:
    """Right-padded sequences. B sequences, padded to n.

    Attributes:
        input_ids: (B, n) int64.
        token_type_ids: (B, n) int64.
        mask: (B, n) bool, True on tokens.
        labels: (B, 2) int64 start and end for span QA, (B,) int64 classes or float32 scores, (B, n) int64 tags or
            :data:`UNTAGGED` for token classification; None without.
        rows: which features these are.
        framing: (B, n) bool, for span QA: the question and the special tokens; None for other tasks.
    """

    input_ids: Tensor
    token_type_ids: Tensor
    mask: Tensor
    labels: Tensor | None
    rows: NDArray[np.int64]
    framing: Tensor | None = None

    @property
    def tokens(self) -> int:
        """Tokens without padding."""
        return int(self.mask.sum())

    def to(self, device: torch.device) -> Batch:
        """The batch on a device."""

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=True)

        labels = None if self.labels is None else move(self.labels)
        framing = None if self.framing is None else move(self.framing)
        ids, types, mask = move(self.input_ids), move(self.token_type_ids), move(self.mask)
        return Batch(ids, types, mask, labels, self.rows, framing)


@dataclass(frozen=True)
class Features:
    """Tokenized sequences, and a label for each.

    Attributes:
        ragged: the sequences.
        labels: (N, 2) int64, (N,) int64 or float32, or None, as in :class:`Batch`. Tags are in ``tags``.
        limit: positions that the model has; batches are not padded beyond.
        framing: (tokens,) bool for span QA, as in :class:`Batch`; else None.
        tags: (tokens,) int64 for token classification; else None.
    """

    ragged: Ragged
    labels: NDArray | None
    limit: int
    framing: NDArray[np.bool_] | None = None
    tags: NDArray[np.int64] | None = None

    @classmethod
    def of(cls, parts: Sequence[Ragged], labels: NDArray | None, spec: EncoderSpec) -> Features:
        """The sequences of several batches of the tokenizer, as the model ``spec`` reads them."""
        types = [np.zeros_like(part.ids) if part.type_ids is None else part.type_ids for part in parts]
        lengths = np.concatenate([np.diff(part.offsets) for part in parts])
        ragged = Ragged(
            ids=np.concatenate([part.ids for part in parts]),
            offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            type_ids=np.concatenate(types),
        )
        return cls(ragged, labels, spec.max_positions)

    def __len__(self) -> int:
        return self.ragged.count

    @property
    def first_token(self) -> int | None:
        """The token that every sequence begins with, such as [CLS]; None where they differ."""
        first = np.unique(self.ragged.ids[self.ragged.offsets[:-1]])
        return int(first[0]) if len(first) == 1 else None

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(N,) tokens of each sequence."""
        return np.diff(self.ragged.offsets)

    def batch(self, rows: NDArray[np.int64]) -> Batch:
        """The features ``rows`` as one padded batch."""
        import torch

        offsets = self.ragged.offsets
        lengths = offsets[rows + 1] - offsets[rows]
        width = min(_padded(int(lengths.max())), self.limit)
        mask = np.arange(width) < lengths[:, None]
        tokens = np.concatenate([np.arange(offsets[row], offsets[row + 1]) for row in rows])
        ids = np.zeros(mask.shape, np.int64)
        types = np.zeros(mask.shape, np.int64)
        ids[mask] = self.ragged.ids[tokens]
        assert self.ragged.type_ids is not None  # of() gives every token a type
        types[mask] = self.ragged.type_ids[tokens]
        labels = None if self.labels is None else torch.from_numpy(self.labels[rows])
        if self.tags is not None:
            padded = np.full(mask.shape, UNTAGGED, np.int64)
            padded[mask] = self.tags[tokens]
            labels = torch.from_numpy(padded)
        framing = None
        if self.framing is not None:
            flags = np.zeros(mask.shape, np.bool_)
            flags[mask] = self.framing[tokens]
            framing = torch.from_numpy(flags)
        return Batch(torch.from_numpy(ids), torch.from_numpy(types), torch.from_numpy(mask), labels, rows, framing)

    def plan(self, budget: int, draw: np.random.Generator) -> list[NDArray[np.int64]]:
        """Every feature once, in batches of like lengths and at most ``budget`` tokens, in random order.

        Features of one padded length are shuffled among themselves, so batches differ from epoch to epoch.

        Args:
            budget: tokens of a batch, padding included; a longer sequence makes a batch of its own.
            draw: decides the order, and nothing else does.
        """
        order = draw.permutation(len(self))
        padded = np.minimum(_padded(self.lengths), self.limit)
        order = order[np.argsort(padded[order], kind="stable")]
        plan, begin = [], 0
        for end in range(1, len(order) + 1):
            # Widths ascend, so the next row alone decides how wide the batch would be with it.
            if end == len(order) or (end + 1 - begin) * padded[order[end]] > budget:
                plan.append(order[begin:end])
                begin = end
        return [plan[i] for i in draw.permutation(len(plan))]


# ------------------------------------------------------------------------------------------ features


def span_features(
    questions: Sequence[SpanQuestion], encoder: TextEncoder, spec: EncoderSpec, task: TaskSpec, progress: bool
) -> Features:
    """Questions -> windows of at most ``max_length`` tokens, with the answer's first and last token.

    A window that does not hold the whole answer points to [CLS], its token 0, for both.
    """
    parts: list[Ragged] = []
    framing: list[NDArray[np.bool_]] = []
    labels: list[tuple[int, int]] = []
    with bar(len(questions), "tokenizing", progress) as shown:
        for part in batches([q.context for q in questions], [q.question for q in questions]):
            chosen = questions[part]
            windows = encoder.windows(
                [q.question for q in chosen],
                [q.context for q in chosen],
                task.doc_stride,
                [q.place for q in chosen],
            )
            parts.append(windows.batch)
            framing.append(windows.is_context == 0)
            for i, question in enumerate(chosen):
                for window in range(windows.questions[i], windows.questions[i + 1]):
                    labels.append(windows.locate(i, window, question.start, question.end) or (0, 0))
            shown.update(len(chosen))
    return replace(Features.of(parts, np.array(labels, np.int64), spec), framing=np.concatenate(framing))


def text_features(
    texts: Sequence[str] | Sequence[tuple[str, str]],
    labels: NDArray | None,
    encoder: TextEncoder,
    spec: EncoderSpec,
    progress: bool,
) -> Features:
    """Texts or pairs, cut at ``max_length`` tokens."""
    parts: list[Ragged] = []
    with bar(len(texts), "tokenizing", progress) as shown:
        for part in batches(["".join(text) for text in texts]):
            parts.append(encoder.encode(texts[part])[0])
            shown.update(part.stop - part.start)
    return Features.of(parts, labels, spec)


def tag_features(
    sentences: Sequence[Sentence],
    tags: Sequence[Sequence[int]],
    encoder: TextEncoder,
    spec: EncoderSpec,
    progress: bool,
) -> Features:
    """Sentences, cut at ``max_length`` tokens. The first token of a word has its tag, as in ``qla eval tag``."""
    parts: list[Ragged] = []
    found: list[NDArray[np.int64]] = []
    texts = [" ".join(sentence.words) for sentence in sentences]
    with bar(len(texts), "tokenizing", progress) as shown:
        for part in batches(texts):
            encoded = encoder.encode(texts[part], with_offsets=True)
            parts.append(encoded.batch)
            for sentence, numbers, encoding in zip(sentences[part], tags[part], encoded.encodings, strict=True):
                real = np.flatnonzero(np.equal(encoding.special_tokens_mask, 0))
                row = np.full(len(encoding.ids), UNTAGGED, np.int64)
                first = first_tokens(sentence.words, [encoding.offsets[i][0] for i in real])
                for place, tag in zip(first, numbers, strict=True):
                    if place is not None:
                        row[real[place]] = tag
                found.append(row)
            shown.update(part.stop - part.start)
    return replace(Features.of(parts, None, spec), tags=np.concatenate(found))


def encode_tags(sentences: Sequence[Sentence], task: TaskSpec, path: Path) -> list[list[int]]:
    """The file's tags as the model's head numbers them, per sentence and word.

    Raises:
        InputError: the head has no such output, or every word has the same tag.
    """
    found = sorted({tag for sentence in sentences for tag in sentence.tags})
    if len(found) < 2:
        raise InputError(f"{path.name}: every word has the tag {found[0]!r}; there is nothing to learn")
    numbers = {name: i for i, name in enumerate(task.labels)}
    for tag in found:
        if tag not in numbers:
            raise InputError(
                f"{path.name}: tag {tag!r} is none that the checkpoint's head gives ({', '.join(task.labels)}). "
                "Start from a checkpoint of this task, or pass --new-head"
            )
    return [[numbers[tag] for tag in sentence.tags] for sentence in sentences]


def encode_labels(data: Labelled, task: TaskSpec, path: Path) -> NDArray:
    """The file's labels as the model's head numbers them: (N,) int64 classes, or float32 scores.

    A label fits by its name or, where all of them are whole numbers, by its number.

    Raises:
        InputError: the head has no such output, or every row has the same label.
    """
    if len(set(data.labels)) < 2:
        raise InputError(
            f"{path.name}: every row has the label {data.labels[0]!r}; there is nothing to learn. "
            "Give a file with at least two"
        )
    if task.problem == "regression":
        return np.array([_score(label, path) for label in data.labels], np.float32)
    numbers = {name: i for i, name in enumerate(task.labels)}
    if not set(data.labels) <= set(numbers):
        numbers = {str(i): i for i in range(len(task.labels))}
    unknown = sorted(set(data.labels) - set(numbers))
    if unknown:
        raise InputError(
            f"{path.name}: label {unknown[0]!r} is none that the checkpoint's head gives "
            f"({', '.join(task.labels)}). Start from a checkpoint of this task, or pass --new-head"
        )
    return np.array([numbers[label] for label in data.labels], np.int64)


def _score(label: str, path: Path) -> float:
    try:
        score = float(label)
    except ValueError:
        score = math.nan
    if not math.isfinite(score):
        raise InputError(f"{path.name}: label {label!r} is no number, and the model predicts numbers")
    return score


def _padded(length: Lengths) -> Lengths:
    """A length, or an array of them, rounded up to a multiple of :data:`PAD_TO`."""
    return -(-length // PAD_TO) * PAD_TO
