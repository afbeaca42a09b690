"""Progress bars on standard error."""

from __future__ import annotations

import sys

from tqdm import tqdm


def bar(total: int, what: str, show: bool, *, done: int = 0, unit: str = "it", delay: float = 2) -> tqdm:
    """A bar with time left. On a terminal it is redrawn; in a log each state is a line to scroll past."""
    interval = 0.5 if sys.stderr.isatty() else 30
    return tqdm(
        total=total,
        initial=done,
        desc=what,
        unit=unit,
        delay=delay,
        disable=not show,
        mininterval=interval,
        maxinterval=max(10, interval),
        file=sys.stderr,
        dynamic_ncols=True,
    )
