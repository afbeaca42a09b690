"""Jobs over files that cannot be read or written: one clear error each, and nothing that is half written."""

from __future__ import annotations

import importlib.util
import os
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pa = pytest.importorskip("pyarrow", reason="jobs over files need pyarrow")

import bulk_tools  # noqa: E402
import cli_tools  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402

from qla_runtime import Engine, Escalate, InputError, UnsupportedError, bulk  # noqa: E402
from qla_runtime.bulk import lines  # noqa: E402
from qla_runtime.bulk.job import classify_file, embed_file  # noqa: E402
from qla_runtime.bulk.options import EmbedOptions, FileOptions  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:.*were cut there")


@pytest.fixture(scope="module")
def engine(packages: dict[str, str]) -> Iterator[Engine]:
    with Engine(packages["embedding"], num_threads=1) as engine:
        yield engine


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.parquet"


def refused(engine: Engine, source: Path, out: Path, message: str, **arguments: Any) -> None:
    """The job is refused with this message, before it wrote anything; the engine works on."""
    before = sorted(path.name for path in out.parent.iterdir()) if out.parent.exists() else []
    with pytest.raises(InputError, match=message):
        embed_file(engine, source, out, **arguments)
    assert (sorted(path.name for path in out.parent.iterdir()) if out.parent.exists() else []) == before
    assert engine.encode("it works on").shape == (64,)


def parquet(folder: Path, **columns: Any) -> Path:
    return bulk_tools.write(folder / "in.parquet", pa.table(columns))


# ---------------------------------------------------------------------------------------- columns


def test_no_such_column(engine: Engine, tmp_path: Path, out: Path):
    source = parquet(tmp_path, id=[1], body=["a"])
    refused(engine, source, out, r"in\.parquet: has no column 'text'; it has id, body\. Name .* column=")
    files = FileOptions(column="body", keep=("id", "url"))
    refused(engine, source, out, r"has no column 'url'; it has id, body\. Name .* keep=", files=files)
    files = FileOptions(column="body", keep=("id", "body", "id"))
    refused(engine, source, out, "keep names a column twice: id, body, id; name each once", files=files)
    refused(engine, parquet(tmp_path), out, r"has no column 'text'; it has none\. Name")


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([1, 2], "int64"),
        ([["a"], ["b"]], "list<element: string>"),
        ([{"x": "a"}, {"x": "b"}], "struct<x: string>"),
        ([b"a", b"b"], "binary"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_columns_of_other_types(engine: Engine, tmp_path: Path, out: Path, values: list[Any], kind: str):
    refused(
        engine, parquet(tmp_path, text=values), out, f"column 'text' holds {kind} and not texts; name a column"
    )


def test_a_column_twice(engine: Engine, tmp_path: Path, out: Path):
    source = bulk_tools.write(tmp_path / "in.parquet", pa.table([pa.array(["a"])] * 2, names=["text", "text"]))
    refused(engine, source, out, "has the column 'text' twice; rename one of them")


def test_a_column_of_the_new_ones_name(engine: Engine, tmp_path: Path, out: Path):
    source = parquet(tmp_path, text=["a"], embedding=[1], vector_scale=[1.0])
    refused(
        engine, source, out, "has a column 'embedding' already, and the output gets one; leave it out with keep="
    )
    options = EmbedOptions(into="vector", vectors="int8")
    refused(engine, source, out, "has a column 'vector_scale' already", options=options)
    assert embed_file(engine, source, out, files=FileOptions(keep=("text",))).rows == 1


# ------------------------------------------------------------------------------------------- rows


@pytest.mark.parametrize("statistics", [True, False], ids=["in the footer", "in the rows"])
def test_nulls(engine: Engine, tmp_path: Path, out: Path, statistics: bool):
    texts = [*bulk_tools.sentences(20), None, "b", None]
    rows = pa.table({"id": range(len(texts)), "text": texts})
    source = bulk_tools.write(tmp_path / "in.parquet", rows, row_group_size=9, write_statistics=statistics)
    with pytest.raises(
        InputError, match=r"row 20 \(the first is 0\) has no text.*it is null\. .* skip_bad_rows=True"
    ):
        embed_file(engine, source, out)
    report = embed_file(engine, source, tmp_path / "rest.parquet", files=FileOptions(skip_bad_rows=True, window=4))
    assert (report.rows, report.left_out) == (21, 2)
    assert pq.read_table(tmp_path / "rest.parquet")["id"].to_pylist() == [*range(20), 21]


def test_bytes_that_are_no_text_in_parquet(engine: Engine, tmp_path: Path, out: Path):
    values = pa.array([b"good", b"\xff\xfe", "gültig".encode()])
    source = parquet(tmp_path, text=pa.StringArray.from_buffers(3, *values.buffers()[1:]))
    with pytest.raises(InputError, match=r"row 1 \(the first is 0\) is no UTF-8 at its byte 0"):
        embed_file(engine, source, out)
    embed_file(engine, source, tmp_path / "rest.parquet", files=FileOptions(skip_bad_rows=True))
    assert pq.read_table(tmp_path / "rest.parquet")["text"].to_pylist() == ["good", "gültig"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"one\ntw\xf6\nthree", r"in\.txt: line 2 is no UTF-8 at its byte 2; save the file as UTF-8\. Or leave"),
        (b"one\n\0two", "line 2 holds a NUL byte, as binary files do"),
        ("one\n".encode("utf-16"), "is UTF-16, which cannot be read in parts; save it as UTF-8"),
        (b"", r"in\.txt: is empty; give a file with at least one row"),
    ],
)
def test_text_lines(engine: Engine, tmp_path: Path, out: Path, content: bytes, message: str):
    source = tmp_path / "in.txt"
    source.write_bytes(content)
    refused(engine, source, out, message)


def test_an_endless_line(engine: Engine, tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lines, "MAX_LINE", 1000)
    source = tmp_path / "in.txt"
    source.write_text("a\n" + "b" * 2000)
    refused(engine, source, out, "line 2 has more than 1,000 bytes, the most that one may have; split it")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": 1}', "line 3 has no key 'text'; it has id. Name a column of texts with column="),
        ('{"text": null}', "line 3 has no text in 'text': it is null; give every row a text"),
        ('{"text": 5}', "line 3 has no text in 'text': it is of type int"),
        ('{"text": "a"', "line 3 is no JSON .*; correct it. Or leave such rows out with skip_bad_rows=True"),
        ("[" * 100_000, "line 3 is no JSON "),
        ('"a text"', "line 3 is no JSON object; write one per line"),
        ('{"text": a}', r"line 3 is no JSON \(Expecting value at its character 10\); correct it"),
        ('{"text": "\\ud800"}', "line 3 holds a lone surrogate in 'text' at character 0"),
        ('{"text": "a", "\\ud800": 1}', "line 3 holds a lone surrogate in a key; write it as valid text"),
        ('{"text": "a", "more": {}}', "'more' cannot be written .*no child field.*; leave it out with keep="),
        ('{"text": "a", "more": [{}]}', "column 'more' cannot be written .*no child field.*; leave it out"),
        ('{"text": "a", "more": ' + "[" * 99 + "]" * 99 + "}", "column 'more' cannot be written .Max recursion"),
        (
            '{"text": "a", "id": "x"}',
            "lines 1 to 3: 'id' holds values that fit no column .*; give it one type, or",
        ),
        (
            '{"text": "a", "id": 1e99, "more": 99999999999999999999}',
            "lines 1 to 3: 'more' holds values that fit no",
        ),
    ],
)
def test_json_lines(engine: Engine, tmp_path: Path, out: Path, line: str, message: str):
    source = tmp_path / "in.jsonl"
    source.write_text('{"id": 1, "text": "a"}\n\n' + line + "\n", encoding="utf-8")
    refused(engine, source, out, message)


def test_json_types_that_change_later(engine: Engine, tmp_path: Path, out: Path):
    rows: list[dict[str, Any]] = [{"id": i, "text": "a"} for i in range(40)]
    rows[33]["id"] = "x"
    source = bulk_tools.write_lines(tmp_path / "in.jsonl", rows)
    message = "lines 33 to 40: 'id' holds values that fit no column"
    refused(engine, source, out, message, files=FileOptions(window=16))
    assert embed_file(engine, source, out, files=FileOptions(window=16, keep=("text",))).rows == 40


@pytest.mark.parametrize("content", [b"\n\r\n", b"\xef\xbb\xbf", b"no JSON\n"], ids=["blank", "BOM", "bad rows"])
def test_json_without_a_row(engine: Engine, tmp_path: Path, out: Path, content: bytes):
    source = tmp_path / "in.jsonl"
    source.write_bytes(content)
    message = r"in\.jsonl: has no row that can be read; give a file with a JSON object per line"
    refused(engine, source, out, message, files=FileOptions(skip_bad_rows=True))


def test_rows_left_out_beside_columns_of_any_type(engine: Engine, tmp_path: Path, out: Path):
    texts = [None, "a", None, None, "b", "c", None]
    kinds = {"text": pa.string_view(), "bytes": pa.binary_view(), "parts": pa.list_(pa.string())}
    columns = {name: pa.array(texts, kind) for name, kind in list(kinds.items())[:2]}
    columns["parts"] = pa.array([None if text is None else [text] for text in texts], kinds["parts"])
    report = embed_file(engine, parquet(tmp_path, **columns), out, files=FileOptions(skip_bad_rows=True))
    found = pq.read_table(out)
    assert (report.rows, report.left_out) == (3, 4)
    assert [found.schema.field(name).type for name in kinds] == list(kinds.values())
    assert found["text"].to_pylist() == ["a", "b", "c"] and found["bytes"].to_pylist() == [b"a", b"b", b"c"]
    assert found["parts"].to_pylist() == [["a"], ["b"], ["c"]]


def test_a_nested_column_of_the_same_path(engine: Engine, tmp_path: Path, out: Path):
    """Parquet calls both "a.b". The nulls of the nested one are none of the texts'."""
    source = parquet(tmp_path, **{"a": [{"b": "x"}, {"b": None}], "a.b": ["1", "2"]})
    assert embed_file(engine, source, out, files=FileOptions(column="a.b")).rows == 2


# ------------------------------------------------------------------------------------------ files


def test_files_that_are_no_input(engine: Engine, tmp_path: Path, out: Path):
    refused(engine, tmp_path / "in.parquet", out, "there is no such file; check the path")
    refused(engine, tmp_path / "in.csv", out, r"the end of its name says no kind of file; use one of \.parquet, ")
    os.mkfifo(tmp_path / "fifo.txt")
    refused(engine, tmp_path / "fifo.txt", out, "is a FIFO; give a regular file")
    (tmp_path / "folder.jsonl").mkdir()
    refused(engine, tmp_path / "folder.jsonl", out, "is a folder; give a regular file")


def test_damaged_parquet(engine: Engine, tmp_path: Path, out: Path):
    source = bulk_tools.write(tmp_path / "in.parquet", bulk_tools.table(2000), compression="zstd")
    content = source.read_bytes()
    for spoiled in (b"", b"text\n", content[:-100], content[: len(content) // 2], b"PAR1" * 10):
        source.write_bytes(spoiled)
        refused(engine, source, out, "is no Parquet file, or a damaged one|is empty; give a file")
    middle = len(content) // 2
    source.write_bytes(content[:middle] + b"\xa5" * 64 + content[middle + 64 :])
    with pytest.raises(InputError, match=r"is damaged behind row \d+ .*; get it again from where it came from"):
        embed_file(engine, source, out, files=FileOptions(keep=("id", "text")))
    assert not out.exists()


def test_outputs(engine: Engine, tmp_path: Path, out: Path):
    source = parquet(tmp_path, text=["a"])
    out.write_text("somebody's")
    refused(
        engine, source, out, r"out\.parquet: exists and is left alone; choose another name, or pass overwrite=True"
    )
    assert out.read_text() == "somebody's"
    assert embed_file(engine, source, out, files=FileOptions(overwrite=True)).rows == 1
    assert pq.read_table(out).num_rows == 1
    overwrite = FileOptions(overwrite=True)
    refused(engine, source, source, "is the input, too; give the output another name", files=overwrite)
    refused(
        engine,
        source,
        tmp_path / "out.jsonl",
        "the output is a Parquet file; give it a name that ends in .parquet",
    )
    refused(engine, source, tmp_path / "no" / "out.parquet", "cannot be written there; give a folder that exists")
    (tmp_path / "folder.parquet").mkdir()
    refused(engine, source, tmp_path / "folder.parquet", "is a folder", files=overwrite)
    (tmp_path / "x.parquet.parts").mkdir()
    (tmp_path / "x.parquet.parts" / "mine").touch()
    refused(
        engine, source, tmp_path / "x.parquet", r"x\.parquet\.parts: exists and is no unfinished job; it is left"
    )


@pytest.mark.parametrize("limit", [8_000, 24_000], ids=["a part", "the output"])
def test_a_full_disk(engine: Engine, tmp_path: Path, out: Path, limit: int):
    """A limit of a file's size stands for it: the parts have 20 kB here, and the output more."""
    source = bulk_tools.write(tmp_path / "in.parquet", bulk_tools.table(150))
    command = [*cli_tools.COMMAND, "embed", "--model", str(engine.path), str(source), str(out), "--window", "50"]
    done = subprocess.run(
        command,
        env=cli_tools.ENVIRONMENT,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    last = done.stderr.splitlines()[-1]
    rows = 0 if limit == 8_000 else 150
    assert done.returncode == 2 and last.startswith("qla: error: "), done.stderr
    assert (
        f"cannot be written (File too large). The {rows} rows before are intact; make room, and the same" in last
    )
    assert not out.exists() and not list(tmp_path.glob("*.parts/.*.tmp"))
    assert embed_file(engine, source, out, files=FileOptions(window=50)).resumed == rows
    embed_file(engine, source, tmp_path / "expected.parquet", files=FileOptions(window=50))
    assert out.read_bytes() == (tmp_path / "expected.parquet").read_bytes()


# ---------------------------------------------------------------------------------- models, options


def test_models_and_lengths_that_do_not_fit(engine: Engine, packages: dict[str, str], tmp_path: Path, out: Path):
    source = parquet(tmp_path, text=["a"])
    refused(engine, source, out, "length 'slow' is not one of this package's configs", length="slow")
    refused(
        engine,
        source,
        out,
        "truncate_dim is 65; it must be an integer from 1 to 64",
        options=EmbedOptions(truncate_dim=65),
    )
    refused(engine, source, out, "the prompt's name is 'x'", options=EmbedOptions(prompt_name="x"))
    with pytest.raises(
        UnsupportedError, match="Escalate repeats what a confidence shows to be unsure, and encode"
    ):
        embed_file(engine, source, out, Escalate("fast", "full"))
    with pytest.raises(UnsupportedError, match="classify.* needs a sequence-classification model"):
        classify_file(engine, source, out)
    with (
        Engine(packages["span-qa"], num_threads=1) as other,
        pytest.raises(UnsupportedError, match="needs an embedding"),
    ):
        embed_file(other, source, out)
    with pytest.raises(InputError, match="vectors is 'int4'; it must be one of float32, float16, int8"):
        EmbedOptions(vectors="int4")


def test_the_command_lines_words(tmp_path: Path, out: Path, packages: dict[str, str]):
    source = parquet(tmp_path, body=["a"])
    model = ["--model", packages["embedding"]]
    line = cli_tools.refused("embed", *model, str(source), str(out))
    assert "has no column 'text'; it has body. Name one of these with --column" in line
    line = cli_tools.refused("embed", *model, str(source), str(source), "--column", "body")
    assert "is the input, too" in line
    out.touch()
    line = cli_tools.refused("embed", *model, str(source), str(out), "--column", "body")
    assert "choose another name, or pass --overwrite" in line
    model = ["--model", packages["sequence-classification"]]
    assert "--in and --out go together" in cli_tools.refused("classify", *model, "--in", str(source))
    assert "give one of them" in cli_tools.refused("classify", *model, "a", "--in", str(source), "--out", str(out))
    assert "there are no texts; give at least one" in cli_tools.refused("classify", *model)


def test_without_pyarrow(monkeypatch: pytest.MonkeyPatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pyarrow" else find(name))
    with pytest.raises(
        UnsupportedError, match=r"needs pyarrow, not installed here. Run: pip install 'qla_runtime\[bulk\]'"
    ):
        bulk.require_packages()
