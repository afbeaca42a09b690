"""The limits that conversion checks are those that the loader enforces; what they allow, works."""

from __future__ import annotations

import json
import re

import numpy as np
import package_tools
import pytest

from qla_runtime import Engine, LengthConfig
from qla_runtime.activations import ACTIVATIONS
from qla_runtime.checkpoints.config import encoder_spec, label_names, task_spec
from qla_runtime.errors import InputError, PackageError, QlaError, UnsupportedError
from qla_runtime.lengths.table import LengthTable
from qla_runtime.model import limits
from qla_runtime.model.formats import INT8_WORDS
from qla_runtime.model.pack import pad16
from qla_runtime.model.package import json_bytes
from qla_runtime.task_kinds import TASK_KINDS
from qla_runtime.vectors import SIMILARITIES

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


def fault_of_config(folder, encoder: dict, task: dict) -> str | None:
    """What the loader says against these parts of a config.json; the tensors are others' and don't count."""
    package = package_tools.tiny_package(task["kind"])
    package.config["encoder"], package.config["task"] = encoder, task
    package.config["linears"] = package.config["linears"][:1] * encoder["layers"]
    try:
        Engine.from_pretrained(package.save(folder))
    except QlaError as error:
        return str(error) if "config.json" in str(error).split("by config.json")[0] else None
    return None


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
    package_tools.edit_bytes(folder, "config.json", lambda text: json_bytes(json.loads(text)))
    Engine.from_pretrained(folder)


@pytest.mark.parametrize("name", ["", "x" * 201, "two\nlines", "\x1b[31mred", "nul\0", "half \ud800"])
def test_names_of_packages(name):
    with pytest.raises(InputError, match="1 to 200 printable characters"):
        limits.check_name(name)
    assert limits.check_name("München, v2 (日本語)") == "München, v2 (日本語)"


# --- what conversion makes of a config, the loader takes ---------------------------------------------

NEAR = {
    "num_hidden_layers": (1, 2, limits.MAX_LAYERS, limits.MAX_LAYERS + 1),
    "hidden_size": (64, 96, 128, limits.MAX_HIDDEN, limits.MAX_HIDDEN + 64),
    "num_attention_heads": (1, 2, 3, 4, 64, 128),
    "intermediate_size": (64, 65, limits.MAX_INTERMEDIATE, limits.MAX_INTERMEDIATE + 64),
    "vocab_size": (1, 100, limits.MAX_VOCAB, limits.MAX_VOCAB + 1),
    "max_position_embeddings": (7, 8, 9, 10, 40, 512, 4096, 4097, 4098, 8194, 1 << 40),
    "type_vocab_size": (1, 2, limits.MAX_TYPES, limits.MAX_TYPES + 1),
    "layer_norm_eps": (1e-12, 2.0**-126, 1e-38, 0.1, 0.1000001, 1.0),
    "pad_token_id": (0, 1, limits.MAX_POSITIONS - 1, limits.MAX_POSITIONS),
    "num_labels": (1, 2, 5),
    "problem_type": (None, "regression", "single_label_classification", "multi_label_classification"),
}
SMALL = {"hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 64, "num_hidden_layers": 1}


@pytest.mark.parametrize("kind", TASK_KINDS)
@pytest.mark.parametrize("model_type", ["bert", "roberta"])
def test_the_loader_takes_what_conversion_makes_of_a_config(tmp_path, model_type, kind):
    """Each key at and beyond its limits, alone and three at a time; lengths at which texts are cut, too."""
    random = np.random.default_rng(list(map(ord, model_type + kind)))
    changes = [{key: value} for key, values in NEAR.items() for value in values]
    for _ in range(60):
        keys = random.choice(list(NEAR), 3, replace=False)
        changes.append({key: NEAR[key][random.integers(len(NEAR[key]))] for key in keys})
    made = refused = 0
    for number, change in enumerate(changes):
        config = {"model_type": model_type} | SMALL | change
        max_length = (None, 7, 8, 9, 20, 30, 31, 512, 4096)[random.integers(9)]
        try:
            encoder = encoder_spec(config, max_length=max_length)
            task = task_spec(config, encoder, task=kind, max_length=max_length)
        except QlaError:
            refused += 1
            continue
        made += 1
        assert fault_of_config(tmp_path / str(number), encoder.to_json(), task.to_json()) is None, (config, task)
    assert made > 20 and refused > 20


@pytest.mark.parametrize("max_length", [8, 20, 29, 30, 31])
def test_answers_are_no_longer_than_texts(max_length):
    config = BASE | {"architectures": ["BertForQuestionAnswering"]}
    assert task_spec(config, encoder_spec(config), max_length=max_length).max_answer_tokens == min(30, max_length)


@pytest.mark.parametrize("name", ["", 3, None])
def test_names_of_length_configs(name):
    task = {"kind": "span-qa", "max_length": 8, "keep_cls": True}
    shape = {"layers": 1, "hidden": 64, "intermediate": 64, "outputs": 2}
    full = LengthConfig.ratio([1.0])
    with pytest.raises(InputError, match="name of a length config is"):
        LengthTable.of({"full": full, name: full}, shape, task)


def test_files_that_are_too_large():
    small = b"{}"
    limits.check_sizes(small, small, "{}")
    with pytest.raises(UnsupportedError, match="config.json takes 16777216 bytes"):
        limits.check_sizes(b" " * limits.MAX_CONFIG_BYTES, small, "{}")
    with pytest.raises(UnsupportedError, match="length_configs.json takes 1048577 bytes"):
        limits.check_sizes(small, b" " * (limits.MAX_JSON_BYTES + 1), "{}")
    with pytest.raises(UnsupportedError, match="tokenizer.json takes"):
        limits.check_sizes(small, small, " " * (limits.MAX_TOKENIZER_BYTES + 1))


def test_the_size_of_length_configs_json(tmp_path):
    folder = package_tools.tiny_package("embedding").save(tmp_path / "large")

    def fill(size: int):
        return lambda text: text + b" " * (size - len(text))

    package_tools.edit_bytes(folder, "length_configs.json", fill(limits.MAX_JSON_BYTES))
    Engine.from_pretrained(folder)
    package_tools.edit_bytes(folder, "length_configs.json", fill(limits.MAX_JSON_BYTES + 1))
    with pytest.raises(PackageError, match=f"at most {limits.MAX_JSON_BYTES} are allowed"):
        Engine.from_pretrained(folder)


@pytest.mark.parametrize(
    "value", [limits.MAX_VALUE, np.nextafter(np.float32(limits.MAX_VALUE), np.float32(np.inf))]
)
def test_the_size_of_floats(tmp_path, value):
    package = package_tools.tiny_package("embedding")
    package.tensors["embeddings.norm.bias"][3] = -value
    folder = package.save(tmp_path / "package")
    if value <= limits.MAX_VALUE:
        limits.check_values("x", package.tensors["embeddings.norm.bias"])
        Engine.from_pretrained(folder)
    else:
        with pytest.raises(UnsupportedError, match="the weights: x has values up to 10000; a package holds 10000"):
            limits.check_values("x", package.tensors["embeddings.norm.bias"])
        with pytest.raises(PackageError, match="at most 10000 in size"):
            Engine.from_pretrained(folder)


def test_scales_of_nearly_empty_rows(tmp_path):
    """A row so small that its scale would be no normal float: the loader wants a positive one."""
    package = package_tools.tiny_package("embedding")
    table = np.zeros((101, 64), np.float32)
    table[1], table[2], table[3] = 1e-45, 1e-38, 1.0
    codes, scale = INT8_WORDS.quantize(table)
    scale = scale[:, 0]
    package.tensors["embeddings.word.weight"] = codes.astype(np.int8)
    package.tensors["embeddings.word.scale"] = pad16(scale)
    assert scale[:3].tolist() == [1, 1, 1] and scale[3] == np.float32(1 / 127)
    Engine.from_pretrained(package.save(tmp_path / "package"))


def test_names_that_are_no_text():
    """Half of a surrogate pair, which a checkpoint's JSON can spell: in a prompt, a label, a length's name."""
    with pytest.raises(InputError, match="half of a surrogate pair"):
        json_bytes({"prompts": {"query": "half \ud800"}})


@pytest.mark.parametrize(
    ("kind", "key", "names"),
    [
        ("embedding", "similarity", SIMILARITIES),
        ("sequence-classification", "activation", tuple(ACTIVATIONS)),
        ("embedding", "pooling", limits.POOLINGS),
    ],
)
def test_the_loader_knows_the_same_names(tmp_path, kind, key, names):
    config = package_tools.tiny_package(kind).config
    encoder, task = config["encoder"], config["task"]
    for name in names:
        assert fault_of_config(tmp_path / name, encoder, task | {key: name}) is None
    # The message lists what the loader knows: nothing but these.
    fault = fault_of_config(tmp_path / "other", encoder, task | {key: "another"})
    listed = set(re.findall(r"'(\w+)'", fault.partition(f"task.{key} is 'another'")[2]))
    assert listed == set(names)
