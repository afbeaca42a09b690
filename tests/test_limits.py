"""The limits that conversion checks are those that the loader enforces; what they allow, works."""

from __future__ import annotations

import json

import numpy as np
import package_tools
import pytest

from qla_runtime import Engine
from qla_runtime.checkpoints.config import encoder_spec, label_names
from qla_runtime.errors import InputError, PackageError, QlaError, UnsupportedError
from qla_runtime.model import limits

ENCODER = {
    "layers": (1, limits.MAX_LAYERS),
    "hidden": (64, limits.MAX_HIDDEN),
    "intermediate": (64, limits.MAX_INTERMEDIATE),
    "vocab_size": (1, limits.MAX_VOCAB),
    "max_positions": (limits.MIN_LENGTH, limits.MAX_POSITIONS),
    "position_offset": (0, limits.MAX_POSITIONS),
    "type_vocab_size": (1, limits.MAX_TYPES),
    "norm_eps": (2.0**-126, limits.MAX_NORM_EPS),
}
STEP = {"hidden": 64, "intermediate": 64, "norm_eps": 1e-40}


def loader_refuses(tmp_path, section: str, key: str, value) -> bool:
    """Whether the loader's error is about this key; other keys and the tensors then don't fit, and say so."""
    package = package_tools.tiny_package("embedding")
    package.config[section][key] = value
    if key == "hidden":
        package.config["encoder"]["heads"] = value // 64
    folder = package.save(tmp_path / "package")
    try:
        Engine.from_pretrained(folder)
    except PackageError as error:
        return f"{section}.{key} is" in str(error)
    return False


@pytest.mark.parametrize("key", ENCODER)
@pytest.mark.parametrize("end", [0, 1])
def test_the_loader_has_the_same_limits(tmp_path, key, end):
    limit = ENCODER[key][end]
    beyond = limit + (STEP.get(key, 1) if key != "norm_eps" else 1e-3) if end else limit - STEP.get(key, 1)
    assert not loader_refuses(tmp_path, "encoder", key, limit)
    assert loader_refuses(tmp_path / "beyond", "encoder", key, beyond)


@pytest.mark.parametrize("head_dim", [16, 32, 48, 64, 128])
def test_head_sizes(tmp_path, head_dim):
    package = package_tools.tiny_package("embedding", hidden=384, heads=6)
    package.config["encoder"]["heads"] = 384 // head_dim
    try:
        Engine.from_pretrained(package.save(tmp_path / "package"))
        opens = True
    except PackageError:
        opens = False
    assert opens == (head_dim in limits.HEAD_DIMS)


BASE = {"model_type": "bert", "hidden_size": 64, "num_attention_heads": 1, "intermediate_size": 64}
KEYS = {
    "num_hidden_layers": limits.MAX_LAYERS,
    "intermediate_size": limits.MAX_INTERMEDIATE,
    "vocab_size": limits.MAX_VOCAB,
    "type_vocab_size": limits.MAX_TYPES,
    "layer_norm_eps": limits.MAX_NORM_EPS,
}


@pytest.mark.parametrize("key", KEYS)
def test_conversion_has_them_too(key):
    most = KEYS[key]
    encoder_spec(BASE | {key: most})
    with pytest.raises(QlaError, match=f"{key} is"):
        encoder_spec(BASE | {key: most * 2})


def test_positions_and_hidden_size():
    assert encoder_spec(BASE | {"max_position_embeddings": limits.MIN_LENGTH}).max_positions == limits.MIN_LENGTH
    with pytest.raises(UnsupportedError, match="max_position_embeddings is 7"):
        encoder_spec(BASE | {"max_position_embeddings": limits.MIN_LENGTH - 1})
    roberta = BASE | {"model_type": "roberta", "max_position_embeddings": 20000}
    assert (
        encoder_spec(roberta | {"pad_token_id": limits.MAX_POSITIONS - 1}).position_offset == limits.MAX_POSITIONS
    )
    with pytest.raises(UnsupportedError, match="pad_token_id"):
        encoder_spec(roberta | {"pad_token_id": limits.MAX_POSITIONS})
    encoder_spec(BASE | {"hidden_size": limits.MAX_HIDDEN, "num_attention_heads": 64})
    with pytest.raises(UnsupportedError, match="hidden_size is 4160"):
        encoder_spec(BASE | {"hidden_size": limits.MAX_HIDDEN + 64, "num_attention_heads": 65})


@pytest.mark.parametrize("count", [20_000, limits.MAX_LABELS])
def test_many_labels_open_and_run(tmp_path, count):
    """Names as long as a product category; 20,000 of them take more than the 1 MiB of other JSON files."""
    labels = [f"Home and Garden > Kitchen and Dining > Storage and Organization > Shelf {i}" for i in range(count)]
    limits.check_labels(labels)
    package = package_tools.tiny_package("sequence-classification", layers=1, labels=labels)
    folder = package.save(tmp_path / "many")
    assert (folder / "config.json").stat().st_size > 1 << 20
    engine = Engine.from_pretrained(folder)
    assert engine.labels == tuple(labels) or list(engine.labels) == labels
    result = engine.classify("a b c")
    assert result["label"] in labels
    logits = engine.forward([[2, 5, 6, 3]]).logits
    assert np.asarray(logits).shape[-1] == count


def test_more_labels_are_refused_by_both(tmp_path):
    labels = [str(i) for i in range(limits.MAX_LABELS + 1)]
    with pytest.raises(UnsupportedError, match="65537 labels"):
        limits.check_labels(labels)
    with pytest.raises(UnsupportedError, match="65537 labels"):
        label_names({"id2label": {str(i): name for i, name in enumerate(labels)}})
    package = package_tools.tiny_package("sequence-classification", layers=1)
    package.config["task"]["labels"] = labels
    with pytest.raises(PackageError, match="an array of 1 to 65536 names"):
        Engine.from_pretrained(package.save(tmp_path / "more"))


def test_the_size_of_config_json(tmp_path):
    with pytest.raises(UnsupportedError, match="label names take"):
        limits.check_labels(["x" * 300] * limits.MAX_LABELS)
    package = package_tools.tiny_package("embedding")
    folder = package.save(tmp_path / "large")

    def fill(size: int):
        return lambda text: text + b" " * (size - len(text))

    package_tools.edit_bytes(folder, "config.json", fill(limits.MAX_CONFIG_BYTES))
    Engine.from_pretrained(folder)
    package_tools.edit_bytes(folder, "config.json", fill(limits.MAX_CONFIG_BYTES + 1))
    with pytest.raises(PackageError, match=f"at most {limits.MAX_CONFIG_BYTES} are allowed"):
        Engine.from_pretrained(folder)


def test_the_largest_labels_that_conversion_takes_fit(tmp_path):
    """Escapes are counted: a package of just under the limit opens."""
    name = 'a "quoted" name \\ ' * 11
    count = (limits.MAX_CONFIG_BYTES - (1 << 17) - 1000) // (len(json.dumps(name)) + 9)
    labels = [name] * min(count, limits.MAX_LABELS)
    limits.check_labels(labels)
    package = package_tools.tiny_package("sequence-classification", layers=1, labels=labels)
    folder = package.save(tmp_path / "quoted")
    from qla_runtime.model.package import json_bytes

    package_tools.edit_bytes(folder, "config.json", lambda text: json_bytes(json.loads(text)))
    Engine.from_pretrained(folder)


@pytest.mark.parametrize("name", ["", "x" * 201, "two\nlines", "\x1b[31mred", "nul\0", "half \ud800"])
def test_names_of_packages(name):
    with pytest.raises(InputError, match="1 to 200 printable characters"):
        limits.check_name(name)
    assert limits.check_name("München, v2 (日本語)") == "München, v2 (日本語)"
