"""How commands open an engine and call it, part by part."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from qla_runtime import Engine
from qla_runtime.progress import bar

Value = TypeVar("Value")

STEP = 256
"""Texts per engine call, between two moves of the progress bar."""


def open_engine(arguments: argparse.Namespace) -> Engine:
    """The engine that ``add_engine``'s arguments name; ready, where a latency budget is given."""
    engine = Engine.from_pretrained(arguments.model, num_threads=arguments.threads, isa=arguments.isa)
    if getattr(arguments, "latency_ms", None) is not None:
        engine.warm_up()  # a budget is of calls, not of what a first call has to prepare
    return engine


def parts(count: int, what: str) -> Iterator[slice]:
    """Slices of at most :data:`STEP`, with a progress bar over them."""
    with bar(count, what) as progress:
        for start in range(0, count, STEP):
            part = slice(start, min(start + STEP, count))
            yield part
            progress(part.stop - part.start)


def timed(call: Callable[[], Value]) -> tuple[float, Value]:
    """Seconds that a call took, and what it returned."""
    began = time.perf_counter()
    result = call()
    return time.perf_counter() - began, result
