"""Plain text as training data: tokenized once into shards on disk, and packed into sequences.

A corpus is one or several text files (:mod:`qla_runtime.texts.streams`). Empty lines separate documents. The lines
of a document are joined to sequences of at most ``max_length`` tokens, special tokens included. A sequence ends at
the end of a line: the next line begins another one where it does not fit, and no sequence holds text of two
documents. Only a line that has no room in any sequence is cut.

Nothing holds the whole text. The shards are mapped, so only the offsets of the sequences are in memory.

A shard is three files of the run's folder:

========================  ============================================================================
``shard-00000.ids.npy``   (tokens,) uint16 or int32, without padding, special tokens included
``shard-00000.ends.npy``  (sequences,) int64, where each sequence ends
``shard-00000.json``      written last: how many lines of the corpus end in this shard or an earlier one
========================  ============================================================================

Tokenizing that was interrupted continues behind the last shard that has its ``.json``.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from qla_runtime.bars import bar
from qla_runtime.errors import InputError, QlaError
from qla_runtime.ragged import Ragged
from qla_runtime.texts.streams import stream_lines
from qla_runtime.texts.text_encoder import BATCH_CHARACTERS
from qla_runtime.texts.tokenizer import faults_named, watch_forks
from qla_runtime.training.data import Batch, Features

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SHARD_TOKENS = 1 << 22
"""Tokens after which a shard ends, at the end of a line: some 8 MB."""

_LINES = 4096
"""Lines tokenized at once, within :data:`~qla_runtime.texts.text_encoder.BATCH_CHARACTERS` characters."""

_DONE = "corpus.json"


@dataclass(frozen=True)
class Corpus:
    """Sequences in shards. Numbered like the features of one :class:`~qla_runtime.training.data.Features`.

    Attributes:
        shards: their sequences, mapped from disk.
    """

    shards: Sequence[Features]

    def __len__(self) -> int:
        return int(self._first[-1])

    @property
    def tokens(self) -> int:
        """Of all sequences, special tokens included."""
        return sum(int(shard.ragged.offsets[-1]) for shard in self.shards)

    def plan(self, budget: int, draw: np.random.Generator) -> list[NDArray[np.int64]]:
        """Every sequence once: shard after shard in random order, each as :meth:`Features.plan` mixes it."""
        first = self._first
        return [
            first[number] + rows
            for number in draw.permutation(len(self.shards))
            for rows in self.shards[number].plan(budget, draw)
        ]

    def batch(self, rows: NDArray[np.int64]) -> Batch:
        """The sequences ``rows``, which are of one shard, as one padded batch."""
        number = int(np.searchsorted(self._first, rows[0], side="right")) - 1
        batch = self.shards[number].batch(rows - self._first[number])
        return Batch(batch.input_ids, batch.token_type_ids, batch.mask, None, rows)

    @property
    def _first(self) -> NDArray[np.int64]:
        """The number of each shard's first sequence, and the number of all."""
        return np.cumsum([0, *(len(shard) for shard in self.shards)])


def open_corpus(
    paths: Sequence[Path], folder: Path, tokenizer: Tokenizer, max_length: int, vocab_size: int, progress: bool
) -> Corpus:
    """A corpus, tokenized into a folder unless it is there already.

    Args:
        paths: text files, in their order.
        folder: of the shards; written where it is missing or not complete, trusted where it is complete.
        tokenizer: without truncation.
        max_length: tokens of a sequence, special tokens included.
        vocab_size: of the model.
        progress: show a bar.

    Raises:
        InputError: a file cannot be read as text, or there is no text in any.
        QlaError: a shard cannot be written.
    """
    try:
        folder.mkdir(exist_ok=True)
        if not (folder / _DONE).is_file():
            _write_shards(paths, folder, tokenizer, max_length, vocab_size, progress)
        count = json.loads((folder / _DONE).read_text())["shards"]
    except OSError as error:
        raise QlaError(f"{folder}: cannot be written ({error.strerror}); make room and repeat") from error
    if not count:
        raise InputError(f"{', '.join(path.name for path in paths)}: no text in it; give a corpus of plain text")
    return Corpus([_open_shard(folder, number, max_length) for number in range(count)])


def _open_shard(folder: Path, number: int, max_length: int) -> Features:
    name = _shard(number)
    try:
        ids = np.load(folder / f"{name}.ids.npy", mmap_mode="r")
        ends = np.load(folder / f"{name}.ends.npy")
    except (OSError, ValueError) as error:
        raise InputError(
            f"{folder / name}: damaged ({error}). Delete the folder {folder}, and repeat to tokenize again"
        ) from None
    types = np.broadcast_to(np.zeros(1, np.int32), ids.shape)
    return Features(Ragged(ids, np.concatenate([[0], ends]), types), None, max_length)


# ----------------------------------------------------------------------------------------- tokenizing


def _write_shards(
    paths: Sequence[Path], folder: Path, tokenizer: Tokenizer, max_length: int, vocab_size: int, progress: bool
) -> None:
    watch_forks()
    packer = _Packer(tokenizer, max_length)
    dtype = np.uint16 if vocab_size <= 1 << 16 else np.int32
    number, done = _continue_from(folder)
    lines = itertools.islice(_all_lines(paths), done, None)
    with bar(0, "tokenizing", progress, unit=" tokens") as shown:
        for ids in _token_ids(tokenizer, lines, vocab_size):
            packer.add(ids)
            done += 1
            if packer.tokens >= SHARD_TOKENS:
                shown.update(packer.tokens)
                _write_shard(folder, number, packer.take(), done, dtype)
                number += 1
        packer.end_sequence()
        if packer.tokens:
            _write_shard(folder, number, packer.take(), done, dtype)
            number += 1
    _replace(folder / _DONE, json.dumps({"shards": number, "lines": done}).encode())


def _continue_from(folder: Path) -> tuple[int, int]:
    """The number of the next shard, and the lines in those before it."""
    number, done = 0, 0
    while (facts := folder / f"{_shard(number)}.json").is_file():
        done = json.loads(facts.read_text())["lines"]
        number += 1
    return number, done


def _all_lines(paths: Sequence[Path]) -> Iterator[str]:
    """The lines of all files, with an empty one at the end of each."""
    for path in paths:
        yield from stream_lines(path)
        yield ""


def _token_ids(tokenizer: Tokenizer, lines: Iterator[str], vocab_size: int) -> Iterator[list[int]]:
    """Each line's ids without special tokens; none for an empty line. The library uses all cores for a batch."""
    for some in _batches(lines):
        with faults_named():
            encodings = tokenizer.encode_batch_fast(some, add_special_tokens=False)
        for encoding in encodings:
            ids = encoding.ids
            if ids and max(ids) >= vocab_size:
                raise InputError(
                    f"the tokenizer gives token id {max(ids)}, and vocab_size is {vocab_size} in the config of "
                    "teacher or student; give the tokenizer that they were trained with"
                )
            yield ids


def _batches(lines: Iterator[str]) -> Iterator[list[str]]:
    some: list[str] = []
    characters = 0
    for line in lines:
        some.append(line.strip())
        characters += len(line)
        if len(some) == _LINES or characters >= BATCH_CHARACTERS:
            yield some
            some, characters = [], 0
    if some:
        yield some


class _Packer:
    """Joins the lines of a document to sequences.

    Args:
        tokenizer: says which special tokens a sequence begins and ends with.
        max_length: tokens of a sequence, those included.
    """

    def __init__(self, tokenizer: Tokenizer, max_length: int) -> None:
        self._before, self._after = _special_tokens(tokenizer)
        self._room = max_length - len(self._before) - len(self._after)
        self._open: list[int] = []
        self._sequences: list[NDArray[np.int64]] = []
        self.tokens = 0
        """In sequences that have ended and were not taken."""

    def add(self, ids: list[int]) -> None:
        """A line; an empty one ends the document."""
        if not ids or len(self._open) + len(ids) > self._room:
            self.end_sequence()
        while len(ids) > self._room:
            self._open, ids = ids[: self._room], ids[self._room :]
            self.end_sequence()
        self._open += ids

    def end_sequence(self) -> None:
        """Ends the sequence that is open, if one is."""
        if self._open:
            self._sequences.append(np.array([*self._before, *self._open, *self._after]))
            self.tokens += len(self._sequences[-1])
            self._open = []

    def take(self) -> list[NDArray[np.int64]]:
        """All sequences up to here; the open one ends."""
        self.end_sequence()
        taken, self._sequences, self.tokens = self._sequences, [], 0
        return taken


def _special_tokens(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """What stands before and behind a text."""
    with faults_named():
        encoding = tokenizer.encode("a")
    mask = encoding.special_tokens_mask
    text = next((i for i, special in enumerate(mask) if not special), len(mask))
    end = next((i for i in range(text, len(mask)) if mask[i]), len(mask))
    return encoding.ids[:text], encoding.ids[end:]


def _write_shard(folder: Path, number: int, sequences: list[NDArray[np.int64]], lines: int, dtype: type) -> None:
    name = _shard(number)
    np.save(folder / f"{name}.ids.npy", np.concatenate(sequences).astype(dtype))
    np.save(folder / f"{name}.ends.npy", np.cumsum([len(sequence) for sequence in sequences]))
    for part in ("ids", "ends"):
        with open(folder / f"{name}.{part}.npy", "rb") as file:
            os.fsync(file.fileno())
    _replace(folder / f"{name}.json", json.dumps({"lines": lines}).encode())


def _replace(path: Path, content: bytes) -> None:
    new = path.with_name(f".{path.name}.tmp")
    with open(new, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, path)


def _shard(number: int) -> str:
    return f"shard-{number:05d}"
