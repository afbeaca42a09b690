"""Which texts are compared, what the report measures, and what a card says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (pip install 'qla_runtime[convert]')")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

from checkpoint_tools import HEADS  # noqa: E402

from qla_runtime.checkpoints.reader import open_checkpoint  # noqa: E402
from qla_runtime.convert import calibration, report  # noqa: E402
from qla_runtime.errors import InputError  # noqa: E402
from qla_runtime.model import card  # noqa: E402
from qla_runtime.model.spec import TaskSpec  # noqa: E402
from qla_runtime.texts import data_sets  # noqa: E402


def test_reads_squad_texts(tmp_path):
    def write(name: str, content: str) -> Path:
        path = tmp_path / name
        path.write_text(content)
        return path

    squad = {"data": [{"paragraphs": [{"context": c, "qas": [{"question": f"{c}?"}]}]} for c in "xyz"]}
    path = write("a.json", json.dumps(squad))
    assert data_sets.read_texts(path) == [("x?", "x"), ("y?", "y"), ("z?", "z")]
    assert data_sets.read_texts(path, articles="odd") == [("x?", "x"), ("z?", "z")]
    with pytest.raises(InputError, match="cannot be read"):
        data_sets.read_texts(tmp_path / "absent.txt")
    with pytest.raises(InputError, match="articles"):
        data_sets.read_texts(path, articles="even")


def test_picks_samples(texts, qa_checkpoint):
    def pick():
        pairs = data_sets.read_texts(texts)
        tokenizer = open_checkpoint(qa_checkpoint).tokenizer_json
        return calibration.pick_samples(pairs, tokenizer, max_length=30, type_vocab_size=2, calibrate=10, check=5)

    samples, again = pick(), pick()
    assert samples.held_out and (len(samples.calibrate), len(samples.check)) == (10, 5)
    rows = [sample.ids.tolist() for sample in samples.calibrate]
    assert rows == [sample.ids.tolist() for sample in again.calibrate]
    assert not any(sample.ids.tolist() in rows for sample in samples.check)
    counts = [len(row) for row in rows]
    assert counts == sorted(counts) and counts[0] < 10 and counts[-1] == 30
    sample = samples.calibrate[3]
    assert sample.ids.dtype == sample.type_ids.dtype == np.int32
    # [CLS] two words [SEP] context [SEP]
    assert sample.is_context.tolist() == [4 <= i < len(sample.ids) - 1 for i in range(len(sample.ids))]


@pytest.mark.parametrize("kind", HEADS)
def test_report_measures_agreement(kind):
    task = _task(kind)
    ids = np.arange(12, dtype=np.int32)
    samples = [calibration.Sample(ids, ids * 0, ids > 3)] * 3
    rng = np.random.default_rng(2)
    columns = task.outputs or 8
    shape = (12, columns) if kind in ("span-qa", "token-classification") else (columns,)
    results = [(rng.standard_normal((12, 8)), rng.standard_normal(shape)) for _ in samples]
    found = report.compare(
        task,
        samples,
        lambda _: iter(results),
        {
            "same": lambda _: iter(results),
            "turned": lambda _: [(-hidden, -logits) for hidden, logits in results],
        },
        progress=False,
    )
    assert (found["samples"], found["tokens"]) == (3, 36)
    same, turned = found["modes"]["same"], found["modes"]["turned"]
    assert [same[key] for key in ("hidden_cosine_mean", "hidden_cosine_min", "agreement")] == pytest.approx(
        [1] * 3
    )
    assert turned["hidden_cosine_mean"] == pytest.approx(-1) and turned["agreement"] < 1
    of = {**found, "weights": "int8", "scales": "max-abs", "bytes": {"float32": 4e6, "package": 1e6}}
    head, _, float32, _, last = report.table(of).splitlines()
    assert head.endswith("| weights |") and float32.startswith("| float32 ") and float32.endswith("| 4.0 MB  |")
    assert last.startswith("| int8, turned |") and last.endswith("| 1.0 MB  |")
    trained = report.table({**of, "weights": "ternary", "scales": "trained"}).splitlines()
    assert trained[2].startswith("| fake-quantized ") and trained[4].startswith("| ternary, turned |")


def test_best_span_stays_in_the_context_and_short():
    ids = np.arange(8, dtype=np.int32)
    sample = calibration.Sample(ids, ids * 0, ids >= 3)
    logits = np.zeros((8, 2))
    logits[1] = 9, 9  # in the question
    logits[3, 0], logits[7, 1], logits[5, 1] = 2, 2, 1
    assert report.best_span(logits, sample, 30) == (3, 7)
    assert report.best_span(logits, sample, 4) == (3, 5)


def test_card_takes_what_the_checkpoint_says():
    text = "---\nlicense: apache-2.0\ndatasets:\n- squad\n- 'nq'\nmodel-index:\n- name: x\n---\n# Hello\n"
    assert card.front_matter(text) == {"license": "apache-2.0", "datasets": "squad, nq"}
    assert card.front_matter("# no front matter\n") == {}
    found = card.Provenance(license="mine").completed(text)
    assert (found.license, found.training_data, found.base_model) == ("mine", "squad, nq", None)


def _task(kind: str):
    labels = {"sequence-classification": ("a", "b", "c"), "token-classification": ("a", "b", "c")}
    return replace(TaskSpec(kind, 40), labels=labels.get(kind, ()))
