"""The package's tokenizer: opened from bytes, with the rules that tokenizer.json has no words for.

The tokenizers library reports its faults as bare exceptions and as Rust panics. Here they become PackageError.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qla_runtime.errors import PackageError
from qla_runtime.fork_safe import importing

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SIDES = ("right", "left")

LOADING = threading.RLock()
"""Held while a tokenizer is made. A fork waits for it: a child never sees a half-made tokenizer, a half-done
import of the library, or this lock in the hands of a thread that it does not have."""

os.register_at_fork(before=LOADING.acquire, after_in_parent=LOADING.release, after_in_child=LOADING.release)


@dataclass(frozen=True)
class TextRules:
    """How texts become tokens where tokenizer.json cannot say it: ``text`` of the package's ``config.json``."""

    truncation_side: str = "right"
    """The side on which a text that is too long loses tokens: ``right`` keeps its beginning, ``left`` its end."""
    token_types: bool = True
    """Whether the model is given the token types of the tokenizer; False gives it 0 for every token."""
    split_special_tokens: bool = False
    """Whether special tokens that a text spells out (``[SEP]``) are read as plain text."""

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> TextRules:
        """From a checked ``text`` object; an absent key is its default."""
        return cls(**entry)

    def to_json(self) -> dict[str, Any]:
        """The ``text`` object: only what differs from the default, so often empty."""
        return {name: value for name, value in vars(self).items() if value != getattr(TextRules, name)}


@contextmanager
def faults_named() -> Iterator[None]:
    """Turns what the tokenizers library raises into PackageError.

    Raises:
        PackageError: the library failed, or panicked; a panic is a BaseException of a type that has no import.
    """
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        if isinstance(error, (PackageError, MemoryError)):
            raise
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise PackageError(
            f"tokenizer.json: the tokenizers library fails with it ({lines[0][:200]}); repair the checkpoint's "
            "tokenizer and convert again"
        ) from error


def open_tokenizer(content: bytes | str, rules: TextRules, max_length: int | None = None) -> Tokenizer:
    """A tokenizer that gives the same tokens for the same text, always.

    Args:
        content: of tokenizer.json. Its own truncation and padding do not count.
        rules: of the package.
        max_length: tokens at which texts and pairs are cut, special tokens included; None cuts nothing. Of a pair
            the longer text loses tokens first.

    Raises:
        PackageError: the tokenizers library cannot read it.
    """
    with importing():
        from tokenizers import Tokenizer

    with faults_named():
        tokenizer = Tokenizer.from_str(content if isinstance(content, str) else content.decode())
        if getattr(tokenizer.model, "dropout", None):
            # BPE dropout is a means of training: it gives other tokens at every call.
            tokenizer.model.dropout = None
        tokenizer.encode_special_tokens = rules.split_special_tokens
        tokenizer.no_padding()
        tokenizer.no_truncation()
        if max_length is not None:
            tokenizer.enable_truncation(max_length, direction=rules.truncation_side)
    return tokenizer


# The tokenizers library tokenizes batches on threads of its own. They do not exist in a forked child, where a
# batch would wait for them for ever. The library turns them off in the child by itself, with five lines on
# standard error at every fork; where TOKENIZERS_PARALLELISM is set it does neither.
_SWITCH = "TOKENIZERS_PARALLELISM"
_forks_watched = False
_before_fork: str | None = None


def watch_forks() -> None:
    """Call before a batch is tokenized: children forked from now on tokenize on one thread, and say nothing."""
    global _forks_watched
    if not _forks_watched:
        _forks_watched = True
        os.register_at_fork(before=_switch_off, after_in_parent=_switch_back)


def _switch_off() -> None:
    global _before_fork
    _before_fork = os.environ.get(_SWITCH)
    os.environ[_SWITCH] = "false"


def _switch_back() -> None:
    if _before_fork is None:
        os.environ.pop(_SWITCH, None)
    else:
        os.environ[_SWITCH] = _before_fork
