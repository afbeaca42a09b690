"""The output of a job: parts while it runs, one Parquet file in the end.

The folder ``OUT.parquet.parts`` stands beside the output:

===================== ==================================================================================
``run.json``          what the parts depend on, and the config that a policy chose
``part-000000.arrow`` the rows of the first window, with what is needed to go on behind it
``output.parquet``    the finished file, before it takes its name
===================== ==================================================================================

Every file is written under another name, flushed to disk and renamed, so it is whole or absent. The parts are read
once more to make the output, which needs their space on disk a second time.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from qla_runtime.bulk.windows import Place
from qla_runtime.errors import InputError, QlaError
from qla_runtime.run_folder import FACTS, RunFolder

NOTE = b"qla_runtime"
"""The key of our entry in the metadata of parts and outputs: a JSON object."""


_SUFFIX = ".parts"


@dataclass(frozen=True)
class Tally:
    """What was counted up to a place of the input.

    Attributes:
        rows: rows of the output.
        left_out: rows that could not be read.
        truncated: texts that were cut.
        tokens: what the model read.
    """

    rows: int = 0
    left_out: int = 0
    truncated: int = 0
    tokens: int = 0

    def __add__(self, other: Tally) -> Tally:
        return Tally(*(a + b for a, b in zip(asdict(self).values(), asdict(other).values(), strict=True)))


class Parts(RunFolder):
    """The open parts of one job.

    Attributes:
        end: where the last part ends in the input.
        tally: of all parts.
        length: the length config that a policy chose; None where none did.
        finished: whether the output is complete, and only has to take its name.
    """

    kind, doing, another = "unfinished job", "writing", "another output"

    def _open(self, facts: Path) -> None:
        self.end, self.tally, self._count = Place(), Tally(), 0
        self.length: str | None = None
        self.finished = False
        if facts.is_file() and (self._part(0).is_file() or is_finished(self.path)):
            self._go_on(facts)
        else:  # where nothing is done yet, the settings are still free
            self._note()

    def settle(self, length: str) -> None:
        """Keeps the length that the whole job has.

        Raises:
            QlaError: it cannot be written.
        """
        self.length = length
        self._note()

    def add(self, table: pa.Table, tally: Tally, end: Place) -> None:
        """Writes a window's rows as the next part.

        Raises:
            QlaError: it cannot be written; the parts before are as they were.
        """
        note = {NOTE: json.dumps({"tally": asdict(tally), "end": end})}
        schema = table.schema.with_metadata(note)
        with self._written(self._part(self._count)) as new:
            with pa.OSFile(str(new), "wb") as file, pa.ipc.new_file(file, schema) as writer:
                writer.write_table(table)
        self._count += 1
        self.tally, self.end = self.tally + tally, end

    def finish(self, out: Path, schema: pa.Schema, about: Mapping[str, Any]) -> None:
        """Makes the output of the parts, gives it its name, and removes the folder.

        Args:
            out: the output.
            schema: of its columns.
            about: what its metadata says under :data:`NOTE`.

        Raises:
            QlaError: it cannot be written; the parts are as they were.
        """
        if not self.finished:
            with self._written(self._made) as new:
                self._join(new, schema.with_metadata({NOTE: json.dumps(about)}))
            self.finished = True
            self._note()
        with self._named(out):
            if self._made.exists():
                os.replace(self._made, out)
            # The facts go last: as long as they are there, the same command knows what is left to do.
            for part in self.path.glob("part-*"):
                part.unlink()
            shutil.rmtree(self.path)

    # ----------------------------------------------------------------------------------- private

    def _go_on(self, facts: Path) -> None:
        try:
            noted = json.loads(facts.read_text(encoding="utf-8"))
            settings, self.length, self.finished = noted["settings"], noted["length"], noted["finished"]
            self.tally = Tally(**noted["tally"])
            changed = self.changed(settings)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"{facts}: not what a job writes ({error}); delete the folder to begin again"
            ) from error
        if changed:
            raise InputError(
                f"{self.path}: holds an unfinished job with other settings ({changed}), which cannot go on with "
                "these. Use the same ones, choose another output, or delete the folder to begin again"
            )
        if self.finished and not self._made.exists() and not _output_of(self.path).exists():
            self.finished = False  # the output was there, and somebody has removed it
        if self.finished:
            return
        self.tally = Tally()
        while self._part(self._count).is_file():
            with self._readable(self._part(self._count)) as part:
                note = json.loads(part.schema.metadata[NOTE])
            self.tally, self.end = self.tally + Tally(**note["tally"]), Place(*note["end"])
            self._count += 1

    def _note(self) -> None:
        noted = {
            "settings": self.settings,
            "length": self.length,
            "finished": self.finished,
            "tally": asdict(self.tally),
        }
        with self._named(self.path / FACTS):
            self.replace(FACTS, json.dumps(noted, indent=2) + "\n")

    @property
    def _made(self) -> Path:
        return self.path / "output.parquet"

    def _part(self, number: int) -> Path:
        return self.path / f"part-{number:06}.arrow"

    def _join(self, path: Path, schema: pa.Schema) -> None:
        """Writes the parts as one Parquet file, a row group for each."""
        with pq.ParquetWriter(path, schema, compression="zstd", compression_level=1) as writer:
            for number in range(self._count):
                with self._readable(self._part(number)) as part:
                    writer.write_table(part.read_all().replace_schema_metadata(schema.metadata))

    @contextmanager
    def _readable(self, path: Path) -> Iterator[Any]:
        try:
            with pa.memory_map(str(path)) as file:
                yield pa.ipc.open_file(file)
        except (pa.ArrowInvalid, KeyError) as error:
            raise InputError(f"{path}: is damaged ({error}); delete it to have it made again") from None

    @contextmanager
    def _written(self, path: Path) -> Iterator[Path]:
        """A name to write a file under, which then takes the place of ``path``."""
        new = path.with_name(f".{path.name}.tmp")
        with self._named(path):
            try:
                yield new
                with open(new, "rb") as file:
                    os.fsync(file.fileno())
                os.replace(new, path)
            finally:
                new.unlink(missing_ok=True)

    @contextmanager
    def _named(self, path: Path) -> Iterator[None]:
        """Names the file that cannot be written, and says what becomes of the rest."""
        try:
            yield
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno else str(error)
            raise QlaError(
                f"{path}: cannot be written ({reason}). The {self.tally.rows:,} rows before are intact; make "
                "room, and the same command goes on behind them"
            ) from error


def why_unwritable(field: pa.Field) -> str | None:
    """Why a part or an output cannot hold a column of such a type; None where both can."""
    schema = pa.schema([field])
    try:
        with pq.ParquetWriter(pa.BufferOutputStream(), schema):
            pass
        with pa.ipc.new_file(pa.BufferOutputStream(), schema) as part:
            part.write_batch(pa.record_batch([pa.nulls(0, field.type)], schema=schema))
    except pa.ArrowException as error:
        return str(error).splitlines()[0].rstrip(".")
    return None


def parts_folder(out: Path) -> Path:
    """Where the parts of an output stand."""
    return out.with_name(f"{out.name}{_SUFFIX}")


def _output_of(parts: Path) -> Path:
    return parts.with_name(parts.name.removesuffix(_SUFFIX))


def is_finished(folder: Path) -> bool:
    """Whether a job ended with all but giving its output the name."""
    try:
        return json.loads((folder / FACTS).read_text(encoding="utf-8"))["finished"] is True
    except (OSError, ValueError, KeyError, TypeError):
        return False
