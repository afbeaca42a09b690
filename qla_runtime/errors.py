"""The errors that callers see. Each message names the limit, the value met, and the remedy."""

from __future__ import annotations


class QlaError(Exception):
    """Base of every error that qla_runtime raises on purpose."""


class InputError(QlaError, ValueError):
    """The call is wrong: texts, ids, masks, lengths, options."""


class PackageError(QlaError):
    """A package is missing, damaged or hostile; the message names the file, the entry and the rule."""


class UnsupportedError(QlaError):
    """Well formed, but this runtime, this build or this CPU cannot do it."""


def shown(value: object) -> str:
    """``repr(value)`` for a message: on one line, cut at 100 characters, and never an error of its own."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # Python writes no integer of more than some thousand digits; a __repr__ may fail
        bits = f" of {value.bit_length()} bits" if isinstance(value, int) else ""
        text = f"of type {type(value).__name__}{bits}"
    return text if len(text) <= 100 else f"{text[:97]}..."
