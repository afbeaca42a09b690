"""Readers of text files: a text per line, or a JSON object per line."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from qla_runtime.bulk.lines import read_lines
from qla_runtime.bulk.options import FileOptions
from qla_runtime.bulk.windows import WINDOW_BYTES, Place, Reader, Window, chosen
from qla_runtime.errors import InputError, shown
from qla_runtime.texts.files import Path

Rows = list[tuple[int, Any]]
"""Rows, each behind its line's number."""


class LineReader(Reader):
    """A file with a row per line. The constructor reads it once, to count and to check its rows.

    Args:
        path: the file.
        options: as for :func:`open_reader`.
        texts: the columns of texts.
    """

    def __init__(self, path: Path, options: FileOptions, texts: Sequence[str]) -> None:
        self.path, self._options, self._texts = path, options, texts
        self.rows = 0
        whole = self._schema()
        self.schema = chosen(path, whole, options, texts)
        self._columns = pa.schema([whole.field(name) for name in dict.fromkeys([*self.schema.names, *texts])])

    def windows(self, begin: Place) -> Iterator[Window]:
        for rows, left_out, end in self._groups(begin):
            table = self._table(rows, self._columns)
            texts = [table[name].to_pylist() for name in self._texts]
            yield Window(table.select(self.schema.names), texts, left_out, end)

    @abstractmethod
    def _schema(self) -> pa.Schema:
        """The columns of all rows; counts the rows, and raises InputError for one that cannot be read."""

    @abstractmethod
    def _row(self, text: str, number: int) -> Any:
        """One line's row, or None for a line that is none.

        Raises:
            InputError: it cannot be read; the message is the rest of "line 7 ...".
        """

    @abstractmethod
    def _table(self, rows: Rows, schema: pa.Schema | None) -> pa.Table:
        """Rows, each with its line's number, as columns."""

    def _groups(self, begin: Place) -> Iterator[tuple[Rows, int, Place]]:
        """The rows of each window, how many were left out, and where it ends."""
        rows: Rows = []
        row, at, start, left_out = begin.row, begin.at, begin.at, 0
        for line in read_lines(self.path, begin.line, begin.at):
            try:
                if line.text is None:
                    raise InputError(line.fault)
                value = self._row(line.text, line.number)
            except InputError as error:
                if not self._options.skip_bad_rows:
                    raise InputError(
                        f"{self.path}: line {line.number} {error}. Or leave such rows out with skip_bad_rows=True"
                    ) from None
                left_out += 1
                row += 1
            else:
                if value is not None:
                    rows.append((line.number, value))
                    row += 1
            at = line.end
            if len(rows) + left_out >= self._options.window or at - start >= WINDOW_BYTES:
                yield rows, left_out, Place(row, at, line.number)
                rows, left_out, start = [], 0, at
        if rows or left_out:
            yield rows, left_out, Place(row, at, line.number)


class TextReader(LineReader):
    """A text per line, blank lines included. Its columns are ``line``, the number from 1 on, and ``text``."""

    def _schema(self) -> pa.Schema:
        for _, _, end in self._groups(Place()):
            self.rows = end.row
        return pa.schema([("line", pa.int64()), ("text", pa.string())])

    def _row(self, text: str, number: int) -> str:
        return text

    def _table(self, rows: Rows, schema: pa.Schema | None) -> pa.Table:
        numbers, texts = zip(*rows, strict=True) if rows else ((), ())
        columns = {"line": pa.array(numbers, pa.int64()), "text": pa.array(texts, pa.string())}
        return pa.table(columns).select(schema.names if schema else ["line", "text"])


class JsonReader(LineReader):
    """A JSON object per line. Its columns are all keys of all objects; blank lines are no rows."""

    def _schema(self) -> pa.Schema:
        wanted = self._options.keep
        self._wanted = None if wanted is None else {*wanted, *self._texts}
        schema = None
        for rows, _, end in self._groups(Place()):
            self.rows = end.row
            if rows:
                schema = self._unified(schema or pa.schema([]), rows)
        if schema is None:
            raise InputError(f"{self.path}: has no row that can be read; give a file with a JSON object per line")
        return schema

    def _row(self, text: str, number: int) -> dict[str, Any] | None:
        if not text.strip():
            return None
        try:
            row = json.loads(text)
        except json.JSONDecodeError as error:
            raise InputError(f"is no JSON ({error.msg} at its character {error.pos + 1}); correct it") from None
        except (ValueError, RecursionError) as error:
            raise InputError(f"is no JSON ({error}); correct it") from None
        if not isinstance(row, dict):
            raise InputError("is no JSON object; write one per line, with a key for each column")
        for name in self._texts:
            _check_text(row, name)
        if self._wanted is not None:
            row = {name: row[name] for name in row if name in self._wanted}
        try:
            "".join(row).encode()
        except UnicodeEncodeError:
            raise InputError("holds a lone surrogate in a key; write it as valid text") from None
        return row

    def _table(self, rows: Rows, schema: pa.Schema | None) -> pa.Table:
        keys = dict.fromkeys(key for _, row in rows for key in row) if schema is None else schema.names
        columns = {}
        for key in keys:
            values = [row.get(key) for _, row in rows]
            try:
                columns[key] = pa.array(values, None if schema is None else schema.field(key).type)
            except (ValueError, TypeError, OverflowError) as error:  # pyarrow's own errors are of these, too
                raise self._mixed(key, rows, error) from None
        return pa.table(columns)

    def _unified(self, schema: pa.Schema, rows: Rows) -> pa.Schema:
        """The schema that also has room for these rows."""
        more = self._table(rows, None).schema
        try:
            return pa.unify_schemas([schema, more], promote_options="permissive")
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            names = [name for name in more.names if name in schema.names]
            changed = [name for name in names if schema.field(name).type != more.field(name).type]
            raise self._mixed(changed[0], rows, error) from None

    def _mixed(self, key: str, rows: Rows, error: Exception) -> InputError:
        reason = str(error).splitlines()[0]
        return InputError(
            f"{self.path}: lines {rows[0][0]} to {rows[-1][0]}: {shown(key)} holds values that fit no column "
            f"({reason}); give it one type, or leave it out with keep="
        )


def _check_text(row: dict[str, Any], name: str) -> None:
    if name not in row:
        raise InputError(
            f"has no key {shown(name)}; it has {', '.join(row) or 'none'}. Name a column of texts with column="
        )
    value = row[name]
    if not isinstance(value, str):
        kind = "null" if value is None else f"of type {type(value).__name__}"
        raise InputError(f"has no text in {shown(name)}: it is {kind}; give every row a text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"holds a lone surrogate in {shown(name)} at character {error.start}; write it as valid text"
        ) from None
