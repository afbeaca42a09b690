"""The windows in which a long context is read: where they lie, and what is refused."""

from __future__ import annotations

import re

import numpy as np
import pytest
from package_tools import tiny_package

from qla_runtime import Engine, InputError, UnsupportedError
from qla_runtime.texts import windows


@pytest.fixture
def tiny(tmp_path):
    """Opens a tiny package of a task."""

    def open_package(task: str, family: str = "bert", **options) -> Engine:
        count = len(list(tmp_path.iterdir()))
        return Engine(tiny_package(task, family, **options).save(tmp_path / f"package-{count}"))

    return open_package


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_windows_are_hugging_face_s(tiny, family):
    from tokenizers import Tokenizer

    engine = tiny("span-qa", family, max_length=40, doc_stride=9)
    reference = Tokenizer.from_file(str(engine.path / "tokenizer.json"))
    reference.enable_truncation(40, stride=9, strategy="only_second")
    questions = ["who?", "what is it, then?"] * 3
    contexts = ["ab", "a bc, d. " * 3, "it is so. " * 30, "x" * 90, "a b c d e f " * 11, "so it goes on"]
    made = engine.text_encoder.windows(questions, contexts, 9, questions)
    w = 0
    for q, encoding in enumerate(reference.encode_batch(list(zip(questions, contexts, strict=True)))):
        expected = [encoding, *encoding.overflowing]
        assert made.questions[q + 1] - made.questions[q] == len(expected)
        for window in expected:
            rows = slice(*made.batch.offsets[w : w + 2])
            context = [i for i, sequence in enumerate(window.sequence_ids) if sequence == 1]
            assert made.batch.ids[rows].tolist() == window.ids
            if family == "bert":
                assert made.batch.type_ids[rows].tolist() == window.type_ids
            else:  # one token type: nothing to tell apart
                assert made.batch.type_ids is None
            assert np.flatnonzero(made.is_context[rows]).tolist() == context
            assert made.tokens(q, w) == window.tokens
            for token in context:
                assert made.characters(q, w, token, token) == window.offsets[token]
            w += 1
    assert w == made.batch.count


def test_a_question_that_leaves_less_than_the_stride_still_advances(tiny):
    engine = tiny("span-qa", max_length=40, doc_stride=20)
    made = engine.text_encoder.windows(["a" * 30], ["b" * 31], 20, ["question"])
    lengths = np.diff(made.batch.offsets)
    assert lengths.max() == 40 and made.batch.count > 3
    assert engine.answer("a" * 30, "b" * 31)["answer"]


def test_windows_for_others_are_those_that_answers_come_from(tiny):
    engine = tiny("span-qa", max_length=40, doc_stride=9)
    questions, contexts = ["who?", "x"], ["it is so. " * 30, "ada"]
    for stride in (None, 3):
        answers = engine.answer(questions, contexts, details=True, doc_stride=stride)
        made = engine.windows(questions, contexts, stride)
        assert np.diff(made.questions).tolist() == [answer["windows"] for answer in answers]
    with pytest.raises(InputError, match=r"question\[1\] takes 53 tokens"):
        engine.windows(["who?", "a" * 50], contexts)
    with pytest.raises(UnsupportedError, match=r"windows\(\) needs a span-qa model"):
        tiny("embedding").windows(questions, contexts)


def test_windows_are_refused_as_answers_are(tiny):
    engine = tiny("span-qa", max_length=40, doc_stride=9)
    for questions, contexts, stride in (
        (["who?", "x"], ["ada"], None), (["who?"], ["ada", "b"], None), (["who?"], [None], None), ([], [], None),
        ("who?", ["ada"], None), (["\ud800"], ["ada"], None), (["who?"], ["ada"], 40), (["who?"], ["ada"], -1),
    ):  # fmt: skip
        with pytest.raises(InputError) as refused:
            engine.windows(questions, contexts, stride)
        with pytest.raises(InputError, match=re.escape(str(refused.value))):
            engine.answer(questions, contexts, doc_stride=stride)
    both = engine.windows(["who?", "x"], "it is so. " * 30)
    assert both.questions.tolist() == engine.windows(["who?", "x"], ["it is so. " * 30] * 2).questions.tolist()


@pytest.mark.parametrize("length", [1, 9, 10, 11, 18, 57])
def test_window_ranges_cover_everything(length):
    ranges = list(windows.window_ranges(length, 10, 4))
    assert ranges[0][0] == 0 and ranges[-1][1] == length
    assert all(stop - start <= 10 for start, stop in ranges)
    assert all(a[1] - b[0] == 4 for a, b in zip(ranges[:-1], ranges[1:], strict=True))
