"""From logits to what a caller asked for: labels, scores, spans of text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Spans(list[dict[str, Any]]):
    """The spans that ``tag`` found in one text, in its order: dicts of label, score, start, end, text.

    Attributes:
        truncated: the text was longer than the model reads, and its end was left out.
        length: the length config's name, or the config spelled out; ``length=`` takes it again.
        length_config: the length config in plain JSON types: a dict of ``rule``, ``values``, ``keep_cls``.
        accuracy: what the package measured with it, a dict of ``metric``, ``value``, ``data``; else None.
        macs: multiply-accumulates that the text cost.
        confidence: the lowest probability of the best label of a word's piece; 1.0 where there is no word.
        budget_met: whether the call kept within its latency budget; None where there was none.
        ran: with ``Escalate`` the lengths that ran, in order; else empty.
    """

    def __init__(
        self,
        spans: Iterable[dict[str, Any]],
        *,
        truncated: bool,
        length: str,
        macs: int,
        confidence: float = 1.0,
        length_config: dict[str, Any] | None = None,
        accuracy: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(spans)
        self.confidence = confidence
        self.budget_met: bool | None = None
        self.truncated = truncated
        self.length = length
        self.length_config = length_config
        self.accuracy = accuracy
        self.macs = macs
        self.ran: list[str] = []


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Over the last axis, in double: nearby scores stay apart, and which label wins is the logits' business."""
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def sigmoid(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Of each element, in double, without overflow at either end."""
    return 0.5 * (1.0 + np.tanh(0.5 * logits.astype(np.float64)))


def label_scores(logits: NDArray[np.float32], problem: str) -> NDArray[np.floating]:
    """Logits (n, labels) -> scores of the same shape: probabilities, or the value itself for regression."""
    if problem == "single_label":
        return softmax(logits)
    return sigmoid(logits) if problem == "multi_label" else logits


def merge_spans(
    text: str,
    labels: Sequence[str],
    scores: NDArray[np.float32],
    offsets: Sequence[tuple[int, int]],
    words: Sequence[int | None],
) -> list[dict[str, Any]]:
    """Labels of word pieces -> spans of text.

    Neighbouring pieces join where their entity is the same and nothing says that a new one begins: ``B-``
    begins one, but not in the middle of a word. Labels without ``B-``/``I-`` join while they stay the same.
    ``O`` belongs to none.

    Args:
        text: the text that the offsets point into.
        labels: the best label of each piece.
        scores: its probability.
        offsets: the character range of each piece.
        words: the word of each piece; None for special tokens, which belong to no span.

    Returns:
        dicts of label (without its prefix), score (mean over the pieces), start, end (characters), text.
    """
    spans: list[tuple[str, int, int]] = []  # entity, first piece, last piece
    previous: int | None = None  # the piece before, if it belongs to the last span
    for i, (label, word) in enumerate(zip(labels, words, strict=True)):
        prefix, entity = _parts(label)
        if word is None or label == "O":
            previous = None
            continue
        begins = prefix == "B" and (previous is None or words[previous] != word)
        if previous is not None and spans[-1][0] == entity and not begins:
            spans[-1] = (entity, spans[-1][1], i)
        else:
            spans.append((entity, i, i))
        previous = i
    return [
        {
            "label": entity,
            "score": float(scores[first : last + 1].mean()),
            "start": offsets[first][0],
            "end": offsets[last][1],
            "text": text[offsets[first][0] : offsets[last][1]],
        }
        for entity, first, last in spans
    ]


def lowest_score(scores: NDArray[np.float32], words: Sequence[int | None]) -> float:
    """The lowest score of a piece that belongs to a word; 1.0 where there is none."""
    return min((float(s) for s, word in zip(scores, words, strict=True) if word is not None), default=1.0)


def _parts(label: str) -> tuple[str, str]:
    """``"B-PER"`` -> ``("B", "PER")``; a label of another shape has no prefix."""
    return (label[0], label[2:]) if label[:2] in ("B-", "I-") and len(label) > 2 else ("", label)
