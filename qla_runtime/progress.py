"""Progress of long calls: a bar on standard error, or a function of the caller's."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from qla_runtime.errors import InputError, shown
from qla_runtime.fork_safe import importing

Progress = bool | Callable[[int], Any]
"""True shows a bar, False nothing. A function is called with the number of inputs done since the last call."""

STEP = 64
"""Inputs of a call between two reports."""


def in_steps(parts: Iterable[slice]) -> list[slice]:
    """The parts, cut into slices of at most :data:`STEP`."""
    return [
        slice(start, min(start + STEP, part.stop))
        for part in parts
        for start in range(part.start, part.stop, STEP)
    ]


@contextmanager
def reported(progress: Progress, total: int) -> Iterator[Callable[[int], Any]]:
    """What to call with the number of inputs done since the last call.

    Raises:
        InputError: ``progress`` is neither a boolean nor callable.
    """
    if progress is False:
        yield lambda done: None
    elif callable(progress):
        yield progress
    elif progress is not True:
        raise InputError(
            f"progress is {shown(progress)}; it must be True, False, or a function of the number of inputs done"
        )
    else:
        with bar(total, None, delay=0) as update:
            yield update


def _renew_lock() -> None:
    """In a forked child: another thread may have been drawing, with the lock that all bars of tqdm share."""
    bars = getattr(sys.modules.get("tqdm"), "tqdm", None)
    if bars is not None:
        bars.set_lock(threading.RLock())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


@contextmanager
def bar(total: int, what: str | None, *, delay: float = 2) -> Iterator[Callable[[int], Any]]:
    """A bar on standard error, which appears when the work takes longer than ``delay`` seconds."""
    with importing():
        from tqdm import tqdm

    # On a terminal the bar is redrawn; in a log each state is text to scroll past.
    interval = 0.2 if sys.stderr is not None and sys.stderr.isatty() else 10
    with tqdm(total=total, desc=what, delay=delay, mininterval=interval, file=sys.stderr) as shown:
        yield shown.update
