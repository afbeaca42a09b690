"""Checkpoint folders: what they ask for is read, and what is wrong with them is named."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (pip install 'qla_runtime[convert]')")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

from checkpoint_tools import FLOAT32, add_sentence_layout, random_ids, save_checkpoint  # noqa: E402

from qla_runtime.checkpoints.config import encoder_spec  # noqa: E402
from qla_runtime.checkpoints.reader import open_checkpoint  # noqa: E402
from qla_runtime.errors import InputError, UnsupportedError  # noqa: E402


def test_reads_tasks(tmp_path, qa_checkpoint):
    source = open_checkpoint(qa_checkpoint)
    assert source.task.to_json() == {
        "kind": "span-qa", "max_length": 64, "keep_cls": True, "doc_stride": 21, "max_answer_tokens": 30,
    }  # fmt: skip
    tokenizer = json.loads(source.tokenizer_json)
    assert tokenizer["truncation"] is None and tokenizer["padding"] is None

    folder = save_checkpoint(
        tmp_path / "labels", "Roberta", "sequence-classification", id2label={0: "no", 1: "yes"}, num_labels=2
    )
    task = open_checkpoint(folder, max_length=20).task
    assert (task.labels, task.problem, task.max_length) == (("no", "yes"), "single_label", 20)
    score = save_checkpoint(tmp_path / "score", "Bert", "sequence-classification", num_labels=1)
    assert open_checkpoint(score).task.problem == "regression"
    assert open_checkpoint(score).task.to_json()["activation"] == "sigmoid"
    encoder = open_checkpoint(folder).encoder
    assert (encoder.position_offset, encoder.max_positions) == (2, 64)


def test_reads_sentence_transformers_layout(tmp_path):
    folder = add_sentence_layout(save_checkpoint(tmp_path / "s", "Bert", "embedding"))
    source = open_checkpoint(folder)
    assert source.task.to_json() == {
        "kind": "embedding", "max_length": 32, "keep_cls": True, "pooling": "mean", "normalize": True,
    }  # fmt: skip
    with torch.no_grad():
        vectors = source.load_model()(random_ids(2, 9)).outputs
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(2), **FLOAT32)
    add_sentence_layout(folder, mode="cls_token", modules=("Pooling",))
    task = open_checkpoint(folder).task
    assert (task.pooling, task.normalize) == ("cls", False)
    add_sentence_layout(folder, mode="max_tokens")
    with pytest.raises(UnsupportedError, match="exactly one of mean and cls"):
        open_checkpoint(folder)
    add_sentence_layout(folder, modules=("Pooling", "Dense"))
    with pytest.raises(UnsupportedError, match="Dense"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "deberta-v2"}, "model_type is 'deberta-v2'"),
        ({"model_type": None}, "model_type"),
        ({"hidden_act": "gelu_new"}, "hidden_act is 'gelu_new'"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ({"is_decoder": True}, "is_decoder"),
        ({"hidden_size": 100}, "hidden_size is 100"),
        ({"hidden_size": 8192, "num_attention_heads": 128}, "hidden_size is 8192"),
        ({"num_attention_heads": 4}, "head size of 32 or 64"),
        ({"intermediate_size": 100}, "intermediate_size is 100"),
        ({"num_hidden_layers": 65}, "num_hidden_layers is 65"),
        ({"max_position_embeddings": 7}, "max_position_embeddings is 7"),
        ({"layer_norm_eps": None, "type_vocab_size": 65}, "type_vocab_size is 65"),
        ({"vocab_size": (1 << 24) + 1}, "vocab_size is 16777217"),
    ],
)
def test_unsupported_architectures_are_named(qa_checkpoint, change, words):
    config = json.loads((qa_checkpoint / "config.json").read_text()) | change
    with pytest.raises(UnsupportedError, match=words):
        encoder_spec(config)


@pytest.mark.parametrize("change", [{"hidden_size": "64"}, {"num_hidden_layers": True}, {"layer_norm_eps": 0.2}])
def test_damaged_configs_are_named(qa_checkpoint, change):
    config = json.loads((qa_checkpoint / "config.json").read_text()) | change
    with pytest.raises(InputError, match=next(iter(change))):
        encoder_spec(config)


def test_refuses_bad_checkpoints(tmp_path, qa_checkpoint):
    def copy(name: str) -> Path:
        return Path(shutil.copytree(qa_checkpoint, tmp_path / name))

    with pytest.raises(InputError, match="neither a folder nor a hub id"):
        open_checkpoint("./no/such/folder")
    folder = copy("no-config")
    (folder / "config.json").unlink()
    with pytest.raises(InputError, match=r"config\.json is missing"):
        open_checkpoint(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(InputError, match="not readable JSON"):
        open_checkpoint(folder)

    folder = copy("pickle")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UnsupportedError, match="pickle"):
        open_checkpoint(folder)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(InputError, match="no weights"):
        open_checkpoint(folder)

    with pytest.raises(InputError, match="task is 'translation'"):
        open_checkpoint(qa_checkpoint, task="translation")
    with pytest.raises(InputError, match=r"'classifier\.weight' is missing"):
        open_checkpoint(qa_checkpoint, task="token-classification").load_model()
    with pytest.raises(InputError, match="max_length is 65"):
        open_checkpoint(qa_checkpoint, max_length=65)

    folder = copy("cut")
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(InputError, match=r"model\.safetensors"):
        open_checkpoint(folder).load_model()
    (folder / "model.safetensors").write_bytes(weights[:-4] + struct.pack("<f", float("nan")))
    with pytest.raises(InputError, match="NaN"):
        open_checkpoint(folder).load_model()

    folder = copy("tokenizer")
    config = json.loads((folder / "config.json").read_text()) | {"vocab_size": 50}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="knows token id 99"):
        open_checkpoint(folder)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match=r"tokenizer\.json"):
        open_checkpoint(folder)

    encoder_only = save_checkpoint(tmp_path / "bare", "Bert", "embedding")
    with pytest.raises(InputError, match=r"\(task=, --task\)"):
        open_checkpoint(encoder_only)


def test_old_norm_names_and_shards(tmp_path, qa_checkpoint, qa_model):
    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(qa_checkpoint, tmp_path / "old"))
    tensors = load_file(folder / "model.safetensors")
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    renamed = {}
    for name, tensor in tensors.items():
        for new, past in old.items():
            name = name.replace(new, past)
        renamed[name] = tensor
    names = sorted(renamed)
    halves = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in halves.items():
        save_file({name: renamed[name] for name in part}, folder / file)
    weight_map = {name: file for file, part in halves.items() for name in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "model.safetensors").unlink()
    loaded = open_checkpoint(folder).load_model().state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in qa_model.state_dict().items())
