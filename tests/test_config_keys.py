"""Every key of a checkpoint's config.json: transformers' defaults, what is refused, what is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (pip install 'qla_runtime[convert]')")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

from checkpoint_tools import FLOAT32, random_ids, save_checkpoint  # noqa: E402

from qla_runtime.checkpoints.config import encoder_spec, label_names  # noqa: E402
from qla_runtime.checkpoints.config_keys import infer_model_type, unknown_keys  # noqa: E402
from qla_runtime.checkpoints.reader import open_checkpoint  # noqa: E402
from qla_runtime.errors import InputError, UnsupportedError  # noqa: E402
from qla_runtime.families import FAMILIES  # noqa: E402


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("bert") / "bert", "Bert", "token-classification")


def with_config(folder: Path, out: Path, change: dict, drop: tuple[str, ...] = ()) -> Path:
    shutil.copytree(folder, out)
    config = json.loads((out / "config.json").read_text()) | change
    (out / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k not in drop}))
    return out


@pytest.mark.parametrize("model_type", FAMILIES)
def test_defaults_are_those_of_transformers(model_type):
    family = FAMILIES[model_type]
    theirs = getattr(transformers, f"{family.class_prefix}Config")()
    assert family.defaults == {key: getattr(theirs, key) for key in family.defaults}
    assert not unknown_keys(theirs.to_dict())
    # ELECTRA's own defaults are those of its small size, which is refused.
    base = {"hidden_size": 768, "embedding_size": 768, "num_attention_heads": 12, "intermediate_size": 3072}
    given = {key: base[key] for key in base if key in family.defaults and family.defaults[key] != base[key]}
    spec = encoder_spec({"model_type": model_type} | given)
    assert (spec.layers, spec.hidden, spec.heads, spec.intermediate) == (12, 768, 12, 3072)
    assert spec.norm_eps == theirs.layer_norm_eps and spec.type_vocab_size == theirs.type_vocab_size
    assert spec.position_offset == (theirs.pad_token_id + 1 if family.positions_after_padding else 0)
    nulls = {"model_type": model_type} | dict.fromkeys(family.defaults)
    assert encoder_spec(nulls | given) == spec


@pytest.mark.parametrize("family", ["Bert", "Roberta", "Electra"])
def test_a_config_without_its_defaults_gives_transformers_numbers(tmp_path, family):
    """Each optional key left out: what transformers loads from the same folder computes the same."""
    dropped = ("layer_norm_eps", "hidden_act", "pad_token_id", "position_embedding_type", "label2id", "dtype")
    made = save_checkpoint(tmp_path / "all", family, "token-classification", type_vocab_size=2)
    folder = with_config(made, tmp_path / "few", {}, (*dropped, "type_vocab_size"))
    theirs = getattr(transformers, f"{family}ForTokenClassification").from_pretrained(folder).eval()
    ids = random_ids(2, 20)
    with torch.no_grad():
        expected = theirs(input_ids=ids).logits
        logits = open_checkpoint(folder).load_model()(ids).outputs
    torch.testing.assert_close(logits, expected, **FLOAT32)


@pytest.mark.parametrize("family", ["Bert", "Roberta", "Electra"])
def test_folders_without_model_type(tmp_path, family):
    made = save_checkpoint(tmp_path / "all", family, "token-classification")
    folder = with_config(made, tmp_path / "old", {}, ("model_type",))
    assert open_checkpoint(folder).encoder == open_checkpoint(made).encoder
    # The names of the tensors tell it too.
    bare = with_config(made, tmp_path / "bare", {}, ("model_type", "architectures"))
    assert open_checkpoint(bare, task="token-classification").encoder == open_checkpoint(made).encoder


@pytest.mark.parametrize(
    "architecture", ["DistilBertModel", "DebertaForTokenClassification", "BertweetModel", "T5"]
)
def test_other_architectures_are_not_taken_for_bert(bert, tmp_path, architecture):
    change = {"architectures": [architecture], "model_type": None}
    assert infer_model_type(change, ["distilbert.embeddings.word_embeddings.weight"]) is None
    if architecture != "T5":  # which says nothing that we can read: the tensors decide
        with pytest.raises(UnsupportedError, match="model_type is None"):
            open_checkpoint(with_config(bert, tmp_path / "x", change), task="token-classification")


@pytest.mark.parametrize(
    "change",
    [
        {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}},
        {"quantization_config": {}},
        {"compression_config": {"format": "float-quantized"}},
        {"position_embedding_type": "alibi"},
        {"position_embedding_type": "relative_key_query"},
        {"alibi_starting_size": 512},
        {"rope_theta": 10000.0},
        {"hidden_act": "gelu_new"},
        {"is_decoder": True},
        {"is_encoder_decoder": True},
        {"add_cross_attention": True},
        {"pruned_heads": {"0": [1]}},
        {"adapters": {"adapters": {"ner": "pfeiffer"}, "config_map": {}}},
        {"use_crf": True},
        {"feed_forward_type": "geglu"},
    ],
    ids=str,
)
def test_keys_that_change_the_numbers_are_refused(bert, tmp_path, change):
    key = next(iter(change))
    with pytest.raises(UnsupportedError, match=rf"config\.json: {key} "):
        open_checkpoint(with_config(bert, tmp_path / "x", change))


def test_inactive_and_unknown_keys(bert, tmp_path):
    """A switch that is off changes nothing; a key that nobody knows is named."""
    off = {
        "quantization_config": None,
        "rope_scaling": None,
        "is_decoder": False,
        "adapters": {"adapters": {}, "config_map": {}},
        "use_crf": False,
        "pooler_type": "first_token_transform",
        "hidden_act": "gelu_python",
    }
    assert open_checkpoint(with_config(bert, tmp_path / "off", off)).notes == ()
    (note,) = open_checkpoint(with_config(bert, tmp_path / "x", {"frobnicate": 3, "use_cache": True})).notes
    assert "frobnicate" in note and "use_cache" not in note


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"architectures": {"a": 1}}, r"\(task=, --task\)"),
        ({"architectures": 5}, r"\(task=, --task\)"),
        ({"id2label": {"0": "a", "2": "b"}}, "id2label"),
        ({"id2label": [1, 2]}, "id2label"),
        ({"id2label": {"0": "half \ud800"}}, "surrogate"),
        ({"num_labels": "three"}, "num_labels is three"),
        ({"num_labels": 10**300}, "num_labels is 1000"),
        ({"num_labels": 0}, "num_labels is 0"),
        ({"hidden_size": 10**300}, "hidden_size is 1000"),
        ({"vocab_size": -1}, "vocab_size is -1"),
        ({"layer_norm_eps": float("nan")}, "layer_norm_eps is nan"),
        ({"layer_norm_eps": 0}, "layer_norm_eps is 0"),
        ({"layer_norm_eps": 1e-300}, "layer_norm_eps is 1e-300"),
        ({"model_type": ["bert"]}, "model_type is"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_hostile_configs_are_named(bert, tmp_path, change, words):
    with pytest.raises((InputError, UnsupportedError), match=words) as error:
        open_checkpoint(with_config(bert, tmp_path / "x", change))
    assert len(str(error.value)) < 500


def test_labels_as_transformers_reads_them():
    for given in ({}, {"id2label": None}, {"num_labels": 3}, {"id2label": {"0": "a", "1": "b"}}):
        assert label_names(given) == tuple(transformers.BertConfig(**given).id2label.values())
    both = {"num_labels": 3, "id2label": {"0": "a", "1": "b"}}
    assert label_names(both) == tuple(transformers.BertConfig(**both).id2label.values())
