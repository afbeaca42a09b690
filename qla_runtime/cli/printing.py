"""What the command line prints: results on standard output, warnings and errors on standard error."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import sys
from collections.abc import Sequence
from typing import Any, TextIO

from qla_runtime.errors import QlaError
from qla_runtime.lengths.configs import LengthConfig
from qla_runtime.terminal import visible


def say(text: str, stream: TextIO | None = None) -> None:
    """Prints text for a person, without the characters that a terminal would obey."""
    print(visible(text), file=stream or sys.stdout)


def print_json(value: Any) -> None:
    """Prints the value as :func:`json_text` writes it."""
    print(json_text(value))


def json_text(value: Any, *, indent: int | None = None) -> str:
    """A value in JSON. It may hold arrays and length configs; what else JSON has no type for becomes a text.

    Raises:
        QlaError: a number in it is NaN or infinite, and JSON has no such number. The message names its place.
    """
    try:
        return json.dumps(value, default=_jsonable, allow_nan=False, indent=indent)
    except ValueError:
        # Python's reader takes the NaN that its writer writes, so this is the same value in plain types.
        found = _first_not_finite(json.loads(json.dumps(value, default=_jsonable)), "the result")
        if found is None:
            raise
        place, number = found
        raise QlaError(
            f"{place} is {number}, and JSON has no such number; leave out --json to see the rest"
        ) from None


def _jsonable(value: Any) -> Any:
    if isinstance(value, LengthConfig):
        return dataclasses.asdict(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    return str(value)


def _first_not_finite(value: Any, place: str) -> tuple[str, float] | None:
    """The first number that is NaN or infinite, behind its place in the value, such as ``the result[3].score``."""
    if isinstance(value, float) and not math.isfinite(value):
        return place, value
    entries: list[tuple[str, Any]] = []
    if isinstance(value, dict):
        entries = [(f"{place}.{key}", entry) for key, entry in value.items()]
    elif isinstance(value, list):
        entries = [(f"{place}[{i}]", entry) for i, entry in enumerate(value)]
    return next(filter(None, (_first_not_finite(entry, where) for where, entry in entries)), None)


def warn_of_cut(truncated: Sequence[bool]) -> None:
    """Warns where the model could not read some texts to their end."""
    if any(truncated):
        warn(f"{sum(truncated)} of {len(truncated)} texts are longer than the model reads, and were cut")


def warn(message: Warning | str, *_: Any, **__: Any) -> None:
    """Prints a warning on one line. It can stand in for ``warnings.showwarning``."""
    _complain("warning", str(message))


def fail(message: str) -> int:
    """Prints an error on one line, and returns the exit status for it."""
    _complain("error", message)
    return 2


def _complain(kind: str, message: str) -> None:
    words = (word if len(word) <= 300 else f"{word[:200]}...{word[-50:]}" for word in message.split())
    with contextlib.suppress(OSError):  # nobody reads
        say(f"qla: {kind}: {' '.join(words)}", sys.stderr)
        sys.stderr.flush()
