"""Running an engine over many inputs in steps, with reports of progress between them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

Progress = Callable[[int], Any]
"""Called with the number of inputs done since the last call."""


def steps(count: int, size: int, progress: Progress | None) -> Iterator[slice]:
    """Slices of at most ``size`` out of ``count`` inputs. Reports each one when the next is asked for."""
    for start in range(0, count, size):
        part = slice(start, min(start + size, count))
        yield part
        if progress:
            progress(part.stop - part.start)
