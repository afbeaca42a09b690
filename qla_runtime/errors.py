"""The errors and warnings that callers see. Each message names the limit, the value met, and the remedy."""

from __future__ import annotations

import os
import sys
import warnings

_PACKAGE = os.path.dirname(__file__) + os.sep


class QlaError(Exception):
    """Base of every error that qla_runtime raises on purpose."""


class InputError(QlaError, ValueError):
    """The call is wrong: texts, ids, masks, lengths, options."""


class PackageError(QlaError):
    """A package is missing, damaged or hostile; the message names the file, the entry and the rule."""


class UnsupportedError(QlaError):
    """The request is well formed, but this runtime, this build or this CPU cannot do it."""


def shown(value: object, width: int = 60) -> str:
    """How messages quote a value that a caller passed: its ``repr`` on one line, shortened in the middle."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # Python refuses to spell out integers of thousands of digits; a __repr__ may fail
        if isinstance(value, int):
            text = f"an integer of {value.bit_length()} bits"
        else:
            text = f"of type {type(value).__name__}"
    return text if len(text) <= width else f"{text[: width - 15]}...{text[-12:]}"


def a_model(*kinds: str) -> str:
    """Models of some kinds, with their article: ``a ranking or embedding model``, ``an embedding model``."""
    article = "an" if kinds[0][0] in "aeiou" else "a"
    return f"{article} {' or '.join(kinds)} model"


def warn(message: str) -> None:
    """A UserWarning that shows the caller's line: the innermost one that is not in this package."""
    level = 2
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)
