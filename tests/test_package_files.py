"""What conversion writes is what docs/file-format.md says, and appears all at once."""

from __future__ import annotations

import json
import os
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (pip install 'qla_runtime[convert]')")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

from checkpoint_tools import VOCAB  # noqa: E402

from qla_runtime import _core  # noqa: E402
from qla_runtime.checkpoints.reader import Checkpoint, open_checkpoint  # noqa: E402
from qla_runtime.convert import contents, lengths  # noqa: E402
from qla_runtime.convert.scale_sources import ScaleRequest, max_abs  # noqa: E402
from qla_runtime.convert.scales import LinearScales  # noqa: E402
from qla_runtime.errors import InputError, QlaError  # noqa: E402
from qla_runtime.lengths.table import LengthTable  # noqa: E402
from qla_runtime.model import pack, staging  # noqa: E402
from qla_runtime.model.formats import INT8_WORDS  # noqa: E402
from qla_runtime.model.package import check_target, crc32c, safetensors_bytes, write_package  # noqa: E402
from qla_runtime.model.spec import shape  # noqa: E402


def test_packing_is_the_documented_layout():
    rng = np.random.default_rng(1)
    weight = rng.integers(-127, 128, (192, 128), dtype=np.int8)
    packed = pack.pack(weight)
    assert packed.shape == (3, 32, 64, 4) and packed.flags.c_contiguous
    for _ in range(500):
        n, k = rng.integers(192), rng.integers(128)
        assert packed[n // 64, k // 4, n % 64, k % 4] == weight[n, k]
    np.testing.assert_array_equal(pack.unpack(packed), weight)


def test_rows_quantize_symmetrically():
    table = np.array([[0.0, 0.0, 0.0], [-2.54, 1.0, 0.01]], np.float32)
    codes, scale = INT8_WORDS.quantize(table)
    np.testing.assert_allclose(scale, [[1], [0.02]], rtol=2.0**-23)  # 2.54 and its quotient are float32
    assert codes.tolist() == [[0, 0, 0], [-127, 50, 0]]
    # neural-compressor's scale puts the largest weight at 127.5 steps
    assert pack.quantize_rows(np.array([[-1.275, 0.5]], np.float32), np.array([0.01], np.float32)).min() == -127
    assert pack.pad16(np.ones(17, np.float32)).tolist() == [1] * 17 + [0] * 15


def test_safetensors_bytes_read_back(tmp_path):
    from safetensors.numpy import load_file

    tensors = {
        "a": np.arange(64, dtype=np.int8).reshape(2, 32),
        "b": np.arange(16, dtype=np.float32),
        "c": np.arange(32, dtype=np.int32),
    }
    path = tmp_path / "t.safetensors"
    path.write_bytes(safetensors_bytes(tensors))
    for name, tensor in load_file(path).items():
        np.testing.assert_array_equal(tensor, tensors[name])
    with pytest.raises(QlaError, match="no multiple of 64"):
        safetensors_bytes({"odd": np.zeros(3, np.float32)})


@pytest.fixture
def source(qa_checkpoint) -> Checkpoint:
    return open_checkpoint(qa_checkpoint, max_length=48)


@pytest.fixture
def state(source) -> dict[str, np.ndarray]:
    return source.load_state()


@pytest.fixture
def scales(source, state) -> dict[tuple[int, str], LinearScales]:
    """Those of the weights, with a range of its own for the input of each layer."""
    found = max_abs(ScaleRequest(source, state, None, None))
    return {
        key: replace(scales, low=-1 - number, high=2.5 + number)
        for number, (key, scales) in enumerate(found.items())
    }


@pytest.fixture
def package(source, state, scales, tmp_path) -> Path:
    """A static package, which no kernel has run."""
    folder = tmp_path / "package"
    folder.mkdir()
    task = source.task
    configs = LengthTable.of(lengths.default_configs(3), shape(source.encoder, task), task.to_json())
    write_package(
        folder,
        config=contents.package_config("tiny", source, scales),
        tensors=contents.packed_tensors(state, source.encoder, scales),
        tokenizer_json=source.tokenizer_json,
        length_configs=configs.to_json(),
    )
    return folder


def test_crc32c_check_value():
    assert crc32c(b"123456789") == 0xE3069283


def test_manifest_obeys_the_format(package):
    text = (package / "manifest.json").read_bytes()
    manifest = json.loads(text)
    assert list(manifest) == ["format", "format_version", "weight_layout", "files", "self_crc32c"]
    assert (manifest["format"], manifest["format_version"]) == ("qla-package", 1)
    assert manifest["weight_layout"] == "n64k4"
    assert set(manifest["files"]) == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "length_configs.json",
    }
    for name, entry in manifest["files"].items():
        data = (package / name).read_bytes()
        assert entry == {"size": len(data), "crc32c": f"{_core.crc32c(data):08x}"}
    assert text.count(b'"self_crc32c": "') == 1
    own = manifest["self_crc32c"].encode()
    assert _core.crc32c(text.replace(own, b"00000000")) == int(own, 16) and len(own) == 8


def test_config_obeys_the_format(package, scales):
    config = json.loads((package / "config.json").read_text())
    assert set(config) == {"format_version", "name", "encoder", "linears", "task"}
    assert config["encoder"] == {
        "norm": "post", "activation": "gelu_erf", "positions": "absolute", "position_offset": 0, "layers": 3,
        "hidden": 64, "heads": 2, "intermediate": 128, "vocab_size": VOCAB, "max_positions": 64,
        "type_vocab_size": 2, "norm_eps": 1e-12,
    }  # fmt: skip
    assert len(config["linears"]) == 3
    for i, layer in enumerate(config["linears"]):
        assert set(layer) == {"qkv", "output", "ffn_in", "ffn_out"}
        for linear, entry in layer.items():
            found = scales[i, linear]
            assert entry == {
                "type": "w8a8", "activation": "static",
                "scale": found.input_scale, "zero_point": found.input_zero_point,
            }  # fmt: skip
    configs = json.loads((package / "length_configs.json").read_text())
    assert configs["format_version"] == 1 and configs["frontier"] == []
    assert [entry["name"] for entry in configs["configs"]] == ["full", "balanced", "fast"]
    assert configs["configs"][0]["macs_share"] == 1
    assert set(configs["configs"][1]) == {"name", "rule", "values", "keep_cls", "macs_share"}


def test_tensors_obey_the_format(package, qa_checkpoint, state):
    raw = (package / "model.safetensors").read_bytes()
    (size,) = struct.unpack("<Q", raw[:8])
    assert (8 + size) % 64 == 0
    header = json.loads(raw[8 : 8 + size])
    h, f, v = 64, 128, VOCAB
    shapes = {
        "embeddings.word.weight": ("I8", [v, h]),
        "embeddings.word.scale": ("F32", [112]),
        "embeddings.position.weight": ("F32", [64, h]),
        "embeddings.token_type.weight": ("F32", [2, h]),
        "head.weight": ("F32", [2, h]),
        "head.bias": ("F32", [16]),
    }
    norms = ["embeddings.norm"]
    for i in range(3):
        norms += [f"layers.{i}.attention_norm", f"layers.{i}.ffn_norm"]
        for linear, (k, n) in {
            "qkv": (h, 3 * h),
            "output": (h, h),
            "ffn_in": (h, f),
            "ffn_out": (f, h),
        }.items():
            name = f"layers.{i}.{linear}"
            shapes[f"{name}.weight"] = ("I8", [n // 64, k // 4, 64, 4])
            shapes[f"{name}.scale"] = shapes[f"{name}.bias"] = ("F32", [n])
            shapes[f"{name}.column_sum"] = ("I32", [n])
    for norm in norms:
        shapes[f"{norm}.weight"] = shapes[f"{norm}.bias"] = ("F32", [h])
    assert {name: (entry["dtype"], entry["shape"]) for name, entry in header.items()} == shapes

    end, tensors = 0, {}
    for name, entry in header.items():
        begin, stop = entry["data_offsets"]
        assert begin == end and (stop - begin) % 64 == 0, name
        end = stop
        kind = {"I8": np.int8, "I32": np.int32, "F32": np.float32}[entry["dtype"]]
        tensors[name] = np.frombuffer(raw[8 + size + begin : 8 + size + stop], kind).reshape(entry["shape"])
    assert 8 + size + end == len(raw)

    for i in range(3):
        for linear in ("qkv", "output", "ffn_in", "ffn_out"):
            name = f"layers.{i}.{linear}"
            weight = pack.unpack(tensors[f"{name}.weight"])
            assert weight.min() >= -127
            np.testing.assert_array_equal(tensors[f"{name}.column_sum"], weight.astype(np.int64).sum(1))
            scale = tensors[f"{name}.scale"]
            error = np.abs(weight * scale[:, None] - state[f"encoder.{name}.weight"])
            assert (error <= 0.5001 * scale[:, None]).all()
            np.testing.assert_array_equal(tensors[f"{name}.bias"], state[f"encoder.{name}.bias"])
    scale = tensors["embeddings.word.scale"]
    assert (scale[:v] > 0).all() and (scale[v:] == 0).all() and np.isfinite(scale).all()
    assert (tensors["head.bias"][2:] == 0).all()
    np.testing.assert_array_equal(tensors["head.weight"], state["head.weight"])
    # qkv: all of Q, then K, then V, as the checkpoint has them under three names
    from safetensors.numpy import load_file

    theirs = load_file(qa_checkpoint / "model.safetensors")
    for i in range(3):
        weight = pack.unpack(tensors[f"layers.{i}.qkv.weight"]) * tensors[f"layers.{i}.qkv.scale"][:, None]
        for part, name in enumerate(("query", "key", "value")):
            rows = slice(part * h, (part + 1) * h)
            stored = f"bert.encoder.layer.{i}.attention.self.{name}"
            step = tensors[f"layers.{i}.qkv.scale"][rows, None]
            assert (np.abs(weight[rows] - theirs[f"{stored}.weight"]) <= 0.5001 * step).all()
            np.testing.assert_array_equal(tensors[f"layers.{i}.qkv.bias"][rows], theirs[f"{stored}.bias"])


def test_publish_replaces_atomically(tmp_path):
    target = tmp_path / "p"
    for generation in ("old", "new"):
        with staging.staging(target) as stage:
            (stage / "x").mkdir()
            (stage / "x" / "manifest.json").write_text(generation)
            staging.publish(stage / "x", target)
        assert (target / "manifest.json").read_text() == generation
        assert os.listdir(tmp_path) == ["p"]
    with open(target / "manifest.json") as still_open, staging.staging(target) as stage:
        (stage / "manifest.json").write_text("newest")
        staging.publish(stage, target)
        assert still_open.read() == "new"
    with pytest.raises(RuntimeError), staging.staging(target) as stage:
        (stage / "manifest.json").write_text("never seen")
        raise RuntimeError
    assert os.listdir(tmp_path) == ["p"] and (target / "manifest.json").read_text() == "newest"


def test_leaves_foreign_folders_alone(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(InputError, match="no package"):
        check_target(tmp_path / "mine")
    with pytest.raises(InputError, match="is a file"):
        check_target(tmp_path / "mine" / "thesis.txt")
    assert check_target(tmp_path / "new") == (tmp_path / "new").resolve()
