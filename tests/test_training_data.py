"""From files to batches, and which files, heads and teachers training refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (pip install 'qla_runtime[train]')")

from checkpoint_tools import save_checkpoint  # noqa: E402
from training_tools import answerer, squad, started, train  # noqa: E402

from qla_runtime.errors import InputError  # noqa: E402
from qla_runtime.ragged import Ragged  # noqa: E402
from qla_runtime.texts.data_sets import read_labelled  # noqa: E402
from qla_runtime.texts.squad import read_spans  # noqa: E402
from qla_runtime.training.data import Features  # noqa: E402


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return answerer(tmp_path_factory.mktemp("start"))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return squad(tmp_path_factory.mktemp("data") / "train.json")


def test_plan_takes_every_feature_once_within_the_budget():
    lengths = np.random.default_rng(0).integers(3, 100, 500)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ids = np.zeros(offsets[-1], np.int32)
    features = Features(Ragged(ids, offsets, ids), None, limit=512)
    plan = features.plan(512, np.random.default_rng(7))
    assert sorted(np.concatenate(plan)) == list(range(500))
    padded = [len(rows) * features.batch(rows).mask.shape[1] for rows in plan]
    assert max(padded) <= 512 and np.mean(padded) > 420
    assert all(features.batch(rows).mask.shape[1] % 16 == 0 for rows in plan)
    again, other = (features.plan(512, np.random.default_rng(seed)) for seed in (7, 8))
    assert all(np.array_equal(a, b) for a, b in zip(plan, again, strict=True))
    assert not np.array_equal(np.concatenate(plan), np.concatenate(other))


def test_windows_point_to_the_answer_or_to_cls(checkpoint, tmp_path):
    """Window by window: the labelled tokens spell the answer; without the whole answer they are [CLS]."""
    path = squad(tmp_path / "long.json", articles=1, context_words=60)
    start, features = started(checkpoint, path)
    vocabulary = json.loads(start.source.tokenizer_json)["model"]["vocab"]
    words = {number: word for word, number in vocabulary.items()}
    window, found = 0, 0
    for question in start.items:
        answer = question.context[question.start : question.end].split()
        for _ in range(100):
            begin, end = features.ragged.offsets[window : window + 2]
            tokens = [words[int(i)] for i in features.ragged.ids[begin:end]]
            context = tokens[tokens.index("[SEP]") + 1 : -1]
            first, last = features.labels[window]
            inside = any(context[i : i + 2] == answer for i in range(len(context)))
            assert tokens[first : last + 1] == (answer if inside else ["[CLS]"])
            found += inside
            window += 1
            if context[-1] == question.context.split()[-1]:  # the last window of a question
                break
    assert window == len(features) and len(start.items) < found < window


def test_framing_is_all_but_the_context(checkpoint, data):
    start, features = started(checkpoint, data)
    batch = features.batch(np.arange(7))
    for row in range(7):
        n = int(batch.mask[row].sum())
        types, framing = batch.token_type_ids[row, :n], batch.framing[row]
        assert framing[:n].tolist() == [t == 0 or i == n - 1 for i, t in enumerate(types.tolist())]
        assert not framing[n:].any()


@pytest.mark.parametrize(
    ("content", "first"),
    [
        ("sentence\tlabel\nit works\t1\nno\t0\n", ("it works", "1")),
        ("index\tsentence1\tsentence2\tlabel\n0\ta\tb\tyes\n1\tc\td\tno\n", (("a", "b"), "yes")),
        ("index\tquestion\tsentence\tlabel\n0\ta\tb\tyes\n1\tc\td\tno\n", (("a", "b"), "yes")),
        ("Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t7\t8\t\"a\tb\n0\t7\t8\tc\td\n", (('"a', "b"), "1")),
        ("gj04\t1\t\tThe sailors rode.\nr\t0\t*\tRode the.\n", ("The sailors rode.", "1")),
    ],
    ids=["SST-2", "RTE", "QNLI", "MRPC", "CoLA"],
)  # fmt: skip
def test_glue_layouts(tmp_path, content, first):
    path = tmp_path / "train.tsv"
    path.write_text(content)
    data = read_labelled(path)
    assert (data.texts[0], data.labels[0]) == first and len(data.labels) == 2 and not data.scores


def test_answer_that_stands_elsewhere_is_found(tmp_path):
    path = squad(tmp_path / "a.json", articles=1)
    content = json.loads(path.read_text())
    answer = content["data"][0]["paragraphs"][0]["qas"][3]["answers"][0]
    right = answer["answer_start"]
    answer["answer_start"] += 1
    path.write_text(json.dumps(content))
    assert read_spans(path)[3].start == right


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "{", "no JSON.*give a SQuAD 1.1 file"),
        ("a.json", "[]", "has no list 'data'"),
        ("a.json", '{"data": []}', "holds no questions"),
        ("a.json", '{"data": [{"paragraphs": [{"context": "w5", "qas": [{"question": "w5", "answers": []}]}]}]}',
         r"data\[0\].paragraphs\[0\].qas\[0\]: has no answers"),
        ("a.json", '{"data": [{"paragraphs": [{"context": "w5", "qas": [{"question": "w5"}]}]}]}', "answers"),
        ("a.json", '{"data": [{"paragraphs": [{"context": "w5", "qas": [{"question": "w5", "answers": '
         '[{"text": "w7", "answer_start": 0}]}]}]}]}', "does not hold the answer 'w7'"),
        ("a.json", '{"data": [{"paragraphs": [{"context": "w5", "qas": [{"question": 5, "answers": '
         '[{"text": "w5", "answer_start": 0}]}]}]}]}', "has no text 'question'"),
        ("a.json", '{"data": [{"paragraphs": [{"context": "w5", "qas": [{"question": "w5", "answers": '
         '[{"text": "w5", "answer_start": "0"}]}]}]}]}', r"answers\[0\]: has no number 'answer_start'"),
        ("a.tsv", "", "is empty"),
        ("a.tsv", "a\tb\nc\td\n", "names no label column"),
        ("a.tsv", "sentence\tlabel\n", "no rows"),
        ("a.tsv", "sentence\tlabel\nw5\t1\nw6\n", "line 3 has 1 columns"),
        ("a.tsv", "sentence\tlabel\nw5\t1\nw6\t1\n", "every row has the label '1'"),
        ("a.tsv", "sentence\tlabel\nw5\t1\nw6\t7\n", "label '7' is none that the checkpoint's head gives"),
        ("a.txt", "\n \n", "holds no text"),
        ("a.json", b"\xff\xff", "no UTF-8"),
        ("missing.json", None, "cannot be read"),
    ],
)  # fmt: skip
def test_bad_data(tmp_path, name, content, message):
    kinds = {".json": "span-qa", ".tsv": "sequence-classification", ".txt": "embedding"}
    start = save_checkpoint(tmp_path / "start", "Bert", kinds[Path(name).suffix])
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=message):
        train(start, path, tmp_path / "run", task=kinds[path.suffix])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("own", "task", "message"),
    [
        ("sequence-classification", "span-qa", "its head is for sequence-classification.*--new-head"),
        ("span-qa", "embedding", "its head is for span-qa.*sentence encoder"),
        ("embedding", None, r"\(task=, --task\)"),
    ],
)
def test_head_that_does_not_fit(tmp_path, data, own, task, message):
    start = save_checkpoint(tmp_path / "start", "Bert", own)
    with pytest.raises(InputError, match=message):
        train(start, data, tmp_path / "run", task=task)


def test_teacher_with_another_tokenizer(checkpoint, data, tmp_path):
    teacher = save_checkpoint(tmp_path / "teacher", "Roberta", "span-qa")
    with pytest.raises(InputError, match="tokenizer is not the student's"):
        train(checkpoint, data, tmp_path / "run", teacher=teacher)
