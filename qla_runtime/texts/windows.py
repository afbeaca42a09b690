"""The windows of long contexts, which question answering reads instead of cutting a text.

Everything here works on the lists that the tokenizer gives; no model, no logits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from qla_runtime.errors import InputError
from qla_runtime.ragged import Ragged

if TYPE_CHECKING:
    from tokenizers import Encoding


@dataclass
class QuestionWindows:
    """The windows of several questions, in order.

    Attributes:
        batch: one sequence per window.
        is_context: uint8, one per token: 1 where the token belongs to the context, 2 where it is known to show no
            text (:meth:`mark_invisible`).
        questions: int64; question ``q`` owns windows ``[questions[q], questions[q + 1])``.
    """

    batch: Ragged
    is_context: NDArray[np.uint8]
    questions: NDArray[np.int64]
    _encodings: list[Encoding] = field(repr=False)
    _shifts: list[tuple[int, int]] = field(repr=False)
    """Per window: where its context begins in it, and where that token stands in the full encoding."""

    @property
    def positions(self) -> NDArray[np.int64]:
        """int64 (windows,): where each window's first context token stands among all tokens of its question."""
        return np.array([source for _, source in self._shifts], np.int64)

    def mark_invisible(self, question: int, context: str) -> None:
        """Sets ``is_context`` to 2 for the question's context tokens that hold white space alone, or nothing."""
        visible = [bool(context[start:end].strip()) for start, end in self._encodings[question].offsets]
        for window in range(self.questions[question], self.questions[question + 1]):
            begin, source = self._shifts[window]
            rows = slice(int(self.batch.offsets[window]), int(self.batch.offsets[window + 1]))
            for token in np.flatnonzero(self.is_context[rows]):
                if not visible[source + token - begin]:
                    self.is_context[rows.start + token] = 2

    def characters(self, question: int, window: int, first: int, last: int) -> tuple[int, int]:
        """Character range in the context of tokens ``first..last`` of a window (its global number)."""
        begin, source = self._shifts[window]
        places = [self._encodings[question].token_to_chars(source + token - begin) for token in (first, last)]
        assert places[0] and places[1], "tokens of a context have characters"
        return places[0][0], places[1][1]

    def word_characters(self, question: int, window: int, first: int, last: int) -> tuple[int, int]:
        """As :meth:`characters`, but from the beginning of the word of ``first`` to the end of that of ``last``.

        A word is what the tokenizer takes for one. Tokens of it that lie outside the window do not count.
        """
        word_of = self._encodings[question].token_to_word
        context = self.is_context[self.batch.offsets[window] : self.batch.offsets[window + 1]]
        begin, source = self._shifts[window]

        def same_word(token: int, other: int) -> bool:
            if not (0 <= other < len(context) and context[other]):
                return False
            word = word_of(source + token - begin)
            return word is not None and word == word_of(source + other - begin)

        while same_word(first, first - 1):
            first -= 1
        while same_word(last, last + 1):
            last += 1
        return self.characters(question, window, first, last)

    def locate(self, question: int, window: int, start: int, end: int) -> tuple[int, int] | None:
        """First and last token of a window (its global number) that hold characters ``start..end - 1`` of the
        context; None where the window does not hold them all. The inverse of :meth:`characters`."""
        encoding = self._encodings[question]
        tokens = (encoding.char_to_token(character, 1) for character in range(start, end))
        found = [token for token in tokens if token is not None]  # white space belongs to no token
        if not found:
            return None
        begin, source = self._shifts[window]
        first, last = begin + found[0] - source, begin + found[-1] - source
        context = self.is_context[self.batch.offsets[window] : self.batch.offsets[window + 1]]
        inside = 0 <= first <= last < len(context) and context[first] and context[last]
        return (first, last) if inside else None

    def tokens(self, question: int, window: int) -> list[str]:
        """The tokens of a window (its global number) as the tokenizer spells them."""
        begin, source = self._shifts[window]
        tokens = self._encodings[question].tokens
        tail = tokens[_context_range(self._encodings[question])[1] :]
        size = int(self.batch.offsets[window + 1] - self.batch.offsets[window])
        return tokens[:begin] + tokens[source : source + size - begin - len(tail)] + tail


def cut_windows(
    encodings: Sequence[Encoding],
    max_length: int,
    stride: int,
    names: Sequence[str],
    join: Callable[[list[list[int]], list[list[int]]], Ragged],
) -> QuestionWindows:
    """Whole question and context pairs -> windows of at most ``max_length`` tokens. Only the context is cut.

    Args:
        encodings: one per question: the pair, tokenized as a whole.
        max_length: tokens of a window, special tokens included.
        stride: context tokens that neighbouring windows of a question share. Where the question leaves no more
            room than that, they share half of the room.
        names: how error messages call each question.
        join: makes the batch from the windows' token ids and token types.

    Raises:
        InputError: a question so long that no context fits beside it, or a context without a token.
    """
    ids: list[list[int]] = []
    types: list[list[int]] = []
    contexts_of: list[tuple[int, int]] = []
    shifts: list[tuple[int, int]] = []
    bounds = np.zeros(len(encodings) + 1, np.int64)
    for q, encoding in enumerate(encodings):
        begin, end = _context_range(encoding)
        others = len(encoding) - (end - begin)
        room = max_length - others
        if room < 1:
            raise InputError(
                f"{names[q]} takes {others} tokens with its special tokens, and windows have {max_length}: no "
                "context fits beside it. Shorten the question"
            )
        if begin == end:
            raise InputError(f"the context of {names[q]} has no token that the model knows; give it a text")
        all_ids, all_types = encoding.ids, encoding.type_ids
        for start, stop in window_ranges(end - begin, room, stride if stride < room else room // 2):
            chosen = slice(begin + start, begin + stop)
            ids.append(all_ids[:begin] + all_ids[chosen] + all_ids[end:])
            types.append(all_types[:begin] + all_types[chosen] + all_types[end:])
            contexts_of.append((begin, begin + stop - start))
            shifts.append((begin, begin + start))
        bounds[q + 1] = len(ids)

    batch = join(ids, types)
    is_context = np.zeros(len(batch.ids), np.uint8)
    for offset, (begin, end) in zip(batch.offsets[:-1], contexts_of, strict=True):
        is_context[offset + begin : offset + end] = 1
    return QuestionWindows(batch, is_context, bounds, list(encodings), shifts)


def window_ranges(length: int, room: int, stride: int) -> Iterator[tuple[int, int]]:
    """Ranges of at most ``room`` covering ``length`` tokens; neighbours share ``stride``, less than room."""
    start = 0
    while start + room < length:
        yield start, start + room
        start += room - stride
    yield start, length


def _context_range(encoding: Encoding) -> tuple[int, int]:
    """Where the second sequence of a pair stands among the tokens."""
    sequences = encoding.sequence_ids
    if 1 not in sequences:
        return len(sequences), len(sequences)
    begin = sequences.index(1)
    return begin, begin + sequences.count(1)
