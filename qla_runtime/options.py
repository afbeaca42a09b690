"""Checks of options that callers pass: counts, switches, and choices among names."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np

from qla_runtime.errors import InputError, shown


def check_count(name: str, value: Any, remedy: str, *, least: int = 1, most: int | None = None) -> int:
    """A whole number from ``least`` to ``most`` as an ``int``.

    Args:
        name: the option's name, for messages.
        value: what the caller passed.
        remedy: what to do instead, for messages.
        least: the smallest number allowed.
        most: the largest number allowed, or None for no limit.

    Raises:
        InputError: the value is neither an ``int`` nor a NumPy integer, is a boolean, or is out of range.
    """
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise InputError(f"{name} is {shown(value)}; it must be an integer of at least {least}; {remedy}")
    if most is not None and value > most:
        raise InputError(f"{name} is {shown(value)}; it must be at most {most}; {remedy}")
    return int(value)


def check_switch(name: str, value: Any) -> bool:
    """A boolean of Python or NumPy, as a ``bool``.

    Raises:
        InputError: anything else. ``if`` would take most other values for True, and fail on some arrays.
    """
    if not isinstance(value, (bool, np.bool_)):
        raise InputError(f"{name} is {shown(value)}; it must be True or False")
    return bool(value)


def check_choice(name: str, value: Any, choices: Collection[str], otherwise: str = "") -> str:
    """The value, which must be one of ``choices``.

    Raises:
        InputError: it is none of them. The message ends with ``otherwise``.
    """
    if not isinstance(value, str) or value not in choices:
        raise InputError(f"{name} is {shown(value)}; use one of {', '.join(choices)}{otherwise}")
    return value
