"""What training writes, conversion reads as the same task, whatever the start model was."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (pip install 'qla_runtime[convert]')")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

from checkpoint_tools import add_sentence_layout, save_checkpoint  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from training_tools import LOOP, lines, table  # noqa: E402
from training_tools import train as train_longer  # noqa: E402

from qla_runtime.checkpoints.reader import open_checkpoint  # noqa: E402
from qla_runtime.errors import InputError  # noqa: E402
from qla_runtime.training.start import Start  # noqa: E402


def train(*arguments, **changes):
    return train_longer(*arguments, loop=replace(LOOP, steps=2), **changes)


def embedder(folder: Path) -> Path:
    add_sentence_layout(save_checkpoint(folder, "Bert", "embedding"))
    settings = {"model_type": "SentenceTransformer", "prompts": {"query": "w5 "}, "default_prompt_name": "query"}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(settings))
    return folder


def test_a_classifier_from_a_sentence_encoder(tmp_path):
    start = embedder(tmp_path / "start")
    data = table(tmp_path / "t.tsv", labels=("no", "maybe", "yes"))
    out = Path(train(start, data, tmp_path / "run", task="sequence-classification")["checkpoint"])
    source = open_checkpoint(out)
    assert (source.task.kind, source.task.labels) == ("sequence-classification", ("maybe", "no", "yes"))
    assert source.notes == ()
    left = {path.name for path in out.rglob("*") if "sentence" in path.name or path.name == "modules.json"}
    assert not left and not (out / "1_Pooling").exists()
    model = transformers.AutoModelForSequenceClassification.from_pretrained(out)
    assert model.config.id2label == {0: "maybe", 1: "no", 2: "yes"}
    source.load_model()


def test_an_encoder_in_a_folder_of_its_own(tmp_path):
    """The old sentence-transformers layout: 0_Transformer beside modules.json."""
    start = tmp_path / "start"
    save_checkpoint(start / "0_Transformer", "Bert", "embedding")
    add_sentence_layout(start)
    listing = json.loads((start / "modules.json").read_text())
    listing[0]["path"] = "0_Transformer"
    (start / "modules.json").write_text(json.dumps(listing))
    data = table(tmp_path / "t.tsv", labels=("no", "yes"))
    out = train(start, data, tmp_path / "run", task="sequence-classification")["checkpoint"]
    assert open_checkpoint(out).task.kind == "sequence-classification"
    again = train(start, lines(tmp_path / "t.txt"), tmp_path / "run2")["checkpoint"]
    assert open_checkpoint(again).task.kind == "embedding"


def test_a_labelled_table_is_asked_about(tmp_path):
    start = embedder(tmp_path / "start")
    data = table(tmp_path / "t.tsv", labels=("no", "yes"))
    with pytest.raises(
        InputError, match="sequence-classification .*--task.*; to train embeddings .*pass embedding"
    ):
        Start.open(start, data)
    assert Start.open(start, data, task="sequence-classification").source.task.kind == "sequence-classification"
    assert Start.open(start, data, task="embedding").source.task.kind == "embedding"
    assert Start.open(start, lines(tmp_path / "t.txt")).source.task.kind == "embedding"


@pytest.mark.parametrize("own", [True, False])
def test_a_cross_encoders_activation_stays_with_its_head(tmp_path, own):
    start = save_checkpoint(tmp_path / "start", "Bert", "sequence-classification", num_labels=1)
    config = json.loads((start / "config.json").read_text())
    config["sbert_ce_default_activation_function"] = "torch.nn.modules.linear.Identity"
    (start / "config.json").write_text(json.dumps(config))
    data = table(tmp_path / "t.tsv", labels=("0.5", "2.5", "4") if own else ("no", "yes"))
    if own:
        data.write_text(data.read_text().replace("label", "score"))
    out = Path(train(start, data, tmp_path / "run", new_head=not own)["checkpoint"])
    kept = "sbert_ce_default_activation_function" in json.loads((out / "config.json").read_text())
    assert kept == own


def test_pickles_wrappers_and_cut_positions(tmp_path):
    """What conversion reads, training starts from; transformers loads what it writes."""
    start = save_checkpoint(tmp_path / "start", "Roberta", "embedding", max_position_embeddings=5002)
    tensors = load_file(start / "model.safetensors")
    torch.save({f"module.{name}": tensor for name, tensor in tensors.items()}, start / "pytorch_model.bin")
    (start / "model.safetensors").unlink()
    config = json.loads((start / "config.json").read_text())
    (start / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "layer_norm_eps"}))
    data = table(tmp_path / "t.tsv", labels=("no", "yes"))
    out = train(start, data, tmp_path / "run", task="sequence-classification", max_length=32)["checkpoint"]
    _, info = transformers.AutoModelForSequenceClassification.from_pretrained(out, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert open_checkpoint(out).encoder.max_positions == 32
