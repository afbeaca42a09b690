"""Files and arguments that would hang or surprise: huge sparse files, pipes, odd paths, very many labels."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import package_tools
import pytest
from package_tools import FILES, tiny_package

from qla_runtime import Engine, InputError, PackageError, QlaError, _core

CHECKED_FILES = ("manifest.json", *FILES)


def short(value: object) -> str:
    """A test's name for a value: Python refuses to print integers of more than 4,300 digits."""
    return "huge" if isinstance(value, int) and abs(value) > 1 << 70 else repr(value)[:20]


AT_ONCE = 5.0
"""Seconds; reading a terabyte of holes takes hours, and a pipe never ends."""


@pytest.fixture
def folder(tmp_path) -> Path:
    return tiny_package("embedding").save(tmp_path / "package")


def refused_at_once(folder: Path, rule: str) -> str:
    """In a process of its own: what hangs in native code hears no signal."""
    script = "import sys\nfrom qla_runtime import Engine\nEngine(sys.argv[1])"
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", script, folder], capture_output=True, text=True, timeout=120)
    took = time.perf_counter() - began
    message = done.stderr.strip().splitlines()[-1]
    assert message.startswith("qla_runtime.errors.PackageError: "), done.stderr
    assert rule in message, message
    assert took < AT_ONCE + 10  # Python's own start, on a busy machine
    return message


# ---- sparse files ----------------------------------------------------------------------------------


@pytest.mark.parametrize("file", CHECKED_FILES)
def test_a_huge_sparse_file(folder, file):
    os.truncate(folder / file, 1 << 40)
    refused_at_once(folder, f"{file}: has 1099511627776 bytes")


@pytest.mark.parametrize("file", FILES)
def test_a_huge_sparse_file_that_the_manifest_lists(folder, file):
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["self_crc32c"]
    manifest["files"][file]["size"] = 1 << 40
    package_tools.seal_manifest(folder, json.dumps(manifest)[:-1] + ', "self_crc32c": "00000000"}')
    os.truncate(folder / file, 1 << 40)
    refused_at_once(folder, f"{file}: has 1099511627776 bytes; ")


def test_sparse_weights_whose_header_covers_them(folder):
    """Consistent in itself: one tensor as large as the file."""
    size = 1 << 40
    entry = {"dtype": "I8", "shape": [size], "data_offsets": [0, size]}
    header = json.dumps({"embeddings.word.weight": entry}).encode()
    header += b" " * (-(8 + len(header)) % 64)
    weights = folder / "model.safetensors"
    weights.write_bytes(len(header).to_bytes(8, "little") + header)
    os.truncate(weights, 8 + len(header) + size)
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["self_crc32c"]
    manifest["files"]["model.safetensors"]["size"] = 8 + len(header) + size
    package_tools.seal_manifest(folder, json.dumps(manifest)[:-1] + ', "self_crc32c": "00000000"}')
    refused_at_once(folder, "a model of config.json's shapes has at most")


def test_a_sparse_config_of_a_folder_without_manifest(folder):
    (folder / "manifest.json").unlink()
    os.truncate(folder / "config.json", 1 << 40)
    with pytest.raises(PackageError, match="config.json: has 1099511627776 bytes"):
        _core.Engine(folder)


def test_ctrl_c_while_a_large_package_is_opened(tmp_path):
    """Weights as large as the config allows them: 64 GB, nearly all holes. Reading them takes a while."""
    package = tiny_package("embedding")
    package.config["encoder"] |= {"vocab_size": 1 << 24}
    folder = package.save(tmp_path / "package")
    package.config["encoder"] |= {"hidden": 4096, "heads": 64, "intermediate": 16384}
    (folder / "config.json").write_text(json.dumps(package.config))
    package_tools.write_manifest(folder)
    size = 60 << 30
    os.truncate(folder / "model.safetensors", size)
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["self_crc32c"]
    manifest["files"]["model.safetensors"]["size"] = size
    package_tools.seal_manifest(folder, json.dumps(manifest)[:-1] + ', "self_crc32c": "00000000"}')
    timer = threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT))
    began = time.perf_counter()
    with pytest.raises(KeyboardInterrupt):
        timer.start()
        _core.Engine(folder)
    assert time.perf_counter() - began < AT_ONCE


# ---- what is no regular file -----------------------------------------------------------------------


@pytest.mark.parametrize("file", CHECKED_FILES)
@pytest.mark.parametrize("kind", ["pipe", "device", "endless device", "directory", "socket", "dangling link"])
def test_what_is_no_regular_file(folder, file, kind, monkeypatch):
    path = folder / file
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    elif kind == "socket":
        monkeypatch.chdir(folder)  # the path of a socket has at most 107 characters
        socket.socket(socket.AF_UNIX).bind(file)
    else:
        target = {"device": "/dev/null", "endless device": "/dev/zero", "dangling link": "/nowhere"}[kind]
        path.symlink_to(target)
    for open_it in (_core.Engine, Engine):
        with pytest.raises(PackageError):
            open_it(folder)


@pytest.mark.parametrize("kind", ["pipe", "/dev/zero", "/dev/null"])
def test_a_package_path_that_is_no_folder(tmp_path, kind):
    path = tmp_path / "pipe" if kind == "pipe" else Path(kind)
    if kind == "pipe":
        os.mkfifo(path)
    for open_it in (_core.Engine, Engine, Engine.from_pretrained):
        with pytest.raises(PackageError, match="a package is a folder"):
            open_it(path)


# ---- arguments -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "isa", ["ref\0junk", "\0", "\ud800", "ref\ud800", "", "REF", "ref ", "x" * 100_000, b"ref", 7]
)
def test_isa_that_is_no_instruction_set(folder, isa):
    for open_it in (_core.Engine, Engine):
        with pytest.raises(InputError, match="^isa "):
            open_it(folder, isa=isa)


@pytest.mark.parametrize(
    "path",
    ["a\0b", "\ud800", b"x", b"a\0b", 7, None, ["x"], "x" * 5000, "x/" * 5000, "", 10**400, 10**5000],
    ids=short,
)
def test_paths_that_name_no_package(path):
    with pytest.raises(QlaError):
        _core.Engine(path)
    if path is not None:  # the default model
        with pytest.raises(QlaError):
            Engine(path)
        with pytest.raises(QlaError):
            Engine.from_pretrained(path)


def test_a_path_of_bytes_that_are_no_utf8(tmp_path):
    folder = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")
    tiny_package("embedding").save(folder)
    assert Engine(folder).task == "embedding"
    (Path(folder) / "config.json").write_text("x")
    with pytest.raises(PackageError, match=r"caf\\xe9|caf\\udce9"):
        Engine(folder)


@pytest.mark.parametrize(
    "value", [0, -1, 1025, 2**31, 2**63, -(2**63), 10**400, 10**5000, 1.0, "1", True, [1]], ids=short
)
@pytest.mark.parametrize("name", ["num_threads", "streams"])
def test_counts_out_of_bounds(folder, name, value):
    with pytest.raises(InputError, match=f"^{name} is "):
        Engine(folder, **{name: value})


# ---- many labels -----------------------------------------------------------------------------------


@pytest.mark.parametrize("task, count", [("sequence-classification", 20_000), ("token-classification", 20_000)])
def test_20_000_labels_from_file_to_result(tmp_path, task, count):
    labels = [
        f"label {i} " + "of a large catalogue of categories with rather long names"[: i % 40] for i in range(count)
    ]
    package = tiny_package(task, labels=labels)
    package.tensors["head.bias"][12_345] = 100.0
    folder = package.save(tmp_path)
    assert (folder / "config.json").stat().st_size > 1 << 19
    engine = Engine(folder, num_threads=1)
    assert engine.labels == tuple(labels)
    if task == "token-classification":
        assert engine.info["outputs"] == count
        return
    result = engine.classify(["some text", "another"], top_k=None)[1]
    assert result["label"] == labels[12_345]
    assert len(result["scores"]) == count
    scores = [entry["score"] for entry in result["scores"]]
    assert scores == sorted(scores, reverse=True)


def test_65_536_labels_open_and_65_537_do_not(tmp_path):
    package = tiny_package("sequence-classification", labels=[f"label-{i:06}-{'x' * 60}" for i in range(1 << 16)])
    folder = package.save(tmp_path)
    assert (folder / "config.json").stat().st_size > 4 << 20
    assert Engine(folder).labels[-1].startswith("label-065535-")
    package_tools.edit_json(folder, "config.json", lambda config: config["task"]["labels"].append("one more"))
    with pytest.raises(PackageError, match="task.labels is an array; it must be an array of 1 to 65536 names"):
        Engine(folder)


# ---- config.json -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        b"[" * 1_000_000,
        b'{"a":' * 1_000_000,
        b"[" + b"0," * 5_000_000 + b"0]",
        b"{" + b",".join(b'"%d":0' % i for i in range(500_000)) + b"}",
        b'{"format_version": 1' + b"0" * 400 + b"}",
        b'{"format_version": 1e400}',
        b'{"format_version": -1}',
        b'{"format_version": {}}',
        b'{"format_version": "1"}',
        b'{"format_version": null}',
        b'{"format_version": 1, "name": []}',
        b"7",
        b"null",
        b'"text"',
        b"[]",
        b" " * (17 << 20),
        b'"' + b"x" * (15 << 20) + b'"',
    ],
    ids=lambda text: f"{text[:24]!r} of {len(text)}",
)
def test_hostile_configs_are_refused_soon(folder, text):
    package_tools.edit_bytes(folder, "config.json", lambda _: text)
    began = time.perf_counter()
    with pytest.raises(PackageError, match="config.json: "):
        Engine(folder)
    assert time.perf_counter() - began < AT_ONCE


def test_any_wrong_type_anywhere_in_the_config(folder):
    """Each value of a good config replaced by one of every type: a typed error, or the same package."""
    good = json.loads((folder / "config.json").read_text())

    def places(value, way=()):
        yield way
        children = (
            value.items() if isinstance(value, dict) else enumerate(value if isinstance(value, list) else ())
        )
        for key, child in children:
            yield from places(child, (*way, key))

    wrong = [None, True, 7, -(2**63), 2**63, 1e308, "x", "\ud83d\ude00", [], {}, [[]], {"a": {}}]
    want = np.asarray(Engine(folder).encode("a text"))
    for way in list(places(good)):
        for value in wrong:
            config = json.loads(json.dumps(good))
            if not way:
                config = value
            else:
                target = config
                for key in way[:-1]:
                    target = target[key]
                target[way[-1]] = value
            (folder / "config.json").write_text(json.dumps(config))
            package_tools.write_manifest(folder)
            try:
                engine = Engine(folder)
            except QlaError:
                continue
            assert engine.encode("a text").shape == want.shape
