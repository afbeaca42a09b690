"""model.safetensors that breaks a rule, behind checksums that fit."""

from __future__ import annotations

import numpy as np
import package_tools as tools
import pytest
from hostile_tools import WEIGHTS, put, refused
from package_tools import TinyPackage, tiny_package


@pytest.mark.parametrize("length", [0, 1, 1 << 20, 1 << 31, 1 << 60, (1 << 63) - 1, (1 << 64) - 8, (1 << 64) - 1])
def test_header_lengths(victim, length):
    tools.edit_bytes(victim, WEIGHTS, lambda content: length.to_bytes(8, "little") + content[8:])
    refused(victim, WEIGHTS, f"header length is {length};")


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
        ("layers.0.qkv.bias", "dtype", "BF16", "dtype is 'BF16'; it must be U8, I8, I32 or F32"),
        ("layers.1.output.weight", "shape", [64, 64], r"it must be I8 \(1, 16, 64, 4\)"),
        ("head.weight", "shape", [64, 2], r"it must be F32 \(2, 64\)"),
        ("head.weight", "stride", [1], "unknown key 'stride' in head.weight"),
    ],
)
def test_header_entries(victim, name, key, value, rule):
    tools.edit_header(victim, lambda header: header[name].update({key: value}))
    assert name in refused(victim, WEIGHTS, rule)


def test_overlapping_tensors(victim):
    def overlap(header):
        header["layers.1.qkv.scale"]["data_offsets"] = header["layers.1.qkv.bias"]["data_offsets"]

    tools.edit_header(victim, overlap)
    assert "layers.1.qkv." in refused(victim, WEIGHTS, "neither overlap nor leave gaps")


def test_two_tensors_that_change_names_are_found_by_their_shape_or_sums(victim):
    def swap(header):
        one, other = "layers.0.qkv.column_sum", "layers.1.qkv.column_sum"
        header[one], header[other] = header[other], header[one]

    tools.edit_header(victim, swap)
    refused(victim, WEIGHTS, r"'layers.0.qkv.column_sum'\[\d+\] is .*; the weights of that column add up to")


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


def test_sizes_that_do_not_fit_the_config(victim):
    tools.edit_json(victim, "config.json", put("encoder.vocab_size", 100))
    refused(victim, WEIGHTS, r"'embeddings.word.weight' is I8 \(101, 64\); by config.json .*\(100, 64\)")
