"""Jobs over whole files: the rows and results that they write."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pa = pytest.importorskip("pyarrow", reason="jobs over files need pyarrow")

import bulk_tools  # noqa: E402
import cli_tools  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402

from qla_runtime import Engine, Escalate, LatencyBudget, MaxLoss  # noqa: E402
from qla_runtime.bulk.job import classify_file, embed_file  # noqa: E402
from qla_runtime.bulk.options import ClassifyOptions, EmbedOptions, FileOptions  # noqa: E402


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine.from_pretrained(bulk_tools.MODEL) as engine:
        yield engine


@pytest.fixture(scope="module")
def classifier(packages: dict[str, str]) -> Iterator[Engine]:
    with Engine(packages["sequence-classification"]) as engine:
        yield engine


def vectors_of(table: pa.Table, column: str = "embedding") -> np.ndarray:
    values = table[column].combine_chunks()
    return values.flatten().to_numpy().reshape(len(table), -1)


def test_rows_keep_their_order_and_columns_and_get_the_engines_bits(engine: Engine, tmp_path: Path):
    rows = bulk_tools.table(200)
    source = bulk_tools.write(tmp_path / "in.parquet", rows, row_group_size=70)
    report = embed_file(engine, source, tmp_path / "out.parquet", "fast", files=FileOptions(window=64))
    out = pq.read_table(tmp_path / "out.parquet")
    assert out.select(rows.column_names).equals(rows)
    assert out.schema.field("embedding").type == pa.list_(pa.float32(), 384)
    assert np.array_equal(vectors_of(out), engine.encode(rows["text"].to_pylist(), "fast"))
    assert (report.rows, report.truncated, report.left_out, report.resumed) == (200, 0, 0, 0)
    assert report.tokens == len(engine.text_encoder.encode(rows["text"].to_pylist()).batch.ids)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.parquet", "out.parquet"]


def test_window_and_row_groups_do_not_change_the_rows(engine: Engine, tmp_path: Path):
    rows = bulk_tools.table(60)
    found = []
    for i, (group, window) in enumerate([(7, 1), (60, 16), (20, 4096)]):
        source = bulk_tools.write(tmp_path / f"{i}.parquet", rows, row_group_size=group)
        embed_file(engine, source, tmp_path / f"out{i}.parquet", files=FileOptions(window=window))
        found.append(pq.read_table(tmp_path / f"out{i}.parquet").combine_chunks())
    assert found[0].equals(found[1]) and found[1].equals(found[2])


def test_text_lines(engine: Engine, tmp_path: Path):
    source = tmp_path / "in.txt"
    source.write_bytes("\ufefferste Zeile\r\n\nnaïve\u2028café".encode())
    embed_file(engine, source, tmp_path / "out.parquet")
    out = pq.read_table(tmp_path / "out.parquet")
    assert out["line"].to_pylist() == [1, 2, 3]
    assert out["text"].to_pylist() == ["erste Zeile", "", "naïve\u2028café"]
    assert np.array_equal(vectors_of(out), engine.encode(["erste Zeile", "", "naïve\u2028café"]))


def test_json_lines_find_the_columns_of_all_rows(engine: Engine, tmp_path: Path):
    rows = [{"id": i, "text": text, "n": None} for i, text in enumerate(bulk_tools.sentences(40))]
    rows[30] |= {"n": 0.5, "late": {"deep": [1]}}
    rows[35]["n"] = 3
    source = bulk_tools.write_lines(tmp_path / "in.jsonl", rows)
    source.write_text(source.read_text() + "\n")  # a blank line is no row
    embed_file(engine, source, tmp_path / "out.parquet", files=FileOptions(window=16))
    out = pq.read_table(tmp_path / "out.parquet")
    assert out.drop_columns(["embedding"]).to_pylist() == [{"late": None} | row for row in rows]
    assert np.array_equal(vectors_of(out), engine.encode([row["text"] for row in rows]))


def test_chosen_columns(engine: Engine, tmp_path: Path):
    rows = bulk_tools.table(20).rename_columns(["id", "body", "tags"])
    source = bulk_tools.write(tmp_path / "in.parquet", rows)
    files = FileOptions(column="body", keep=("tags", "id"))
    embed_file(engine, source, tmp_path / "out.parquet", files=files, options=EmbedOptions(into="v"))
    assert pq.read_table(tmp_path / "out.parquet").column_names == ["tags", "id", "v"]


@pytest.mark.parametrize(
    "kind", [pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())], ids=str
)
def test_every_type_of_texts(engine: Engine, tmp_path: Path, kind: pa.DataType):
    texts = bulk_tools.sentences(9)
    source = bulk_tools.write(tmp_path / "in.parquet", pa.table({"text": pa.array(texts).cast(kind)}))
    embed_file(engine, source, tmp_path / "out.parquet")
    out = pq.read_table(tmp_path / "out.parquet")
    assert out["text"].to_pylist() == texts and np.array_equal(vectors_of(out), engine.encode(texts))


@pytest.mark.parametrize("window", [4096, 7, 5])
def test_row_groups_with_dictionaries_of_their_own(engine: Engine, tmp_path: Path, window: int):
    texts = bulk_tools.sentences(15)
    schema = pa.schema([(name, pa.dictionary(pa.int32(), pa.string())) for name in ("text", "kind")])
    with pq.ParquetWriter(tmp_path / "in.parquet", schema) as writer:
        for begin in (0, 5, 10):
            group = pa.array(texts[begin : begin + 5]).dictionary_encode()
            writer.write_table(pa.Table.from_arrays([group, group], schema=schema))
    embed_file(engine, tmp_path / "in.parquet", tmp_path / "out.parquet", files=FileOptions(window=window))
    out = pq.read_table(tmp_path / "out.parquet")
    assert out.schema.field("kind").type == schema.field("kind").type
    assert out["text"].to_pylist() == out["kind"].to_pylist() == texts
    assert np.array_equal(vectors_of(out), engine.encode(texts))


def test_half_precision_and_width(engine: Engine, tmp_path: Path):
    texts = bulk_tools.sentences(30)
    source = bulk_tools.write(tmp_path / "in.parquet", pa.table({"text": texts}))
    options = EmbedOptions(vectors="float16", truncate_dim=64, normalize_embeddings=True)
    embed_file(engine, source, tmp_path / "out.parquet", options=options)
    out = pq.read_table(tmp_path / "out.parquet")
    assert out.schema.field("embedding").type == pa.list_(pa.float16(), 64)
    expected = engine.encode(texts, truncate_dim=64, normalize_embeddings=True).astype(np.float16)
    assert np.array_equal(vectors_of(out), expected)


def test_int8_codes_times_scale_are_the_vectors(engine: Engine, tmp_path: Path):
    texts = bulk_tools.sentences(30)
    source = bulk_tools.write(tmp_path / "in.parquet", pa.table({"text": texts}))
    embed_file(engine, source, tmp_path / "out.parquet", options=EmbedOptions(vectors="int8"))
    out = pq.read_table(tmp_path / "out.parquet")
    codes, scales = vectors_of(out).astype(np.float32), out["embedding_scale"].to_numpy()
    exact = engine.encode(texts)
    assert codes.min() >= -127 and np.abs(codes).max(axis=1).tolist() == [127] * len(texts)
    # Half a step is what rounding may cost; the last factor is that of float32's own rounding.
    assert (np.abs(codes * scales[:, None] - exact) <= scales[:, None] / 2 * (1 + 1e-5)).all()


def test_truncated_texts_are_counted(engine: Engine, tmp_path: Path):
    long = " ".join(["word"] * 2 * engine.max_length)
    source = bulk_tools.write(tmp_path / "in.parquet", pa.table({"text": ["short", long, long]}))
    with pytest.warns(UserWarning, match=f"2 of 3 texts have more than {engine.max_length} tokens"):
        report = embed_file(engine, source, tmp_path / "out.parquet")
    assert report.truncated == 2


def test_a_file_without_rows_gives_a_file_without_rows(engine: Engine, tmp_path: Path):
    source = bulk_tools.write(tmp_path / "in.parquet", bulk_tools.table(5).slice(0, 0))
    assert embed_file(engine, source, tmp_path / "out.parquet").rows == 0
    out = pq.read_table(tmp_path / "out.parquet")
    assert len(out) == 0 and out.column_names == ["id", "text", "tags", "embedding"]


def test_policies_choose_one_config_for_the_whole_job(engine: Engine, tmp_path: Path, cache: Path):
    source = bulk_tools.write(tmp_path / "in.parquet", bulk_tools.table(60))
    loss = embed_file(engine, source, tmp_path / "loss.parquet", MaxLoss(100))
    assert loss.length == min(engine.frontier.values(), key=lambda entry: entry.macs).name
    tight = embed_file(engine, source, tmp_path / "tight.parquet", LatencyBudget(0), files=FileOptions(window=16))
    cheapest = min(engine.frontier.values(), key=lambda entry: entry.macs).name
    assert tight.length == cheapest
    texts = bulk_tools.sentences(60)
    assert np.array_equal(vectors_of(pq.read_table(tmp_path / "tight.parquet")), engine.encode(texts, cheapest))
    loose = embed_file(engine, source, tmp_path / "loose.parquet", LatencyBudget(1e6))
    assert loose.length == "full"


@pytest.mark.filterwarnings("ignore:.*were cut there")
def test_labels(classifier: Engine, tmp_path: Path):
    texts = bulk_tools.sentences(50)
    source = bulk_tools.write(tmp_path / "in.parquet", pa.table({"id": range(50), "text": texts}))
    options = ClassifyOptions(top_k=2)
    classify_file(classifier, source, tmp_path / "out.parquet", options=options, files=FileOptions(window=16))
    out = pq.read_table(tmp_path / "out.parquet", columns=["id", "label", "score", "scores"]).to_pylist()
    expected = classifier.classify(texts, top_k=2)
    assert out == [{"id": i} | {k: row[k] for k in ("label", "score", "scores")} for i, row in enumerate(expected)]


@pytest.mark.filterwarnings("ignore:.*were cut there")
def test_labels_of_pairs_and_escalation(classifier: Engine, tmp_path: Path):
    texts = bulk_tools.sentences(24)
    source = bulk_tools.write(tmp_path / "in.parquet", pa.table({"text": texts, "other": texts[::-1]}))
    escalate = Escalate("fast", "full", 0.6)
    options = ClassifyOptions(pair_column="other")
    classify_file(classifier, source, tmp_path / "out.parquet", escalate, options=options)
    out = pq.read_table(tmp_path / "out.parquet")
    expected = classifier.classify(texts, texts[::-1], escalate)
    assert out["score"].to_pylist() == [row["score"] for row in expected]
    assert len({tuple(row["ran"]) for row in expected}) == 2  # so some were repeated, and some not


def test_commands(classifier: Engine, engine: Engine, tmp_path: Path):
    source = bulk_tools.write_lines(tmp_path / "in.jsonl", [{"id": i, "text": f"sentence {i}"} for i in range(5)])
    arguments = [
        "embed",
        str(source),
        str(tmp_path / "v.parquet"),
        "--columns",
        "id",
        "--length",
        "fast",
        "--json",
    ]
    done = cli_tools.run(*arguments)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["rows"], report["length"], report["resumed"]) == (5, "fast", 0)
    out = pq.read_table(tmp_path / "v.parquet")
    assert out.column_names == ["id", "embedding"]
    assert np.array_equal(vectors_of(out), engine.encode([f"sentence {i}" for i in range(5)], "fast"))
    labels = tmp_path / "labels.parquet"
    done = cli_tools.run(
        "classify", "--model", str(classifier.path), "--in", str(source), "--out", str(labels), "--top-k", "all"
    )
    assert done.returncode == 0, done.stderr
    assert "wrote 5 rows to" in done.stderr and done.stdout == ""
    assert pq.read_table(labels).column_names == ["id", "text", "label", "score", "scores"]
