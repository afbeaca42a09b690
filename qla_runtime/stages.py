"""Where a native call spends its time: stages of the forward pass, for ``forward`` and ``QLA_VERBOSE=profile``."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from qla_runtime import _core
from qla_runtime.errors import InputError

VARIABLE = "QLA_VERBOSE"


def asked_for() -> bool:
    """Whether the environment asks for a line per native call.

    Raises:
        InputError: ``QLA_VERBOSE`` is neither empty nor ``profile``.
    """
    value = os.environ.get(VARIABLE, "")
    if value not in ("", "profile"):
        raise InputError(f"{VARIABLE} is {value!r}; it must be 'profile', or not set")
    return value == "profile"


def by_name(seconds: NDArray[np.float64]) -> dict[str, float]:
    """Seconds of wall time by stage, as the calling thread saw them; ``wait`` is for the other threads."""
    return dict(zip(_core.STAGES, seconds.tolist(), strict=True))


def report(seconds: Mapping[str, float], sequences: int, tokens: int) -> None:
    """Writes one line to standard error: the call's size, its time in ms, and every stage's."""
    parts = " ".join(f"{name} {1e3 * value:.3f}" for name, value in seconds.items())
    total = 1e3 * sum(seconds.values())
    print(f"qla profile: {sequences} sequences, {tokens} tokens, {total:.3f} ms: {parts}", file=sys.stderr)
