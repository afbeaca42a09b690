"""What a trace holds: the tokens, and how far each came with each config."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

SPECIAL, QUESTION, CONTEXT = "special", "question", "context"


@dataclass(frozen=True)
class Token:
    """One token of the input.

    Attributes:
        text: as the tokenizer spells it.
        part: the text that it is of, such as ``"question"`` or ``"context"``; ``"special"`` where of none.
        start: its first character in that text; 0 for a special token.
        end: one past its last character there; 0 for a special token.
    """

    text: str
    part: str
    start: int
    end: int


@dataclass(frozen=True)
class Run:
    """What one length config did.

    Attributes:
        length: the config's name, or the config spelled out.
        answer: as ``engine.answer`` finds it.
        score: of the answer, 0 to 1.
        start: the answer's first character in the context.
        end: one past its last.
        macs: multiply-accumulates, over all windows.
        share: ``macs`` as a share of keeping every token.
        kept: per layer, the tokens that it keeps, over all windows.
        depth: for each of the trace's tokens, how many layers kept it. A token that several windows read has
            the depth of the window that kept it longest.
    """

    length: str
    answer: str
    score: float
    start: int
    end: int
    macs: int
    share: float
    kept: tuple[int, ...]
    depth: tuple[int, ...]


@dataclass(frozen=True)
class Piece:
    """A stretch of text whose characters share one fate.

    Attributes:
        text: from the original text; of special tokens the tokenizer's spelling.
        depth: how many layers kept it; None for characters that belong to no token.
        is_answer: whether it lies in the answer.
    """

    text: str
    depth: int | None
    is_answer: bool


@dataclass(frozen=True)
class Part:
    """Pieces of the same kind, in reading order: ``kind`` is that of their tokens, as in :class:`Token`."""

    kind: str
    pieces: list[Piece]


@dataclass(frozen=True)
class Record:
    """Which tokens of a question and its context survive each layer, with some length configs.

    Attributes:
        model: the package's name.
        question: as it was passed.
        context: as it was passed.
        layers: of the model.
        windows: the sequences that the model read.
        tokens: the input, each token once.
        tokens_read: the tokens of all windows, so that what windows share counts in each.
        runs: one per length config, in the order in which they were passed.
    """

    model: str
    question: str
    context: str
    layers: int
    windows: int
    tokens: tuple[Token, ...]
    tokens_read: int
    runs: tuple[Run, ...]

    def parts(self, run: Run) -> list[Part]:
        """The input as ``run`` treated it. The pieces of the context, joined, are the whole context."""
        texts = {QUESTION: self.question, CONTEXT: self.context}
        return parts(self.tokens, run.depth, texts, {CONTEXT: [(run.start, run.end)]})

    def json(self) -> dict[str, Any]:
        """The trace as plain dicts, lists, texts and numbers."""
        return {
            "model": self.model,
            "question": self.question,
            "context": self.context,
            "layers": self.layers,
            "windows": self.windows,
            "tokens_read": self.tokens_read,
            "tokens": [vars(token) for token in self.tokens],
            "runs": [vars(run) for run in self.runs],
        }


def parts(
    tokens: Iterable[Token],
    depth: Sequence[int],
    texts: Mapping[str, str],
    answers: Mapping[str, Sequence[tuple[int, int]]],
) -> list[Part]:
    """An input, drawn.

    Args:
        tokens: of the input.
        depth: how many layers kept each.
        texts: what each kind of token is of.
        answers: per kind the characters that the model gives as its answer.

    Returns:
        The pieces of a text, joined, are the whole text.
    """
    found = []
    for kind, members in groupby(zip(tokens, depth, strict=True), key=lambda member: member[0].part):
        if kind == SPECIAL:
            found.append(Part(kind, [Piece(token.text, layers, False) for token, layers in members]))
        else:
            found.append(Part(kind, _pieces(texts[kind], members, answers.get(kind, ()))))
    return found


def _pieces(text: str, fates: Iterable[tuple[Token, int]], answers: Sequence[tuple[int, int]]) -> list[Piece]:
    """Cuts a text where the fate of its characters changes, or an answer begins or ends."""
    none = -1
    fate = np.full(len(text), none, np.int16)
    for token, depth in fates:
        # Tokens of single bytes share a character.
        fate[token.start : token.end] = np.maximum(fate[token.start : token.end], depth)
    for i in range(1, len(text)):
        # Accents and joiners that the tokenizer drops or splits off are drawn with what they modify.
        if unicodedata.combining(text[i]) or (fate[i] == none and not text[i].isspace()):
            fate[i] = fate[i - 1]
    marked = np.zeros(len(text), np.bool_)
    for start, end in answers:
        while start < end < len(text) and unicodedata.combining(text[end]):
            end += 1
        marked[start:end] = True
    known = np.flatnonzero(fate != none)
    for before, after in zip(known[:-1], known[1:], strict=True):
        if fate[before] == fate[after]:  # white space between equals is no border
            fate[before:after] = fate[before]

    characters = zip(text, fate.tolist(), marked.tolist(), strict=True)
    return [
        Piece("".join(character for character, *_ in members), None if depth == none else depth, is_answer)
        for (depth, is_answer), members in groupby(characters, key=lambda character: character[1:])
    ]
