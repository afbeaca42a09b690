"""Token classification: a CoNLL file trains a tagger, in float and with roundings, and the engine runs it."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (pip install 'qla_runtime[train]')")
pytest.importorskip("transformers", reason="transformers is not installed")

from checkpoint_tools import save_checkpoint  # noqa: E402
from training_tools import LOOP, LOSS, SANDWICH, batch_of, train  # noqa: E402

from qla_runtime import Engine  # noqa: E402
from qla_runtime.checkpoints.reader import open_checkpoint  # noqa: E402
from qla_runtime.convert import convert  # noqa: E402
from qla_runtime.errors import InputError  # noqa: E402
from qla_runtime.evaluation.tagging import read_conll, tagging  # noqa: E402
from qla_runtime.training.data import UNTAGGED  # noqa: E402
from qla_runtime.training.distillation import prediction_loss  # noqa: E402
from qla_runtime.training.losses import divergence, task_loss  # noqa: E402
from qla_runtime.training.recipes.qat import QatOptions  # noqa: E402
from qla_runtime.training.run_folder import read_log  # noqa: E402
from qla_runtime.training.start import Start  # noqa: E402

TAGS = ("O", "B-LOC", "I-LOC", "B-PER", "I-PER")


def conll(path: Path, sentences: int = 40) -> Path:
    """Words below w30 are nothing, below w60 places, else people; two of a kind in a row are one entity."""
    rows = []
    for i in range(sentences):
        before = ""
        for j in range(4 + i % 5):
            number = 4 + (i * 13 + j * j * 7) % 90
            kind = "" if number < 30 else "LOC" if number < 60 else "PER"
            rows.append(f"w{number} {('I-' if kind == before else 'B-') + kind if kind else 'O'}")
            before = kind
        rows.append("")
    path.write_text("\n".join(rows))
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return conll(tmp_path_factory.mktemp("data") / "train.conll")


@pytest.fixture(scope="module")
def tagger(tmp_path_factory) -> Path:
    names = dict(enumerate(TAGS))
    return save_checkpoint(
        tmp_path_factory.mktemp("start") / "tagger", "Bert", "token-classification", id2label=names,
        label2id={name: i for i, name in names.items()},
    )  # fmt: skip


def test_the_first_piece_of_a_word_has_its_tag(tagger, tmp_path):
    """Pieces of "w5 xx ?!": [CLS], w, 5, ?, !, [SEP]. This tokenizer drops every x, so "xx" has no piece."""
    folder = tmp_path / "pieces"
    folder.mkdir()
    for path in tagger.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    content = json.loads((tagger / "tokenizer.json").read_text())
    content["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": r"\s|x"}, "behavior": "Removed", "invert": False},
            {"type": "Split", "pattern": {"Regex": r"."}, "behavior": "Isolated", "invert": False},
        ],
    }
    (folder / "tokenizer.json").write_text(json.dumps(content))
    file = tmp_path / "t.conll"
    file.write_text("w5 B-LOC\nxx I-LOC\n?! O\n\nw6 I-PER\n")
    start = Start.open(folder, file, max_length=16)
    features = start.features(start.tokenizer(tmp_path), False)
    none = UNTAGGED
    expected = [[none, 1, none, 0, none, none], [none, 4, none, none]]
    assert features.tags.tolist() == [tag for row in expected for tag in row]
    batch = features.batch(np.array([1, 0]))
    assert batch.labels[0].tolist() == expected[1] + [none] * 12
    assert batch.labels[1].tolist() == expected[0] + [none] * 10


def test_losses_by_hand(tagger):
    """Means over the two tokens that have a tag; neither padding nor other pieces count."""
    task = open_checkpoint(tagger).task
    batch = batch_of(
        [[True] * 4, [True] * 2 + [False] * 2], torch.tensor([[-100, 1, -100, -100], [-100, 3, -100, -100]])
    )
    ours, theirs = torch.randn(2, 2, 4, 5, generator=torch.Generator().manual_seed(0))
    p, q = ([[math.exp(v) for v in x[row, 1].tolist()] for row in (0, 1)] for x in (ours, theirs))
    p, q = ([[v / sum(row) for v in row] for row in rows] for rows in (p, q))
    labels = -(math.log(p[0][1]) + math.log(p[1][3])) / 2
    apart = sum(b * math.log(b / a) for x, y in zip(p, q, strict=True) for a, b in zip(x, y, strict=True)) / 2
    soft = -sum(b * math.log(a) for x, y in zip(p, q, strict=True) for a, b in zip(x, y, strict=True)) / 2
    assert task_loss(task, ours, batch).item() == pytest.approx(labels, rel=LOSS)
    assert divergence(task, ours, theirs, batch).item() == pytest.approx(apart, rel=LOSS)
    assert prediction_loss(task, ours, theirs, batch).item() == pytest.approx(soft, rel=LOSS)
    nothing = replace(batch, labels=torch.full((2, 4), UNTAGGED))
    assert task_loss(task, ours, nothing).item() == 0


def test_a_tagger_from_an_encoder_then_ternary(data, tmp_path):
    """Fine-tuned from an encoder without a head, by length-drop; then by qat; then the engine tags by it."""
    start = save_checkpoint(tmp_path / "start", "Bert", "embedding")
    loop = replace(LOOP, steps=40, learning_rate=3e-3, train_word_embeddings=True)
    options = replace(SANDWICH, random_passes=0, layer_drop=0.0)
    first = tmp_path / "float"
    out = train(start, data, first, task="token-classification", options=options, loop=loop, assess_file=data)
    before, after = (entry["accuracy"]["f1 full"] for entry in read_log(first) if "accuracy" in entry)
    assert after > 90 > before
    assert open_checkpoint(out["checkpoint"]).task.labels == TAGS

    qat = QatOptions(bits="w2a8", batch_tokens=256, length_drop=True)
    loop = replace(LOOP, steps=20, learning_rate=3e-3)
    trained = train(out["checkpoint"], data, tmp_path / "qat", options=qat, loop=loop)["checkpoint"]
    convert(trained, tmp_path / "package", progress=False)
    with Engine(tmp_path / "package") as engine:
        assert engine.labels == TAGS
        assert tagging(engine, read_conll(data)).f1 > 80


def test_bad_tags(tagger, data, tmp_path):
    for content, message in (
        ("w5 O\nw6 O\n", "every word has the tag 'O'; there is nothing to learn"),
        ("w5 O\nw6 B-ORG\n", "tag 'B-ORG' is none that the checkpoint's head gives .O, B-LOC.*--new-head"),
        ("w5 O\nw6\n", "line 2 has no tag beside its word"),
        ("\n\n", "holds no sentence"),
    ):
        file = tmp_path / "bad.conll"
        file.write_text(content)
        with pytest.raises(InputError, match=message):
            train(tagger, file, tmp_path / "run")
        assert not (tmp_path / "run").exists()
    (tmp_path / "bad.conll").write_text("w5 O\nw6\n\nw5 O\nw6 B-LOC\n")
    with pytest.warns(UserWarning, match="left out sentences"):
        train(tagger, tmp_path / "bad.conll", tmp_path / "run", skip_bad_rows=True, loop=replace(LOOP, steps=1))
