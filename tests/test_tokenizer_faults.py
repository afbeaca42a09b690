"""The engine's tokenizer: opened with the package, cut on its side, its faults named, and safe to fork."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
from package_tools import TinyPackage, tiny_package
from tokenizers import Tokenizer

from qla_runtime import Engine, _core
from qla_runtime.errors import InputError, PackageError
from qla_runtime.model.staging import publish
from qla_runtime.texts.tokenizer import LOADING, TextRules

IDS = [[5, 6, 7, 8]]


def engine_with(tmp_path: Path, change, task: str = "embedding") -> Engine:
    package = tiny_package(task)
    change(package)
    return Engine(package.save(tmp_path / "package"), num_threads=1)


# ---- the bytes that were opened -------------------------------------------------------------------


def test_an_open_engine_keeps_its_tokenizer_when_the_package_is_replaced(tmp_path):
    old, new = tiny_package("embedding", seed=0), tiny_package("embedding", seed=1)
    vocab = new.tokenizer["model"]["vocab"]
    vocab["a"], vocab["z"] = vocab["z"], vocab["a"]
    old.save(tmp_path / "p"), new.save(tmp_path / "q")
    expected = Engine(old.save(tmp_path / "old")).encode("a a z")
    engine = Engine(tmp_path / "p")
    publish(tmp_path / "q", tmp_path / "p")
    np.testing.assert_array_equal(engine.encode("a a z"), expected)


def test_the_native_engine_hands_out_tokenizer_json_as_opened(tmp_path):
    folder = tiny_package("embedding").save(tmp_path / "p")
    content = (folder / "tokenizer.json").read_bytes()
    native, engine = _core.Engine(folder), Engine(folder)
    (folder / "tokenizer.json").unlink()
    assert native.tokenizer_json() == content
    assert engine.encode("a").shape == (64,)


# ---- faults ---------------------------------------------------------------------------------------


def _model(**model):
    def change(package: TinyPackage) -> None:
        package.tokenizer["model"] = model

    return change


def _set(key, value):
    return lambda package: package.tokenizer.update({key: value})


def _template(single):
    tokens = {"X": {"id": "X", "ids": [100_000], "tokens": ["X"]}}
    return _set(
        "post_processor",
        {"type": "TemplateProcessing", "single": single, "pair": single, "special_tokens": tokens},
    )


A = {"Sequence": {"id": "A", "type_id": 0}}
FAULTS = {
    "id of 2^31": (lambda p: p.tokenizer["model"]["vocab"].update(a=2**31), "token id 2147483648"),
    "id of 2^32": (lambda p: p.tokenizer["model"]["vocab"].update(a=2**32), "4294967296"),
    "id behind the vocabulary": (lambda p: p.tokenizer["model"]["vocab"].update(a=101), "token id 101"),
    "no unknown token": (_model(type="WordLevel", vocab={"abc": 4}, unk_token="[UNK]"), r"\[UNK\]"),
    "Rust panic": (_set("pre_tokenizer", {"type": "FixedLength", "length": 0}), "chunk size must be non-zero"),
    "special token behind the vocabulary": (
        _template([{"SpecialToken": {"id": "X", "type_id": 0}}, A]),
        "token id 100000",
    ),
    "token type that the model lacks": (_template([{"Sequence": {"id": "A", "type_id": 7}}]), "token type 7"),
    "unknown model": (_model(type="Mystery"), "tokenizer.json"),
    "no model": (lambda p: p.tokenizer.pop("model"), "tokenizer.json"),
    "text for a vocabulary": (_model(type="WordLevel", vocab="abc", unk_token="a"), "tokenizer.json"),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("task", ["embedding", "span-qa"])
def test_faults_of_tokenizer_json_are_package_errors(tmp_path, fault, task):
    change, words = FAULTS[fault]
    engine = engine_with(tmp_path, change, task)
    call = engine.encode if task == "embedding" else (lambda text: engine.answer(text, text))
    if task == "span-qa" and fault.startswith(("special", "token type")):
        pytest.skip("the template has no second text")
    for _ in range(2):
        with pytest.raises(PackageError, match=words) as caught:
            call("a")
        assert "convert again" in str(caught.value)
    assert engine.forward(IDS).padded().shape == (1, 4, 64), "the engine works on"


def test_a_text_without_a_token_is_refused(tmp_path):
    def change(package: TinyPackage) -> None:
        package.tokenizer |= {
            "post_processor": None,
            "normalizer": {"type": "Replace", "pattern": {"String": "a"}},
        }
        package.tokenizer["normalizer"]["content"] = ""

    engine = engine_with(tmp_path, change)
    with pytest.raises(InputError):
        engine.encode(["b", "a"])
    assert engine.encode(["b"]).shape == (1, 64)


def test_bpe_dropout_is_off(tmp_path):
    model = {
        "type": "BPE",
        "dropout": 0.5,
        "unk_token": None,
        "vocab": {"a": 0, "b": 1, "ab": 2},
        "merges": ["a b"],
    }
    engine = engine_with(tmp_path, _model(**model))
    calls = [engine.text_encoder.encode(["abab"]).batch.ids.tolist() for _ in range(20)]
    assert all(2 in ids and ids == calls[0] for ids in calls), "merged, always"


def test_truncation_and_padding_in_tokenizer_json_do_not_count(tmp_path):
    plain = Engine(tiny_package("embedding").save(tmp_path / "plain"))

    def change(package: TinyPackage) -> None:
        tokenizer = Tokenizer.from_str(json.dumps(package.tokenizer))
        tokenizer.enable_truncation(4, direction="left")
        tokenizer.enable_padding(length=20)
        package.tokenizer = json.loads(tokenizer.to_str())

    engine = engine_with(tmp_path, change)
    np.testing.assert_array_equal(engine.encode("a b c d e f"), plain.encode("a b c d e f"))


# ---- rules ----------------------------------------------------------------------------------------


def test_rules_write_what_differs_from_the_default():
    assert TextRules().to_json() == {}
    rules = TextRules(truncation_side="left", token_types=False, split_special_tokens=True)
    assert TextRules.from_json(rules.to_json()) == rules


def test_left_truncation_keeps_the_end_and_counts_as_truncated(tmp_path):
    def left(package: TinyPackage) -> None:
        package.config["text"] = {"truncation_side": "left"}

    text = " ".join("abcdefghijklmnopqrstuvwxyz" * 4)  # 104 words for 64 positions, two of them special
    engine = engine_with(tmp_path, left)
    expected = Engine(tiny_package("embedding").save(tmp_path / "right")).encode(" ".join(text.split()[-62:]))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        np.testing.assert_array_equal(engine.encode(text), expected)
    assert len(caught) == 1 and "1 of 1 sentences" in str(caught[0].message)
    with pytest.raises(InputError, match="more than 64 tokens"):
        engine.encode(text, truncate=False)


def test_a_pair_loses_tokens_of_its_longer_text_on_the_side_of_the_rules(tmp_path):
    def left(package: TinyPackage) -> None:
        package.config["text"] = {"truncation_side": "left"}

    short, long = "x y z", " ".join("abcdefghijklmnopqrstuvwxyz" * 4)
    engine = engine_with(tmp_path, left, "sequence-classification")
    found = engine.classify(short, long)
    kept = " ".join(long.split()[-(64 - 3 - 3) :])  # three special tokens, and the short text whole
    expected = engine.classify(short, kept)
    assert found["truncated"] and not expected["truncated"]
    assert found["score"] == expected["score"]


def test_a_model_without_token_types_is_fed_zeros(tmp_path):
    def none(package: TinyPackage) -> None:
        package.config["text"] = {"token_types": False}

    engine = engine_with(tmp_path, none, "sequence-classification")
    plain = Engine(tiny_package("sequence-classification").save(tmp_path / "plain"))
    batch = plain.text_encoder.encode([("a b", "c d")]).batch
    assert batch.type_ids.tolist() == [0, 0, 0, 0, 1, 1, 1]
    zeros = plain.forward([batch.ids.tolist()]).logits[0]
    typed = plain.forward([batch.ids.tolist()], token_type_ids=[batch.type_ids.tolist()]).logits[0]
    assert not np.array_equal(zeros, typed)
    scores = {s["label"]: s["score"] for s in engine.classify("a b", "c d", top_k=None)["scores"]}
    powers = np.exp(zeros.astype(np.float64) - zeros.max())
    # Doubles, of the same formula.
    np.testing.assert_allclose([scores[label] for label in engine.labels], powers / powers.sum(), rtol=1e-15)


def test_special_tokens_in_a_text_are_read_as_text_where_the_rules_say_so(tmp_path):
    def split(package: TinyPackage) -> None:
        package.config["text"] = {"split_special_tokens": True}

    vocab = tiny_package("embedding").tokenizer["model"]["vocab"]
    plain = Engine(tiny_package("embedding").save(tmp_path / "plain")).text_encoder.encode(["a [SEP] b"]).batch.ids
    assert plain.tolist().count(vocab["[SEP]"]) == 2
    ids = engine_with(tmp_path, split).text_encoder.encode(["a [SEP] b"]).batch.ids
    assert ids.tolist().count(vocab["[SEP]"]) == 1


# ---- forks ----------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_fork_waits_for_a_tokenizer_that_is_being_made(tmp_path):
    """Otherwise the child would have a lock that no thread of it will ever release."""
    engine = engine_with(tmp_path, lambda package: None)
    entered, leave = threading.Event(), threading.Event()

    def make() -> None:
        with LOADING:
            entered.set()
            leave.wait(0.3)

    thread = threading.Thread(target=make)
    thread.start()
    entered.wait()
    child = os.fork()
    if child == 0:
        os._exit(0 if engine.encode("a").shape == (64,) else 1)
    thread.join()
    assert _exit_code(child) == 0


def _exit_code(child: int) -> int:
    import time

    for _ in range(300):
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.1)
    os.kill(child, 9)
    os.waitpid(child, 0)
    raise AssertionError("the child hangs")


def test_children_tokenize_batches_without_a_hang_or_a_word(tmp_path):
    folder = tiny_package("embedding").save(tmp_path / "package")
    script = """
import os, sys, threading
from qla_runtime import Engine
engine = Engine(sys.argv[1], num_threads=1)
texts = ["a b c d e f"] * 200
engine.encode(texts)
stop = threading.Event()
def busy():
    while not stop.is_set():
        engine.text_encoder.encode(texts)
thread = threading.Thread(target=busy)
thread.start()
for _ in range(5):
    child = os.fork()
    if child == 0:
        engine.text_encoder.encode(texts)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
stop.set()
thread.join()
assert "TOKENIZERS_PARALLELISM" not in os.environ
"""
    environment = {k: v for k, v in os.environ.items() if k != "TOKENIZERS_PARALLELISM"}
    ran = subprocess.run(
        [sys.executable, "-c", script, str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (ran.returncode, ran.stderr) == (0, "")
