"""What methods accept as texts, in which containers, and what they refuse; blank texts; progress."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
from package_tools import tiny_package

from qla_runtime import Engine, Escalate, InputError, LatencyBudget

TEXTS = ["ada", "bob lives in london", "c"]
KINDS = ("span-qa", "sequence-classification", "token-classification", "embedding", "ranker")


@pytest.fixture(scope="module")
def engines(tmp_path_factory) -> dict[str, Engine]:
    folder = tmp_path_factory.mktemp("packages")
    ranker = {"problem": "regression", "labels": ["relevance"]}
    made = {kind: tiny_package(kind, max_length=32) for kind in KINDS if kind != "ranker"}
    made["ranker"] = tiny_package("sequence-classification", max_length=32, **ranker)
    return {kind: Engine(package.save(folder / kind)) for kind, package in made.items()}


CALLS = {
    "answer": ("span-qa", lambda engine, texts, **options: engine.answer(["who?"] * 3, texts, **options)),
    "questions": ("span-qa", lambda engine, texts, **options: engine.answer(texts, ["a b c"] * 3, **options)),
    "encode": ("embedding", lambda engine, texts, **options: engine.encode(texts, **options).tolist()),
    "classify": ("sequence-classification", lambda engine, texts, **options: engine.classify(texts, **options)),
    "pairs": (
        "sequence-classification",
        lambda engine, texts, **options: engine.classify(["x"] * 3, texts, **options),
    ),
    "rank": ("ranker", lambda engine, texts, **options: engine.rank("who?", texts, **options)),
    "tag": ("token-classification", lambda engine, texts, **options: engine.tag(texts, **options)),
}


def containers() -> dict[str, object]:
    """The same three texts in everything that has an order."""
    found = {
        "tuple": tuple(TEXTS),
        "generator": (text for text in TEXTS),
        "iterator": iter(TEXTS),
        "map": map(str, TEXTS),
        "dict values": dict(enumerate(TEXTS)).values(),
        "unicode array": np.array(TEXTS),
        "object array": np.array(TEXTS, object),
        "numpy texts": [np.str_(text) for text in TEXTS],
    }
    if hasattr(np.dtypes, "StringDType"):
        found["StringDType array"] = np.array(TEXTS, np.dtypes.StringDType())
    return found


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("kind", containers())
def test_any_ordered_collection(engines, call, kind):
    task, run = CALLS[call]
    assert run(engines[task], containers()[kind]) == run(engines[task], TEXTS)


@pytest.mark.parametrize("call", CALLS)
def test_pandas(engines, call):
    pandas = pytest.importorskip("pandas", reason="pandas is not among the test requirements")
    task, run = CALLS[call]
    frame = pandas.DataFrame({"text": TEXTS}, index=[7, 3, 5])
    expected = run(engines[task], TEXTS)
    for column in (frame["text"], frame["text"].astype("string"), pandas.Index(TEXTS)):
        assert run(engines[task], column) == expected
    with pytest.raises(InputError, match="2 dimensions.*one column"):
        run(engines[task], frame)
    with pytest.raises(InputError, match=r"\[1\] is nan, a missing value"):
        run(engines[task], pandas.Series(["a", float("nan"), "c"], dtype=object))
    with pytest.raises(InputError, match=r"\[1\] is of type NAType"):
        run(engines[task], pandas.Series(["a", None, "c"], dtype="string"))


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    "wrong, words",
    [
        ({"a", "b", "c"}, "set, which has no order"),
        (frozenset("abc"), "frozenset, which has no order"),
        ({"a": 1, "b": 2, "c": 3}, "dict"),
        (b"abc", r"bytes.*\.decode"),
        (bytearray(b"abc"), r"bytearray.*\.decode"),
        ([b"a", b"b", b"c"], r"\[0\] is of type bytes.*\.decode"),
        (np.array([b"a", b"b", b"c"]), r"\[0\] is of type bytes_.*\.decode"),
        (np.array([["a", "b", "c"]]), "2 dimensions"),
        (np.ma.masked_array(["a", "b", "c"], mask=[0, 1, 0]), "masked array"),
        (["a", None, "c"], r"\[1\] is None"),
        ([1, 2, 3], r"\[0\] is of type int"),
        (np.array([1, 2, 3]), r"\[0\] is of type int64"),
        ([["a"], ["b"], ["c"]], r"\[0\] is of type list"),
        (5, "of type int"),
        (str, "of type type"),
        ((), "empty list"),
        (iter(()), "empty list"),
    ],
)
def test_what_is_no_collection_of_texts(engines, call, wrong, words):
    task, run = CALLS[call]
    with pytest.raises(InputError, match=words):
        run(engines[task], iter(()) if words == "empty list" else wrong)


def test_an_array_without_dimensions_is_a_single_text(engines):
    engine = engines["sequence-classification"]
    assert engine.classify(np.array("ada")) == engine.classify(np.str_("ada")) == engine.classify("ada")


def test_results_hold_plain_texts(engines):
    found = engines["span-qa"].answer(np.str_("who?"), np.str_("ada lives"))
    assert type(found["answer"]) is str
    assert all(type(span["text"]) is str for span in engines["token-classification"].tag(np.str_(TEXTS[1])))
    json.dumps(found)


@pytest.mark.parametrize("call", ["answer", "classify", "pairs", "tag"])
def test_escalate_reads_a_generator_once(engines, call):
    task, run = CALLS[call]
    policy = Escalate("fast", "full", 1.0)
    assert run(engines[task], iter(TEXTS), length=policy) == run(engines[task], TEXTS, length=policy)


# ---- blank texts ------------------------------------------------------------------------------------


@pytest.mark.parametrize("blank", ["", " ", "\t\n"])
def test_a_blank_text_keeps_its_index(engines, blank):
    """It runs as its special tokens alone, as in transformers and sentence-transformers.

    So its vector is that of no other text: with mean pooling not even nearly that of a single letter.
    """
    texts = ["ada", blank, "bob"]
    encoder = engines["embedding"]
    vectors = encoder.encode(texts)
    special = encoder.text_encoder.encode([""]).batch.ids.tolist()
    assert len(special) == 2
    assert np.array_equal(vectors[1], encoder.forward([special]).pooled[0])
    assert np.array_equal(vectors[[0, 2]], encoder.encode(["ada", "bob"]))
    assert np.array_equal(encoder.encode(blank), vectors[1])

    classifier = engines["sequence-classification"]
    assert classifier.classify(texts)[::2] == classifier.classify(["ada", "bob"])
    assert classifier.classify("x", blank) == classifier.classify(["x"] * 3, texts)[1]
    ranked = engines["ranker"].rank("who?", texts)
    assert sorted(entry["index"] for entry in ranked) == [0, 1, 2]
    tagged = engines["token-classification"].tag(texts)
    assert list(tagged[1]) == [] and tagged[1].confidence == 1.0
    assert list(tagged[0]) == list(engines["token-classification"].tag("ada"))


def test_a_question_a_context_and_a_query_need_words(engines):
    for call in (
        lambda: engines["span-qa"].answer(" ", "a"),
        lambda: engines["span-qa"].answer(["a", "b"], ["a", ""]),
        lambda: engines["ranker"].rank("", ["a"]),
    ):
        with pytest.raises(InputError, match="without a visible character"):
            call()


# ---- progress ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", CALLS)
def test_progress_counts_inputs(engines, call, capfd):
    task, run = CALLS[call]
    told: list[int] = []
    expected = run(engines[task], TEXTS)
    assert run(engines[task], TEXTS, progress=told.append) == expected
    assert sum(told) == 3
    assert run(engines[task], TEXTS, progress=False) == expected and capfd.readouterr() == ("", "")
    assert run(engines[task], TEXTS, progress=True) == expected
    shown = capfd.readouterr()
    assert shown.out == "" and "3/3" in shown.err
    with pytest.raises(InputError, match="progress is 'yes'"):
        run(engines[task], TEXTS, progress="yes")


def test_progress_comes_in_steps_and_changes_no_bit(engines):
    texts = [f"text {i}" for i in range(600)]
    told: list[int] = []
    engine = engines["embedding"]
    vectors = engine.encode(texts, progress=told.append)
    assert sum(told) == 600 and max(told) <= 64
    assert np.array_equal(vectors, engine.encode(texts))


def test_progress_with_policies(engines):
    told: list[int] = []
    engine = engines["sequence-classification"]
    engine.classify(TEXTS, length=LatencyBudget(1000), progress=told.append)
    assert sum(told) == 3
    told.clear()
    engine.classify(TEXTS, length=Escalate("fast", "full", 1.0), progress=told.append)
    assert sum(told) == 6, "what is repeated counts again"


def test_a_warning_of_cut_texts_points_at_the_caller(engines):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        engines["embedding"].encode("a b c " * 40)
    assert [warning.filename for warning in seen] == [__file__]
