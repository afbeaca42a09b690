"""The reader of Parquet files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from qla_runtime.bulk.options import FileOptions
from qla_runtime.bulk.windows import WINDOW_BYTES, Place, Reader, Window, chosen
from qla_runtime.errors import InputError, shown
from qla_runtime.texts.files import Path

STEP = 256
"""Rows decoded at once, or those of a smaller window. A window is a whole number of such steps, and so may have a
few rows more than asked for: a step ends with its row group."""


class ParquetReader(Reader):
    """A Parquet file. Its row groups are read page by page, so that their size does not matter.

    Args:
        path: the file.
        options: as for ``open_reader``.
        texts: the columns of texts.

    Raises:
        InputError: no Parquet file, no such column, one without texts, or with nulls that are not to be left out.
    """

    def __init__(self, path: Path, options: FileOptions, texts: Sequence[str]) -> None:
        self.path, self._options, self._texts = path, options, texts
        self._step = min(STEP, options.window)
        try:
            self._file = pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False)
            whole = self._file.schema_arrow
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{path}: is no Parquet file, or a damaged one ({_reason(error)})") from None
        self.rows = self._file.metadata.num_rows
        self.schema = chosen(path, whole, options, texts)
        groups = range(self._file.num_row_groups)
        self._begins = [0, *accumulate(self._file.metadata.row_group(i).num_rows for i in groups)]
        if not options.skip_bad_rows:
            self._refuse_nulls()

    def windows(self, begin: Place) -> Iterator[Window]:
        steps: list[pa.RecordBatch] = []
        rows = size = 0
        for step in self._steps(begin.row):
            steps.append(step)
            rows += len(step)
            size += step.nbytes
            if rows >= self._options.window or size >= WINDOW_BYTES:
                yield self._window(steps, begin)
                begin = Place(begin.row + rows)
                steps, rows, size = [], 0, 0
        if steps:
            yield self._window(steps, begin)

    def _steps(self, begin: int) -> Iterator[pa.RecordBatch]:
        """The rows from a step's first one on."""
        columns = list(dict.fromkeys([*self.schema.names, *self._texts]))
        for group, row in enumerate(self._begins[:-1]):
            if self._begins[group + 1] <= begin:
                continue
            try:
                for step in self._file.iter_batches(self._step, row_groups=[group], columns=columns):
                    if row >= begin:
                        yield step
                    row += len(step)
            except (pa.ArrowException, OSError) as error:
                raise InputError(
                    f"{self.path}: is damaged behind row {row} ({_reason(error)}); get it again from where it "
                    "came from"
                ) from None

    def _window(self, steps: list[pa.RecordBatch], begin: Place) -> Window:
        # Each row group may have dictionaries of its own, and a part's file holds one per column.
        table = pa.Table.from_batches(steps).unify_dictionaries()
        end = Place(begin.row + len(table))
        decoded = [_decoded(table[name]) for name in self._texts]
        bad = {row: fault for _, faults in decoded for row, fault in faults.items()}
        if bad and not self._options.skip_bad_rows:
            row = min(bad)
            raise self._bad_row(begin.row + row, bad[row])
        texts = [values for values, _ in decoded]
        if bad:
            good = [row for row in range(len(table)) if row not in bad]
            # Not take(): it knows no string_view, nor other types that are rare.
            ends = [*sorted(bad), len(table)]
            begins = [0, *(row + 1 for row in ends[:-1])]
            table = pa.concat_tables(table.slice(a, b - a) for a, b in zip(begins, ends, strict=True))
            texts = [[values[row] for row in good] for values in texts]
        return Window(table.select(self.schema.names), texts, len(bad), end)

    def _refuse_nulls(self) -> None:
        """Refuses, before the work, a null that the footer tells of."""
        for name in self._texts:
            for group in range(self._file.num_row_groups):
                statistics = self._statistics(group, name)
                if statistics is not None and statistics.has_null_count and statistics.null_count:
                    column = next(iter(self._file.iter_batches(self.rows, [group], [name])))[name]
                    row = pc.index(pc.is_null(column), True).as_py()
                    if row >= 0:  # else they are those of a nested column of the same path
                        raise self._bad_row(self._begins[group] + row, f"has no text in {shown(name)}: it is null")

    def _statistics(self, group: int, name: str) -> Any:
        """What the footer says of a column of texts in a row group; None where it says nothing."""
        columns = (self._file.metadata.row_group(group).column(i) for i in range(self._file.metadata.num_columns))
        return next((column.statistics for column in columns if column.path_in_schema == name), None)

    def _bad_row(self, row: int, fault: str) -> InputError:
        return InputError(
            f"{self.path}: row {row} (the first is 0) {fault}. Give every row a text, or leave such rows out with "
            "skip_bad_rows=True"
        )


def _decoded(column: pa.ChunkedArray) -> tuple[list[str], dict[int, str]]:
    """The texts of a column, and by row what is wrong with those that are none."""
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    texts, faults = [], {}
    for row, value in enumerate(column.cast(kind).cast(pa.large_binary()).to_pylist()):
        if value is None:
            texts.append("")
            faults[row] = "has no text: it is null"
            continue
        try:
            texts.append(value.decode())
        except UnicodeDecodeError as error:
            texts.append("")
            faults[row] = f"is no UTF-8 at its byte {error.start}"
    return texts, faults


def _reason(error: Exception) -> str:
    return str(error).splitlines()[0].rstrip(".")[:200]
