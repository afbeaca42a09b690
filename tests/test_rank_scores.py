"""``rank`` gives what sentence-transformers' CrossEncoder gives for the same folder."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import package_tools as tools
import pytest
from package_tools import tiny_package

from qla_runtime import Engine
from qla_runtime.activations import ACTIVATIONS, activate

POINTS = np.array([-40.0, -3.5, -1.0, -0.25, 0.0, 0.25, 1.0, 3.5, 40.0], np.float32)
AT_ONE_AND_MINUS_TWO = {
    "identity": (1.0, -2.0),
    "sigmoid": (0.7310585786300049, 0.11920292202211755),
    "tanh": (0.7615941559557649, -0.9640275800758169),
    "relu": (1.0, 0.0),
    "relu6": (1.0, 0.0),
    "leaky_relu": (1.0, -0.02),
    "elu": (1.0, math.exp(-2) - 1),
    "gelu": (0.8413447460685429, -0.04550026389635842),
    "silu": (0.7310585786300049, -0.2384058440442351),
    "softplus": (1.3132616875182228, 0.12692801104297252),
    "softsign": (0.5, -2 / 3),
    "log_sigmoid": (-0.31326168751822286, -2.1269280110429727),
    "hard_sigmoid": (2 / 3, 1 / 6),
    "hard_tanh": (1.0, -1.0),
}
"""From the functions' definitions."""


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_values(name):
    got = activate(name, np.array([1.0, -2.0], np.float32))
    np.testing.assert_allclose(got, AT_ONE_AND_MINUS_TWO[name], rtol=4 * 2.0**-52)
    assert np.isfinite(activate(name, POINTS)).all()


def test_activations_are_torchs():
    torch = pytest.importorskip("torch", reason="the reference is torch.nn, of the [convert] extra")
    from qla_runtime.checkpoints.sentence_settings import _TORCH_CLASSES

    assert set(_TORCH_CLASSES.values()) == set(ACTIVATIONS)
    for theirs, ours in _TORCH_CLASSES.items():
        expected = getattr(torch.nn, theirs)()(torch.from_numpy(POINTS).double()).numpy()
        # Double arithmetic; where terms cancel, its roundings are of the points, which reach 40.
        close = dict(rtol=4 * 2.0**-52, atol=40 * 2.0**-52)
        np.testing.assert_allclose(activate(ours, POINTS), expected, **close, err_msg=ours)


def ranker(folder: Path, activation: str | None = None, problem: str = "regression", bias: float = 0.0) -> Engine:
    package = tiny_package("sequence-classification", problem=problem, labels=["relevance"])
    package.tensors["head.bias"][0] += bias
    path = package.save(folder)
    if activation is not None:
        tools.edit_json(path, "config.json", lambda config: config["task"].update(activation=activation))
    return Engine(path)


def test_rank_applies_the_packages_activation(tmp_path):
    documents = ["ab", "c", "d e f", "c"]
    plain = ranker(tmp_path / "plain").rank("what", documents)
    logits = {entry["index"]: entry["score"] for entry in plain}
    for name in ("sigmoid", "tanh", "relu"):
        engine = ranker(tmp_path / name, activation=name)
        ranked = engine.rank("what", documents)
        for entry in ranked:
            assert entry["score"] == float(activate(name, np.float32(logits[entry["index"]])[None])[0])
        assert [e["score"] for e in ranked] == sorted((e["score"] for e in ranked), reverse=True)
        assert engine.rank("what", documents, raw_scores=True) == plain
    assert ranker(tmp_path / "identity", activation="identity").rank("what", documents) == plain


def test_equal_scores_keep_the_callers_order(tmp_path):
    engine = ranker(tmp_path / "low", activation="relu", bias=-1000.0)  # every logit is far below zero
    documents = ["ab", "c", "d e f"]
    assert len({entry["score"] for entry in engine.rank("what", documents, raw_scores=True)}) == 3
    assert [(e["index"], e["score"]) for e in engine.rank("what", documents)] == [(0, 0.0), (1, 0.0), (2, 0.0)]


def test_old_packages_give_what_they_gave(tmp_path):
    """Without the field: the logit of a regression model, a probability of a multi-label one."""
    value = ranker(tmp_path / "value")
    assert value.rank("a", ["b"])[0]["score"] == value.classify("a", "b")["score"]
    many = ranker(tmp_path / "many", problem="multi_label")
    assert 0 < many.rank("a", ["b"])[0]["score"] < 1
    assert many.rank("a", ["b"], raw_scores=True)[0]["score"] == value.rank("a", ["b"])[0]["score"]


def test_prompts_of_rankers_stand_before_the_query(tmp_path):
    engine = ranker(tmp_path / "r")
    expected = engine.rank("find: what", ["ab", "c"])
    assert engine.prompts == {} and engine.default_prompt is None
    assert engine.rank("what", ["ab", "c"], prompt="find: ") == expected

    def add(config: dict) -> None:
        config |= {"prompts": {"search": "find: "}, "default_prompt": "search"}

    tools.edit_json(tmp_path / "r", "config.json", add)
    named = Engine(tmp_path / "r")
    assert named.rank("what", ["ab", "c"]) == expected
    assert named.rank("what", ["ab", "c"], prompt="") == engine.rank("what", ["ab", "c"])


# ---- from the checkpoint ---------------------------------------------------------------------------

SIGMOID, IDENTITY = "torch.nn.modules.activation.Sigmoid", "torch.nn.modules.linear.Identity"
OWN = "some_library.Activation"
SAVED = {"model_type": "CrossEncoder", "prompts": {}, "default_prompt_name": None}
FOLDERS = [
    # config.json, config_sentence_transformers.json (None: not there), what CrossEncoder 6.2 applies
    ({}, None, "sigmoid"),
    ({"sbert_ce_default_activation_function": IDENTITY}, None, "identity"),
    ({"sbert_ce_default_activation_function": None}, None, "sigmoid"),
    ({"sentence_transformers": {"activation_fn": "torch.nn.Tanh", "version": "4.0"}}, None, "tanh"),
    (
        {"sentence_transformers": {"version": "4.0"}, "sbert_ce_default_activation_function": IDENTITY},
        None,
        "identity",
    ),
    (
        {"sentence_transformers": {"activation_fn": None}, "sbert_ce_default_activation_function": IDENTITY},
        None,
        "sigmoid",
    ),
    ({}, {**SAVED, "activation_fn": IDENTITY}, "identity"),
    ({}, {**SAVED, "activation_fn": None}, "sigmoid"),
    ({"sbert_ce_default_activation_function": IDENTITY}, {**SAVED, "activation_fn": SIGMOID}, "sigmoid"),
    ({"sbert_ce_default_activation_function": IDENTITY}, {**SAVED, "activation_fn": OWN}, "identity"),
    ({"sentence_transformers": {"activation_fn": OWN}}, {**SAVED}, "sigmoid"),
    ({}, {"model_type": "SentenceTransformer", "activation_fn": IDENTITY}, "sigmoid"),
]


@pytest.fixture(scope="module")
def cross_encoder(tmp_path_factory) -> Path:
    pytest.importorskip("transformers", reason="checkpoints are made with the [convert] extra")
    from checkpoint_tools import save_checkpoint

    return save_checkpoint(tmp_path_factory.mktemp("ce") / "ce", "Bert", "sequence-classification", num_labels=1)


def variant(source: Path, folder: Path, config: dict, saved: dict | None) -> Path:
    import shutil

    shutil.copytree(source, folder)
    found = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(found | config))
    if saved is not None:
        module = {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.base.modules.Transformer"}
        (folder / "modules.json").write_text(json.dumps([module]))
        (folder / "config_sentence_transformers.json").write_text(json.dumps(saved))
    return folder


@pytest.mark.parametrize(("config", "saved", "expected"), FOLDERS)
def test_activation_of_a_checkpoint(tmp_path, cross_encoder, config, saved, expected):
    from qla_runtime.checkpoints.reader import open_checkpoint

    folder = variant(cross_encoder, tmp_path / "m", config, saved)
    source = open_checkpoint(folder)
    assert source.task.activation == expected and source.task.to_json()["activation"] == expected
    ignored = OWN in json.dumps([config, saved]) or (saved or SAVED)["model_type"] != "CrossEncoder"
    assert bool(source.settings.notes) == ignored
    assert open_checkpoint(folder, activation="tanh").task.activation == "tanh"


@pytest.mark.parametrize(("config", "saved", "expected"), FOLDERS)
def test_activation_is_sentence_transformers(tmp_path, cross_encoder, config, saved, expected):
    library = pytest.importorskip("sentence_transformers", reason="the reference is not installed")
    folder = variant(cross_encoder, tmp_path / "m", config, saved)
    from transformers import PreTrainedTokenizerFast

    names = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "pad", "unk_token": "unk"}
    PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), **names).save_pretrained(folder)
    theirs = type(library.CrossEncoder(str(folder)).activation_fn).__name__
    assert theirs.lower() == expected


def test_activation_that_is_unknown(tmp_path, cross_encoder):
    from qla_runtime.checkpoints.reader import open_checkpoint
    from qla_runtime.errors import InputError, UnsupportedError

    for number, path in enumerate(("torch.nn.Softmax", "torch.nn.modules.activation.PReLU", "torch.sigmoid")):
        folder = variant(
            cross_encoder, tmp_path / f"{number}", {"sbert_ce_default_activation_function": path}, None
        )
        with pytest.raises(UnsupportedError, match=rf"{path}.*Sigmoid.*--activation"):
            open_checkpoint(folder)
        assert open_checkpoint(folder, activation="identity").task.activation == "identity"
    with pytest.raises(InputError, match="activation is 'swish'; it must be one of identity, sigmoid"):
        open_checkpoint(cross_encoder, activation="swish")
    wrong = variant(cross_encoder, tmp_path / "w", {"sbert_ce_default_activation_function": 1}, None)
    with pytest.raises(InputError, match="must be the name of a class, not a int"):
        open_checkpoint(wrong)


def test_activation_is_for_rankers_only(tmp_path, cross_encoder):
    from checkpoint_tools import save_checkpoint

    from qla_runtime.checkpoints.reader import open_checkpoint
    from qla_runtime.errors import InputError

    folder = save_checkpoint(tmp_path / "three", "Bert", "sequence-classification")
    assert open_checkpoint(folder).task.activation is None
    with pytest.raises(InputError, match="classification with one label"):
        open_checkpoint(folder, activation="sigmoid")
