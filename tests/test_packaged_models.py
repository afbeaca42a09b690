"""The models that come with the package: by name, offline, and good for what they are for."""

from __future__ import annotations

import json

import numpy as np
import pytest
from package_tools import tiny_package

from qla_runtime import Engine, hub
from qla_runtime.errors import InputError, PackageError, UnsupportedError


@pytest.fixture(scope="module")
def encoder() -> Engine:
    return Engine.from_pretrained("all-minilm-l6-v2")


def test_names_open_what_they_name(encoder):
    assert (encoder.name, encoder.task) == ("all-minilm-l6-v2", "embedding")
    squad = Engine.from_pretrained("minilm-l6-squad")
    assert squad.path == Engine.from_pretrained().path and squad.task == "span-qa"
    for task, name in hub.PACKAGED.items():
        assert Engine.from_pretrained(name).task == task


def test_unknown_names_list_those_there_are():
    with pytest.raises(PackageError, match="'all-minilm'.*minilm-l6-squad, all-minilm-l6-v2"):
        Engine.from_pretrained("all-minilm")
    with pytest.raises(InputError, match="revision is 'main'.*packaged"):
        Engine.from_pretrained("all-minilm-l6-v2", revision="main")


def test_a_folder_of_that_name_comes_first(tmp_path, monkeypatch):
    tiny_package("embedding").save(tmp_path / "all-minilm-l6-v2")
    monkeypatch.chdir(tmp_path)
    assert Engine.from_pretrained("all-minilm-l6-v2").layers == 2


def test_the_wrong_task_names_the_packaged_model(tmp_path):
    with pytest.raises(UnsupportedError, match="'all-minilm-l6-v2', which is packaged"):
        Engine.from_pretrained().encode("a sentence")
    with pytest.raises(UnsupportedError, match="'minilm-l6-squad', which is packaged"):
        Engine(tiny_package("embedding").save(tmp_path / "e")).answer("who?", "ada")


@pytest.mark.parametrize("length", ["full", "balanced", "fast"])
def test_the_encoder_tells_meanings_apart(encoder, length):
    sentences = [
        "How can I change my password?",
        "What do I do to get a new password?",
        "The river floods the valley every spring.",
        "Each spring, water from the river covers the valley.",
    ]
    vectors = encoder.encode(sentences, length=length)
    assert vectors.shape == (4, 384)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=4 * 2.0**-24)  # 4 roundings
    close = encoder.similarity(vectors, vectors)
    assert min(close[0, 1], close[2, 3]) > 0.3 + max(close[0, 2], close[0, 3], close[1, 2], close[1, 3])


def test_the_encoder_promises_what_was_measured(encoder):
    accuracy = {name: entry.accuracy for name, entry in encoder.lengths.items()}
    assert set(accuracy) == {"full", "balanced", "fast"}
    assert {entry.metric for entry in accuracy.values()} == {"spearman"}
    assert {entry.data for entry in accuracy.values()} == {"STS benchmark, test"}
    assert accuracy["full"].value > accuracy["balanced"].value > accuracy["fast"].value
    assert 1 > encoder.lengths["balanced"].macs_share > encoder.lengths["fast"].macs_share
    card = (encoder.path / "README.md").read_text(encoding="utf-8")
    for name, entry in accuracy.items():
        assert f"| {name} | {entry.value:.2f} |" in card
    assert "Apache-2.0" in card and "CC BY 2.5" in card
    config = json.loads((encoder.path / "config.json").read_text(encoding="utf-8"))
    assert config["task"]["normalize"] is True and config["task"]["pooling"] == "mean"
