"""Escalation: what is repeated, what results say, and how a threshold is found."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from package_tools import tiny_package
from policy_tools import CONTEXTS, QUESTIONS, open_tiny, refused

from qla_runtime import Engine, Escalate, InputError, LengthConfig, MaxLoss, UnsupportedError
from qla_runtime.evaluation.escalation import calibrate_escalation, escalation_threshold
from qla_runtime.evaluation.questions import Question, word_f1
from qla_runtime.lengths import policies

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def tiny(tmp_path):
    """Opens a tiny package of a task, with made-up prices."""
    return partial(open_tiny, tmp_path)


def test_escalation_repeats_the_unsure(tiny):
    engine = tiny()
    cheap, dear = (engine.answer(QUESTIONS, CONTEXTS, length) for length in ("fast", "full"))
    threshold = sorted(r["score"] for r in cheap)[1]
    results = engine.answer(QUESTIONS, CONTEXTS, Escalate("fast", "full", threshold))
    for result, c, d in zip(results, cheap, dear, strict=True):
        both = d | {"macs": c["macs"] + d["macs"], "ran": ["fast", "full"]}
        expected = both if c["score"] < threshold else c | {"ran": ["fast"]}
        assert result == expected
    assert sorted(r["length"] for r in results) == ["fast", "fast", "full"]


def test_escalation_of_nothing_and_of_everything(tiny):
    engine = tiny()
    fast = engine.answer("who?", "ada", "fast")
    assert engine.answer("who?", "ada", Escalate("fast", "full", 0)) == fast | {"ran": ["fast"]}
    result = engine.answer("who?", "ada", Escalate("fast", "full", 1), details=True)
    assert result["length"] == "full" and len(result["kept"]) == 2


def test_the_packages_threshold_is_the_default(tmp_path):
    package = tiny_package()
    package.length_configs["escalations"] = [{"cheap": "fast", "dear": "full", "threshold": 1.0}]
    engine = Engine(package.save(tmp_path / "package"))
    full, fast = (engine.answer("who?", "ada", length) for length in ("full", "fast"))
    assert full["score"] > fast["score"] / 2 and fast["score"] < 1
    for cheap in ("fast", engine.lengths["fast"]):
        assert engine.answer("who?", "ada", Escalate(cheap, "full"))["length"] == "full"
    assert engine.answer("who?", "ada", Escalate("fast", "full", 0.0)) == fast | {"ran": ["fast"]}
    assert policies.threshold(Escalate("balanced", "full"), {("fast", "full"): 1.0}) == 0.5
    config = LengthConfig.ratio((0.5, 0.5))
    assert policies.threshold(Escalate(config, "full"), {("fast", "full"): 1.0}) == 0.5


def test_escalation_of_labels(tiny):
    engine = tiny("sequence-classification")
    full = engine.classify(["a", "b"], ["c", "d"])
    results = engine.classify(["a", "b"], ["c", "d"], Escalate("fast", "full", 1), top_k=2)
    assert [r["label"] for r in results] == [r["label"] for r in full]
    assert all(r["macs"] > f["macs"] and len(r["scores"]) == 2 for r, f in zip(results, full, strict=True))
    assert engine.classify("a", length=Escalate("fast", "full", 1))["length"] == "full"


def test_escalation_of_spans(tiny):
    engine = tiny("token-classification")
    texts = ["ada in london", "bob", "so it goes"]
    cheap, dear = engine.tag(texts, "fast"), engine.tag(texts)
    assert all(0 < spans.confidence < 1 for spans in cheap)
    threshold = sorted(spans.confidence for spans in cheap)[1]
    for spans, c, d in zip(engine.tag(texts, Escalate("fast", "full", threshold)), cheap, dear, strict=True):
        again = c.confidence < threshold
        assert list(spans) == list(d if again else c) and spans.macs == c.macs + again * d.macs
        assert spans.ran == ["fast", "full"][: 1 + again]
    assert engine.tag("ada", Escalate("fast", "full", 1)).length == "full"


def test_escalation_needs_a_confidence(tiny):
    policy = Escalate("fast", "full")
    ranker = tiny("sequence-classification", problem="regression", labels=["relevance"])
    for call, word in [
        (lambda: tiny("embedding").encode("a", policy), "encode()"),
        (lambda: tiny().forward([[1]], length=policy), "forward()"),
        (lambda: ranker.rank("a", ["b"], policy), "rank()"),
        (lambda: ranker.classify("a", length=policy), "regression"),
    ]:
        refused(UnsupportedError, call, "Escalate", "confidence", word)


@pytest.mark.parametrize(
    "policy, words",
    [
        (Escalate("fats", "full"), ["'fats'", "Escalate(", "balanced"]),
        (Escalate("fast", "ful"), ["'ful'", "Escalate("]),
        (Escalate("fast", LengthConfig.ratio((1.0,))), ["1 entries", "2 layers"]),
        (["full", MaxLoss(1), "full"], ["MaxLoss", "entry 1", "pass it alone"]),
    ],
)
def test_bad_policies_are_refused_before_anything_runs(tiny, policy, words):
    refused(InputError, lambda: tiny().answer(QUESTIONS, CONTEXTS, policy), *words)


@pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan"), "0.5", True])
def test_a_threshold_is_a_confidence(threshold):
    refused(InputError, lambda: Escalate("fast", "full", threshold), "threshold", repr(threshold))


# ---- calibration


@pytest.mark.parametrize(
    "max_loss, expected",
    [(100, 0.0), (60, 0.0), (40, 0.2), (39, 0.6), (20, 0.6), (19, 0.9), (0, 0.9)],
)
def test_the_threshold_is_the_lowest_that_keeps_the_loss(max_loss, expected):
    """Repeating 0.1 gains 20 points of the mean, both 0.2 then 20 in all, 0.6 gains 20, 0.9 nothing."""
    sure = [0.9, 0.2, 0.1, 0.6, 0.2]
    cheap, dear = [100, 100, 0, 0, 0], [100, 100, 100, 100, 100]
    assert escalation_threshold(sure, cheap, dear, max_loss) == expected


def test_a_dear_config_that_is_worse_is_not_run():
    assert escalation_threshold([0.5, 0.6], [1, 1], [0, 1], 0) == 0.0


@pytest.mark.parametrize(
    "arguments, words",
    [
        (([], [], [], 1), ["0 confidences", "at least one"]),
        (([0.5], [1, 2], [1], 1), ["1 confidences", "2 cheap"]),
        (([1.5], [1], [1], 1), ["between 0 and 1"]),
        (([float("nan")], [1], [1], 1), ["finite"]),
        (([0.5], [1], [1], -1), ["max_loss is -1", "0 or more"]),
        (([0.5], [1], [1], "1"), ["max_loss is '1'"]),
        (([0.5], ["x"], [1], 1), ["cheap scores", "'x'"]),
        (([0.5], [1], [10**400], 1), ["dear scores"]),
        (([[0.5]], [1], [1], 1), ["confidences"]),
    ],
)
def test_bad_calibration_data_is_refused(arguments, words):
    refused(InputError, lambda: escalation_threshold(*arguments), *words)


def test_calibration_keeps_the_loss_on_its_data(tiny):
    engine = tiny()
    contexts = [f"{text} and so on" for text in ("ada", "bob", "the sea", "it is so", "bread", "salt", "x y z")]
    full = engine.answer(["who?"] * 7, contexts)
    questions = [
        Question(str(i), "who?", context, (result["answer"],))
        for i, (context, result) in enumerate(zip(contexts, full, strict=True))
    ]

    def f1(length) -> float:
        results = engine.answer(["who?"] * 7, contexts, length)
        truths = zip(results, questions, strict=True)
        return 100 * np.mean([word_f1(r["answer"], q.answers[0]) for r, q in truths])

    for max_loss in (0, 10, 100):
        threshold = calibrate_escalation(engine, questions, "fast", "full", max_loss)
        assert f1(Escalate("fast", "full", threshold)) >= f1("full") - max_loss - 1e-9
    assert calibrate_escalation(engine, questions, "full", "full") == 0.0
    refused(InputError, lambda: calibrate_escalation(engine, [], "fast", "full"), "no questions")
    refused(InputError, lambda: calibrate_escalation(engine, questions, "fast", "full", -1), "max_loss")
