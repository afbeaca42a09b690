"""The limits of a package, as docs/file-format.md states them and ``csrc/package/config_file.cpp`` enforces them.

Conversion checks a checkpoint against them before any long work. ``tests/test_limits.py`` holds every number here
against the loader.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from qla_runtime.errors import InputError, UnsupportedError

MAX_LAYERS = 64
MAX_HIDDEN = 4096
MAX_INTERMEDIATE = 16384
HEAD_DIMS = (32, 64)
MIN_LENGTH = 8
"""Tokens a model must be able to take; the least ``max_length`` too."""
MAX_POSITIONS = 4096
"""The longest sequence, in tokens; and the largest ``position_offset``."""
MAX_VOCAB = 1 << 24
MAX_TYPES = 64
MAX_NORM_EPS = 0.1
SMALLEST_NORMAL = 2.0**-126
"""The least float32 that the engine takes for a scale or an epsilon."""
MAX_VALUE = 1e4
"""The largest size of a float in ``model.safetensors``: later values then stay finite."""
MAX_LABELS = 1 << 16
MAX_CONFIG_BYTES = 16 << 20
"""Size of the package's ``config.json``, which holds the label names."""
MAX_JSON_BYTES = 1 << 20
"""Size of ``length_configs.json``."""
MAX_TOKENIZER_BYTES = 256 << 20
MAX_NAME = 200
"""Characters of a package's name."""

POOLINGS = ("mean", "cls")
"""How token states become one vector: their mean, or the first token's state."""

_CONFIG_WITHOUT_LABELS = 1 << 17
"""Bytes that leave room for everything in ``config.json`` but the labels: 64 layers take 40 KB."""
_STATIC_RANGES = 1 << 15
"""Bytes that leave room for the ranges of static activations: 64 layers have 256 of them."""


def check_name(name: str) -> str:
    """A package's name, if it may be one.

    Raises:
        InputError: it is empty, too long, or holds what a terminal or a UTF-8 file cannot show.
    """
    if not 1 <= len(name) <= MAX_NAME or not name.isprintable() or name.isspace():
        shown = name if len(name) <= MAX_NAME else name[:40] + "..."
        raise InputError(
            f"the package's name is {shown!r}, of {len(name)} characters; it must have 1 to {MAX_NAME} printable "
            "characters. Give another (--name)"
        )
    return name


def check_labels(labels: Sequence[str]) -> None:
    """Refuses label names that a package cannot hold.

    Raises:
        UnsupportedError: too many labels, or names that are too long together.
        InputError: a name is no valid Unicode.
    """
    if not 1 <= len(labels) <= MAX_LABELS:
        raise UnsupportedError(
            f"config.json: the model has {len(labels)} labels; a package holds 1 to {MAX_LABELS}. Use a model "
            "within it"
        )
    room = MAX_CONFIG_BYTES - _CONFIG_WITHOUT_LABELS
    try:
        size = len(json.dumps(list(labels), ensure_ascii=False, indent=6).encode())
    except UnicodeEncodeError as error:
        raise InputError(
            "config.json: id2label holds a name with half of a surrogate pair, which is no text; correct the name"
        ) from error
    if size > room:
        raise UnsupportedError(
            f"config.json: the label names take {size} bytes; a package has room for {room}. Shorten the names"
        )


def check_sizes(config: bytes, lengths: bytes, tokenizer: str) -> None:
    """Refuses files that the engine would find too large.

    Args:
        config: ``config.json`` with per-token activations.
        lengths: ``length_configs.json``.
        tokenizer: ``tokenizer.json``.

    Raises:
        UnsupportedError: names the file, its size and the limit.
    """
    for name, size, most, remedy in (
        ("config.json", len(config), MAX_CONFIG_BYTES - _STATIC_RANGES, "Shorten labels and prompts"),
        ("length_configs.json", len(lengths), MAX_JSON_BYTES, "Give fewer length configs"),
        ("tokenizer.json", len(tokenizer.encode()), MAX_TOKENIZER_BYTES, "Use a smaller vocabulary"),
    ):
        if size > most:
            raise UnsupportedError(f"{name} takes {size} bytes; a package has room for {most}. {remedy}")


def check_values(name: str, values: NDArray[np.float32]) -> None:
    """Refuses a float tensor of a package that the engine would not take.

    Raises:
        UnsupportedError: a value is larger than :data:`MAX_VALUE`.
    """
    largest = float(np.abs(values).max(initial=0))
    if not largest <= MAX_VALUE:
        raise UnsupportedError(
            f"the weights: {name} has values up to {largest:g}; a package holds {MAX_VALUE:g} at most. Use a "
            "checkpoint within it"
        )
