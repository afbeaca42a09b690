"""Corpora: streamed, cut at borders of lines and documents, in shards; read again from where it stopped."""

from __future__ import annotations

import gzip
import json
import lzma
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (pip install 'qla_runtime[train]')")
pytest.importorskip("transformers", reason="transformers is not installed")

from checkpoint_tools import save_checkpoint  # noqa: E402
from minilm_tools import LOOP, V1, V2, corpus, distil  # noqa: E402
from training_tools import assert_same_run, saved  # noqa: E402

import qla_runtime  # noqa: E402
from qla_runtime.errors import InputError  # noqa: E402
from qla_runtime.texts import streams  # noqa: E402
from qla_runtime.texts.tokenizer import TextRules, open_tokenizer  # noqa: E402
from qla_runtime.training import corpus as corpora  # noqa: E402
from qla_runtime.training.corpus import open_corpus  # noqa: E402
from qla_runtime.training.loop import Loop  # noqa: E402


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("teacher") / "t", "Bert", "embedding")


@pytest.fixture(scope="module")
def tokenizer(teacher):
    return open_tokenizer((teacher / "tokenizer.json").read_text(), TextRules())


def words(*numbers: int) -> str:
    return " ".join(f"w{number}" for number in numbers)


def sequences(tokenizer, folder: Path, *paths: Path, max_length: int = 8) -> list[list[int]]:
    """The ids of every sequence, without [CLS] and [SEP], which are looked at here."""
    found = open_corpus(paths, folder, tokenizer, max_length, 100, False)
    rows = []
    for shard in found.shards:
        for begin, end in zip(shard.ragged.offsets[:-1], shard.ragged.offsets[1:], strict=True):
            first, *row, last = shard.ragged.ids[begin:end].tolist()
            assert (first, last) == (0, 2) and len(row) <= max_length - 2
            rows.append(row)
    return rows


def test_sequences_end_at_lines_and_documents(tokenizer, tmp_path):
    path = tmp_path / "a.txt"
    lines = [
        words(4, 5, 6),
        words(7, 8),
        words(9, 10),
        "",
        words(11),
        "",
        "",
        words(12, 13),
        words(*range(20, 33)),
    ]
    path.write_text("\r\n".join(lines))
    assert sequences(tokenizer, tmp_path / "c", path) == [
        [4, 5, 6, 7, 8], [9, 10], [11], [12, 13], [*range(20, 26)], [*range(26, 32)], [32],
    ]  # fmt: skip


def test_files_end_documents_and_may_be_compressed(tokenizer, tmp_path):
    paths = [tmp_path / name for name in ("a.txt", "b.txt.xz", "c.TXT.GZ")]
    paths[0].write_bytes(b"\xef\xbb\xbf" + words(4, 5).encode())
    paths[1].write_bytes(lzma.compress(words(6).encode()))
    paths[2].write_bytes(gzip.compress(f"{words(7)}\n{words(8)}\n".encode("utf-16")))
    assert sequences(tokenizer, tmp_path / "c", *paths) == [[4, 5], [6], [7, 8]]


def test_blocks_of_any_size_give_the_same_lines(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    text = "eins\n\nzwölf €\n" * 5 + "\U0001f600 end"
    path.write_text(text)
    for size in (1, 2, 3, 7, 1000):
        monkeypatch.setattr(streams, "_BLOCK", size)
        assert list(streams.stream_lines(path)) == text.split("\n")


def test_shards_hold_what_one_file_would(tokenizer, tmp_path, monkeypatch):
    """A shard ends at the end of a line; nothing is lost or doubled, and a plan has every sequence once."""
    path = corpus(tmp_path / "a.txt")
    whole = sequences(tokenizer, tmp_path / "one", path)
    monkeypatch.setattr(corpora, "SHARD_TOKENS", 50)
    monkeypatch.setattr(corpora, "_LINES", 7)
    parts = sequences(tokenizer, tmp_path / "many", path)
    assert sum(whole, []) == sum(parts, [])
    found = open_corpus([path], tmp_path / "many", tokenizer, 8, 100, False)
    assert len(found.shards) > 5 and len(found) == len(parts) and found.tokens == sum(len(p) + 2 for p in parts)
    plan = found.plan(64, np.random.default_rng(1))
    assert sorted(np.concatenate(plan).tolist()) == list(range(len(found)))
    again = found.plan(64, np.random.default_rng(1))
    assert all(np.array_equal(one, other) for one, other in zip(plan, again, strict=True))
    other = found.plan(64, np.random.default_rng(2))
    assert [p.tolist() for p in plan] != [p.tolist() for p in other]
    for rows in plan:
        batch = found.batch(rows)
        assert [ids[mask][1:-1].tolist() for ids, mask in zip(batch.input_ids, batch.mask, strict=True)] == [
            parts[row] for row in rows
        ]
        assert batch.mask.numel() <= 64 and not batch.token_type_ids.any() and batch.rows is rows


@pytest.mark.parametrize("at", [0, 1, 4])
def test_tokenizing_continues_behind_the_last_shard(tokenizer, tmp_path, monkeypatch, at):
    path = corpus(tmp_path / "a.txt")
    monkeypatch.setattr(corpora, "SHARD_TOKENS", 50)
    whole = sequences(tokenizer, tmp_path / "whole", path)
    write = corpora._write_shard

    def killed(folder, number, *arguments):
        if number == at:
            np.save(folder / f"shard-{number:05d}.ids.npy", np.zeros(3, np.uint16))  # torn: no facts yet
            raise SystemExit
        write(folder, number, *arguments)

    monkeypatch.setattr(corpora, "_write_shard", killed)
    with pytest.raises(SystemExit):
        open_corpus([path], tmp_path / "c", tokenizer, 8, 100, False)
    monkeypatch.setattr(corpora, "_write_shard", write)
    assert sequences(tokenizer, tmp_path / "c", path) == whole
    for file in (tmp_path / "whole").iterdir():
        assert file.read_bytes() == (tmp_path / "c" / file.name).read_bytes()


def test_texts_are_read_once(tokenizer, tmp_path):
    path = corpus(tmp_path / "a.txt")
    first = sequences(tokenizer, tmp_path / "c", path)
    path.unlink()
    assert sequences(tokenizer, tmp_path / "c", path) == first


def test_an_endless_line_is_cut_in_bounded_memory(tmp_path):
    path = tmp_path / "a.txt.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        for _ in range(1000):
            file.write(b"word " * 13_107)  # 64 MB in all
    tracemalloc.start()
    lengths, characters = set(), 0
    for line in streams.stream_lines(path):
        lengths.add(len(line))
        characters += len(line)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert characters == 1000 * 5 * 13_107 and peak < 12 * streams._BLOCK
    assert max(lengths) <= streams.LINE_CHARACTERS and min(sorted(lengths)[1:]) > streams.LINE_CHARACTERS - 10
    path.write_bytes(gzip.compress(b"x" * 200_000))  # without a space to cut at
    assert [len(line) for line in streams.stream_lines(path)] == [65536, 65536, 65536, 200_000 - 3 * 65536]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "a.txt: no text in it; give a corpus"),
        ("a.txt", b"\n \n\r\n", "a.txt: no text in it"),
        ("a.txt", b"one\ntwo\n\xff\xd8\xff\xe0 jpeg", "line 3, byte 8 is no UTF-8"),
        ("a.txt", b"cut \xe2\x82", "line 1, byte 4 is no UTF-8"),
        ("a.txt", b"ELF\n\0\0", "line 2 holds a NUL byte, as binary files do"),
        ("a.txt.xz", b"plain", "cannot be decompressed .*whole .xz"),
        ("a.txt.gz", b"plain", "cannot be decompressed"),
        ("a.txt.xz", lzma.compress(b"word " * 5000)[:-20], "cannot be decompressed"),
        ("a.txt.gz", gzip.compress(os.urandom(5000).hex().encode())[:-2000], "cannot be decompressed"),
    ],
)
def test_what_is_no_text(teacher, tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        distil(teacher, path, tmp_path / "run", options=V2)
    # The folder is no dead end: the same command with a good file begins anew.
    assert distil(teacher, corpus(tmp_path / "b.txt"), tmp_path / "run", options=V2)["steps"] == LOOP.steps


def test_what_is_no_file(teacher, tmp_path):
    with pytest.raises(InputError, match="no such file"):
        distil(teacher, tmp_path / "no.txt", tmp_path / "run", options=V2)
    with pytest.raises(InputError, match="is a folder"):
        distil(teacher, tmp_path, tmp_path / "run", options=V2)


# ---------------------------------------------------------------------------------------- resuming


@pytest.mark.parametrize("options", [V1, V2])
def test_killed_and_continued_equals_uninterrupted(teacher, tmp_path, monkeypatch, options):
    text = corpus(tmp_path / "a.txt")
    monkeypatch.setattr(corpora, "SHARD_TOKENS", 200)
    distil(teacher, [text, text], tmp_path / "whole", options=options)
    assert len(list((tmp_path / "whole" / "corpus").glob("*.ids.npy"))) > 2
    advance = Loop._advance

    def killed(self, stream, steps):
        if self._step == 2:
            next(stream)
            torch.rand(100)
            raise SystemExit
        return advance(self, stream, steps)

    monkeypatch.setattr(Loop, "_advance", killed)
    with pytest.raises(SystemExit):
        distil(teacher, [text, text], tmp_path / "run", options=options)
    monkeypatch.setattr(Loop, "_advance", advance)
    distil(teacher, [text, text], tmp_path / "run", options=options)
    assert_same_run(tmp_path / "run", tmp_path / "whole")
    final = "final/model.safetensors"
    assert (tmp_path / "run" / final).read_bytes() == (tmp_path / "whole" / final).read_bytes()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(max_length=16), "max_length was 24 and is now 16"),
        (dict(options=V1), "relations was 'v2' and is now 'v1'"),
    ],
)
def test_other_settings_are_refused(teacher, tmp_path, changes, message):
    text = corpus(tmp_path / "a.txt")
    distil(teacher, text, tmp_path / "run", options=V2)
    with pytest.raises(InputError, match=message):
        distil(teacher, text, tmp_path / "run", **{"options": V2, **changes})
    text.write_text(text.read_text() + "w4 w5")
    with pytest.raises(InputError, match="data was"):
        distil(teacher, text, tmp_path / "run", options=V2)
    assert saved(tmp_path / "run")[1]["step"] == LOOP.steps


def test_settings_may_change_while_nothing_is_learned(teacher, tmp_path, monkeypatch):
    """The shards of the old settings go."""
    text = corpus(tmp_path / "a.txt")
    monkeypatch.setattr(Loop, "_advance", lambda *_: (_ for _ in ()).throw(SystemExit))
    with pytest.raises(SystemExit):
        distil(teacher, text, tmp_path / "run", options=V2)
    monkeypatch.undo()
    distil(teacher, text, tmp_path / "run", options=V2, max_length=12)
    ends = np.load(tmp_path / "run" / "corpus" / "shard-00000.ends.npy")
    assert np.diff(ends).max() == 12


def test_the_command(teacher, tmp_path):
    texts = [corpus(tmp_path / "a.txt"), corpus(tmp_path / "b.txt", 10)]
    done = subprocess.run(
        [
            sys.executable, "-m", "qla_runtime.cli", "train", "minilm", teacher, *texts, tmp_path / "run",
            "--steps", "3", "--student-layers", "1", "--copy-layers", "2", "--relations", "v1", "--json",
            "--batch-tokens", "256", "--max-length", "24", "--log-steps", "1",
        ],
        capture_output=True, check=True,
        env=os.environ | {"PYTHONPATH": str(Path(qla_runtime.__file__).parents[1])},
    )  # fmt: skip
    assert json.loads(done.stdout)["steps"] == 3
    entries = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert all(entry["tokens_per_second"] > 0 for entry in entries)
    assert [entry["seconds_left"] > 0 for entry in entries] == [True, True, False]
    facts = json.loads((tmp_path / "run" / "run.json").read_text())["settings"]
    assert facts["copied"] == [2] and len(facts["data"]) == 2


def test_an_id_that_a_model_lacks(tokenizer, tmp_path):
    path = tmp_path / "a.txt"
    path.write_text(words(5, 60))
    with pytest.raises(InputError, match="token id 60, and vocab_size is 50"):
        open_corpus([path], tmp_path / "c", tokenizer, 8, 50, False)
