"""Checks of the options that callers pass: counts, switches, and one of several names."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np

from qla_runtime.errors import InputError, shown


def check_count(name: str, value: Any, remedy: str, *, least: int = 1, most: int | None = None) -> int:
    """A whole number from ``least`` to ``most`` as an ``int``.

    Args:
        name: of the option, for messages.
        value: what the caller passed: an ``int`` or a NumPy integer, no boolean.
        remedy: what to do instead, for messages.
        least: the smallest number allowed.
        most: the largest one; None: there is no limit.

    Raises:
        InputError: anything else.
    """
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise InputError(f"{name} is {shown(value)}; it must be an integer of at least {least}; {remedy}")
    if most is not None and value > most:
        raise InputError(f"{name} is {shown(value)}; it must be at most {most}; {remedy}")
    return int(value)


def check_switch(name: str, value: Any) -> bool:
    """True or False, Python's or NumPy's.

    Raises:
        InputError: anything else, which ``if`` might take for True, or might not take at all.
    """
    if not isinstance(value, (bool, np.bool_)):
        raise InputError(f"{name} is {shown(value)}; it must be True or False")
    return bool(value)


def check_choice(name: str, value: Any, choices: Collection[str], otherwise: str = "") -> str:
    """One of ``choices``.

    Raises:
        InputError: anything else; the message ends with ``otherwise``.
    """
    if not isinstance(value, str) or value not in choices:
        raise InputError(f"{name} is {shown(value)}; use one of {', '.join(choices)}{otherwise}")
    return value
