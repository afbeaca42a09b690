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
    """``repr(value)`` for a message: cut at 100 characters, and never an error of its own."""
    try:
        text = repr(value)
    except Exception:  # an integer of more than 4,300 digits, a __repr__ that fails
        text = f"of type {type(value).__name__}"
    return text if len(text) <= 100 else f"{text[:100]}..."
