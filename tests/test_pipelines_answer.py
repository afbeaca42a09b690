"""pipeline("question-answering") against what transformers 4.57.6 gave for the same logits, recorded."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
from pipeline_cases import BERLIN, CASES, LIGHTHOUSE, RECORDED

from qla_runtime import Engine, InputError, LengthConfig, UnsupportedError, pipeline

RESULTS = json.loads(RECORDED.read_text())["results"]
EXAMPLE = {"question": "Where do I live?", "context": BERLIN}


@pytest.fixture(scope="module")
def oracle():
    return pipeline("question-answering", num_threads=1)


def close(expected):
    """The recorded structure, with scores as near as float32 gives them: softmaxes of some hundred terms."""
    if isinstance(expected, list):
        return [close(each) for each in expected]
    return expected | {"score": pytest.approx(expected["score"], rel=2e-5)}


@pytest.mark.parametrize("name", CASES)
def test_results_are_those_of_transformers(oracle, name):
    found = oracle(**CASES[name])
    expected = RESULTS[name]
    if name == "more than there are":  # transformers fills up with an empty answer
        *expected, empty = expected
        assert empty == {"score": 0.0, "start": 0, "end": 0, "answer": ""}
    assert found == close(expected)
    first = found
    while isinstance(first, list):
        first = first[0]
    assert list(first) == ["score", "start", "end", "answer"], "the order, too"
    assert [type(value) for value in first.values()] == [float, int, int, str]
    assert json.loads(json.dumps(found)) == found


def test_the_recorded_cases_are_of_every_kind():
    assert RESULTS["no answer, the best alone"]["answer"] == ""
    assert RESULTS["windows that share an answer"]["score"] > 1, "scores of windows add up"
    aligned, free = RESULTS["short answers"], RESULTS["short answers, not aligned"]
    assert (aligned[1]["answer"], free[1]["answer"]) == ("Whitcombe", "combe")
    assert len(RESULTS["more than there are"]) < 20
    assert len(LIGHTHOUSE) > 800


# ---- call forms


@pytest.mark.parametrize(
    "call",
    [
        lambda p: p(**EXAMPLE),
        lambda p: p(EXAMPLE),
        lambda p: p([EXAMPLE]),
        lambda p: p((EXAMPLE,)),
        lambda p: p(EXAMPLE["question"], BERLIN),
        lambda p: p(data=[EXAMPLE]),
        lambda p: p(X=EXAMPLE),
        lambda p: p(question=(EXAMPLE["question"],), context=(BERLIN,)),
        lambda p: p(EXAMPLE | {"id": "1", "answers": {"text": []}}),
        lambda p: p(SimpleNamespace(question_text=EXAMPLE["question"], context_text=BERLIN)),
    ],
)
def test_every_form_of_one_question_gives_a_dict(oracle, call):
    assert call(oracle) == close(RESULTS["one question"])


@pytest.mark.parametrize(
    "call",
    [
        lambda p: p([EXAMPLE, EXAMPLE]),
        lambda p: p(EXAMPLE, EXAMPLE),
        lambda p: p(question=[EXAMPLE["question"]] * 2, context=BERLIN),
        lambda p: p(question=np.array([EXAMPLE["question"]] * 2), context=[BERLIN] * 2),
    ],
)
def test_every_form_of_two_questions_gives_a_list(oracle, call):
    assert call(oracle) == [close(RESULTS["one question"])] * 2


def test_a_generator_gives_results_one_by_one(oracle):
    answered = []

    def examples():
        for _ in range(3):
            yield EXAMPLE  # the next only when the one before is answered
            answered.append(len(seen))

    seen = []
    for result in oracle(examples()):
        seen.append(result)
    assert seen == [close(RESULTS["one question"])] * 3 and answered == [1, 2, 3]
    with pytest.raises(InputError, match=r"inputs\[2\] has no 'context'"):
        list(oracle(iter([EXAMPLE, EXAMPLE, {"question": "Who?"}])))


def test_a_data_set_is_read_in_batches(oracle):
    class Data:
        reads: list[int] = []

        def __len__(self):
            return 5

        def __getitem__(self, i):
            self.reads.append(i)
            return EXAMPLE

    results = oracle(Data(), batch_size=2)
    assert next(results) == close(RESULTS["one question"])
    assert Data.reads == [0, 1]
    assert len(list(results)) == 4


# ---- lengths


def test_a_length_config_per_call_and_by_default(oracle):
    with Engine.from_pretrained(num_threads=1) as engine:
        direct = engine.answer(EXAMPLE["question"], BERLIN, "fast", score="with-null")
    fast = oracle(**EXAMPLE, length="fast")
    assert fast["answer"] == direct["answer"] and fast["score"] == direct["score"]
    assert fast != oracle(**EXAMPLE)
    always = pipeline("question-answering", oracle.engine, length="fast")
    assert always(**EXAMPLE) == fast
    assert always(**EXAMPLE, length=None) == oracle(**EXAMPLE)
    assert always(**EXAMPLE, latency_ms=10_000) == oracle(**EXAMPLE), "a call's budget takes the place of a length"
    many = oracle([EXAMPLE, EXAMPLE], length=["fast", LengthConfig.ratio([1] * 6)])
    assert many == [fast, oracle(**EXAMPLE)]


def test_results_do_not_depend_on_their_batch(oracle):
    examples = [EXAMPLE, {"question": "Who built it?", "context": LIGHTHOUSE}, EXAMPLE]
    assert oracle(examples) == [oracle(example) for example in examples]


def test_engines_and_pipelines_agree_on_many_windows(oracle):
    """The engine's "with-null" rule is the pipeline's, but for scores that add up."""
    question = "Who was the last keeper?"
    with Engine.from_pretrained(num_threads=1) as engine:
        direct = engine.answer(question, LIGHTHOUSE, score="with-null")
    found = oracle(question=question, context=LIGHTHOUSE, align_to_words=False)
    assert (found["answer"], found["score"]) == (direct["answer"], pytest.approx(direct["score"]))


# ---- bad input


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda p: p(), "question is missing"),
        (lambda p: p(question="Who?"), "context is missing"),
        (lambda p: p("Who?"), "a single text; pass question= and context="),
        (lambda p: p(question="Who?", context=""), "context is '', a text without a visible character"),
        (lambda p: p({"question": "Who?"}), "inputs has no 'context'"),
        (lambda p: p({"question": "Who?", "context": None}), "the context of inputs is None"),
        (lambda p: p([EXAMPLE, {"question": " ", "context": "b"}]), r"the question of inputs\[1\] is ' '"),
        (lambda p: p([EXAMPLE, 7]), r"inputs\[1\] is 7; an example is a dict of 'question' and 'context'"),
        (lambda p: p([]), "inputs is an empty list"),
        (lambda p: p(question=["a", "b"], context=["c"]), "2 questions and 1 contexts"),
        (lambda p: p(**EXAMPLE, top_k=0), "top_k is 0; it must be an integer of at least 1"),
        (lambda p: p(**EXAMPLE, top_k=True), "top_k is True"),
        (lambda p: p(**EXAMPLE, max_answer_len=0), "max_answer_len is 0"),
        (lambda p: p(**EXAMPLE, max_seq_len=9999), "max_seq_len is 9999; it must be at most 512"),
        (lambda p: p(**EXAMPLE, max_seq_len=32, doc_stride=40), "doc_stride is 40; it must be at most 32"),
        (lambda p: p(**EXAMPLE, max_seq_len=8), "question takes 8 tokens .* and windows have 8: no context fits"),
        (lambda p: p(**EXAMPLE, handle_impossible_answer="yes"), "handle_impossible_answer is 'yes'"),
        (lambda p: p(**EXAMPLE, topp=3), "topp is no option of pipeline.'question-answering'., which takes align"),
        (lambda p: p(**EXAMPLE, length="slow"), "'slow'"),
        (lambda p: p(**EXAMPLE, length="fast", latency_ms=5), "both length='fast' and latency_ms=5"),
        (lambda p: p(**EXAMPLE, batch_size=0), "batch_size is 0"),
    ],
)
def test_wrong_calls_are_refused_and_the_next_one_is_answered(oracle, call, message):
    with pytest.raises(InputError, match=message):
        call(oracle)
    assert oracle(**EXAMPLE) == close(RESULTS["one question"])


def test_white_space_is_no_answer(oracle):
    """A window of invisible characters has no answer, and does not keep the others from having one."""
    blank = "\u200b \u2060 " * 40
    context = f"My name is Wolfgang. {blank} I live in Berlin."
    for found in oracle(question="Where do I live?", context=context, max_seq_len=24, doc_stride=2, top_k=20):
        assert found["answer"].strip("\u200b\u2060 ")


# ---- opening


def test_opening_says_what_is_wrong():
    with pytest.raises(InputError, match="task is 'summarization'; use one of question-answering, text-class"):
        pipeline("summarization")
    with pytest.raises(InputError, match="needs a task, a model, or both"):
        pipeline()
    with pytest.raises(
        InputError, match=r"pipeline\('ner'|token-classification'\) needs a model, because none is"
    ):
        pipeline("ner")
    with pytest.raises(
        UnsupportedError, match=r"'text-classification'\) needs a sequence-classification model; 'mini"
    ):
        pipeline("text-classification", "minilm-l6-squad")
    with pytest.raises(InputError, match="tokenizer is 'bert'.*leave tokenizer out"):
        pipeline("question-answering", "minilm-l6-squad", tokenizer="bert")
    with pytest.raises(UnsupportedError, match="device is 0, but the engine runs on CPUs"):
        pipeline("question-answering", device=0)
    with pytest.raises(InputError, match="torch_dtype has no meaning here"):
        pipeline("question-answering", torch_dtype="auto")
    with pytest.raises(InputError, match="top_k is 0"):
        pipeline("question-answering", top_k=0)


def test_the_task_is_found_by_the_model():
    found = pipeline(model="minilm-l6-squad", tokenizer="minilm-l6-squad", device="cpu", framework="pt", top_k=2)
    assert found.task == "question-answering" and len(found(**EXAMPLE)) == 2
    assert repr(found).startswith("<pipeline 'question-answering' of <Engine 'minilm-l6-squad'")
    assert found(**EXAMPLE, top_k=1) == found(**EXAMPLE)[0]
