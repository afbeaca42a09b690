"""Checks the texts that a caller passes: one text, or any ordered collection of texts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from qla_runtime.errors import InputError


def check_texts(value: Any, what: str, *, blank: bool = False) -> tuple[list[str], bool]:
    """The list of a caller's texts, and whether the caller passed a single text.

    A collection is any iterable with an order: a list, a tuple, a one-dimensional array, a pandas Series, a
    generator. A generator is read to its end.

    Args:
        value: what the caller passed.
        what: the argument's name, for messages.
        blank: whether texts without a visible character are allowed.

    Raises:
        InputError: the value is None, bytes, a dict, a set, a masked array, an array of another number of
            dimensions, or an empty collection; an entry is no text; a text holds a lone surrogate; a text is blank
            where that is not allowed.
    """
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value.item()
    if isinstance(value, str):
        return [_checked(value, what, blank)], True
    texts = [_checked(text, f"{what}[{i}]", blank) for i, text in enumerate(_items(value, what))]
    if not texts:
        raise InputError(f"{what} is an empty list; give at least one text")
    return texts, False


def _items(value: Any, what: str) -> Iterable[Any]:
    """The entries of a collection that has an order."""
    remedy = "it must be a text or a list of texts"
    if isinstance(value, (bytes, bytearray, memoryview)):
        raise InputError(f"{what} is of type {type(value).__name__}; {remedy}. Decode it first: .decode('utf-8')")
    if isinstance(value, Mapping):
        raise InputError(
            f"{what} is of type {type(value).__name__}; {remedy}. Pass the list of its texts, or one of them"
        )
    if isinstance(value, (set, frozenset)):
        raise InputError(
            f"{what} is of type {type(value).__name__}, which has no order that results could follow; {remedy}. "
            "Pass a list"
        )
    if isinstance(value, np.ma.MaskedArray):
        raise InputError(f"{what} is a masked array; {remedy}. Pass the list of its texts")
    dimensions = getattr(value, "ndim", 1)
    if isinstance(dimensions, int) and dimensions != 1:
        raise InputError(
            f"{what} is of type {type(value).__name__} with {dimensions} dimensions; {remedy}. Pass one column"
        )
    if not isinstance(value, Iterable) or isinstance(value, type):
        raise InputError(f"{what} is {_shown(value)}; {remedy}")
    return value


def _checked(text: Any, where: str, blank: bool) -> str:
    """The text as a plain ``str``."""
    if not isinstance(text, str):
        remedy = ". Decode it first: .decode('utf-8')" if isinstance(text, bytes) else ""
        raise InputError(f"{where} is {_shown(text)}; it must be a text (str){remedy}")
    text = str(text)
    if not blank and (not text or text.isspace()):
        raise InputError(
            f"{where} is {text[:20]!r}, a text without a visible character; give it words or leave it out"
        )
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"{where} holds a lone surrogate at character {error.start}, which no tokenizer reads; "
                "decode the text's bytes with errors='replace'"
            ) from None
    return text


def _shown(value: Any) -> str:
    if value is None:
        return "None"
    if isinstance(value, float) and value != value:
        return "nan, a missing value"
    return f"of type {type(value).__name__}"
