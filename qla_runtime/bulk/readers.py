"""Opens a job's input with the reader that the end of its name asks for."""

from __future__ import annotations

import os
from collections.abc import Sequence

from qla_runtime.bulk.line_readers import JsonReader, LineReader, TextReader
from qla_runtime.bulk.options import FileOptions
from qla_runtime.bulk.parquet import ParquetReader
from qla_runtime.bulk.windows import Reader
from qla_runtime.errors import InputError
from qla_runtime.texts.files import Path, check_regular

READERS: dict[str, type[LineReader | ParquetReader]] = {
    ".parquet": ParquetReader,
    ".jsonl": JsonReader,
    ".ndjson": JsonReader,
    ".txt": TextReader,
}


def open_reader(path: Path, options: FileOptions, texts: Sequence[str]) -> Reader:
    """Opens an input.

    Args:
        path: a file whose name ends in one of :data:`READERS`.
        options: which columns are kept, and whether rows that cannot be read are left out.
        texts: the columns of texts.

    Raises:
        InputError: no such file, another kind of file, a damaged one, no such column, or one that holds no texts.
    """
    suffix = os.path.splitext(os.fspath(path))[1].lower()
    if suffix not in READERS:
        raise InputError(f"{path}: the end of its name says no kind of file; use one of {', '.join(READERS)}")
    if not os.path.exists(path):
        raise InputError(f"{path}: there is no such file; check the path")
    check_regular(path)
    if os.path.getsize(path) == 0:
        raise InputError(f"{path}: is empty; give a file with at least one row")
    return READERS[suffix](path, options, texts)
