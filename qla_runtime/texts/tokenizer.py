"""Opens a package's tokenizer from bytes, with the rules that tokenizer.json cannot express.

The tokenizers library reports faults as bare exceptions and as Rust panics. They become PackageError here.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qla_runtime.errors import PackageError
from qla_runtime.fork_safe import importing

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SIDES = ("right", "left")

LOADING = threading.RLock()
"""Held while a tokenizer is made. A fork waits until it is free. So a child never gets a half-made tokenizer or a
half-done import of the library, and never a lock that is held by a thread it does not have."""

os.register_at_fork(before=LOADING.acquire, after_in_parent=LOADING.release, after_in_child=LOADING.release)


@dataclass(frozen=True)
class TextRules:
    """Rules of tokenization that tokenizer.json cannot express: ``text`` of the package's ``config.json``."""

    truncation_side: str = "right"
    """The side where a text that is too long is cut: ``right`` keeps its beginning, ``left`` its end."""
    token_types: bool = True
    """Whether the model gets the token types of the tokenizer. With False it gets 0 for every token."""
    split_special_tokens: bool = False
    """Whether a special token that stands in a text (``[SEP]``) is read as plain text."""

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> TextRules:
        """Reads a checked ``text`` object. An absent key has its default."""
        return cls(**entry)

    def to_json(self) -> dict[str, Any]:
        """The ``text`` object. It holds only what differs from the defaults, so it is often empty."""
        return {name: value for name, value in vars(self).items() if value != getattr(TextRules, name)}


class faults_named:  # noqa: N801  a context manager, and a class because calls of microseconds pass through it
    """Turns what the tokenizers library raises into PackageError.

    Raises:
        PackageError: the library failed or panicked. A panic is a BaseException of a type that has no import.
    """

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if error is None or isinstance(error, (PackageError, MemoryError)):
            return
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            return
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise PackageError(
            f"tokenizer.json: the tokenizers library fails with it ({lines[0][:200]}); repair the checkpoint's "
            "tokenizer and convert again"
        ) from error


def open_tokenizer(
    content: bytes | str, rules: TextRules, max_length: int | None = None, stride: int = 0
) -> Tokenizer:
    """A tokenizer that always gives the same tokens for the same text.

    Args:
        content: the content of tokenizer.json. Its truncation and padding are not used.
        rules: the package's rules.
        max_length: the number of tokens to cut texts and pairs at, special tokens included; None cuts nothing. The
            longer text of a pair loses tokens first.
        stride: how many tokens each ``overflowing`` part of a cut text shares with the part before it.

    Raises:
        PackageError: the tokenizers library cannot read it.
    """
    with importing():
        from tokenizers import Tokenizer

    with faults_named():
        tokenizer = Tokenizer.from_str(content if isinstance(content, str) else content.decode())
        if getattr(tokenizer.model, "dropout", None):
            # BPE dropout is for training: it gives different tokens at every call.
            tokenizer.model.dropout = None
        tokenizer.encode_special_tokens = rules.split_special_tokens
        tokenizer.no_padding()
        tokenizer.no_truncation()
        if max_length is not None:
            tokenizer.enable_truncation(max_length, stride=stride, direction=rules.truncation_side)
    return tokenizer


# The tokenizers library tokenizes batches on its own threads. A forked child does not have these threads, so a
# batch there would wait for ever. The library detects this and turns its threads off in the child, with five lines
# on standard error at every fork. Where TOKENIZERS_PARALLELISM is set, it does neither.
_SWITCH = "TOKENIZERS_PARALLELISM"
_forks_watched = False
_before_fork: str | None = None


def watch_forks() -> None:
    """Makes children that are forked from now on tokenize on one thread, without a warning.

    Call it before a batch is tokenized.
    """
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
