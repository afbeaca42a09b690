"""The one reader of text files: what ends a line, what is no text, and how tables are split and understood."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
import warnings
from pathlib import Path

import pytest

from qla_runtime.errors import InputError
from qla_runtime.texts import data_sets
from qla_runtime.texts import files as text_files


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


# --- lines ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        (b"", []),
        (b"\n", [""]),
        (b"a", ["a"]),
        (b"a\n", ["a"]),
        (b"a\n\n", ["a", ""]),
        (b"a\n\nb\n", ["a", "", "b"]),
        (b"a\r\n\r\nb\r\n", ["a", "", "b"]),
        (b" a \t\n", [" a \t"]),
        (b"a\rb\n", ["a\rb"]),
        (b"a\r\r\nb", ["a\r", "b"]),
        (b"\xef\xbb\xbfa\nb", ["a", "b"]),
        ("\ufeffa\r\n\u00e9".encode("utf-16-le"), ["a", "\u00e9"]),
        ("\ufeffa\n\u00e9".encode("utf-16-be"), ["a", "\u00e9"]),
        ("a\u2028b\u2029c\u0085d\x0be\x0cf\x1cg\n".encode(), ["a\u2028b\u2029c\u0085d\x0be\x0cf\x1cg"]),
        (b"word " * 400_000 + b"\nb", ["word " * 400_000, "b"]),
    ],
)
def test_lines(tmp_path, content, lines):
    assert text_files.read_lines(write(tmp_path / "a.txt", content)) == lines


def test_standard_input(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xef\xbb\xbfa\r\n\r\nb")))
    assert text_files.read_lines("-") == ["a", "", "b"]
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(InputError, match="standard input is closed"):
        text_files.read_lines("-")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"caf\xe9\n", "line 1, byte 3 is no UTF-8"),
        (b"good\nb\xff\n", "line 2, byte 6 is no UTF-8"),
        (b"a\nb\0c", "line 2 holds a NUL byte"),
        ("a\n".encode("utf-32"), "NUL byte"),
        ("a\n".encode("utf-16-le"), "NUL byte"),  # no byte order mark says what it is
    ],
)
def test_no_text(tmp_path, content, words):
    with pytest.raises(InputError, match=words) as error:
        text_files.read_lines(write(tmp_path / "a.txt", content))
    assert "a.txt" in str(error.value)


def test_irregular_files_are_refused_at_once(tmp_path):
    fifo = tmp_path / "fifo.txt"
    os.mkfifo(fifo)
    for path, words in (
        (fifo, "is a FIFO"),
        (tmp_path, "is a folder"),
        ("/dev/zero", "is a device"),
        (tmp_path / "absent", "cannot be read"),
        ("a\0b", "cannot be read"),
    ):
        with pytest.raises(InputError, match=words):
            text_files.read_lines(path)
    (tmp_path / "link").symlink_to(write(tmp_path / "a.txt", "a\n"))
    assert text_files.read_lines(tmp_path / "link") == ["a"]


def test_size_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "MAX_BYTES", 3)
    assert text_files.read_lines(write(tmp_path / "a.txt", "abc")) == ["abc"]
    with pytest.raises(InputError, match="more than 3 bytes"):
        text_files.read_lines(write(tmp_path / "a.txt", "abcd"))


# --- tables ---------------------------------------------------------------------------------------


def cells(path: Path) -> list[tuple]:
    return [(row.line, *row.cells) for row in text_files.read_table(path).rows]


def test_tsv_takes_quotes_literally(tmp_path):
    path = write(tmp_path / "a.tsv", '"a\tb"\r\n\n c\t"d""\n')
    assert cells(path) == [(1, '"a', 'b"'), (3, " c", '"d""')]


def test_csv_quotes_commas_and_line_ends(tmp_path):
    path = write(tmp_path / "a.CSV", 'text,label\r\n"a, ""b""\nc\u2028",1\r\n\r\nd"e,0\n' + "x" * 200_000 + ",1")
    assert cells(path) == [
        (1, "text", "label"), (2, 'a, "b"\nc\u2028', "1"), (5, 'd"e', "0"), (6, "x" * 200_000, "1"),
    ]  # fmt: skip


def test_csv_bad_rows_are_named(tmp_path):
    table = text_files.read_table(write(tmp_path / "a.csv", 'text,label\n"a"b,1\nc,0\n"d,1\ne,0\n'))
    assert [row.cells for row in table.rows] == [("text", "label"), ("c", "0")]
    assert [row.line for row in table.bad] == [2, 4] and "up to line 5" in table.bad[1].reason


def test_json_lines(tmp_path):
    path = write(
        tmp_path / "a.jsonl", '\ufeff{"Text": "a", "label": 1}\n\n{"label": null, "Text": "b\u2028"}\n[1\n3\n'
    )
    table = text_files.read_table(path)
    assert table.header == ("text", "label")
    assert cells(path) == [(1, "a", 1), (3, "b\u2028", None)]
    assert [row.line for row in table.bad] == [4, 5]
    assert cells(write(tmp_path / "b.jsonl", '"a"\n["b", "c"]\n')) == [(1, "a"), (2, "b", "c")]
    assert cells(write(tmp_path / "b.json", '["a", "b"]')) == [(1, "a"), (2, "b")]
    for content in ("3", "{", "[" * 100_000, '{"data": 3}'):
        with pytest.raises(InputError, match=r"b\.json"):
            text_files.read_table(write(tmp_path / "b.json", content))


# --- labels ---------------------------------------------------------------------------------------

OBJECTS = '{"text": "a", "label": 1}\n{"text": "b", "label": 0}\n'
QQP = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n1\t2\t3\ta?\tb?\t0\n4\t5\t6\tc?\td?\t1\n"


@pytest.mark.parametrize(
    ("name", "content", "first"),
    [
        ("a.tsv", QQP, (("a?", "b?"), "0")),
        ("a.csv", 'sentence1,sentence2,label\n"a, b",c,yes\nd,e,no\n', (("a, b", "c"), "yes")),
        ("a.csv", "Text,Label\nit works,1\nno,0\n", ("it works", "1")),
        ("a.jsonl", OBJECTS, ("a", "1")),
        ("a.json", '[{"query": "a", "passage": "b", "label": 2}, {"query": "c", "passage": "d", "label": 0}]',
         (("a", "b"), "2")),
        ("a.json", '{"data": [{"sentence": "a", "label": "x"}, {"sentence": "b", "label": "y"}]}', ("a", "x")),
        ("msr.txt", "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t7\t8\ta\tb\n0\t7\t8\tc\td\n",
         (("a", "b"), "1")),
    ],
    ids=["QQP", "csv pairs", "csv", "jsonl", "json list", "json data", "MRPC"],
)  # fmt: skip
def test_labelled_layouts(tmp_path, name, content, first):
    data = data_sets.read_labelled(write(tmp_path / name, content))
    assert (data.texts[0], data.labels[0]) == first and len(data.texts) == 2 and not data.scores


@pytest.mark.parametrize(
    ("name", "header", "rows"),
    [
        ("a.tsv", "index\tsentence1\tsentence2\tlabel1\tgold_label", "{k}\ta {k}\tb\tneutral\t{label}"),
        ("a.jsonl", "", '{{"gold_label": "{label}", "sentence1": "a {k}", "sentence2": "b", "pairID": "{k}"}}'),
    ],
)
def test_snli_rows_without_a_gold_label_are_counted(tmp_path, name, header, rows):
    labels = ["entailment", "-", "neutral", "-", "contradiction"]
    lines = [header, *(rows.format(k=k, label=label) for k, label in enumerate(labels))]
    path = write(tmp_path / name, "\n".join(line for line in lines if line) + "\n")
    with pytest.warns(UserWarning, match="2 of 5 rows have no gold label"):
        data = data_sets.read_labelled(path)
    assert data.labels == ["entailment", "neutral", "contradiction"]
    assert data.texts == [("a 0", "b"), ("a 2", "b"), ("a 4", "b")]


def test_missing_labels_of_the_datasets_library(tmp_path):
    rows = [{"premise": f"a {k}", "hypothesis": "b", "label": label} for k, label in enumerate((0, -1, 2))]
    path = write(tmp_path / "snli.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    with pytest.warns(UserWarning, match="1 of 3"):
        assert data_sets.read_labelled(path).labels == ["0", "2"]
    # Elsewhere -1 is a class like any other.
    path = write(tmp_path / "moods.tsv", "text\tlabel\ngood\t1\nbad\t-1\nwell\t0\n")
    assert data_sets.read_labelled(path).labels == ["1", "-1", "0"]


@pytest.mark.parametrize(
    ("name", "rows", "bad", "words"),
    [
        ("qqp.tsv", QQP, "broken line\n", "line 4 has 1 columns and the header 6"),
        ("qqp.tsv", QQP, "7\t8\t9\te?\tf?\t1\textra\n", "line 4 has 7 columns and the header 6"),
        ("qqp.tsv", QQP, "7\t8\t9\te?\tf?\t\n", "line 4 has no label"),
        ("a.csv", "text,label\na,1\nb,0\n", '"c"d,1\n', "line 4 is no csv"),
        ("a.jsonl", OBJECTS, "{\n", "line 3 is no JSON"),
        ("a.jsonl", OBJECTS, '{"text": 3, "label": 0}\n', "has 3 in place"),
        ("a.jsonl", OBJECTS, '{"label": 0}\n', "lacks a text"),
        ("a.jsonl", OBJECTS, '{"text": "\\ud800", "label": 0}\n', "surrogate"),
    ],
)  # fmt: skip
def test_a_bad_row_is_named_and_can_be_skipped(tmp_path, name, rows, bad, words):
    path = write(tmp_path / name, rows + bad)
    with pytest.raises(InputError, match=words) as error:
        data_sets.read_labelled(path)
    assert name in str(error.value) and "--skip-bad-rows" in str(error.value)
    with pytest.warns(UserWarning, match="skipped 1 of 3 rows"):
        assert len(data_sets.read_labelled(path, skip_bad_rows=True).texts) == 2


def test_nothing_but_bad_rows(tmp_path):
    path = write(tmp_path / "a.tsv", "text\tlabel\nx\ny\n")
    with pytest.raises(InputError, match="line 2 has 1 columns and the header 2, and 1 more rows are bad"):
        data_sets.read_labelled(path)
    with pytest.raises(InputError, match="every row is bad"):
        data_sets.read_labelled(path, skip_bad_rows=True)
    for content, words in (
        ("", "is empty"),
        ("text\tlabel\n", "no rows"),
        ("a\tb\nc\td\n", "names no label column"),
    ):
        with pytest.raises(InputError, match=words):
            data_sets.read_labelled(write(path, content))


# --- pairs with scores ----------------------------------------------------------------------------

STS = "main\tx\t2012\t1\t{score}\ta {k}\tb\tlicence\tsource\n"


def test_scored_pairs(tmp_path):
    path = write(tmp_path / "sts.csv", "".join(STS.format(k=k, score=k) for k in range(3)).replace("\n", "\r\n"))
    want = [0.0, 1.0, 2.0], ["a 0", "a 1", "a 2"], ["b", "b", "b"]
    assert data_sets.read_scored_pairs(path) == want
    named = "index\tsentence1\tsentence2\tscore\n" + "".join(f"{k}\ta {k}\tb\t{k}\n" for k in range(3))
    assert data_sets.read_scored_pairs(write(tmp_path / "glue.tsv", named)) == want
    rows = "".join(json.dumps({"sentence1": f"a {k}", "sentence2": "b", "score": k}) + "\n" for k in range(3))
    assert data_sets.read_scored_pairs(write(tmp_path / "sts.jsonl", rows)) == want


def test_scored_pairs_with_bad_rows(tmp_path):
    good = "".join(STS.format(k=k, score=k) for k in range(2))
    for bad, words in (
        ("short\n", "line 3 has 1 columns"),
        (STS.format(k=2, score="nan"), "line 3 has the score 'nan'"),
    ):
        path = write(tmp_path / "sts.csv", good + bad)
        with pytest.raises(InputError, match=words):
            data_sets.read_scored_pairs(path)
        with pytest.warns(UserWarning, match="skipped 1 of 3"):
            assert data_sets.read_scored_pairs(path, skip_bad_rows=True)[0] == [0.0, 1.0]
    with pytest.raises(InputError, match="at least 2"):
        data_sets.read_scored_pairs(write(path, STS.format(k=0, score=1)))


# --- texts alone ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "texts"),
    [
        ("a.txt", "one\n\n  \ntwo\u2028x\n", [("one", None), ("two\u2028x", None)]),
        ("a.TXT", "one\n", [("one", None)]),
        ("a", "one\n", [("one", None)]),
        ("a.tsv", "a\nb\n", [("a", None), ("b", None)]),
        ("a.tsv", "a\tb\u2028c\nd\te\u0085\n", [("a", "b\u2028c"), ("d", "e\u0085")]),
        ("a.tsv", "index\tsentence1\tsentence2\tlabel\n0\ta\tb\tyes\n", [("a", "b")]),
        ("a.csv", 'text,text_pair\n"a, b",c\n', [("a, b", "c")]),
        ("a.csv", '"a, b","c"\nd,e\n', [("a, b", "c"), ("d", "e")]),
        ("a.csv", STS.format(k=1, score=2), [("a 1", "b")]),
        ("a.tsv", "gj04\t1\t\tThe sailors rode.\n", [("The sailors rode.", None)]),
        ("a.jsonl", '{"text": "a"}\n{"text": "b", "label": 3}\n', [("a", None), ("b", None)]),
        ("a.jsonl", '"a"\n"b"\n', [("a", None), ("b", None)]),
        ("a.json", '[{"question": "q?", "context": "c"}]', [("q?", "c")]),
        (
            "a.json",
            '\ufeff{"data": [{"paragraphs": [{"context": "c", "qas": [{"question": "q?"}]}]}]}',
            [("q?", "c")],
        ),
    ],
)
def test_texts(tmp_path, name, content, texts):
    assert data_sets.read_texts(write(tmp_path / name, content)) == texts


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", "\n \n", "holds no text"),
        ("a.tsv", "", "holds no text"),
        ("a.tsv", "a\tb\nno tab\n", "line 2 has 1 columns and should have 2"),
        ("a.tsv", "a\nb\tc\n", "line 2 has 2 columns and should have 1"),
        ("a.tsv", "a\tb\tc\n", "names no text column"),
        ("a.json", '{"data": [{"paragraphs": 3}]}', "data\\[0\\]: has no list 'paragraphs'"),
        ("a.json", "{", "no JSON"),
        ("a.parquet", "x", "must be"),
    ],
)
def test_bad_texts(tmp_path, name, content, words):
    with pytest.raises(InputError, match=words):
        data_sets.read_texts(write(tmp_path / name, content))


def test_sentences_are_both_texts_of_a_pair(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert data_sets.read_sentences(write(tmp_path / "a.tsv", "a\tb\nc\td\n")) == ["a", "b", "c", "d"]


def test_csv_leaves_the_limit_of_other_readers_alone(tmp_path):
    before = csv.field_size_limit()
    path = tmp_path / "long.csv"
    path.write_text("text,label\n" + "x" * (before + 1) + ",1\n")
    assert len(text_files.read_table(path).rows[1].cells[0]) == before + 1
    assert csv.field_size_limit() == before
