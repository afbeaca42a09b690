"""Answers beside a slow reading of the rules: transformers 4's decoding, and what this project's scores mean."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from package_tools import tiny_package

from qla_runtime import Engine, Escalate, InputError, LengthConfig
from qla_runtime.tasks.answer import SCORES, AnswerOptions, read_answers
from qla_runtime.texts.windows import QuestionWindows

QUESTIONS = ["who is it?", "where?", "what was said, then?"]
CONTEXT = "it rained, then it was dry. ada lives in london. so they say! " * 4
SHORT = "ada lives in london."
ROUNDED = 2.0**-23
"""Relative: a score is a float32 made of double arithmetic on the same float32 logits."""


@pytest.fixture(scope="module")
def engine(tmp_path_factory) -> Engine:
    """Windows of 40 tokens, sharing 9; the head's logits are spread until scores differ plainly."""
    package = tiny_package("span-qa", max_length=40, doc_stride=9, max_answer_tokens=8, seed=3)
    package.tensors["head.weight"] *= 3
    return Engine(package.save(tmp_path_factory.mktemp("answers") / "package"))


# ---- the slow readings ----------------------------------------------------------------------------------


def windows_and_logits(
    engine: Engine, question: str, context: str, stride: int
) -> tuple[QuestionWindows, np.ndarray]:
    windows = engine.text_encoder.windows([question], [context], stride, ["question"])
    batch = windows.batch
    pairs = list(zip(batch.offsets[:-1], batch.offsets[1:], strict=True))
    output = engine.forward(
        [batch.ids[a:b].tolist() for a, b in pairs],
        token_type_ids=[batch.type_ids[a:b].tolist() for a, b in pairs],
    )
    return windows, np.concatenate(output.logits).astype(np.float64)


def spans_of(windows: QuestionWindows, window: int, longest: int):
    """Every span of a window: its first and last token, as global numbers."""
    begin, end = windows.batch.offsets[window : window + 2]
    context = [i for i in range(begin, end) if windows.is_context[i]]
    return [(i, j) for i in context for j in context if 0 <= j - i < longest]


def place(windows: QuestionWindows, window: int, first: int, last: int) -> tuple[int, int]:
    begin = int(windows.batch.offsets[window])
    return windows.characters(0, window, first - begin, last - begin)


def best_of_each_place(
    found: list[tuple[float, tuple[int, int]]], top_k: int
) -> list[tuple[float, tuple[int, int]]]:
    kept: dict[tuple[int, int], float] = {}
    for score, where in sorted(found, key=lambda entry: -entry[0]):
        kept.setdefault(where, score)
    return [(score, where) for where, score in kept.items()][:top_k]


def transformers_4(engine, question, context, *, top_k, longest, stride, handle_impossible_answer):
    """QuestionAnsweringPipeline.postprocess of transformers 4, without its alignment to words.

    Per window a softmax over the context and [CLS]; then [CLS] leaves the race, its lowest product being the null
    score. A place found twice counts once.
    """
    windows, logits = windows_and_logits(engine, question, context, stride)
    found, null = [], 1_000_000.0
    for window in range(windows.batch.count):
        begin, end = windows.batch.offsets[window : window + 2]
        allowed = np.flatnonzero(windows.is_context[begin:end]) + begin
        allowed = np.concatenate([[begin], allowed])
        powers = np.exp(logits[allowed] - logits[allowed].max(axis=0))
        p = np.zeros_like(logits)
        p[allowed] = powers / powers.sum(axis=0)
        null = min(null, p[begin, 0] * p[begin, 1])
        found += [(p[i, 0] * p[j, 1], place(windows, window, i, j)) for i, j in spans_of(windows, window, longest)]
    answers = [
        {"answer": context[a:b], "score": score, "start": a, "end": b}
        for score, (a, b) in best_of_each_place(found, top_k)
    ]
    if handle_impossible_answer:
        answers.append({"answer": "", "score": null, "start": 0, "end": 0})
    return sorted(answers, key=lambda answer: -answer["score"])[:top_k], null


def against_null(engine, question, context, *, top_k, longest, stride):
    """One softmax over all windows, logits less the null's of their window; twins of the answer count once."""
    windows, logits = windows_and_logits(engine, question, context, stride)
    found, best_of_window = [], []
    for window in range(windows.batch.count):
        begin, end = windows.batch.offsets[window : window + 2]
        logits[begin:end] -= logits[begin].copy()
        here = [(logits[i, 0] + logits[j, 1], (window, i, j)) for i, j in spans_of(windows, window, longest)]
        best_of_window.append(max(here)[1])
        found += here
    best = max(found)[1]
    rivals = [
        window
        for window, span in enumerate(best_of_window)
        if window == best[0] or place(windows, *span) != place(windows, *best)
    ]
    tokens = [
        i for window in rivals for i in range(*windows.batch.offsets[window : window + 2]) if windows.is_context[i]
    ]
    total = np.log(np.exp(logits[tokens]).sum(axis=0)).sum()
    return best_of_each_place([(math.exp(total_ - total), place(windows, *span)) for total_, span in found], top_k)


def check(entries, expected):
    assert [(entry["start"], entry["end"]) for entry in entries] == [where for _, where in expected]
    np.testing.assert_allclose(
        [entry["score"] for entry in entries], [score for score, _ in expected], rtol=ROUNDED
    )


# ---- scores and choices ---------------------------------------------------------------------------------


@pytest.mark.parametrize("context", [SHORT, CONTEXT])
@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("impossible", [False, True])
def test_with_null_is_transformers_4(engine, question, context, impossible):
    result = engine.answer(
        question, context, top_k=7, score="with-null", handle_impossible_answer=impossible, max_answer_tokens=5
    )
    expected, null = transformers_4(
        engine, question, context, top_k=7, longest=5, stride=9, handle_impossible_answer=impossible
    )
    check(result["answers"], [(entry["score"], (entry["start"], entry["end"])) for entry in expected])
    assert [entry["answer"] for entry in result["answers"]] == [entry["answer"] for entry in expected]
    assert result["null_score"] == pytest.approx(null, rel=ROUNDED)
    assert result["no_answer"] == (expected[0]["answer"] == "")
    assert {key: result[key] for key in expected[0]} == result["answers"][0]


@pytest.mark.parametrize("context", [SHORT, CONTEXT, "london. " + "no. " * 30])
@pytest.mark.parametrize("question", QUESTIONS)
def test_the_default_score_counts_logits_against_each_window_s_null(engine, question, context):
    result = engine.answer(question, context, top_k=6)
    check(result["answers"], against_null(engine, question, context, top_k=6, longest=8, stride=9))
    assert not result["no_answer"] and result["answer"] == result["answers"][0]["answer"]
    scores = [entry["score"] for entry in result["answers"]]
    assert scores == sorted(scores, reverse=True)


def test_in_one_window_the_default_is_the_old_score_to_the_bit(engine):
    for question in QUESTIONS:
        old = engine.answer(question, SHORT, score="all-windows", top_k=20)
        assert engine.answer(question, SHORT, top_k=20) == old


def test_windows_without_the_answer_do_not_wear_down_its_score():
    """One window is sure, more and more others say "not here" (their [CLS] is 8 above their tokens)."""
    old, new = [], []
    for others in (0, 1, 10, 100):
        logits = np.zeros((4 * (others + 1), 2), np.float32)
        logits[4::4] = 8.0
        logits[2] = 5.0
        options = {"max_answer_tokens": 1, "max_length": 4, "doc_stride": 1}
        windows = made_windows(others + 1)
        for scores, rule in ((old, "all-windows"), (new, "against-null")):
            wanted = AnswerOptions.checked(options, score=rule)
            (found,) = read_answers(windows, logits, ["abc" * (others + 1)], wanted)
            assert found.entries[0]["answer"] == "b"
            scores.append(found.entries[0]["score"])
    assert old[0] == new[0] == pytest.approx((1 / (1 + 2 * math.exp(-5))) ** 2, rel=ROUNDED)
    assert old[-1] == pytest.approx((1 / (1 + 302 * math.exp(-5))) ** 2, rel=ROUNDED)
    assert old[-1] < 0.2
    # Each other window adds three tokens of e^-8 where the answer has e^5.
    assert new[-1] == pytest.approx((1 / (1 + 2 * math.exp(-5) + 300 * math.exp(-13))) ** 2, rel=ROUNDED)
    assert new[-1] > 0.95


class Letters:
    """An encoding of one token per character."""

    def __init__(self, text: str) -> None:
        self.offsets = [(i, i + 1) for i in range(len(text))]

    def token_to_chars(self, token: int) -> tuple[int, int]:
        return self.offsets[token]


def made_windows(count: int, text: str | None = None) -> QuestionWindows:
    """Windows of [CLS] and three characters, which share nothing."""
    from qla_runtime.ragged import Ragged

    text = text or "abc" * count
    batch = Ragged(np.zeros(4 * count, np.int32), np.arange(count + 1, dtype=np.int64) * 4)
    context = np.tile(np.array([0, 1, 1, 1], np.uint8), count)
    questions = np.array([0, count], np.int64)
    return QuestionWindows(batch, context, questions, [Letters(text)], [(1, 3 * w) for w in range(count)])


def test_an_answer_is_never_white_space_alone():
    logits = np.zeros((4, 2), np.float32)
    logits[1] = logits[2] = 9.0  # the two characters that are white space
    options = AnswerOptions.checked({"max_answer_tokens": 3, "max_length": 4, "doc_stride": 1}, top_k=9)
    (found,) = read_answers(made_windows(1, " \tx"), logits, [" \tx"], options)
    assert [entry["answer"] for entry in found.entries] == ["x"]
    with pytest.raises(InputError, match="no context token"):
        read_answers(made_windows(1, " \t\n"), logits, [" \t\n"], options)


# ---- options of a call ----------------------------------------------------------------------------------


def test_top_k_gives_different_places_best_first(engine):
    one = engine.answer(QUESTIONS[0], CONTEXT)
    many = engine.answer(QUESTIONS[0], CONTEXT, top_k=50)
    assert "answers" not in one
    assert {key: value for key, value in many.items() if key != "answers"} == one
    places = [(entry["start"], entry["end"]) for entry in many["answers"]]
    assert len(set(places)) == 50  # windows overlap by 9 tokens; a place that two of them hold comes once
    assert all(entry["answer"] == CONTEXT[entry["start"] : entry["end"]] for entry in many["answers"])
    tiny = engine.answer("who?", "ab", top_k=50)  # two tokens: a, ##b, a ##b
    assert sorted(entry["answer"] for entry in tiny["answers"]) == ["a", "ab", "b"]


def test_max_answer_tokens_and_doc_stride_of_a_call(engine):
    for longest in (1, 3, 8, 10_000):
        result = engine.answer(QUESTIONS[1], CONTEXT, max_answer_tokens=longest, doc_stride=20, top_k=4)
        expected = against_null(engine, QUESTIONS[1], CONTEXT, top_k=4, longest=longest, stride=20)
        check(result["answers"], expected)
    counts = [engine.answer("who?", CONTEXT, doc_stride=s, details=True)["windows"] for s in (0, 9, 25)]
    assert counts[0] < counts[1] < counts[2]


def test_one_context_for_many_questions(engine):
    assert engine.answer(QUESTIONS, CONTEXT) == engine.answer(QUESTIONS, [CONTEXT] * 3)
    assert engine.answer(QUESTIONS[:1], CONTEXT) == [engine.answer(QUESTIONS[0], CONTEXT)]
    mixed = ["full", LengthConfig.ratio((0.5, 0.4)), "fast"]
    assert engine.answer(QUESTIONS, SHORT, mixed) == engine.answer(QUESTIONS, [SHORT] * 3, mixed)


def test_a_second_run_keeps_the_options(engine):
    options = {"top_k": 3, "max_answer_tokens": 4, "doc_stride": 5, "null_threshold": 0.01}
    cheap, dear = (engine.answer(QUESTIONS, CONTEXT, length, **options) for length in ("fast", "full"))
    always = engine.answer(QUESTIONS, CONTEXT, Escalate("fast", "full", 1.0), **options)
    both = {"ran": ["fast", "full"]}
    assert always == [b | both | {"macs": a["macs"] + b["macs"]} for a, b in zip(cheap, dear, strict=True)]
    sure = engine.answer(QUESTIONS[0], CONTEXT, Escalate("fast", "full", 0.0), **options)
    assert sure == cheap[0] | {"ran": ["fast"]}


def test_the_null_threshold_decides(engine):
    null = engine.answer(QUESTIONS[0], SHORT)["null_score"]
    assert 0 < null < 1
    above = engine.answer(QUESTIONS[0], SHORT, null_threshold=null - 1e-6, top_k=3)
    below = engine.answer(QUESTIONS[0], SHORT, null_threshold=null, top_k=3)
    assert above["no_answer"] and (above["answer"], above["start"], above["end"]) == ("", 0, 0)
    assert above["score"] == above["null_score"] == null
    assert not below["no_answer"] and below["answer"] == above["answers"][1]["answer"]


def test_the_package_says_whether_there_may_be_no_answer(tmp_path):
    packages = {}
    for said in (None, False, True):
        package = tiny_package("span-qa", seed=3)
        package.tensors["head.weight"] *= 0
        if said is not None:
            package.config["task"]["no_answer"] = said
        # Equal logits: [CLS] is as likely as each token, and a context of many tokens leaves a span 1/n^2.
        packages[said] = Engine(package.save(tmp_path / str(said)))
    assert packages[None].answer("who?", SHORT) == packages[False].answer("who?", SHORT)
    sure = packages[True].answer("who?", SHORT, null_threshold=0.0)
    assert sure["no_answer"] and packages[True].answer("who?", SHORT, handle_impossible_answer=False)["answer"]
    assert packages[True].answer("who?", SHORT)["score"] == packages[True].answer("who?", SHORT)["null_score"]
    plain = packages[None].answer("who?", SHORT)
    assert plain["answer"] and not plain["no_answer"]


@pytest.mark.parametrize(
    "options, words",
    [
        ({"top_k": 0}, ["top_k is 0", "at least 1"]),
        ({"top_k": None}, ["top_k is None", "best answer alone"]),
        ({"top_k": True}, ["top_k is True"]),
        ({"top_k": 1025}, ["top_k is 1025", "at most 1024"]),
        ({"max_answer_tokens": 0}, ["max_answer_tokens is 0", "package's own limit"]),
        ({"max_answer_tokens": 2.5}, ["max_answer_tokens is 2.5"]),
        ({"doc_stride": -1}, ["doc_stride is -1", "at least 0"]),
        ({"doc_stride": 40}, ["doc_stride is 40", "at most 39", "40 tokens"]),
        ({"handle_impossible_answer": "yes"}, ["handle_impossible_answer is 'yes'", "True or False"]),
        ({"null_threshold": 1.5}, ["null_threshold is 1.5", "from 0 to 1"]),
        ({"null_threshold": float("nan")}, ["null_threshold is nan"]),
        ({"null_threshold": 0.5, "handle_impossible_answer": False}, ["gives an answer always", "leave one"]),
        ({"score": "softmax"}, ["score is 'softmax'", *SCORES]),
        ({"score": 1}, ["score is 1"]),
        ({"score": "all-windows", "handle_impossible_answer": True}, ["'all-windows'", "score='with-null'"]),
    ],
)
def test_bad_options_are_refused_and_the_engine_works_on(engine, options, words):
    before = engine.answer("who?", SHORT)
    with pytest.raises(InputError) as caught:
        engine.answer("who?", SHORT, **options)
    assert all(word in str(caught.value) for word in words), caught.value
    assert engine.answer("who?", SHORT) == before


def test_a_list_of_contexts_needs_as_many_questions(engine):
    with pytest.raises(InputError, match="one context for all"):
        engine.answer("who?", [SHORT, SHORT])
    with pytest.raises(InputError, match="one context for all"):
        engine.answer(QUESTIONS, [SHORT, SHORT])


# ---- the packaged model ---------------------------------------------------------------------------------


def test_a_right_answer_keeps_its_score_in_a_long_context():
    """The same answer, in its paragraph alone and among 20 windows: one threshold, such as 0.4, decides alike."""
    engine = Engine.from_pretrained()
    paragraph = (Path(__file__).parents[1] / "examples" / "paragraph.txt").read_text(encoding="utf-8")
    question, filler = "What mortar did Smeaton rediscover?", "Bread is made of flour, water and salt. " * 270
    short = engine.answer(question, paragraph)
    long = engine.answer(question, filler + paragraph + filler, details=True)
    assert long["windows"] > 20
    assert short["answer"] == long["answer"] == "hydraulic lime"
    assert min(short["score"], long["score"]) > 0.4
    assert engine.answer(question, filler + paragraph + filler, score="all-windows")["score"] < 0.1
