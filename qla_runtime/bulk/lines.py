"""The lines of a text file of any size, and what is wrong with one.

Two rules of :mod:`qla_runtime.texts.files` do not hold. UTF-16 is refused, because a file is entered at any byte.
A line has at most :data:`MAX_LINE` bytes, because a window of lines is held in memory.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from dataclasses import dataclass

from qla_runtime.errors import InputError
from qla_runtime.texts.files import Path, open_regular, shown

MAX_LINE = 16 << 20
"""Bytes of the longest line, its end included."""


@dataclass(frozen=True)
class Line:
    """One line.

    Attributes:
        number: the first line is 1.
        end: the byte behind it, where the next line begins.
        text: its text without the line end; None where ``fault`` says why there is none.
        fault: why it cannot be read, as the rest of "line 7 ...".
    """

    number: int
    end: int
    text: str | None
    fault: str = ""


def read_lines(path: Path, number: int = 0, at: int = 0) -> Iterator[Line]:
    """The lines of a file from one of its lines on, in bounded memory.

    Args:
        path: the file.
        number: the number of the line before the first one to read.
        at: the byte where that line ended.

    Raises:
        InputError: no such file, no regular file, UTF-16, or a line of more than :data:`MAX_LINE` bytes.
    """
    name = shown(path)
    try:
        with open_regular(path) as file:
            if file.peek(2)[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):  # type: ignore[attr-defined]
                raise InputError(f"{name}: is UTF-16, which cannot be read in parts; save it as UTF-8")
            file.seek(at)
            while line := file.readline(MAX_LINE + 1):
                number += 1
                if len(line) > MAX_LINE:
                    raise InputError(
                        f"{name}: line {number} has more than {MAX_LINE:,} bytes, the most that one may have; "
                        "split it"
                    )
                yield _decoded(line, number, at)
                at += len(line)
    except OSError as error:
        raise InputError(f"{name}: cannot be read ({error.strerror}); give the path of a file") from None


def _decoded(line: bytes, number: int, begin: int) -> Line:
    end = begin + len(line)
    content = line.removesuffix(b"\n").removesuffix(b"\r")
    if begin == 0:
        content = content.removeprefix(codecs.BOM_UTF8)
    if b"\0" in content:
        return Line(number, end, None, "holds a NUL byte, as binary files do; give a text file")
    try:
        return Line(number, end, content.decode())
    except UnicodeDecodeError as error:
        return Line(number, end, None, f"is no UTF-8 at its byte {error.start}; save the file as UTF-8")
