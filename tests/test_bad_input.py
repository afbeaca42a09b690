"""Wrong calls: every one gets a typed error that says the limit, the value met and the remedy, and after it
the engine answers the next good call with the same bits as before.

Damaged and hostile package files are test_hostile_*.py's.
"""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import raw
from package_tools import tiny_package

from qla_runtime import (
    Engine,
    InputError,
    LatencyBudget,
    LengthConfig,
    PackageError,
    QlaError,
    UnsupportedError,
    _core,
)
from qla_runtime.evaluation import squad as evaluate
from qla_runtime.evaluation.questions import read_squad
from qla_runtime.evaluation.sts import sts

IDS = [[2, 7, 9, 3], [2, 8, 3]]
VOCABULARY, POSITIONS, LAYERS = 101, 64, 2


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> Path:
    return tiny_package("span-qa").save(tmp_path_factory.mktemp("packages") / "qa")


@pytest.fixture(scope="module")
def engines(package) -> dict[str, Engine]:
    folder = package.parent
    kinds = ("sequence-classification", "token-classification", "embedding")
    others = {kind: Engine(tiny_package(kind, max_length=16).save(folder / kind)) for kind in kinds}
    options = {"problem": "regression", "labels": ["relevance"], "max_length": 16}
    ranker = tiny_package("sequence-classification", **options).save(folder / "ranker")
    return {"span-qa": Engine(package), "ranker": Engine(ranker), **others}


@pytest.fixture(autouse=True)
def unchanged(engines):
    """The next good call gives the bits it gave before."""

    def good_calls() -> list[bytes]:
        return [
            engine.forward(IDS, length=length).padded().tobytes()
            for engine in engines.values()
            for length in ("full", "fast")
        ]

    before = good_calls()
    yield
    assert good_calls() == before


def refused(kind: type[QlaError], call, *words: str) -> None:
    """`call` raises exactly `kind`, with a message that holds every one of `words`."""
    with pytest.raises(kind) as error:
        call()
    assert type(error.value) is kind
    message = str(error.value)
    assert all(word in message for word in words), message


# ---- ids, masks, token types ----------------------------------------------------------------------

ONES = np.ones((2, 4), np.int64)


@pytest.mark.parametrize(
    "arguments, words",
    [
        # limit, value, remedy
        ({"input_ids": [[2, 3], [2, VOCABULARY]]}, ["101 at position 1", "[0, 101)", "another model?"]),
        ({"input_ids": [[2, -1, 3]]}, ["-1 at position 1", "[0, 101)", "another model?"]),
        ({"input_ids": [[2, 2**31]]}, ["[0][1]", "2147483648", "32 bits", "Check the tokenizer"]),
        ({"input_ids": [[2, -(2**40)]]}, ["-1099511627776", "32 bits"]),
        ({"input_ids": [[2], [5] * (POSITIONS + 1)]}, ["has 65 tokens", "max_positions = 64", "truncate"]),
        ({"input_ids": []}, ["input_ids is empty", "at least one sequence"]),
        ({"input_ids": np.zeros((0, 4), int)}, ["input_ids is empty", "at least one sequence"]),
        ({"input_ids": [[2, 3], []]}, ["input_ids[1]", "empty", "at least one token"]),
        ({"input_ids": np.zeros((2, 0), int)}, ["input_ids[0]", "empty", "at least one token"]),
        ({"input_ids": None}, ["None", "list of integer sequences", "2-D"]),
        ({"input_ids": "who"}, ["'who'", "list of integer sequences"]),
        ({"input_ids": 5}, ["5", "list of integer sequences"]),
        ({"input_ids": [2, 3, 4]}, ["input_ids[0]", "single value", "Wrap a single sequence in a list"]),
        ({"input_ids": np.array([2, 3, 4])}, ["1 dimensions", "must have 2", "Wrap"]),
        ({"input_ids": np.zeros((2, 3, 4), int)}, ["3 dimensions", "must have 2"]),
        ({"input_ids": [np.zeros((2, 2), int)]}, ["input_ids[0]", "2 dimensions", "Squeeze"]),
        ({"input_ids": [[2, 3], None]}, ["input_ids[1]", "None", "sequence"]),
        ({"input_ids": [[2.0, 3.0]]}, ["input_ids[0]", "float64", "integers", "on purpose"]),
        ({"input_ids": np.ones((2, 4), np.float32)}, ["float32", "integers", "on purpose"]),
        ({"input_ids": np.ones((2, 4), bool)}, ["bool", "integers"]),
        ({"input_ids": [["2", "3"]]}, ["input_ids[0]", "integers"]),
        ({"input_ids": [[2, [3]]]}, ["input_ids[0]", "no sequence of integers"]),
        (
            {"input_ids": ONES, "attention_mask": [[0, 1, 1, 1], [1, 1, 1, 1]]},
            ["[0]", "left", "right-padded"],
        ),
        ({"input_ids": ONES, "attention_mask": [[1, 1, 1, 1], [1, 0, 1, 0]]}, ["[1]", "hole", "position 1"]),
        (
            {"input_ids": ONES, "attention_mask": [[0, 0, 0, 0], [1, 1, 1, 1]]},
            ["[0]", "no 1", "leave it out"],
        ),
        (
            {"input_ids": ONES, "attention_mask": [[2, 1, 1, 1], [1, 1, 1, 1]]},
            ["[0] holds 2", "0 and 1 only"],
        ),
        ({"input_ids": ONES, "attention_mask": ONES[:1]}, ["1 rows", "2 sequences", "one row per"]),
        ({"input_ids": ONES, "attention_mask": ONES[:, :3]}, ["[0] has 3", "4 input_ids", "one per id"]),
        ({"input_ids": ONES, "attention_mask": ONES * 1.0}, ["float64", "integers"]),
        ({"input_ids": ONES, "token_type_ids": ONES[:1]}, ["token_type_ids has 1 rows", "2 sequences"]),
        (
            {"input_ids": ONES, "token_type_ids": ONES * 2},
            ["type id 2 at position 0", "[0, 2)", "leave token types"],
        ),
        ({"input_ids": ONES, "token_type_ids": -ONES}, ["type id -1", "[0, 2)", "leave token types"]),
    ],
)
def test_ids(engines, arguments, words):
    refused(InputError, lambda: engines["span-qa"].forward(**arguments), *words)


# ---- texts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "question, context, words",
    [
        ("", "a b", ["question", "without a visible character"]),
        (" \t\n", "a b", ["question", "without a visible character"]),
        ("who?", "", ["context", "without a visible character"]),
        (["who?", ""], ["a", "b"], ["question[1]", "without a visible character", "leave it out"]),
        (["who?", "who?"], ["a", "  "], ["context[1]", "without a visible character"]),
        (None, "a", ["question is None", "text or a list of texts"]),
        ("who?", None, ["context is None", "text or a list of texts"]),
        (["who?", None], ["a", "b"], ["question[1] is None", "must be a text"]),
        (["who?"], [3], ["context[0]", "int", "must be a text"]),
        (b"who?", "a", ["question", "bytes", "text or a list of texts"]),
        ([], [], ["question is an empty list", "at least one"]),
        (["a", "b"], ["c"], ["list of 2", "list of 1", "same length"]),
        ("a", ["b"], ["a single text", "list of 1", "two texts, or two lists"]),
        ("a " * 62, "b", ["takes 65 tokens", "have 64", "Shorten the question"]),
        (["a", "b" * 70], ["c", "d"], ["question[1]", "have 64", "Shorten the question"]),
        ("who?", "\u200b\u200b", ["context", "no token", "give it a text"]),
        ("who?", "a \ud800", ["context", "surrogate at character 2", "errors='replace'"]),
    ],
)
def test_questions_and_contexts(engines, question, context, words):
    refused(InputError, lambda: engines["span-qa"].answer(question, context), *words)


LONG = "a b c d e f g h i j k l m n o p q r s t"


@pytest.mark.parametrize(
    "kind, call, words",
    [
        ("embedding", lambda e: e.encode([]), ["sentences is an empty list", "at least one"]),
        ("embedding", lambda e: e.encode(None), ["sentences is None"]),
        ("embedding", lambda e: e.encode(["a", LONG], truncate=False), ["[1]", "16 tokens", "truncate=True"]),
        ("sequence-classification", lambda e: e.classify(["a"], ["b", "c"]), ["list of 1", "list of 2"]),
        ("sequence-classification", lambda e: e.classify("a", ["b"]), ["single text", "list of 1"]),
        ("sequence-classification", lambda e: e.classify("a", top_k=0), ["top_k is 0", "at least 1", "None"]),
        ("sequence-classification", lambda e: e.classify(LONG, truncate=False), ["texts has", "16 tokens"]),
        ("token-classification", lambda e: e.tag({"a": 1}), ["texts", "dict", "list of texts"]),
        ("token-classification", lambda e: e.tag([LONG], truncate=False), ["texts[0]", "16 tokens", "split"]),
        ("ranker", lambda e: e.rank("a", "b"), ["documents is one text", "Wrap it in a list"]),
        ("ranker", lambda e: e.rank("a", []), ["documents is an empty list"]),
        ("ranker", lambda e: e.rank(["a"], ["b"]), ["query", "list", "one text"]),
        ("ranker", lambda e: e.rank("", ["b"]), ["query", "visible character"]),
        ("ranker", lambda e: e.rank("a", ["b", LONG], truncate=False), ["documents[1]", "16 tokens"]),
    ],
)
def test_texts_of_other_tasks(engines, kind, call, words):
    refused(InputError, lambda: call(engines[kind]), *words)


# ---- lengths --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "length, words",
    [
        (lambda: LengthConfig.ratio((1.0, 0.5, 0.5)), ["3 entries", "2 layers", "give 2 entries"]),
        (lambda: LengthConfig.tokens((9,)), ["1 entries", "2 layers", "give 2 entries"]),
        (lambda: LengthConfig.ratio((1.0, 0.0)), ["entry 1 is 0.0", "above 0"]),
        (lambda: LengthConfig.tokens((9, 0)), ["entry 1 is 0", "from 1"]),
        (lambda: LengthConfig.ratio((0.5, 0.9)), ["entry 1 is 0.9", "may not rise", "0.5 or less"]),
        (lambda: LengthConfig.ratio((1.0, float("nan"))), ["entry 1 is nan", "up to 1.0"]),
        (lambda: LengthConfig.ratio((1.5, 1.0)), ["entry 0 is 1.5", "up to 1.0", "LengthConfig.tokens"]),
        (lambda: "quick", ["'quick'", "full, balanced, fast", "LengthConfig"]),
        (lambda: ["fast"], ["list of 1", "2 inputs", "one per input"]),
        (lambda: 0.5, ["0.5", "a name", "LengthConfig"]),
        (lambda: LatencyBudget(-1), ["-1", "0 or more"]),
    ],
)
def test_lengths(engines, length, words):
    refused(InputError, lambda: engines["span-qa"].forward(IDS, length=length()), *words)
    refused(InputError, lambda: engines["span-qa"].answer(["a", "b"], ["c", "d"], length=length()), *words)


def test_length_and_latency_exclude_each_other(engines):
    qa, words = engines["span-qa"], ["length='fast'", "latency_ms=5", "one of them"]
    refused(InputError, lambda: qa.forward(IDS, length="fast", latency_ms=5), *words)
    refused(InputError, lambda: qa.answer("a", "b", length="fast", latency_ms=5), *words)
    refused(InputError, lambda: qa.answer("a", "b", latency_ms=-5), "-5", "0 or more")


# ---- opening --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, words",
    [
        ({"num_threads": 0}, ["num_threads is 0", "at least 1", "leave it out"]),
        ({"num_threads": -2}, ["num_threads is -2", "at least 1"]),
        ({"num_threads": 1.5}, ["num_threads is 1.5", "integer"]),
        ({"num_threads": True}, ["num_threads is True", "integer"]),
        ({"num_threads": 100_000}, ["num_threads is 100000", "at most 1024"]),
        ({"streams": 0}, ["streams is 0", "at least 1"]),
        ({"streams": None}, ["streams is None", "integer"]),
        ({"streams": 100_000}, ["streams is 100000", "at most 1024"]),
        ({"isa": "avx9"}, ["'avx9'", "unknown", "avx512vnni"]),
        ({"isa": 512}, ["isa is 512", "avx2", "None"]),
    ],
)
def test_options(package, options, words):
    refused(InputError, lambda: Engine(package, **options), *words)
    refused(InputError, lambda: Engine.from_pretrained(package, **options), *words)


def test_an_isa_that_this_cpu_lacks(package):
    missing = [isa for isa in raw.ISAS if isa not in raw.available_isas()]
    if not missing:
        pytest.skip("this CPU has every instruction set there is a kernel for")
    refused(
        UnsupportedError,
        lambda: Engine(package, isa=missing[0]),
        missing[0],
        "not available",
        "available: ref",
    )


def write_checkpoint(folder: Path) -> Path:
    folder.mkdir()
    config = {"model_type": "bert", "architectures": ["BertForQuestionAnswering"], "hidden_size": 384}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(b"\2\0\0\0\0\0\0\0{}")
    return folder


def test_a_checkpoint_prints_the_convert_line(tmp_path):
    checkpoint = write_checkpoint(tmp_path / "my model")
    words = ["checkpoint", "manifest.json", f"qla convert '{checkpoint}' 'my model-qla'\nthen open"]
    refused(PackageError, lambda: Engine.from_pretrained(checkpoint), *words)
    refused(PackageError, lambda: Engine(str(checkpoint)), *words)


def test_a_pickle_is_never_opened(tmp_path):
    path = tmp_path / "model.data"
    path.write_bytes(pickle.dumps({"weight": [1.0]}))
    words = ["pickle", "never opens", "safetensors", "qla convert"]
    refused(PackageError, lambda: Engine.from_pretrained(path), *words)
    torch_file = tmp_path / "pytorch_model.bin"
    torch_file.write_bytes(b"PK\3\4")
    refused(PackageError, lambda: Engine.from_pretrained(torch_file), *words)


def test_things_that_are_no_package(tmp_path, package):
    (tmp_path / "empty").mkdir()
    refused(PackageError, lambda: Engine.from_pretrained(tmp_path / "empty"), "no manifest.json", "qla convert")
    (tmp_path / "notes.txt").write_text("hello")
    refused(
        PackageError,
        lambda: Engine.from_pretrained(tmp_path / "notes.txt"),
        "is a file",
        "a package is a folder",
    )
    manifest = package / "manifest.json"
    refused(PackageError, lambda: Engine.from_pretrained(manifest), "is a file", f"pass its folder, '{package}'")
    refused(PackageError, lambda: Engine.from_pretrained(tmp_path / "none"), "no such folder", "owner/name")
    for nothing in ("", "a\0b", 3, b"path"):
        refused(
            InputError,
            lambda value=nothing: Engine.from_pretrained(value),
            "package folder",
            "hub id",
            "None",
        )


def test_paths_that_are_none(tmp_path):
    refused(PackageError, lambda: Engine.from_pretrained("x" * 5000), "no path", "too long")
    refused(PackageError, lambda: Engine.from_pretrained("~nobody-of-that-name/model"), "no path", "home")
    path = tiny_package().save(tmp_path / "package")
    for source in (path, None):
        refused(InputError, lambda s=source: Engine.from_pretrained(s, revision="v1"), "'v1'", "hub id", "leave")


def test_a_hub_id_without_the_library_names_the_pip_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    words = ["no folder here", "huggingface_hub", "pip install 'qla_runtime[hub]'"]
    refused(UnsupportedError, lambda: Engine.from_pretrained("someone/some-model"), *words)


def test_a_hub_id_that_is_a_checkpoint_is_not_downloaded_whole(tmp_path, monkeypatch):
    asked = []

    class Hub:
        @staticmethod
        def snapshot_download(repo, *, revision, allow_patterns):
            asked.append((repo, revision, allow_patterns))
            return str(tmp_path / "snapshot")

    write_checkpoint(tmp_path / "snapshot")
    monkeypatch.setitem(sys.modules, "huggingface_hub", Hub)
    words = ["'owner/model' is a checkpoint", "qla convert owner/model model-qla\nthen open"]
    refused(PackageError, lambda: Engine.from_pretrained("owner/model", revision="v1"), *words)
    assert asked == [("owner/model", "v1", ["manifest.json", "config.json"])]


def test_a_hub_that_fails(monkeypatch):
    class Hub:
        @staticmethod
        def snapshot_download(*_, **__):
            raise ConnectionError("no route\nto host")

    monkeypatch.setitem(sys.modules, "huggingface_hub", Hub)
    words = ["did not give it: no route.", "Check the name and the connection"]
    refused(PackageError, lambda: Engine.from_pretrained("owner/model"), *words)


def test_a_tokenizer_that_cannot_be_read(tmp_path):
    package = tiny_package("span-qa")
    package.tokenizer = {"version": "1.0", "model": {"type": "Mystery"}}
    engine = Engine(package.save(tmp_path / "package"))
    refused(PackageError, lambda: engine.answer("a", "b"), "tokenizer.json", "convert")
    assert engine.forward(IDS).padded().shape == (2, 4, 64)


# ---- the native module ----------------------------------------------------------------------------


def native_arguments() -> dict:
    return {
        "ids": np.array([2, 7, 3], np.int32),
        "offsets": np.array([0, 3], np.int64),
        "type_ids": None,
        "lengths": [],
        "length_index": None,
        "want": ("logits",),
    }


@pytest.mark.parametrize(
    "change, words",
    [
        ({"ids": [2, 7, 3]}, ["ids", "int32", "list"]),
        ({"ids": np.array([2, 7, 3])}, ["ids", "int64", "int32", "on purpose"]),
        ({"ids": np.array([2.0, 7.0, 3.0], np.float32)}, ["float32", "int32"]),
        ({"ids": np.zeros((1, 3), np.int32)}, ["ids", "2 dimensions"]),
        ({"ids": np.zeros(6, np.int32)[::2]}, ["ids", "strided"]),
        ({"ids": np.zeros(13, np.uint8)[1:].view(np.int32)}, ["ids", "not aligned"]),
        ({"offsets": np.array([0, 4], np.int64)}, ["offsets", "rise from 0 to 3"]),
        ({"offsets": np.array([0, 60, 3], np.int64)}, ["offsets", "rise from 0 to 3"]),
        ({"offsets": np.array([1, 3], np.int64)}, ["offsets", "rise from 0 to 3"]),
        ({"offsets": np.array([], np.int64)}, ["offsets", "rise from 0 to 3"]),
        ({"type_ids": np.zeros(2, np.int32)}, ["type_ids has 2", "needs 3", "one per token"]),
        ({"length_index": np.zeros(2, np.int32)}, ["length_index has 2", "needs 1", "one per sequence"]),
        ({"lengths": [(0, [1.0], -1)]}, ["1 entries", "2 layers"]),
        ({"want": ("logits", "magic")}, ["'magic'"]),
    ],
)
def test_native_arrays(engines, change, words):
    arguments = native_arguments() | change
    native = _core.Engine(engines["span-qa"].path)
    refused(InputError, lambda: native.run(**arguments), *words)


def test_native_rules_it_does_not_know(engines):
    arguments = native_arguments() | {"lengths": [(7, [1.0] * LAYERS, -1)]}
    native = _core.Engine(engines["span-qa"].path)
    refused(UnsupportedError, lambda: native.run(**arguments), "rule 7", "ratios (0)")


def test_native_spans():
    pairs, context = np.zeros((4, 2), np.float32), np.array([0, 1, 1, 0], np.uint8)
    whole, one, place = np.array([0, 4], np.int64), np.array([0, 1], np.int64), np.array([0], np.int64)
    all_windows = 1  # QLA_SPAN_SCORE_ALL_WINDOWS
    counts, window, first, last, score, _ = _core.top_spans(pairs, context, whole, one, place, 30, 1, all_windows)
    assert (counts[0], window[0, 0], first[0, 0], last[0, 0]) == (1, 0, 1, 1)
    assert score[0, 0] == pytest.approx(0.25)


def test_top_spans_checks_its_arrays():
    pairs, context = np.ones((4, 2), np.float32), np.array([0, 1, 1, 0], np.uint8)
    whole, one, place = np.array([0, 4], np.int64), np.array([0, 1], np.int64), np.array([1], np.int64)
    bad = [
        ((pairs.astype(np.float64), context, whole, one, place, 30, 1, 0), ["logits", "float32", "(tokens, 2)"]),
        ((np.ones((4, 3), np.float32), context, whole, one, place, 30, 1, 0), ["logits", "(tokens, 2)"]),
        ((pairs[:, ::-1], context, whole, one, place, 30, 1, 0), ["logits", "contiguous"]),
        ((pairs, context[:3], whole, one, place, 30, 1, 0), ["is_context has 3", "needs 4"]),
        ((pairs, context.astype(bool), whole, one, place, 30, 1, 0), ["is_context", "bool", "uint8"]),
        ((pairs, context * 0, whole, one, place, 30, 1, 0), ["question 0", "no context token"]),
        ((pairs, context, np.array([0, 5], np.int64), one, place, 30, 1, 0), ["offsets", "rise from 0 to 4"]),
        ((pairs, context, whole, np.array([0, 2], np.int64), place, 30, 1, 0), ["questions", "rise from 0 to 1"]),
        ((pairs, context, whole, one, place[:0], 30, 1, 0), ["positions has 0", "one per window"]),
        ((pairs, context, whole, one, place, 0, 1, 0), ["max_tokens is 0"]),
        ((pairs, context, whole, one, place, 30, -(2**31), 0), ["top_k is -2147483648", "1 to 1024"]),
        ((pairs, context, whole, one, place, 30, 2**31 - 1, 0), ["top_k is 2147483647", "1 to 1024"]),
        ((pairs, context, whole, one, place, 30, 1, 3), ["score is 3"]),
        ((pairs * np.inf, context, whole, one, place, 30, 1, 0), ["must be finite"]),
    ]
    for arguments, words in bad:
        refused(InputError, lambda given=arguments: _core.top_spans(*given), *words)


# ---- test sets ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content, words",
    [
        (b"{", ["no JSON"]),
        (b"\xff\xff", ["byte 0", "UTF-8"]),
        (b"[]", ["no list 'data'"]),
        (b'{"data": [{"title": "x"}]}', ["data[0]", "no list 'paragraphs'"]),
        (b'{"data": [{"paragraphs": [{"qas": []}]}]}', ["data[0].paragraphs[0]", "no text 'context'"]),
        (
            b'{"data": [{"paragraphs": [{"context": "a", "qas":'
            b' [{"id": "1", "question": "b", "answers": []}]}]}]}',
            ["data[0].paragraphs[0].qas[0]", "no answers", "2.0"],
        ),
        (b'{"data": []}', ["no question is left"]),
    ],
)
def test_squad_files(engines, tmp_path, content, words):
    path = tmp_path / "squad.json"
    path.write_bytes(content)
    refused(InputError, lambda: evaluate.squad(engines["span-qa"], path), *words)


@pytest.mark.parametrize(
    "content, words",
    [
        (b"", ["0 sentence pairs", "at least 2"]),
        (b"a\tb\tc\td\t1.0\tonly one\n", ["line 1", "7 columns"]),
        (b"a\tb\tc\td\t1.0\tx\ty\na\tb\tc\td\tmuch\tx\ty\n", ["line 2", "score"]),
    ],
)
def test_sts_files(engines, tmp_path, content, words):
    path = tmp_path / "sts.csv"
    path.write_bytes(content)
    refused(InputError, lambda: sts(engines["embedding"], path), *words)


def test_files_that_are_not_there(engines, tmp_path):
    refused(InputError, lambda: evaluate.squad(engines["span-qa"], tmp_path / "none"), "cannot be read", "path")
    refused(InputError, lambda: read_squad(tmp_path / "none", "some"), "'some'", "all, odd, even")
