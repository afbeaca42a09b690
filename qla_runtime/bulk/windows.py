"""The input of a job, window by window.

A window is what a job holds in memory at once, and what it writes as one part. Windows depend on the file alone: a
reader that begins at the end of a window gives the windows that follow, as if it had read those before.

The whole of a text file is checked before its first window is given, so that a job does not fail on its last line.
Of a Parquet file the footer is checked, which tells most faults.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import pyarrow as pa

from qla_runtime.bulk.options import FileOptions
from qla_runtime.errors import InputError, shown
from qla_runtime.texts.files import Path

WINDOW_BYTES = 64 << 20
"""A window of few but long rows ends with the one that reaches so many bytes."""


class Place(NamedTuple):
    """Where a window ends.

    Attributes:
        row: rows of the file before it, those that were left out included.
        at: of a text file, the byte where the next row begins; else 0.
        line: of a text file, the number of the line before the next row; else 0.
    """

    row: int = 0
    at: int = 0
    line: int = 0


@dataclass(frozen=True)
class Window:
    """Some rows.

    Attributes:
        table: the columns that the output keeps.
        texts: per column of texts, the texts of all rows.
        left_out: rows that could not be read.
        end: where the next window begins.
    """

    table: pa.Table
    texts: list[list[str]]
    left_out: int
    end: Place


class Reader(ABC):
    """An input file.

    Attributes:
        path: its path.
        rows: its rows, those that cannot be read included.
        schema: the columns that the output keeps.
    """

    path: Path
    rows: int
    schema: pa.Schema

    @abstractmethod
    def windows(self, begin: Place) -> Iterator[Window]:
        """The windows from the end of another window, or from the first row, on.

        Raises:
            InputError: a row that cannot be read.
        """


def chosen(path: Path, schema: pa.Schema, options: FileOptions, texts: Sequence[str]) -> pa.Schema:
    """The part of an input's schema that the output keeps.

    Raises:
        InputError: a name stands twice, or is not there; a column of texts holds something else.
    """
    known = schema.names
    twice = sorted({name for name in known if known.count(name) > 1})
    if twice:
        raise InputError(f"{path}: has the column {shown(twice[0])} twice; rename one of them")
    _check_known(path, texts, known, "column")
    _check_known(path, options.keep or (), known, "keep")
    if len(set(options.keep or ())) < len(options.keep or ()):
        raise InputError(f"keep names a column twice: {', '.join(options.keep or ())}; name each once")
    for name in texts:
        kind = schema.field(name).type
        if not is_text(kind.value_type if pa.types.is_dictionary(kind) else kind):
            raise InputError(
                f"{path}: column {shown(name)} holds {kind} and not texts; name a column of texts with column="
            )
    return schema if options.keep is None else pa.schema([schema.field(name) for name in options.keep])


def is_text(kind: pa.DataType) -> bool:
    """Whether a column of this type holds texts."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _check_known(path: Path, names: Sequence[str], known: Sequence[str], argument: str) -> None:
    for name in names:
        if name not in known:
            raise InputError(
                f"{path}: has no column {shown(name)}; it has {', '.join(known) or 'none'}. Name one of these "
                f"with {argument}="
            )
