"""Packages that are damaged, or built to do harm: each gets a typed error that names file and rule."""

from __future__ import annotations

import json
import os
import pickle
import random
import re
import shutil
import threading
from pathlib import Path

import numpy as np
import package_tools as tools
import pytest
from package_tools import FILES, TinyPackage, tiny_package

from qla_runtime import _core
from qla_runtime.activations import ACTIVATIONS
from qla_runtime.errors import PackageError, UnsupportedError
from qla_runtime.vectors import SIMILARITIES

CHECKED_FILES = ("manifest.json", *FILES)


def open_engine(path: Path) -> _core.Engine:
    return _core.Engine(str(path), num_threads=1)


def run(engine: _core.Engine) -> bytes:
    ids = np.arange(3, 11, dtype=np.int32)
    want = {"last_hidden"}
    return engine.run(ids, np.array([0, 5, 8], np.int64), None, [], None, want)["last_hidden"].tobytes()


@pytest.fixture(scope="module")
def bystander(tmp_path_factory):
    """A good engine, opened before any attack, and its answer then."""
    engine = open_engine(tiny_package(seed=5).save(tmp_path_factory.mktemp("bystander")))
    return engine, run(engine)


@pytest.fixture
def folder(tmp_path, bystander):
    """A valid package to spoil; whatever the test does, the bystander must answer as before."""
    path = tiny_package().save(tmp_path / "package")
    yield path
    engine, answer = bystander
    assert run(engine) == answer


def refused(path: Path, file: str, rule: str, error=PackageError) -> str:
    """Opening fails with this type, and the message names package, file, rule and remedy."""
    with pytest.raises(error) as caught:
        open_engine(path)
    message = str(caught.value)
    assert type(caught.value) is error
    assert f"package '{path}': {file}: " in message
    assert re.search(rule, message), f"{message}\nlacks: {rule}"
    assert "qla convert" in message
    return message


# ---- What is there at all --------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["span-qa", "sequence-classification", "token-classification", "embedding"])
@pytest.mark.parametrize("family", ["bert", "roberta"])
@pytest.mark.parametrize("activation", ["per_token", "static"])
def test_good_packages_open(tmp_path, task, family, activation):
    package = tiny_package(task, family, activation=activation)
    info = open_engine(package.save(tmp_path / "good")).info
    outputs = {"span-qa": 2, "sequence-classification": 3, "token-classification": 5, "embedding": 64}
    assert info["outputs"] == outputs[task]
    assert info["max_positions"] == 64


def test_files_that_the_manifest_does_not_list_are_ignored(folder):
    (folder / "README.md").write_text("edited")
    (folder / "notes.bin").write_bytes(b"\x80\x04")
    open_engine(folder)


@pytest.mark.parametrize("file", CHECKED_FILES)
def test_missing_file(folder, file):
    (folder / file).unlink()
    refused(folder, file, "is missing")


@pytest.mark.parametrize("file", CHECKED_FILES)
def test_empty_file(folder, file):
    (folder / file).write_bytes(b"")
    refused(folder, file, "is empty")


@pytest.mark.parametrize("file", CHECKED_FILES)
def test_what_is_no_regular_file(folder, file):
    (folder / file).unlink()
    (folder / file).mkdir()
    refused(folder, file, "is not a regular file")
    (folder / file).rmdir()
    os.mkfifo(folder / file)  # opening it must not wait for a writer
    refused(folder, file, "is not a regular file")


def test_path_that_is_missing(tmp_path, bystander):
    with pytest.raises(PackageError, match="cannot open the package folder '.*none': No such file"):
        open_engine(tmp_path / "none")


@pytest.mark.parametrize("content", [pickle.dumps({"weight": 1}), b"PK\x03\x04 torch.save writes zip archives"])
def test_pickle_file(tmp_path, content):
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(content)
    with pytest.raises(PackageError, match="looks like a pickle, which qla never opens.*qla convert"):
        open_engine(path)


def test_other_file(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("hello")
    with pytest.raises(PackageError, match="is not a folder; a package is a folder with a manifest.json$"):
        open_engine(path)


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("config", [{"model_type": "bert"}, {"architectures": ["BertModel"]}])
def test_checkpoint_that_is_no_package(tmp_path, weights, config):
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / weights).write_bytes(b"weights")
    with pytest.raises(PackageError) as caught:
        open_engine(tmp_path)
    assert "is a checkpoint, not a package" in str(caught.value)
    assert f"\n  qla convert {tmp_path} OUT --calibrate TEXTS" in str(caught.value)


# ---- Damage: the checksums find it -----------------------------------------------------------------


@pytest.mark.parametrize("file", CHECKED_FILES)
def test_truncation_at_200_random_offsets(folder, file):
    content = (folder / file).read_bytes()
    for size in random.Random(1).choices(range(1, len(content)), k=200):
        (folder / file).write_bytes(content[:size])
        refused(folder, file, "cut short|self_crc32c|is damaged")


@pytest.mark.parametrize("file", CHECKED_FILES)
def test_one_flipped_bit_at_200_random_places(folder, file):
    content = (folder / file).read_bytes()
    chance = random.Random(2)
    for place in chance.choices(range(len(content)), k=200):
        damaged = bytearray(content)
        damaged[place] ^= 1 << chance.randrange(8)
        (folder / file).write_bytes(damaged)
        refused(folder, file, "self_crc32c|is damaged")


@pytest.mark.parametrize("file", CHECKED_FILES)
def test_appended_byte(folder, file):
    with open(folder / file, "ab") as stream:
        stream.write(b" ")
    refused(folder, file, "manifest says|is damaged")


def test_exchanged_files(folder, tmp_path):
    other = tiny_package(seed=1).save(tmp_path / "other")
    shutil.copy(other / "model.safetensors", folder)
    refused(folder, "model.safetensors", "checksum is .* is damaged or was replaced")


# ---- manifest.json ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "overrides, rule",
    [
        ({"format": "other"}, "format is 'other'; it must be 'qla-package'"),
        ({"format_version": 0}, "format_version is 0; it must be an integer from 1"),
        ({"format_version": "1"}, "format_version is '1'"),
        ({"format_version": 1.5}, "format_version is 1.5"),
        ({"files": []}, "files is an array; it must be an object"),
        ({"files": {}}, "'files.config.json' is missing"),
        ({"weight_layout": 7}, "weight_layout is 7; it must be a text"),
        ({"extra": 1}, "unknown key 'extra'"),
    ],
)
def test_manifest_rules(folder, overrides, rule):
    tools.write_manifest(folder, **overrides)
    refused(folder, "manifest.json", rule)


@pytest.mark.parametrize("overrides", [{"format_version": 2, "new_key": {}}, {"weight_layout": "k32n32"}])
def test_manifest_of_a_later_version(folder, overrides):
    tools.write_manifest(folder, **overrides)
    message = refused(folder, "manifest.json", "format_version is 2|weight_layout is 'k32n32'", UnsupportedError)
    assert "newer qla_runtime" in message


def manifest_text(folder: Path) -> str:
    return re.sub(r'("self_crc32c": )"\w*"', r'\1"00000000"', (folder / "manifest.json").read_text())


@pytest.mark.parametrize(
    "old, new, rule",
    [
        ('"config.json": {', '"config.json": {"mode": 7, ', "unknown key 'mode' in files.config.json"),
        (
            '"config.json": {',
            '"../config.json": {"size": 1, "crc32c": "0"}, "config.json": {',
            "unknown key '../config",
        ),
        ('"tokenizer.json"', '"tokenizer.bin"', "unknown key 'tokenizer.bin'"),
        ('"format_version": 1', '"format_version": 1, "format_version": 1', "'format_version' occurs twice"),
        ('"size": ', '"size": -', "files.config.json.size is -"),
        ("{", "[" * 100_000, "nested deeper than 16"),
        ('"files"', '"self_crc32c": "", "files"', "must occur exactly once"),
        ('"self_crc32c"', '"self_crc"', "must occur exactly once"),
        ('"self_crc32c": "00000000"}', '"self_crc32c": "', "cut short"),
        ('"format": ', '"format": "' + "x" * (1 << 20) + '", "f": ', "at most 1048576 are allowed"),
    ],
)
def test_manifest_texts(folder, old, new, rule):
    tools.seal_manifest(folder, manifest_text(folder).replace(old, new, 1))
    refused(folder, "manifest.json", rule)


# ---- config.json -----------------------------------------------------------------------------------


def put(path: str, value):
    """A change of parsed JSON: the entry at "a.0.b" becomes value; None removes it."""

    def change(parsed):
        *way, last = (int(step) if step.isdigit() else step for step in path.split("."))
        for step in way:
            parsed = parsed[step]
        if value is None:
            del parsed[last]
        else:
            parsed[last] = value

    return change


LINEAR = {"type": "w8a8", "activation": "static", "scale": 0.1, "zero_point": 3}


@pytest.mark.parametrize(
    "path, value, rule",
    [
        ("name", 7, "name is 7; it must be a text"),
        ("color", "red", "unknown key 'color'"),
        ("encoder", None, "'encoder' is missing"),
        ("encoder.dropout", 0.1, "unknown key 'dropout' in encoder"),
        ("encoder.layers", 0, "encoder.layers is 0; it must be an integer from 1 to 64"),
        ("encoder.layers", 65, "encoder.layers is 65"),
        ("encoder.layers", 3, r"linears is an array; .*one entry per layer \(3, not 2\)"),
        ("encoder.layers", 2.0, "encoder.layers is 2.0"),
        ("encoder.layers", True, "encoder.layers is true"),
        ("encoder.layers", 2**64 - 1, "encoder.layers is 18446744073709551615;"),
        ("encoder.layers", 2**64 + 2, "the integer '18446744073709551618' does not fit 64 bits"),
        ("encoder.layers", -(2**63), "encoder.layers is -9223372036854775808"),
        ("encoder.hidden", 63, "encoder.hidden is 63"),
        ("encoder.hidden", 96, "encoder.hidden is 96; it must be a multiple of 64"),
        ("encoder.hidden", 8192, "encoder.hidden is 8192"),
        ("encoder.heads", 4, "encoder.heads is 4; it must be hidden / 32 or hidden / 64"),
        ("encoder.heads", 0, "encoder.heads is 0"),
        ("encoder.heads", 3, "encoder.heads is 3"),
        ("encoder.intermediate", 100, "encoder.intermediate is 100; it must be a multiple of 64"),
        ("encoder.intermediate", 1 << 15, "encoder.intermediate is 32768"),
        ("encoder.vocab_size", 1 << 25, "encoder.vocab_size is"),
        ("encoder.max_positions", 5000, "encoder.max_positions is 5000"),
        ("encoder.position_offset", -1, "encoder.position_offset is -1"),
        ("encoder.type_vocab_size", 0, "encoder.type_vocab_size is 0"),
        ("encoder.norm_eps", 0, "encoder.norm_eps is 0; it must be a positive"),
        ("encoder.norm_eps", 1e-60, "encoder.norm_eps is 1e-60; it must be a positive, normal"),
        ("encoder.norm_eps", 0.5, "encoder.norm_eps is 0.5; it must be at most 0.1"),
        ("encoder.norm_eps", "tiny", "encoder.norm_eps is 'tiny'; it must be a number"),
        ("encoder.norm", ["post"], "encoder.norm is an array; it must be a text"),
        ("linears.0.qkv", None, r"'linears\[0\].qkv' is missing"),
        ("linears.1.gate", LINEAR, r"unknown key 'gate' in linears\[1\]"),
        ("linears.1.qkv", LINEAR | {"scale": -1}, r"linears\[1\].qkv.scale is -1"),
        ("linears.1.qkv", LINEAR | {"scale": 1e300}, r"linears\[1\].qkv.scale is 1e\+300"),
        ("linears.1.qkv", LINEAR | {"zero_point": 256}, r"linears\[1\].qkv.zero_point is 256"),
        ("linears.1.qkv", {"type": "w8a8", "activation": "static"}, "qkv.scale' is missing"),
        ("linears.1.qkv", LINEAR | {"activation": "per_token"}, r"unknown key 'scale' in linears\[1\].qkv"),
        ("task.kind", 0, "task.kind is 0; it must be a text"),
        ("task.keep_cls", 1, "task.keep_cls is 1; it must be true or false"),
        ("task.max_length", 65, "task.max_length is 65; it must be an integer from 8 to 64"),
        ("task.doc_stride", 64, "task.doc_stride is 64; it must be an integer from 1 to 63"),
        ("task.max_answer_tokens", 0, "task.max_answer_tokens is 0"),
        ("task.no_answer", 1, "task.no_answer is 1; it must be true or false"),
        ("task.labels", ["a"], "unknown key 'labels' in task"),
        ("text", [], "text is an array; it must be an object"),
        ("text", {"lower_case": True}, "unknown key 'lower_case' in text"),
        ("text", {"truncation_side": 1}, "text.truncation_side is 1; it must be a text"),
        ("text", {"token_types": 0}, "text.token_types is 0; it must be true or false"),
        ("text", {"split_special_tokens": "no"}, "text.split_special_tokens is 'no'; it must be true or false"),
    ],
)
def test_config_rules(folder, path, value, rule):
    tools.edit_json(folder, "config.json", put(path, value))
    refused(folder, "config.json", rule)


@pytest.mark.parametrize(
    "path, value",
    [
        ("format_version", 2),
        ("encoder.norm", "pre"),
        ("encoder.activation", "swiglu"),
        ("encoder.positions", "rotary"),
        ("linears.0.output.type", "w2a8"),
        ("linears.0.output.activation", "per_group"),
        ("task.kind", "summarization"),
    ],
)
def test_config_of_a_later_version(folder, path, value):
    tools.edit_json(folder, "config.json", put(path, value))
    refused(folder, "config.json", f"{path.split('.')[-1]} is '?{value}", UnsupportedError)


def test_a_truncation_side_of_a_later_version(folder):
    tools.edit_json(folder, "config.json", put("text", {"truncation_side": "middle"}))
    refused(folder, "config.json", "text.truncation_side is 'middle'", UnsupportedError)


@pytest.mark.parametrize(
    "task, path, value, rule",
    [
        ("sequence-classification", "task.labels", [], "task.labels is an array; it must be .* 1 to"),
        ("sequence-classification", "task.labels", ["a", 7, "c"], r"task.labels\[1\] is 7"),
        ("sequence-classification", "task.pooler", None, "'task.pooler' is missing"),
        ("token-classification", "task.pooler", "none", "unknown key 'pooler'"),
        ("embedding", "task.normalize", "yes", "task.normalize is 'yes'"),
        ("sequence-classification", "task.activation", 1, "task.activation is 1; it must be a text"),
        ("embedding", "task.activation", "sigmoid", "unknown key 'activation'"),
        ("embedding", "task.similarity", ["dot"], "task.similarity is an array; it must be a text"),
        ("token-classification", "task.similarity", "dot", "unknown key 'similarity'"),
        ("embedding", "task.truncate_dim", 0, "task.truncate_dim is 0; it must be an integer from 1 to 64"),
        ("embedding", "task.truncate_dim", 65, "task.truncate_dim is 65; it must be an integer from 1 to 64"),
        ("embedding", "prompts", ["query: "], "prompts is an array; it must be an object"),
        ("embedding", "prompts", {"query": 1}, "prompts.query is 1; it must be a text"),
        ("embedding", "default_prompt", "query", "default_prompt is 'query'; it must be the name of a prompt"),
        ("embedding", "default_prompt", 1, "default_prompt is 1; it must be a text"),
    ],
)
def test_task_rules(tmp_path, task, path, value, rule):
    folder = tiny_package(task).save(tmp_path / "package")
    tools.edit_json(folder, "config.json", put(path, value))
    refused(folder, "config.json", rule)


@pytest.mark.parametrize("task, key", [("sequence-classification", "activation"), ("embedding", "similarity")])
def test_settings_of_a_later_version(tmp_path, task, key):
    folder = tiny_package(task).save(tmp_path / "package")
    tools.edit_json(folder, "config.json", put(f"task.{key}", "entmax"))
    refused(folder, "config.json", f"task.{key} is 'entmax'", UnsupportedError)


def test_every_activation_and_similarity_opens(tmp_path):
    for number, (task, key, name) in enumerate(
        [("sequence-classification", "activation", name) for name in ACTIVATIONS]
        + [("embedding", "similarity", name) for name in SIMILARITIES]
    ):
        folder = tiny_package(task).save(tmp_path / f"{number}")
        tools.edit_json(folder, "config.json", put(f"task.{key}", name))
        open_engine(folder)


JSON_FILES = ("config.json", "length_configs.json")


@pytest.mark.parametrize("file", JSON_FILES)
@pytest.mark.parametrize(
    "text, rule",
    [
        (b'{"a": 1, "a": 1}', "key 'a' occurs twice"),
        (b'{"a": {"b": 1, "b": 2}}', "key 'b' occurs twice"),
        (b"[" * 200_000, "nested deeper than 16 levels"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "nested deeper than 16 levels"),
        (b"{" + b" " * (1 << 24) + b"}", "at most (1048576|16777216) are allowed"),
        (b"{} {}", "not valid JSON"),
        (b'{"a": NaN}', "not valid JSON"),
        (b'{"a": 1e400}', "not valid JSON: a number is out of range"),
        (b'{"a": "\xff\xfe"}', "not valid JSON"),
        (b"\x80\x04\x95", "not valid JSON"),
        (b"\x00", "not valid JSON"),
        (b"7", "it must be an object"),
        (b"null", "it must be an object"),
        (b'{"format_version": 1, "\\u0000\\n\\u001b[31m": 1}', r"unknown key '\?\?\?\[31m'"),
    ],
)
def test_json_attacks(folder, file, text, rule):
    tools.edit_bytes(folder, file, lambda _: text)
    refused(folder, file, rule)


# ---- length_configs.json ---------------------------------------------------------------------------

ESCALATION = {"cheap": "fast", "dear": "full", "threshold": 0.5}


@pytest.mark.parametrize(
    "path, value, rule",
    [
        ("version", 1, "unknown key 'version'"),
        ("configs", [], "an array with a config named 'full'"),
        ("configs.0.name", "whole", "an array with a config named 'full'"),
        ("configs.1.name", "full", r"configs\[1\].name is 'full'; it must be a name no other"),
        ("configs.1.name", "", r"configs\[1\].name is ''"),
        ("configs.1.name", None, r"'configs\[1\].name' is missing"),
        ("configs.1.color", 1, r"unknown key 'color' in configs\[1\]"),
        ("configs.0.values", [1, 0.5], r"configs\[0\].values is an array; it must be ratios of 1"),
        ("configs.1.values", [0.5], r"one number per layer \(2, not 1\)"),
        ("configs.1.values", [0.5, 0.4, 0.3], r"one number per layer \(2, not 3\)"),
        ("configs.1.values", [0.5, 0.6], r"values\[1\] is 0.6; it must be no more than"),
        ("configs.1.values", [0.5, 0], r"values\[1\] is 0; it must be a share above 0"),
        ("configs.1.values", [1.5, 0.5], r"values\[0\] is 1.5"),
        ("configs.1.values", [0.5, "x"], r"values\[1\] is 'x'; it must be a number"),
        ("configs.1.values", 7, "values is 7; it must be an array"),
        ("configs.1.keep_cls", 1, "keep_cls is 1; it must be true or false"),
        ("configs.0.macs_share", 0, r"macs_share is 0; it must be a share"),
        ("configs.0.accuracy", {"metric": "f1"}, "'configs.0..accuracy.value' is missing"),
        ("frontier", {}, "frontier is an object; it must be an array"),
        ("frontier.0.values", [20, 0], r"frontier\[0\].values\[1\] is 0; it must be an integer from 1"),
        ("frontier.0.values", [20, 2.5], r"frontier\[0\].values\[1\] is 2.5"),
        ("frontier.0.rule", 3, r"frontier\[0\].rule is 3"),
        ("escalations", {}, "escalations is an object; it must be an array"),
        ("escalations", [{"cheap": "fast", "dear": "full"}], r"'escalations\[0\].threshold' is missing"),
        (
            "escalations",
            [ESCALATION | {"cheap": "quick"}],
            r"escalations\[0\].cheap is 'quick'; it must",
        ),
        ("escalations", [ESCALATION | {"dear": 1}], r"escalations\[0\].dear is 1"),
        ("escalations", [ESCALATION | {"threshold": 1.5}], r"threshold is 1.5; it must be a confidence"),
        ("escalations", [ESCALATION, ESCALATION | {"x": 1}], r"unknown key 'x' in escalations\[1\]"),
        ("escalations", [ESCALATION | {"accuracy": {}}], r"escalations\[0\].accuracy"),
    ],
)
def test_length_config_rules(folder, path, value, rule):
    tools.edit_json(folder, "length_configs.json", put(path, value))
    refused(folder, "length_configs.json", rule)


@pytest.mark.parametrize("path, value", [("format_version", 2), ("configs.1.rule", "threshold")])
def test_length_configs_of_a_later_version(folder, path, value):
    tools.edit_json(folder, "length_configs.json", put(path, value))
    refused(folder, "length_configs.json", f"is '?{value}", UnsupportedError)


# ---- model.safetensors -----------------------------------------------------------------------------

WEIGHTS = "model.safetensors"


@pytest.mark.parametrize("length", [0, 1, 1 << 20, 1 << 31, 1 << 60, (1 << 63) - 1, (1 << 64) - 8, (1 << 64) - 1])
def test_header_lengths(folder, length):
    tools.edit_bytes(folder, WEIGHTS, lambda content: length.to_bytes(8, "little") + content[8:])
    refused(folder, WEIGHTS, f"header length is {length};")


@pytest.mark.parametrize(
    "name, key, value, rule",
    [
        (
            "layers.0.qkv.bias",
            "data_offsets",
            [64, 832],
            "begins at data byte 64 where 6464 was due.*neither overlap nor leave gaps",
        ),
        ("layers.0.qkv.bias", "data_offsets", [0, 1 << 60], r"data_offsets\[1\] is 1152921504606846976"),
        ("layers.0.qkv.bias", "data_offsets", [-64, 704], r"data_offsets\[0\] is -64"),
        ("layers.0.qkv.bias", "shape", [96], r"768 bytes, which is not what F32 \(96\) takes"),
        ("layers.0.qkv.bias", "shape", [2, 96], r"is F32 \(2, 96\); by config.json it must be F32 \(192\)"),
        ("layers.0.qkv.bias", "dtype", "I32", r"is I32 \(192\); by config.json it must be F32 \(192\)"),
        ("layers.0.qkv.bias", "dtype", "BF16", "dtype is 'BF16'; it must be I8, I32 or F32"),
        ("layers.1.output.weight", "shape", [64, 64], r"it must be I8 \(1, 16, 64, 4\)"),
        ("head.weight", "shape", [64, 2], r"it must be F32 \(2, 64\)"),
        ("head.weight", "stride", [1], "unknown key 'stride' in head.weight"),
    ],
)
def test_header_entries(folder, name, key, value, rule):
    tools.edit_header(folder, lambda header: header[name].update({key: value}))
    assert name in refused(folder, WEIGHTS, rule)


def test_overlapping_tensors(folder):
    def overlap(header):
        header["layers.1.qkv.scale"]["data_offsets"] = header["layers.1.qkv.bias"]["data_offsets"]

    tools.edit_header(folder, overlap)
    assert "layers.1.qkv." in refused(folder, WEIGHTS, "neither overlap nor leave gaps")


def test_two_tensors_that_change_names_are_found_by_their_shape_or_sums(folder):
    def swap(header):
        one, other = "layers.0.qkv.column_sum", "layers.1.qkv.column_sum"
        header[one], header[other] = header[other], header[one]

    tools.edit_header(folder, swap)
    refused(folder, WEIGHTS, r"'layers.0.qkv.column_sum'\[\d+\] is .*; the weights of that column add up to")


def spoil(name: str, value, index: int = 3):
    def change(package: TinyPackage):
        package.tensors[name].reshape(-1)[index] = value

    return change


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38, -10_001.0])
def test_every_float_must_be_finite_and_of_sane_size(tmp_path, value):
    good = tiny_package("sequence-classification", layers=1)
    for name, array in good.tensors.items():
        if array.dtype != np.float32:
            continue
        package = good.copy()
        spoil(name, value, array.size // 3)(package)
        refused(package.save(tmp_path / "package"), WEIGHTS, rf"tensor '{name}'\[{array.size // 3}\] is .*finite")


@pytest.mark.parametrize(
    "name, value, index, rule",
    [
        ("embeddings.word.scale", 0.0, 3, r"\[3\] is 0.000000; it must be positive"),
        ("embeddings.word.scale", 1.0, 105, r"\[4\] is 1.000000; it must be zero, being padding"),
        ("layers.1.ffn_in.scale", -0.1, 3, r"\[3\] is -0.100000; it must be positive"),
        ("layers.1.ffn_in.column_sum", 1 << 20, 3, r"\[3\] is 1048576; the weights of that column"),
        ("layers.1.ffn_in.weight", 0, 3, "column_sum'.*; the weights of that column"),
        ("head.bias", 1.0, 2, r"\[0\] is 1.000000; it must be zero, being padding"),
    ],
)
def test_tensor_values(tmp_path, name, value, index, rule):
    package = tiny_package()
    spoil(name, value, index)(package)
    refused(package.save(tmp_path / "package"), WEIGHTS, rule)


def test_missing_and_unknown_tensors(tmp_path):
    good = tiny_package("embedding")
    package = good.copy()
    del package.tensors["layers.1.output.bias"]
    refused(package.save(tmp_path / "a"), WEIGHTS, "tensor 'layers.1.output.bias' is missing")
    package = good.copy()
    package.tensors["head.weight"] = np.zeros((2, 64), np.float32)
    refused(package.save(tmp_path / "b"), WEIGHTS, "tensor 'head.weight' is not one this model has")


def test_sizes_that_do_not_fit_the_config(folder):
    tools.edit_json(folder, "config.json", put("encoder.vocab_size", 100))
    refused(folder, WEIGHTS, r"'embeddings.word.weight' is I8 \(101, 64\); by config.json .*\(100, 64\)")


# ---- Everything at once ----------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["config.json", "length_configs.json", WEIGHTS])
def test_random_mutations_behind_the_checksums(folder, file):
    """Edits of JSON with the checksums made to fit: refused or harmless, never a crash."""
    content = (folder / file).read_bytes()
    start, end = (8, 8 + int.from_bytes(content[:8], "little")) if file == WEIGHTS else (0, len(content))
    chance = random.Random(4)
    refusals = 0
    for _ in range(300):
        head = bytearray(content[start:end])
        for _ in range(chance.randrange(1, 4)):
            at = chance.randrange(len(head))
            head[at] = chance.choice(b'0123456789-.e[]{}":,aFI8\\u\x00\xff')
        tools.edit_bytes(folder, file, lambda _, head=head: content[:start] + head + content[end:])
        try:
            open_engine(folder)
        except (PackageError, UnsupportedError) as error:
            assert "package '" in str(error)
            refusals += 1
    assert refusals > 200


def test_a_package_that_is_replaced_while_it_is_opened(tmp_path):
    """Two packages take turns at one path, and each old one is deleted, as an atomic replacement does."""
    spare = [tiny_package(seed=seed).save(tmp_path / f"spare{seed}") for seed in (0, 1)]
    link, stop = tmp_path / "package", threading.Event()

    def replace():
        turn = 0
        while not stop.is_set():
            turn += 1
            fresh, pointer = tmp_path / f"turn{turn}", tmp_path / "pointer"
            shutil.copytree(spare[turn % 2], fresh)
            pointer.symlink_to(fresh)
            pointer.replace(link)
            shutil.rmtree(tmp_path / f"turn{turn - 1}", ignore_errors=True)

    link.symlink_to(spare[0])
    answers = {run(open_engine(path)) for path in spare}
    worker = threading.Thread(target=replace)
    worker.start()
    try:
        for _ in range(200):
            assert run(open_engine(link)) in answers
    finally:
        stop.set()
        worker.join()
