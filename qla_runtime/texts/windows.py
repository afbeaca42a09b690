"""From texts to token ids: one ragged batch per call, and the windows of long contexts.

Everything here works on the lists that the tokenizer gives; no model, no logits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from qla_runtime.errors import InputError, PackageError
from qla_runtime.texts.tokenizer import LOADING, TextRules, faults_named, open_tokenizer, watch_forks

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

BATCH_TEXTS = 512
"""Texts tokenized at once: enough to keep every core busy, few enough to bound memory."""

BATCH_CHARACTERS = 500_000
"""The same bound for long texts; a single longer text makes a batch of its own. Ctrl-C waits for one batch."""


@dataclass(frozen=True)
class Ragged:
    """Sequences one after another, as the C door takes them; ``i`` owns ``[offsets[i], offsets[i + 1])``."""

    ids: NDArray[np.int32]
    offsets: NDArray[np.int64]
    type_ids: NDArray[np.int32] | None = None

    @property
    def count(self) -> int:
        """The number of sequences."""
        return len(self.offsets) - 1

    @classmethod
    def join(cls, ids: Sequence[Sequence[int]], type_ids: Sequence[Sequence[int]] | None) -> Ragged:
        """Lists of token ids and of token types (None: all 0), one per sequence."""
        offsets = np.zeros(len(ids) + 1, np.int64)
        np.cumsum([len(row) for row in ids], out=offsets[1:])
        flat = np.fromiter(chain.from_iterable(ids), np.int32, count=offsets[-1])
        if type_ids is None:
            return cls(flat, offsets)
        return cls(flat, offsets, np.fromiter(chain.from_iterable(type_ids), np.int32, count=offsets[-1]))


class Encoded(NamedTuple):
    """Texts, or pairs of texts, tokenized."""

    batch: Ragged
    encodings: list[Encoding]
    cut: NDArray[np.bool_]
    """Which texts were longer than the model reads."""


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
        encoding = self._encodings[question]
        return encoding.token_to_chars(source + first - begin)[0], encoding.token_to_chars(source + last - begin)[
            1
        ]

    def locate(self, question: int, window: int, start: int, end: int) -> tuple[int, int] | None:
        """First and last token of a window (its global number) that hold characters ``start..end - 1`` of the
        context; None where the window does not hold them all. The inverse of :meth:`characters`."""
        encoding = self._encodings[question]
        found = [encoding.char_to_token(character, 1) for character in range(start, end)]
        found = [token for token in found if token is not None]  # white space belongs to no token
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


class TextEncoder:
    """The package's tokenizer, made when the first text comes.

    Args:
        read: gives the bytes of tokenizer.json, those that were checked when the package was opened.
        max_length: tokens of a sequence, special tokens included.
        cut: truncate single texts and pairs at ``max_length``; the windows of question answering do not.
        vocab_size: token ids of the model.
        type_vocab_size: token types of the model. A RoBERTa-type model has one only, and whatever types its
            tokenizer may give the second text of a pair are not meant for it.
        rules: what tokenizer.json has no words for.
    """

    def __init__(
        self,
        read: Callable[[], bytes],
        max_length: int,
        *,
        cut: bool,
        vocab_size: int,
        type_vocab_size: int,
        rules: TextRules | None = None,
    ) -> None:
        self._read = read
        self._max_length = max_length
        self._cut = cut
        self._vocab_size = vocab_size
        self._type_vocab_size = type_vocab_size
        self._rules = rules or TextRules()
        self._with_types = type_vocab_size > 1 and self._rules.token_types
        self._tokenizer: Tokenizer | None = None

    def encode(self, texts: Sequence[str] | Sequence[tuple[str, str]], *, with_offsets: bool = False) -> Encoded:
        """Texts or pairs of texts -> one sequence each.

        Without ``with_offsets`` the encodings carry no character offsets, which is faster.

        Raises:
            PackageError: the tokenizer fails, or gives ids that the model does not have.
        """
        tokenizer = self.load()
        watch_forks()
        encode = tokenizer.encode_batch if with_offsets else tokenizer.encode_batch_fast
        with faults_named():
            encodings = encode(list(texts))
        types = [e.type_ids for e in encodings] if self._with_types else None
        batch = self._joined([e.ids for e in encodings], types)
        return Encoded(batch, encodings, np.array([bool(e.overflowing) for e in encodings], np.bool_))

    def windows(
        self, questions: Sequence[str], contexts: Sequence[str], stride: int, names: Sequence[str]
    ) -> QuestionWindows:
        """Question and context pairs -> windows of at most ``max_length`` tokens, as Hugging Face makes them.

        Only the context is cut; neighbouring windows of a question share ``stride`` context tokens, or half
        of the room where the question leaves no more than that.

        Args:
            questions: one per context.
            contexts: the texts that hold the answers.
            stride: context tokens that two neighbouring windows share.
            names: how error messages call each question.

        Raises:
            InputError: a question so long that no context fits beside it, or a context without a token.
            PackageError: the tokenizer fails, or gives ids that the model does not have.
        """
        tokenizer = self.load()
        watch_forks()
        with faults_named():
            encodings = tokenizer.encode_batch(list(zip(questions, contexts, strict=True)))
        ids: list[list[int]] = []
        types: list[list[int]] = []
        contexts_of: list[tuple[int, int]] = []
        shifts: list[tuple[int, int]] = []
        bounds = np.zeros(len(encodings) + 1, np.int64)
        for q, encoding in enumerate(encodings):
            begin, end = _context_range(encoding)
            others = len(encoding) - (end - begin)
            room = self._max_length - others
            if room < 1:
                raise InputError(
                    f"{names[q]} takes {others} tokens with its special tokens, and windows have "
                    f"{self._max_length}: no context fits beside it. Shorten the question"
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

        batch = self._joined(ids, types if self._with_types else None)
        is_context = np.zeros(len(batch.ids), np.uint8)
        for offset, (begin, end) in zip(batch.offsets[:-1], contexts_of, strict=True):
            is_context[offset + begin : offset + end] = 1
        return QuestionWindows(batch, is_context, bounds, encodings, shifts)

    def load(self) -> Tokenizer:
        """The tokenizer, made on first use.

        Raises:
            PackageError: the tokenizers library cannot read it.
        """
        if self._tokenizer is None:
            with LOADING:
                if self._tokenizer is None:
                    length = self._max_length if self._cut else None
                    self._tokenizer = open_tokenizer(self._read(), self._rules, length)
        return self._tokenizer

    def _joined(self, ids: Sequence[Sequence[int]], type_ids: Sequence[Sequence[int]] | None) -> Ragged:
        """The batch of these sequences, with only such ids as the model has."""
        _check_ids(ids, self._vocab_size, "token id", "vocab_size")
        if type_ids is not None:
            _check_ids(type_ids, self._type_vocab_size, "token type", "type_vocab_size")
        return Ragged.join(ids, type_ids)


def _check_ids(rows: Sequence[Sequence[int]], size: int, what: str, limit: str) -> None:
    largest = max((max(row) for row in rows if row), default=0)
    if largest >= size:
        raise PackageError(
            f"tokenizer.json gives {what} {largest}, and config.json says that {limit} is {size}; convert again "
            "with the tokenizer that the model was trained with"
        )


def window_ranges(length: int, room: int, stride: int) -> Iterator[tuple[int, int]]:
    """Ranges of at most ``room`` covering ``length`` tokens; neighbours share ``stride``, less than room."""
    start = 0
    while start + room < length:
        yield start, start + room
        start += room - stride
    yield start, length


def batches(texts: Sequence[Any], others: Sequence[Any] | None = None) -> Iterator[slice]:
    """Slices of ``texts`` (paired with ``others``) that are small enough to be tokenized at once."""
    start, characters = 0, 0
    for i, text in enumerate(texts):
        size = len(text) + (len(others[i]) if others is not None else 0)
        if i > start and (i - start == BATCH_TEXTS or characters + size > BATCH_CHARACTERS):
            yield slice(start, i)
            start, characters = i, 0
        characters += size
    if start < len(texts):
        yield slice(start, len(texts))


def _context_range(encoding: Encoding) -> tuple[int, int]:
    """Where the second sequence of a pair stands among the tokens."""
    sequences = encoding.sequence_ids
    if 1 not in sequences:
        return len(sequences), len(sequences)
    begin = sequences.index(1)
    return begin, begin + sequences.count(1)
