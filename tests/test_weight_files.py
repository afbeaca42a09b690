"""Weights as they lie: safetensors and pickles, whole and in shards, in a folder and on a hub."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (pip install 'qla_runtime[convert]')")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

from checkpoint_tools import save_checkpoint  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from qla_runtime.checkpoints.reader import open_checkpoint  # noqa: E402
from qla_runtime.errors import InputError, UnsupportedError  # noqa: E402


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("m") / "made", "Bert", "span-qa")


@pytest.fixture
def tensors(made) -> dict[str, torch.Tensor]:
    return load_file(made / "model.safetensors")


@pytest.fixture
def bare(made, tmp_path) -> Path:
    """The checkpoint without its weights."""
    folder = Path(shutil.copytree(made, tmp_path / "bare"))
    (folder / "model.safetensors").unlink()
    return folder


def same_model(one: Path, other: Path) -> bool:
    first, second = (open_checkpoint(folder).load_model().state_dict() for folder in (one, other))
    return all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def write_shards(folder: Path, tensors: dict, name: str, save) -> dict[str, str]:
    stem, suffix = name.rsplit(".", 1)
    names = sorted(tensors)
    files = {f"{stem}-0000{i + 1}-of-00002.{suffix}": names[i::2] for i in range(2)}
    for file, part in files.items():
        save({key: tensors[key] for key in part}, folder / file)
    weight_map = {key: file for file, part in files.items() for key in part}
    (folder / f"{name}.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return weight_map


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_is_read(made, bare, tensors, zipped):
    parameters = {name: torch.nn.Parameter(tensor) for name, tensor in tensors.items()}
    torch.save(parameters, bare / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    assert same_model(bare, made)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_shards(made, bare, tensors, name):
    save = save_file if name.endswith("safetensors") else torch.save
    weight_map = write_shards(bare, tensors, name, save)
    assert same_model(bare, made)

    index = bare / f"{name}.index.json"
    first, second = sorted(set(weight_map.values()))
    lying = dict(weight_map) | {next(k for k, v in weight_map.items() if v == first): second}
    index.write_text(json.dumps({"weight_map": lying}))
    with pytest.raises(InputError, match="index says"):
        open_checkpoint(bare)
    index.write_text(json.dumps({"weight_map": weight_map | {"bert.more": first}}))
    with pytest.raises(InputError, match=r"index says that tensor 'bert\.more'"):
        open_checkpoint(bare)

    index.write_text(json.dumps({"weight_map": weight_map}))
    save({key: tensors[key] for key in tensors if weight_map[key] == second} | {
        next(k for k, v in weight_map.items() if v == first): torch.zeros(2)}, bare / second)  # fmt: skip
    with pytest.raises(InputError, match="in two weight files"):
        open_checkpoint(bare)

    (bare / second).unlink()
    with pytest.raises(InputError, match=f"1 of 2 weight files are missing, such as {second}"):
        open_checkpoint(bare)
    for bad in ({}, {"a": "../model.safetensors"}, {"a": 3}, {"a": "/etc/passwd"}, [1]):
        index.write_text(json.dumps({"weight_map": bad}))
        with pytest.raises(InputError, match="weight_map must map"):
            open_checkpoint(bare)


def test_safetensors_come_before_pickles(made, tmp_path):
    folder = Path(shutil.copytree(made, tmp_path / "both"))
    (folder / "pytorch_model.bin").write_bytes(b"never opened")
    assert same_model(folder, made)


class _Evil:
    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return (os.system, (f"touch {self.target}",))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_malicious_pickle_runs_nothing(bare, tensors, tmp_path, zipped):
    target = tmp_path / "ran"
    content = {**tensors, "bert.evil": _Evil(target)}
    torch.save(content, bare / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    with pytest.raises(UnsupportedError, match=r"pytorch_model\.bin: this pickle holds more than tensors"):
        open_checkpoint(bare)
    (bare / "pytorch_model.bin").write_bytes(pickle.dumps(_Evil(target)))
    with pytest.raises((InputError, UnsupportedError), match=r"pytorch_model\.bin"):
        open_checkpoint(bare)
    assert not target.exists()


def test_pickles_that_are_no_state_dict(bare, tensors):
    path = bare / "pytorch_model.bin"
    for content, words in [
        ({"state_dict": tensors, "epoch": 3}, "'state_dict' is a dict"),
        ([1, 2], "holds a list"),
        ({"a": torch.zeros(2, 2).to_sparse()}, "'a' is a Tensor"),
        ({5: torch.zeros(2)}, "'5' is a Tensor"),
    ]:
        torch.save(content, path)
        with pytest.raises(UnsupportedError, match=words):
            open_checkpoint(bare)
    torch.save(tensors, path)
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"PK\x03\x04 no zip", b"text"):
        path.write_bytes(damaged)
        with pytest.raises((InputError, UnsupportedError), match=r"pytorch_model\.bin"):
            open_checkpoint(bare)


@pytest.mark.parametrize("name", ["tf_model.h5", "flax_model.msgpack", "model.onnx", "weights.pt"])
def test_other_formats_are_named(bare, name):
    (bare / name).write_bytes(b"x")
    with pytest.raises(UnsupportedError, match=f"the weights come as {name}.*save_pretrained"):
        open_checkpoint(bare)


def test_a_pipe_in_place_of_a_file_does_not_hang(made, tmp_path):
    folder = Path(shutil.copytree(made, tmp_path / "pipes"))
    for name in ("model.safetensors", "config.json"):
        (folder / name).unlink()
        os.mkfifo(folder / name)
        with pytest.raises((InputError, UnsupportedError)):
            open_checkpoint(folder)


def test_a_pickle_only_repository(bare, tensors, tmp_path, monkeypatch):
    """The second fetch brings the pickle; messages name the repository and not the snapshot's hash."""
    torch.save(tensors, bare / "pytorch_model.bin")
    fetched = []

    def snapshot_download(name, *, allow_patterns):
        snapshot = tmp_path / "0123456789abcdef"
        shutil.rmtree(snapshot, ignore_errors=True)
        pickles = any(pattern.endswith(".bin") for pattern in allow_patterns)
        shutil.copytree(bare, snapshot, ignore=None if pickles else shutil.ignore_patterns("*.bin"))
        fetched.append(pickles)
        return str(snapshot)

    hub = types.ModuleType("huggingface_hub")
    hub.snapshot_download = snapshot_download
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    source = open_checkpoint("owner/pickled")
    assert fetched == [False, True] and source.source == "owner/pickled"
    source.load_model()

    (bare / "pytorch_model.bin").unlink()
    with pytest.raises(InputError, match=r"^owner/pickled: ") as error:
        open_checkpoint("owner/pickled")
    assert "0123456789abcdef" not in str(error.value)


def test_the_runtime_opens_no_pickle():
    """torch stays out of an engine's process, and with it every way to load one."""
    code = (
        "import sys; from qla_runtime import Engine; Engine.from_pretrained(); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
