"""The whole way: checkpoint to package to engine, near the float32 original. The models are tiny and random."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (pip install 'qla_runtime[convert]')")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

from checkpoint_tools import HEADS, add_sentence_layout, random_ids, save_checkpoint  # noqa: E402
from model_configs import NOISE  # noqa: E402

from qla_runtime import Engine  # noqa: E402
from qla_runtime.checkpoints.reader import open_checkpoint  # noqa: E402
from qla_runtime.convert import convert, lengths, pipeline  # noqa: E402
from qla_runtime.errors import InputError  # noqa: E402
from qla_runtime.families import FAMILIES  # noqa: E402
from qla_runtime.lengths.configs import LengthConfig  # noqa: E402

pytest.importorskip("qla_runtime._core", reason="the native module is not built")


@pytest.mark.parametrize("family", ["Bert", "Roberta"])
@pytest.mark.parametrize("kind", HEADS)
def test_converts_every_family_and_head(tmp_path, texts, family, kind):
    """The whole way: checkpoint to package to engine, near the float32 original."""
    pytest.importorskip("neural_compressor", reason="neural-compressor-pt is not installed")
    folder = save_checkpoint(tmp_path / "checkpoint", family, kind)
    if kind == "embedding":
        add_sentence_layout(folder)
    out = tmp_path / "out" / "package"
    half = {"half": LengthConfig.ratio([0.9, 0.7, 0.5])}
    options = dict(max_length=40, length_configs=half, progress=False)
    done = convert(folder, out, texts, **options)
    assert done["held_out"] and set(done["modes"]) == {"per_token"} and done["calibration_samples"] == 0
    assert done["reference"] == "transformers' float32 model"
    for mode in done["modes"].values():
        assert mode["hidden_cosine_min"] > 0.95 and mode["hidden_cosine_mean"] > 0.98
    assert os.listdir(out.parent) == ["package"]
    assert "| int8, per_token" in (out / "README.md").read_text()


def test_a_head_without_a_pooler(tmp_path, monkeypatch):
    """`pooler: none`: what a family gets whose head for classification stands on the first token's state."""
    plain = replace(FAMILIES["bert"], heads={"sequence-classification": {"head": "classifier"}})
    monkeypatch.setitem(FAMILIES, "bert", plain)
    folder = save_checkpoint(tmp_path / "checkpoint", "Bert", "sequence-classification")
    out = tmp_path / "package"
    report = convert(folder, out, scales="max-abs", progress=False)
    assert any("a pooler that this task does not use" in note for note in report["notes"])
    assert json.loads((out / "config.json").read_text())["task"]["pooler"] == "none"
    model = open_checkpoint(folder).load_model()
    ids = random_ids(1, 12)
    with torch.no_grad():
        states = model.encoder(ids).last_hidden
        expected = (states[:, 0] @ model.head.weight.T + model.head.bias).numpy()
        np.testing.assert_allclose(model.logits(states).numpy(), expected, atol=16 * 2.0**-24)  # 64 products
    found = Engine(out).forward(ids.tolist()).logits
    # As in tests/model_configs.py: a row of the head meets a random error of the state.
    weight = model.head.weight.detach().norm(dim=1).max()
    noise = NOISE * (model.encoder.spec.layers / states.shape[-1]) ** 0.5 * states[0, 0].norm() * weight
    np.testing.assert_allclose(found, expected, atol=5 * float(noise))
    assert np.ptp(expected) > 10 * float(noise)  # so that another row of the head would not do


def test_a_failed_conversion_leaves_the_old_package(tmp_path, texts, qa_checkpoint, monkeypatch):
    pytest.importorskip("neural_compressor", reason="neural-compressor-pt is not installed")
    out = tmp_path / "package"
    options = dict(calibration_samples=4, length_configs={}, progress=False)
    convert(qa_checkpoint, out, texts, **options)
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    def fail(*args, **kwargs):
        raise InputError("stop here")

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "compare", fail)
        with pytest.raises(InputError, match="stop here"):
            convert(qa_checkpoint, out, texts, activations="static", **options)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["package", "texts.tsv"]
    convert(qa_checkpoint, out, texts, activations="static", no_answer=True, **options)
    assert '"activation": "static"' in (out / "config.json").read_text()
    assert json.loads((out / "config.json").read_text())["task"]["no_answer"] is True


def test_refuses_bad_options(tmp_path, qa_checkpoint, texts):
    pytest.importorskip("neural_compressor", reason="neural-compressor-pt is not installed")
    for option in ({"activations": "int4"}, {"calibration_algo": "mse"}, {"calibration_samples": 0}):
        with pytest.raises(InputError, match=next(iter(option))):
            convert(qa_checkpoint, tmp_path / "p", texts, **option)
    assert not (tmp_path / "p").exists()


def test_default_lengths():
    six = lengths.default_configs(6)
    assert list(six) == ["full", "balanced", "fast"]
    assert six["full"].values == (1.0,) * 6
    assert six["balanced"].kept(384) == list(lengths.PUBLISHED["balanced"])
    assert six["fast"].kept(384) == list(lengths.PUBLISHED["fast"])
    for layers in (1, 2, 3, 12, 24):
        assert all(len(config.values) == layers for config in lengths.default_configs(layers).values())
    mine = lengths.with_full({"half": LengthConfig.ratio([0.5] * 3)}, 3)
    assert list(mine) == ["full", "half"]
    with pytest.raises(InputError, match="layers"):
        lengths.with_full({"half": LengthConfig.ratio([0.5] * 2)}, 3)
