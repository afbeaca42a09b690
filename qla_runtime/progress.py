"""Progress of long calls, shown by a bar on standard error or reported to a function of the caller."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from qla_runtime.errors import InputError, shown
from qla_runtime.fork_safe import importing

Progress = bool | Callable[[int], Any]
"""True shows a bar, and False nothing. A function is called with the number of inputs done since its last call."""

STEP = 64
"""Inputs of a call between two reports."""


def in_steps(parts: Iterable[slice]) -> list[slice]:
    """The parts, cut into slices of at most :data:`STEP`."""
    return [
        slice(start, min(start + STEP, part.stop))
        for part in parts
        for start in range(part.start, part.stop, STEP)
    ]


def reported(progress: Progress, total: int) -> AbstractContextManager[Callable[[int], Any]]:
    """Gives, in a ``with`` block, a function to be called with the number of inputs done since its last call.

    Raises:
        InputError: ``progress`` is neither a boolean nor callable.
    """
    if progress is False:
        return nullcontext(_nothing)
    if callable(progress):
        return nullcontext(progress)
    if progress is not True:
        raise InputError(
            f"progress is {shown(progress)}; it must be True, False, or a function of the number of inputs done"
        )
    return bar(total, None, delay=0)


def _nothing(done: int) -> None:
    """Reports no progress."""


def _renew_lock() -> None:
    """Gives tqdm's bars a new lock in a forked child. Another thread may have held the old one to draw a bar."""
    bars = getattr(sys.modules.get("tqdm"), "tqdm", None)
    if bars is not None:
        bars.set_lock(threading.RLock())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


@contextmanager
def bar(total: int, what: str | None, *, delay: float = 2) -> Iterator[Callable[[int], Any]]:
    """A bar on standard error. It appears once the work has taken ``delay`` seconds."""
    with importing():
        from tqdm import tqdm

    # A terminal redraws the bar in its place, but in a log every state is one more line.
    interval = 0.2 if sys.stderr is not None and sys.stderr.isatty() else 10
    with tqdm(total=total, desc=what, delay=delay, mininterval=interval, file=sys.stderr) as shown:
        yield shown.update
