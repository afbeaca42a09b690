"""Reads text files, for the command line, training, evaluation and calibration alike.

The rules for every text file:

- It is UTF-8, with or without a byte order mark, or UTF-16 with one.
- A line ends with a line feed, or with a carriage return and a line feed. A lone carriage return, a form feed,
  U+0085 and U+2028 belong to the text.
- It is a regular file, because a FIFO or a device could block the reader for ever. ``-`` reads standard input.
- It holds no NUL byte. Binary files do.

:mod:`qla_runtime.texts.data_sets` knows what the columns of a table mean.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import errno
import fnmatch
import json
import os
import stat
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

from qla_runtime.errors import InputError

MAX_BYTES = 4 << 30
"""The size of the largest file that is read. Texts are held in memory, and several times while they are split."""

STANDARD_INPUT = "-"

Path = str | os.PathLike[str]


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be read."""

    line: int
    """The line it begins at; the first line is 1."""
    reason: str


@dataclass(frozen=True)
class Row:
    """One row of a table."""

    line: int
    """The line it begins at; the first line is 1."""
    cells: tuple[Any, ...]
    """The cells as texts. In a JSON file a cell may also be a number, or None where a key is missing."""


@dataclass(frozen=True)
class Table:
    """The rows of a table, whose columns have no meaning yet.

    Attributes:
        header: the keys of JSON objects, in lower case. None for other files, where the first row may hold names.
        rows: the rows in the file's order, without blank lines.
        bad: the rows that cannot be split into cells.
    """

    header: tuple[str, ...] | None
    rows: list[Row]
    bad: list[BadRow]
    unit: str = "line"
    """The unit of :attr:`Row.line`: ``line``, or ``row`` in a .json file, whose lines do not matter."""


def read_lines(path: Path) -> list[str]:
    """The lines of a text file. Blank lines count, so that line n of the file is entry n - 1.

    Args:
        path: a file, or ``-`` for standard input.

    Returns:
        The lines without their line ends. No line begins behind the last line end.

    Raises:
        InputError: the file cannot be read, or is no text file (see :func:`read_text`).
    """
    lines = read_text(path).split("\n")
    # The text behind the last line end is a line only if it is not empty.
    if not lines[-1]:
        lines.pop()
        return [line.removesuffix("\r") for line in lines]
    return [*(line.removesuffix("\r") for line in lines[:-1]), lines[-1]]


def read_text(path: Path) -> str:
    """The whole text of a file, without a byte order mark. Line ends stay as they are.

    Args:
        path: a file, or ``-`` for standard input.

    Raises:
        InputError: no such file, no permission, no regular file, more than :data:`MAX_BYTES`, a NUL byte, or
            bytes that are neither UTF-8 nor UTF-16 with a byte order mark.
    """
    return _decode(read_bytes(path), shown(path))


def read_bytes(path: Path) -> bytes:
    """The bytes of a regular file, or of standard input for ``-``. Never waits for a FIFO.

    Raises:
        InputError: no such file, no permission, no regular file, or more than :data:`MAX_BYTES`.
    """
    name = shown(path)
    try:
        if os.fspath(path) == STANDARD_INPUT:
            if sys.stdin is None:
                raise InputError("standard input is closed; give a file")
            data = sys.stdin.buffer.read(MAX_BYTES + 1)
        else:
            with open_regular(path) as file:
                _check_size(os.fstat(file.fileno()).st_size, name)
                data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{name}: cannot be read ({reason}); give the path of a text file") from None
    _check_size(len(data), name)
    return data


def open_regular(path: Path) -> BinaryIO:
    """Opens a regular file to read bytes. Anything else is refused, without waiting for it.

    Raises:
        InputError: the path is a folder, a FIFO, a socket or a device.
        OSError: there is no such file, or no permission.
    """
    try:
        # Without O_NONBLOCK, opening a FIFO waits until somebody writes to it.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ENXIO:  # the path is a socket
            check_regular(path)
        raise
    try:
        _refuse_irregular(os.fstat(descriptor).st_mode, path)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def check_regular(path: Path) -> None:
    """Refuses a path that exists and is no regular file. It is for readers that open a file by its name.

    Raises:
        InputError: the path is a folder, a FIFO, a socket or a device.
    """
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):  # the reader reports an absent file
        return
    _refuse_irregular(mode, path)


def check_regular_files(folder: Path, patterns: Sequence[str]) -> None:
    """Calls :func:`check_regular` for files of a folder, and of the folders directly in it.

    Args:
        folder: the folder.
        patterns: only files whose name fits one of these patterns are checked.

    Raises:
        InputError: one of them is a FIFO, a socket or a device.
    """
    for place, folders, files in os.walk(folder):
        if os.path.relpath(place, folder) != os.curdir:
            folders.clear()
        for name in files:
            if any(fnmatch.fnmatch(name, pattern) for pattern in patterns):
                check_regular(os.path.join(place, name))


def _refuse_irregular(mode: int, path: Path) -> None:
    if stat.S_ISREG(mode):
        return
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket"}
    kind = kinds.get(stat.S_IFMT(mode), "a device")
    raise InputError(f"{shown(path)}: is {kind}; give a regular file")


def shown(path: Path) -> str:
    """The name of a file in messages."""
    name = os.fspath(path)
    return "standard input" if name == STANDARD_INPUT else str(name) or "''"


# ------------------------------------------------------------------------------------------- tables


def read_json(path: Path, remedy: str = "correct the file") -> Any:
    """The value of a JSON file.

    Args:
        path: the file.
        remedy: the advice of the error message for a file that is no JSON.

    Raises:
        InputError: the file cannot be read, or is no JSON; the message names the line.
    """
    try:
        return json.loads(read_text(path))
    except RecursionError:
        raise InputError(f"{shown(path)}: no JSON (nested too deeply); {remedy}") from None
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{shown(path)}: no JSON ({error}); {remedy}") from None


def read_table(path: Path) -> Table:
    """The rows of a table file. The end of its name decides how it is read:

    - ``.csv``: comma-separated, with quotation marks as spreadsheets write them, so that a cell may hold commas
      and line ends. If the first line holds a tab, the file is read as tab-separated (the STS benchmark).
    - ``.jsonl``, ``.ndjson``: a JSON object, a text or a list of texts per line.
    - ``.json``: a list of those.
    - anything else: tab-separated, as in GLUE. Quotation marks are part of the text there.

    Rows that cannot be split are in :attr:`Table.bad`.

    Raises:
        InputError: the file cannot be read, or a ``.json`` file holds no list.
    """
    suffix = os.path.splitext(os.fspath(path))[1].lower()
    if suffix == ".json":
        return records(read_json(path), shown(path))
    if suffix in (".jsonl", ".ndjson"):
        return _json_lines(read_lines(path))
    text = read_text(path)
    if suffix == ".csv" and "\t" not in text.lstrip("\r\n").split("\n", 1)[0]:
        return _csv(text)
    return _tab_separated(text)


def records(value: Any, name: str) -> Table:
    """The table that a JSON value holds: a list of objects, texts or lists of texts, or ``{"data": list}``.

    Raises:
        InputError: the value is something else.
    """
    items = value.get("data") if isinstance(value, dict) else value
    if not isinstance(items, list):
        raise InputError(f"{name}: holds no list of rows; give a list of objects, or one object per line (.jsonl)")
    return replace(_objects(list(enumerate(items, 1)), []), unit="row")


def _tab_separated(text: str) -> Table:
    lines = enumerate(text.split("\n"), 1)
    rows = [Row(n, tuple(line.removesuffix("\r").split("\t"))) for n, line in lines if line.strip()]
    return Table(None, rows, [])


def _csv(text: str) -> Table:
    rows: list[Row] = []
    bad: list[BadRow] = []
    with _long_cells():
        # The lines keep their ends, because a quoted cell may hold some. Only "\n" ends a line.
        reader = csv.reader((line + "\n" for line in text.removesuffix("\n").split("\n")), strict=True)
        while True:
            begin = reader.line_num + 1
            try:
                cells = next(reader)
            except StopIteration:
                break
            except csv.Error as error:
                last = reader.line_num
                reason = f"is no csv: {error}"
                bad.append(BadRow(begin, reason if last <= begin else f"{reason} (up to line {last})"))
                continue
            if any(cell.strip() for cell in cells):
                rows.append(Row(begin, tuple(cells)))
    return Table(None, rows, bad)


@contextlib.contextmanager
def _long_cells() -> Iterator[None]:
    """Lets csv read cells of any length. The limit belongs to the whole process, so it is restored at the end."""
    limit = csv.field_size_limit(MAX_BYTES)
    try:
        yield
    finally:
        csv.field_size_limit(limit)


def _json_lines(lines: list[str]) -> Table:
    items: list[tuple[int, Any]] = []
    bad: list[BadRow] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            items.append((number, json.loads(line)))
        except (ValueError, RecursionError) as error:
            bad.append(BadRow(number, f"is no JSON: {error}"))
    return _objects(items, bad)


def _objects(items: list[tuple[int, Any]], bad: list[BadRow]) -> Table:
    """Rows of objects, with one column per key of any object; or rows of texts and lists, without names."""
    names = dict.fromkeys(key for _, item in items if isinstance(item, dict) for key in item)
    rows: list[Row] = []
    bad = list(bad)
    for number, item in items:
        if isinstance(item, dict):
            cells = tuple(item.get(name) for name in names)
        elif names:
            bad.append(BadRow(number, f"is {_kind(item)} among objects"))
            continue
        elif isinstance(item, str):
            cells = (item,)
        elif isinstance(item, list) and item and all(isinstance(cell, str) for cell in item):
            cells = tuple(item)
        else:
            bad.append(BadRow(number, f"is {_kind(item)}, and no object, text or list of texts"))
            continue
        rows.append(Row(number, cells))
    header = tuple(name.strip().lower() for name in names) if names else None
    return Table(header, rows, sorted(bad, key=lambda row: row.line))


def _kind(value: Any) -> str:
    return {dict: "an object", list: "a list", str: "a text", type(None): "null"}.get(type(value), "a number")


# -------------------------------------------------------------------------------------------- bytes


def _check_size(size: int, name: str) -> None:
    if size > MAX_BYTES:
        raise InputError(f"{name}: has more than {MAX_BYTES:,} bytes, the most that is read; split the file")


def _decode(data: bytes, name: str) -> str:
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    encoding = "utf-16" if wide else "utf-8-sig"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{name}: line {line}, byte {error.start} is no {'UTF-16' if wide else 'UTF-8'}; "
            "save the file as UTF-8 first"
        ) from None
    at = text.find("\0")
    if at >= 0:
        line = text.count("\n", 0, at) + 1
        raise InputError(f"{name}: line {line} holds a NUL byte, as binary files do; give a text file")
    return text
