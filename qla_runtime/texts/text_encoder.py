"""From texts to token ids: the package's tokenizer, and how many texts it is given at once."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from qla_runtime.errors import PackageError
from qla_runtime.ragged import Ragged
from qla_runtime.texts.tokenizer import LOADING, TextRules, faults_named, open_tokenizer, watch_forks
from qla_runtime.texts.windows import QuestionWindows, cut_windows

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

BATCH_TEXTS = 512
"""Texts tokenized at once: enough to keep every core busy, few enough to bound memory."""

BATCH_CHARACTERS = 500_000
"""The same bound for long texts; a single longer text makes a batch of its own. Ctrl-C waits for one batch."""


class Encoded(NamedTuple):
    """Texts, or pairs of texts, tokenized."""

    batch: Ragged
    encodings: list[Encoding]
    cut: NDArray[np.bool_]
    """Which texts were longer than the model reads."""


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
        self.max_length = max_length
        self.stride = 0
        self._cut = cut
        self._vocab_size = vocab_size
        self._type_vocab_size = type_vocab_size
        self._rules = rules or TextRules()
        self._with_types = type_vocab_size > 1 and self._rules.token_types
        self._tokenizer: Tokenizer | None = None

    def cutting_at(self, max_length: int, stride: int = 0) -> TextEncoder:
        """The same tokenizer, which cuts texts elsewhere. It may read tokenizer.json again, so keep it.

        Args:
            max_length: tokens of a sequence, special tokens included.
            stride: tokens that neighbouring sequences of :meth:`encode_whole` share.
        """
        other = copy.copy(self)
        other.max_length, other.stride = max_length, stride
        other._tokenizer = None if self._cut else self.load()
        return other

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
        return self._encoded(encodings)

    def encode_whole(self, texts: Sequence[str]) -> tuple[Encoded, NDArray[np.int64]]:
        """Texts -> as many overlapping sequences as each needs, so that nothing is cut off.

        Returns:
            The sequences, with offsets in their text; and int64 (texts + 1,): text ``i`` owns the sequences
            ``[bounds[i], bounds[i + 1])``.

        Raises:
            PackageError: as :meth:`encode`.
        """
        firsts = self.encode(texts, with_offsets=True).encodings
        parts = [[first, *first.overflowing] for first in firsts]
        bounds = np.cumsum([0, *map(len, parts)])
        return self._encoded([part for of_text in parts for part in of_text]), bounds

    def encode_words(self, texts: Sequence[Sequence[str]]) -> Encoded:
        """Texts that are lists of words -> one sequence each. Offsets count from the beginning of each word.

        Raises:
            PackageError: as :meth:`encode`.
        """
        tokenizer = self.load()
        watch_forks()
        with faults_named():
            encodings = tokenizer.encode_batch([list(words) for words in texts], is_pretokenized=True)
        return self._encoded(encodings)

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
        return cut_windows(encodings, self.max_length, stride, names, self._joined)

    def load(self) -> Tokenizer:
        """The tokenizer, made on first use.

        Raises:
            PackageError: the tokenizers library cannot read it.
        """
        if self._tokenizer is None:
            with LOADING:
                if self._tokenizer is None:
                    length = self.max_length if self._cut else None
                    self._tokenizer = open_tokenizer(self._read(), self._rules, length, self.stride)
        return self._tokenizer

    def _encoded(self, encodings: list[Encoding]) -> Encoded:
        types = [e.type_ids for e in encodings] if self._with_types else []
        batch = self._joined([e.ids for e in encodings], types)
        return Encoded(batch, encodings, np.array([bool(e.overflowing) for e in encodings], np.bool_))

    def _joined(self, ids: Sequence[Sequence[int]], type_ids: Sequence[Sequence[int]]) -> Ragged:
        """The batch of these sequences, with only such ids as the model has, and with types where it is given
        them."""
        _check_ids(ids, self._vocab_size, "token id", "vocab_size")
        if not self._with_types:
            return Ragged.join(ids, None)
        _check_ids(type_ids, self._type_vocab_size, "token type", "type_vocab_size")
        return Ragged.join(ids, type_ids)


def _check_ids(rows: Sequence[Sequence[int]], size: int, what: str, limit: str) -> None:
    largest = max(map(max, filter(None, rows)), default=0)
    if largest >= size:
        raise PackageError(
            f"tokenizer.json gives {what} {largest}, and config.json says that {limit} is {size}; convert again "
            "with the tokenizer that the model was trained with"
        )


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
