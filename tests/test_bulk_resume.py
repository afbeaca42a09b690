"""Jobs that are killed and come again: their output has the bytes of a job that was left alone."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pa = pytest.importorskip("pyarrow", reason="jobs over files need pyarrow")

import bulk_tools  # noqa: E402
import cli_tools  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402
from package_tools import tiny_package  # noqa: E402

from qla_runtime import Engine, InputError, LatencyBudget, QlaError  # noqa: E402
from qla_runtime.bulk.job import embed_file  # noqa: E402
from qla_runtime.bulk.options import EmbedOptions, FileOptions  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:.*were cut there")

WINDOW = FileOptions(window=32)


@pytest.fixture(scope="module")
def engine(packages: dict[str, str]) -> Iterator[Engine]:
    with Engine(packages["embedding"], num_threads=1) as engine:
        yield engine


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return bulk_tools.write(tmp_path / "in.parquet", bulk_tools.table(100), row_group_size=40)


def stopped(engine: Engine, source: Path, out: Path, files: FileOptions = WINDOW, length: object = None) -> None:
    """A job that fails in its second window, as on a full disk."""

    def failing(descriptor: int) -> None:
        if list(out.parent.glob("*.parts/part-*")):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    real = os.fsync
    patch = pytest.MonkeyPatch()
    patch.setattr(os, "fsync", failing)
    try:
        with pytest.raises(QlaError, match=r"The [23]\d rows before are intact; make room"):
            embed_file(engine, source, out, length, files=files)
    finally:
        patch.undo()


def test_a_job_killed_at_any_step_ends_with_the_same_bytes(engine: Engine, source: Path, tmp_path: Path):
    expected = tmp_path / "expected.parquet"
    embed_file(engine, source, expected, files=WINDOW)
    out = tmp_path / "out.parquet"
    after_the_end = 0
    for step in range(1000):
        if not bulk_tools.run_killed_at(step, lambda: embed_file(engine, source, out, files=WINDOW)):
            break
        whole = out.exists()  # else it does not exist: there is no half of it
        if whole:
            assert out.read_bytes() == expected.read_bytes()
        try:
            embed_file(engine, source, out, files=WINDOW)
        except InputError as error:
            # Nothing but the empty folder was left to remove.
            assert whole and "exists and is left alone" in str(error)
            after_the_end += 1
        assert out.read_bytes() == expected.read_bytes()
        out.unlink()
    assert 15 < step < 100 and after_the_end <= 3


def test_what_is_done_is_not_done_again(engine: Engine, source: Path, tmp_path: Path):
    out = tmp_path / "out.parquet"
    stopped(engine, source, out)
    report = embed_file(engine, source, out, files=WINDOW)
    assert (report.rows, report.resumed) == (100, 32)
    assert pq.read_table(out)["id"].to_pylist() == list(range(1000, 1100))


@pytest.mark.parametrize("suffix", [".jsonl", ".txt"])
def test_text_files_go_on_behind_a_line(engine: Engine, tmp_path: Path, suffix: str):
    texts = ["", *bulk_tools.sentences(99), "ünï"]
    source = tmp_path / f"in{suffix}"
    if suffix == ".txt":
        source.write_bytes("\r\n".join(texts).encode() + b"\xff\xfe\nlast")
    else:
        bulk_tools.write_lines(source, [{"text": text} for text in texts])
        source.write_text(source.read_text().replace("\n", "\n\nno JSON\n", 3))
    files = replace(WINDOW, skip_bad_rows=True)
    embed_file(engine, source, tmp_path / "expected.parquet", files=files)
    stopped(engine, source, tmp_path / "out.parquet", files)
    report = embed_file(engine, source, tmp_path / "out.parquet", files=files)
    assert report.resumed > 0 and report.left_out == (1 if suffix == ".txt" else 3)
    assert (tmp_path / "out.parquet").read_bytes() == (tmp_path / "expected.parquet").read_bytes()


def test_the_config_of_a_budget_is_settled_once(engine: Engine, source: Path, tmp_path: Path, cache: Path):
    out = tmp_path / "out.parquet"
    stopped(engine, source, out, length=LatencyBudget(0))
    run = tmp_path / "out.parquet.parts" / "run.json"
    chosen = re.search(r'"length": "(frontier-\d+|\w+)",\n  "finished"', run.read_text())
    assert chosen
    run.write_text(run.read_text().replace(chosen[0], chosen[0].replace(chosen[1], "full")))
    assert embed_file(engine, source, out, LatencyBudget(0), files=WINDOW).length == "full"


def changed_settings(engine: Engine) -> Iterator[tuple[str, dict[str, object]]]:
    yield r"length was 'full' and is now 'fast'", {"length": "fast"}
    yield r"vectors was 'float32' and is now 'int8'", {"options": EmbedOptions(vectors="int8")}
    yield r"columns was None and is now \['id'\]", {"files": replace(WINDOW, keep=("id",))}
    yield r"window was \[32, 67108864\] and is now \[33, 67108864\]", {"files": replace(WINDOW, window=33)}


def test_other_settings_are_refused(engine: Engine, source: Path, tmp_path: Path):
    out = tmp_path / "out.parquet"
    stopped(engine, source, out)
    for message, arguments in changed_settings(engine):
        with pytest.raises(
            InputError, match=f"an unfinished job with other settings .*{message}.*delete the folder"
        ):
            embed_file(engine, source, out, **({"files": WINDOW} | arguments))
    assert embed_file(engine, source, out, files=WINDOW).resumed == 32  # the refusals cost nothing


def test_another_model_or_input_is_refused(engine: Engine, source: Path, tmp_path: Path):
    out = tmp_path / "out.parquet"
    stopped(engine, source, out)
    with Engine(tiny_package("embedding", seed=9).save(tmp_path / "other")) as other:
        with pytest.raises(InputError, match=r"package was '[0-9a-f]{64}' and is now '[0-9a-f]{64}'"):
            embed_file(other, source, out, files=WINDOW)
    bulk_tools.write(source, bulk_tools.table(101))
    with pytest.raises(InputError, match=r"input's size was \d+ and is now \d+"):
        embed_file(engine, source, out, files=WINDOW)


def test_an_output_that_was_removed_is_made_again(engine: Engine, source: Path, tmp_path: Path):
    out = tmp_path / "out.parquet"
    embed_file(engine, source, tmp_path / "expected.parquet", files=WINDOW)
    step = 0
    while not out.exists():  # killed as soon as the output has its name, before the parts are removed
        step += 1
        assert bulk_tools.run_killed_at(step, lambda: embed_file(engine, source, out, files=WINDOW))
    out.unlink()
    embed_file(engine, source, out, files=WINDOW)
    assert out.read_bytes() == (tmp_path / "expected.parquet").read_bytes()


def test_a_damaged_part_is_named(engine: Engine, source: Path, tmp_path: Path):
    out = tmp_path / "out.parquet"
    stopped(engine, source, out)
    part = tmp_path / "out.parquet.parts" / "part-000000.arrow"
    part.write_bytes(part.read_bytes()[:-9])
    with pytest.raises(InputError, match=r"part-000000\.arrow: is damaged .*; delete it to have it made again"):
        embed_file(engine, source, out, files=WINDOW)
    part.unlink()
    assert embed_file(engine, source, out, files=WINDOW).resumed == 0


def test_one_process_at_a_time(engine: Engine, source: Path, tmp_path: Path):
    out = tmp_path / "out.parquet"
    stopped(engine, source, out)
    holder = (
        "import fcntl, sys; file = open(sys.argv[1], 'w'); fcntl.flock(file, fcntl.LOCK_EX); "
        "print(flush=True); input()"
    )
    lock = tmp_path / "out.parquet.parts" / ".lock"
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", holder, str(lock)], stdin=pipe, stdout=pipe) as process:
        assert process.stdout and process.stdout.readline()
        with pytest.raises(InputError, match="another process is writing in this folder"):
            embed_file(engine, source, out, files=WINDOW)
        process.kill()
    assert embed_file(engine, source, out, files=WINDOW).rows == 100


@pytest.mark.slow
def test_a_large_job_killed_twice_in_bounded_memory(tmp_path: Path):
    """QLA_BULK_ROWS sets its size."""
    rows = os.environ.get("QLA_BULK_ROWS", "20000")
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(
        [sys.executable, "-m", "bench.bulk_kill", "--rows", rows, "--folder", str(tmp_path)],
        cwd=root,
        env=cli_tools.ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "the same bytes: yes" in done.stdout
    vectors = pq.read_table(tmp_path / "resumed.parquet", columns=["embedding"])["embedding"].combine_chunks()
    assert len(vectors) == int(rows) and np.isfinite(vectors.flatten().to_numpy()).all()
