"""Reads plain text of any size line by line, in bounded memory: the corpora of training.

The rules of :mod:`qla_runtime.texts.files` hold: UTF-8, or UTF-16 with a byte order mark; a line feed ends a line;
no NUL byte. Two things differ. A file whose name ends in ``.xz`` or ``.gz`` is decompressed as it is read. A line
of more than :data:`LINE_CHARACTERS` characters is cut, because a corpus may be one endless line.
"""

from __future__ import annotations

import codecs
import gzip
import lzma
import os
import zlib
from collections.abc import Iterator
from typing import IO, cast

from qla_runtime.errors import InputError
from qla_runtime.texts.files import Path, open_regular, shown

LINE_CHARACTERS = 1 << 16
"""Characters of the longest line. A longer one becomes several, cut at the last space before the limit, if any."""

_BLOCK = 1 << 20
"""Bytes read at once."""


def stream_lines(path: Path) -> Iterator[str]:
    """The lines of a text file, without their ends.

    Raises:
        InputError: no such file, no regular file, damaged compression, a NUL byte, or bytes that are neither
            UTF-8 nor UTF-16. The lines before the fault have been yielded by then.
    """
    rest = ""
    for text in _texts(path):
        *lines, rest = (rest + text).split("\n")
        for line in lines:
            yield from _cut(line.removesuffix("\r"))
        while len(rest) > LINE_CHARACTERS:
            at = _place_to_cut(rest)
            yield rest[:at]
            rest = rest[at:]
    if rest:
        yield from _cut(rest)


def _cut(line: str) -> Iterator[str]:
    while len(line) > LINE_CHARACTERS:
        at = _place_to_cut(line)
        yield line[:at]
        line = line[at:]
    yield line


def _place_to_cut(line: str) -> int:
    at = line.rfind(" ", 1, LINE_CHARACTERS)
    return at if at > 0 else LINE_CHARACTERS


def _texts(path: Path) -> Iterator[str]:
    """The file's text, block by block."""
    name, lines, place = shown(path), 1, 0
    decoder: codecs.IncrementalDecoder | None = None
    for block in _blocks(path):
        if decoder is None:
            wide = block.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
            encoding = "utf-16" if wide else "utf-8-sig"
            decoder = codecs.getincrementaldecoder(encoding)()
        kept = len(decoder.getstate()[0])
        try:
            text = decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            line = lines + error.object[: error.start].count(b"\n")
            raise InputError(
                f"{name}: line {line}, byte {place - kept + error.start} is no {'UTF-16' if wide else 'UTF-8'}; "
                "give plain text, saved as UTF-8"
            ) from None
        at = text.find("\0")
        if at >= 0:
            line = lines + text.count("\n", 0, at)
            raise InputError(f"{name}: line {line} holds a NUL byte, as binary files do; give a text file")
        lines += text.count("\n")
        place += len(block)
        yield text


def _blocks(path: Path) -> Iterator[bytes]:
    """The file's bytes, decompressed, and an empty block at the end."""
    name = shown(path)
    try:
        with open_regular(path) as raw, _decompressed(raw, name) as file:
            while block := file.read(_BLOCK):
                yield block
        yield b""
    except (lzma.LZMAError, zlib.error, gzip.BadGzipFile, EOFError) as error:
        raise InputError(f"{name}: cannot be decompressed ({error}); give a whole .xz or .gz file") from None
    except OSError as error:
        raise InputError(f"{name}: cannot be read ({error.strerror}); give the path of a text file") from None


def _decompressed(raw: IO[bytes], name: str) -> IO[bytes]:
    suffix = os.path.splitext(name)[1].lower()
    if suffix == ".xz":
        return lzma.open(raw)
    if suffix == ".gz":
        return cast(IO[bytes], gzip.open(raw))
    return raw
