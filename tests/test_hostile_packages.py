"""Packages that are damaged, or built to do harm: each gets a typed error that names file and rule.

What their JSON says is test_hostile_json.py's, what their weights say test_hostile_weights.py's.
"""

from __future__ import annotations

import json
import os
import pickle
import random
import re
import shutil
import threading
from pathlib import Path

import package_tools as tools
import pytest
from hostile_tools import CHECKED_FILES, WEIGHTS, open_engine, refused, run
from package_tools import tiny_package

from qla_runtime.errors import PackageError, UnsupportedError

# ---- What is there at all --------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["span-qa", "sequence-classification", "token-classification", "embedding"])
@pytest.mark.parametrize("family", ["bert", "roberta"])
@pytest.mark.parametrize("activation", ["per_token", "static"])
def test_good_packages_open(tmp_path, task, family, activation):
    package = tiny_package(task, family, activation=activation)
    info = open_engine(package.save(tmp_path / "good")).info
    outputs = {"span-qa": 2, "sequence-classification": 3, "token-classification": 5, "embedding": 64}
    assert info["outputs"] == outputs[task]
    assert info["logits_per_token"] is (task in ("span-qa", "token-classification"))
    assert info["max_positions"] == 64


def test_files_that_the_manifest_does_not_list_are_ignored(victim):
    (victim / "README.md").write_text("edited")
    (victim / "notes.bin").write_bytes(b"\x80\x04")
    open_engine(victim)


@pytest.mark.parametrize("file", CHECKED_FILES)
def test_missing_file(victim, file):
    (victim / file).unlink()
    refused(victim, file, "is missing")


@pytest.mark.parametrize("file", CHECKED_FILES)
def test_empty_file(victim, file):
    (victim / file).write_bytes(b"")
    refused(victim, file, "is empty")


@pytest.mark.parametrize("file", CHECKED_FILES)
def test_what_is_no_regular_file(victim, file):
    (victim / file).unlink()
    (victim / file).mkdir()
    refused(victim, file, "is not a regular file")
    (victim / file).rmdir()
    os.mkfifo(victim / file)  # opening it must not wait for a writer
    refused(victim, file, "is not a regular file")


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
    assert str(caught.value).endswith(f"\n  qla convert {tmp_path} OUT")


# ---- Damage: the checksums find it -----------------------------------------------------------------


@pytest.mark.parametrize("file", CHECKED_FILES)
def test_truncation_at_200_random_offsets(victim, file):
    content = (victim / file).read_bytes()
    for size in random.Random(1).choices(range(1, len(content)), k=200):
        (victim / file).write_bytes(content[:size])
        refused(victim, file, "cut short|self_crc32c|is damaged")


@pytest.mark.parametrize("file", CHECKED_FILES)
def test_one_flipped_bit_at_200_random_places(victim, file):
    content = (victim / file).read_bytes()
    chance = random.Random(2)
    for place in chance.choices(range(len(content)), k=200):
        damaged = bytearray(content)
        damaged[place] ^= 1 << chance.randrange(8)
        (victim / file).write_bytes(damaged)
        refused(victim, file, "self_crc32c|is damaged")


@pytest.mark.parametrize("file", CHECKED_FILES)
def test_appended_byte(victim, file):
    with open(victim / file, "ab") as stream:
        stream.write(b" ")
    refused(victim, file, "manifest says|is damaged")


def test_exchanged_files(victim, tmp_path):
    other = tiny_package(seed=1).save(tmp_path / "other")
    shutil.copy(other / "model.safetensors", victim)
    refused(victim, "model.safetensors", "checksum is .* is damaged or was replaced")


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
def test_manifest_rules(victim, overrides, rule):
    tools.write_manifest(victim, **overrides)
    refused(victim, "manifest.json", rule)


@pytest.mark.parametrize("overrides", [{"format_version": 2, "new_key": {}}, {"weight_layout": "k32n32"}])
def test_manifest_of_a_later_version(victim, overrides):
    tools.write_manifest(victim, **overrides)
    message = refused(victim, "manifest.json", "format_version is 2|weight_layout is 'k32n32'", UnsupportedError)
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
def test_manifest_texts(victim, old, new, rule):
    tools.seal_manifest(victim, manifest_text(victim).replace(old, new, 1))
    refused(victim, "manifest.json", rule)


# ---- Everything at once ----------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["config.json", "length_configs.json", WEIGHTS])
def test_random_mutations_behind_the_checksums(victim, file):
    """Edits of JSON with the checksums made to fit: refused or harmless, never a crash."""
    content = (victim / file).read_bytes()
    start, end = (8, 8 + int.from_bytes(content[:8], "little")) if file == WEIGHTS else (0, len(content))
    chance = random.Random(4)
    refusals = 0
    for _ in range(300):
        head = bytearray(content[start:end])
        for _ in range(chance.randrange(1, 4)):
            at = chance.randrange(len(head))
            head[at] = chance.choice(b'0123456789-.e[]{}":,aFI8\\u\x00\xff')
        tools.edit_bytes(victim, file, lambda _, head=head: content[:start] + head + content[end:])
        try:
            open_engine(victim)
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
