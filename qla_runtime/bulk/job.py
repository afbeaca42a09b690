"""One job: from an input file to a Parquet file with the results beside its rows.

engine = Engine.from_pretrained("all-minilm-l6-v2")
report = embed_file(engine, "pages.parquet", "vectors.parquet", length="fast")
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import pyarrow as pa

from qla_runtime._core import version
from qla_runtime.bars import bar
from qla_runtime.bulk.options import ClassifyOptions, EmbedOptions, FileOptions
from qla_runtime.bulk.readers import open_reader
from qla_runtime.bulk.windows import WINDOW_BYTES, Reader
from qla_runtime.bulk.work import Classify, Embed, Work
from qla_runtime.bulk.writer import Parts, Tally, is_finished, parts_folder, why_unwritable
from qla_runtime.engine import Engine
from qla_runtime.errors import InputError, shown, warn
from qla_runtime.lengths.configs import Length

Source = str | os.PathLike[str]


@dataclass(frozen=True)
class Report:
    """What a job did.

    Attributes:
        rows: rows of the output.
        left_out: rows of the input that could not be read.
        truncated: texts that are longer than the model reads, and were cut.
        tokens: what the model read; 0 where ``Escalate`` ran, which reads some texts twice.
        resumed: rows that an earlier, interrupted run of the job had done.
        length: the length that ran, as ``length=`` takes it; None is ``"full"``.
        seconds: wall time of this run.
    """

    rows: int
    left_out: int
    truncated: int
    tokens: int
    resumed: int
    length: str | None
    seconds: float


def embed_file(
    engine: Engine,
    source: Source,
    out: Source,
    length: Length = None,
    *,
    files: FileOptions | None = None,
    options: EmbedOptions | None = None,
    progress: bool = False,
) -> Report:
    """Writes the rows of a file with the vectors of their texts.

    A row's vector has the bits that ``engine.encode`` gives for its text. The rows keep their order.

    A job that was interrupted, by ``kill -9`` too, goes on when the same call comes again. Its output then has the
    same bytes as if it had not been interrupted. Until the end, what is done stands in the folder ``OUT.parts``.

    Args:
        engine: an engine of an embedding model.
        source: a ``.parquet``, ``.jsonl``, ``.ndjson`` or ``.txt`` file.
        out: the Parquet file to write.
        length: a name, a length config or a policy; ``LatencyBudget(ms)`` is settled once, on the first window,
            and means ``ms`` for each text on average.
        files: which columns are read and kept; None: as ``FileOptions`` has them.
        options: what the vectors are like; None: as ``EmbedOptions`` has them.
        progress: show a bar on standard error.

    Raises:
        InputError: a file, a column, a row or an option that does not fit; an output that exists; an unfinished
            job with other settings.
        QlaError: the output cannot be written, for want of space say; the same call goes on from there.
        UnsupportedError: the model gives no embeddings, or a policy cannot be followed.
    """
    return _run(Embed(engine, options or EmbedOptions()), source, out, length, files, (), progress)


def classify_file(
    engine: Engine,
    source: Source,
    out: Source,
    length: Length = None,
    *,
    files: FileOptions | None = None,
    options: ClassifyOptions | None = None,
    progress: bool = False,
) -> Report:
    """Writes the rows of a file with the labels of their texts; otherwise as :func:`embed_file`.

    Args:
        engine: an engine of a classifier.
        source: as for :func:`embed_file`.
        out: as for :func:`embed_file`.
        length: as for :func:`embed_file`; ``Escalate`` repeats texts whose score is low.
        files: as for :func:`embed_file`.
        options: pairs, and how many labels; None: as ``ClassifyOptions`` has them.
        progress: as for :func:`embed_file`.

    Raises:
        InputError: as for :func:`embed_file`.
        QlaError: as for :func:`embed_file`.
        UnsupportedError: the model does not classify texts, or a policy cannot be followed.
    """
    options = options or ClassifyOptions()
    pairs = () if options.pair_column is None else (options.pair_column,)
    return _run(Classify(engine, options), source, out, length, files, pairs, progress)


def _run(
    work: Work,
    source: Source,
    out: Source,
    length: Length,
    files: FileOptions | None,
    pairs: Sequence[str],
    progress: bool,
) -> Report:
    began = perf_counter()
    files = files or FileOptions()
    target = Path(out)
    folder = parts_folder(target)
    if not is_finished(folder):
        _check_output(Path(source), target, files.overwrite)
    reader = open_reader(source, files, (files.column, *pairs))
    schema = _schema(reader, work)
    work.check(length, 1 + len(pairs))
    facts = _facts(work, length, files)
    with Parts(folder, {**facts, **_identity(reader, files)}) as parts:
        done = parts.tally
        if not parts.finished:
            _write_parts(work, reader, schema, length, parts, progress)
        ran = parts.length or (None if length is None else str(length))
        parts.finish(target, schema, {**facts, "length": ran or "full"})
        tally = parts.tally
    if tally.truncated:
        warn(
            f"{tally.truncated:,} of {tally.rows:,} texts have more than {work.engine.max_length} tokens and were "
            "cut there; split them to have all of them read"
        )
    return Report(**asdict(tally), resumed=done.rows, length=ran, seconds=perf_counter() - began)


def _write_parts(
    work: Work, reader: Reader, schema: pa.Schema, length: Length, parts: Parts, progress: bool
) -> None:
    began, read = perf_counter(), 0
    title = os.path.basename(reader.path)
    with bar(reader.rows, title, progress, done=parts.end.row, unit=" texts", delay=0) as progress_bar:
        for window in reader.windows(parts.end):
            if parts.length is None:
                settled = work.settled(length, window.texts)
                if settled is not length:
                    parts.settle(str(settled))
            done = work.run(window.texts, parts.length or length)
            table = pa.Table.from_arrays([*window.table.columns, *done.columns], schema=schema)
            before = parts.end.row
            parts.add(table, Tally(len(table), window.left_out, done.truncated, done.tokens), window.end)
            read += done.tokens
            if read:
                progress_bar.set_postfix_str(f"{read / (perf_counter() - began):,.0f} tokens/s", refresh=False)
            progress_bar.update(window.end.row - before)


def _schema(reader: Reader, work: Work) -> pa.Schema:
    """The output's columns.

    Raises:
        InputError: the input has a column of a name that is added, or of a type that cannot be written.
    """
    for field in reader.schema:
        reason = why_unwritable(field)
        if reason is not None:
            raise InputError(
                f"{reader.path}: column {shown(field.name)} cannot be written ({reason}); leave it out with keep="
            )
    for field in work.fields:
        if field.name in reader.schema.names:
            raise InputError(
                f"{reader.path}: has a column {shown(field.name)} already, and the output gets one; leave it out "
                "with keep=, or rename it"
            )
    return pa.schema([*reader.schema, *work.fields])


def _facts(work: Work, length: Length, files: FileOptions) -> dict[str, Any]:
    """What the output's rows depend on, beside the input."""
    manifest = (work.engine.path / "manifest.json").read_bytes()
    return {
        "qla_runtime": version(),
        "model": work.engine.name,
        "package": hashlib.sha256(manifest).hexdigest(),
        "length": "full" if length is None else str(length),
        "column": files.column,
        "columns": files.keep,
        "skip_bad_rows": files.skip_bad_rows,
        **work.facts,
    }


def _identity(reader: Reader, files: FileOptions) -> Mapping[str, Any]:
    """What tells an input from another version of it, and how it is cut into windows."""
    status = os.stat(reader.path)
    return {
        "input's size": status.st_size,
        "input's time of change": status.st_mtime_ns,
        "window": [files.window, WINDOW_BYTES],
    }


def _check_output(source: Path, out: Path, overwrite: bool) -> None:
    """Refuses, before the work, an output that could not be written after it."""
    if out.suffix.lower() != ".parquet":
        raise InputError(f"{out}: the output is a Parquet file; give it a name that ends in .parquet")
    if out.exists() and source.exists() and os.path.samefile(source, out):
        raise InputError(f"{out}: is the input, too; give the output another name")
    if out.is_dir():
        raise InputError(f"{out}: is a folder; give the output another name")
    if out.exists() and not overwrite:
        raise InputError(f"{out}: exists and is left alone; choose another name, or pass overwrite=True")
    if not out.parent.is_dir() or not os.access(out.parent, os.W_OK):
        raise InputError(f"{out}: cannot be written there; give a folder that exists and that you may write to")
