"""From logits to what a caller asked for: labels, scores, spans of text."""

from __future__ import annotations

from collections.abc import Iterable
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
        confidence: the lowest score of a word, or of a piece where pieces have labels of their own; 1.0 where
            there is none.
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
