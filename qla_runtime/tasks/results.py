"""What callers get: the types of results.

An answer, a label and a relevance are TypedDicts: plain dicts when the program runs. Every JSON or MessagePack
library, pandas and ``==`` take them as they are; not all of them take a dataclass or a class derived from dict.
Type checkers know every key. The first keys are what the caller asked for, so a REPL shows these first.

All numbers are finite: the loader refuses weights that could lead to others.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from qla_runtime.lengths.configs import LengthReport


class Run(LengthReport):
    """What a result says of the run that it comes from.

    Attributes:
        macs: multiply-accumulates that the input cost.
        budget_met: whether the call kept within its latency budget; None where there was none.
    """

    macs: int
    budget_met: bool | None


class Escalated(TypedDict, total=False):
    """What a result says where the call escalated.

    Attributes:
        ran: the lengths that ran, in order.
    """

    ran: list[str]


class Span(TypedDict):
    """A stretch of a context that may answer a question.

    Attributes:
        answer: its text; ``""`` for no answer.
        score: 0 to 1.
        start: its first character; 0 for no answer.
        end: one past its last character; 0 for no answer.
    """

    answer: str
    score: float
    start: int
    end: int


class AnswerDetails(TypedDict, total=False):
    """What an answer has where it was asked for.

    Attributes:
        answers: with ``top_k``: the best answers, best first.
        windows: with ``details``: the windows of the context.
        tokens: with ``details``: the tokens of the best window.
        kept: with ``details``: per layer the positions in that window that it kept.
    """

    answers: list[Span]
    windows: int
    tokens: list[str]
    kept: list[list[int]]


class Answer(Span, Run, AnswerDetails, Escalated):
    """What ``answer`` found for one question.

    Attributes:
        no_answer: whether "no answer" is the answer.
        null_score: 0 to 1: the probability that no window holds an answer.
    """

    no_answer: bool
    null_score: float


class LabelScore(TypedDict):
    """A label, and its probability; of a model of one label its value."""

    label: str
    score: float


class LabelDetails(TypedDict, total=False):
    """What a label has where it was asked for: the ``scores`` of the best labels, best first."""

    scores: list[LabelScore]


class Label(LabelScore, Run, LabelDetails, Escalated):
    """What ``classify`` found for one text: the best label, and whether the text was ``truncated``."""

    truncated: bool


class Relevance(Run):
    """How well one document answers a query, and whether the two were ``truncated``."""

    score: float
    truncated: bool


class Ranked(Relevance):
    """A document's place: ``index`` says which of the documents it is."""

    index: int


class Embedding(Run):
    """The ``vector`` (float32) of one sentence, and whether the sentence was ``truncated``."""

    vector: NDArray[np.float32]
    truncated: bool


class TaggedSpan(TypedDict):
    """A labelled span of a text: its mean score, its characters and its text."""

    label: str
    score: float
    start: int
    end: int
    text: str


class TaggedToken(TaggedSpan, total=False):
    """A span; where ``aggregation_strategy`` is ``"none"``, a token with its ``index`` and its spelling."""

    index: int
    word: str


class Spans(list[TaggedToken]):
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

    def __init__(self, spans: Iterable[TaggedToken], run: Run, *, truncated: bool, confidence: float) -> None:
        super().__init__(spans)
        self.confidence = confidence
        self.budget_met = run["budget_met"]
        self.truncated = truncated
        self.length = run["length"]
        self.length_config = run["length_config"]
        self.accuracy = run["accuracy"]
        self.macs = run["macs"]
        self.ran: list[str] = []


def fact(result: Any, name: str) -> Any:
    """What a result says of its run: a dict has it under a key, anything else as an attribute."""
    return result[name] if isinstance(result, dict) else getattr(result, name)


def note(result: Any, **facts: Any) -> None:
    """Writes into a result what :func:`fact` reads."""
    (result if isinstance(result, dict) else vars(result)).update(facts)


def confidence(result: Any) -> float:
    """How sure a result is, 0 to 1: the ``score`` of an answer or a label, the ``confidence`` of spans."""
    sure: float = fact(result, "score" if isinstance(result, dict) else "confidence")
    return sure
