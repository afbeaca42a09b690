"""config.json and length_configs.json that break a rule, behind checksums that fit."""

from __future__ import annotations

import package_tools as tools
import pytest
from hostile_tools import open_engine, put, refused
from package_tools import tiny_package

from qla_runtime.activations import ACTIVATIONS
from qla_runtime.errors import UnsupportedError
from qla_runtime.vectors import SIMILARITIES

# ---- config.json -----------------------------------------------------------------------------------

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
def test_config_rules(victim, path, value, rule):
    tools.edit_json(victim, "config.json", put(path, value))
    refused(victim, "config.json", rule)


@pytest.mark.parametrize(
    "path, value",
    [
        ("format_version", 2),
        ("encoder.norm", "pre"),
        ("encoder.activation", "swiglu"),
        ("encoder.positions", "rotary"),
        ("linears.0.output.type", "w4a8"),
        ("linears.0.output.activation", "per_group"),
        ("task.kind", "summarization"),
    ],
)
def test_config_of_a_later_version(victim, path, value):
    tools.edit_json(victim, "config.json", put(path, value))
    refused(victim, "config.json", f"{path.split('.')[-1]} is '?{value}", UnsupportedError)


def test_a_truncation_side_of_a_later_version(victim):
    tools.edit_json(victim, "config.json", put("text", {"truncation_side": "middle"}))
    refused(victim, "config.json", "text.truncation_side is 'middle'", UnsupportedError)


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
        (
            "embedding",
            "task.matryoshka_dims",
            [],
            "task.matryoshka_dims is an array; it must be .* 1 to 64 widths",
        ),
        ("embedding", "task.matryoshka_dims", [64, 0], r"task.matryoshka_dims\[1\] is 0; it must be an integer"),
        ("embedding", "task.matryoshka_dims", 64, "task.matryoshka_dims is 64; it must be an array"),
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
def test_json_attacks(victim, file, text, rule):
    tools.edit_bytes(victim, file, lambda _: text)
    refused(victim, file, rule)


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
def test_length_config_rules(victim, path, value, rule):
    tools.edit_json(victim, "length_configs.json", put(path, value))
    refused(victim, "length_configs.json", rule)


@pytest.mark.parametrize("path, value", [("format_version", 2), ("configs.1.rule", "threshold")])
def test_length_configs_of_a_later_version(victim, path, value):
    tools.edit_json(victim, "length_configs.json", put(path, value))
    refused(victim, "length_configs.json", f"is '?{value}", UnsupportedError)
