"""Texts of a command line: written there, or in a file (``@FILE``), or on standard input (``-``)."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TypeVar

from qla_runtime import InputError
from qla_runtime.texts import files

Read = TypeVar("Read")

CONTEXT_HELP = "the text that holds the answer, @FILE for a file's, or - for standard input's"
TEXTS_HELP = (
    "a text, @FILE for one text per line, or - for the lines of standard input (@@ begins a literal @, and texts "
    "that begin with - stand after --)"
)


def read_texts(arguments: Sequence[str]) -> list[str]:
    """The texts of the arguments, with the lines of ``@FILE`` and ``-`` in their place. Blank lines count.

    Raises:
        InputError: a file that cannot be read, or no text at all.
    """
    texts: list[str] = []
    for argument in arguments:
        path = _path(argument)
        if path is None:
            texts.append(_literal(argument))
        else:
            texts += _from_file(path, files.read_lines)
    if not texts:
        raise InputError("there are no texts; give at least one line")
    return texts


def read_text(argument: str) -> str:
    """The text of one argument, or the whole text of ``@FILE`` or ``-``.

    Raises:
        InputError: a file that cannot be read.
    """
    path = _path(argument)
    return _literal(argument) if path is None else _from_file(path, files.read_text)


def _path(argument: str) -> str | None:
    """The file that an argument stands for, ``-`` for standard input; None where it is a text."""
    if argument == files.STANDARD_INPUT:
        return argument
    return argument[1:] if argument.startswith("@") and not argument.startswith("@@") else None


def _literal(argument: str) -> str:
    return argument[1:] if argument.startswith("@@") else argument


def _from_file(path: str, read: Callable[[str], Read]) -> Read:
    try:
        return read(path)
    except InputError as error:
        if os.path.exists(path) or path == files.STANDARD_INPUT:
            raise
        raise InputError(f"{error}; @ means a file, write @@ for a literal @") from None
