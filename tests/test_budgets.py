"""Latency budgets, call by call: what runs, and what results say. Clocks and prices are made up."""

from __future__ import annotations

import json
from functools import partial

import numpy as np
import pytest
from package_tools import tiny_package
from policy_tools import CONTEXTS, QUESTIONS, fitted, milliseconds_per_row, open_tiny, stopped_clock

from qla_runtime import Engine, LatencyBudget
from qla_runtime.evaluation import squad as evaluate
from qla_runtime.runner import Runner

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def tiny(tmp_path):
    """Opens a tiny package of a task, with made-up prices."""
    return partial(open_tiny, tmp_path)


@pytest.fixture
def clock(monkeypatch):
    return stopped_clock(monkeypatch)


CALLS = {
    "span-qa": lambda e, **o: [r["budget_met"] for r in e.answer(QUESTIONS, CONTEXTS, **o)],
    "sequence-classification": lambda e, **o: [r["budget_met"] for r in e.classify(CONTEXTS, **o)],
    "token-classification": lambda e, **o: [s.budget_met for s in e.tag(CONTEXTS, **o)],
    "embedding": lambda e, **o: [e.forward([[1, 2], [3]], **o).budget_met],
}


@pytest.mark.parametrize("task", CALLS)
def test_results_say_whether_the_budget_was_met(tiny, clock, monkeypatch, task):
    engine, call = tiny(task), CALLS[task]
    assert set(call(engine)) == set(call(engine, length="fast")) == {None}
    assert set(call(engine, latency_ms=1000)) == set(call(engine, length=LatencyBudget(1000))) == {True}
    run = Runner.native_run
    monkeypatch.setattr(Runner, "native_run", lambda *arguments: clock.sleep(1.001) or run(*arguments))
    assert set(call(engine, latency_ms=1000)) == {False}, "measured, not predicted"


def test_single_inputs_and_ranks_say_so_too(tiny, clock):
    assert tiny().answer("who?", "ada", latency_ms=1e6)["budget_met"] is True
    assert tiny("sequence-classification").classify("ada", latency_ms=1e6)["budget_met"] is True
    assert tiny("token-classification").tag("ada", latency_ms=1e6).budget_met is True
    ranker = tiny("sequence-classification", problem="regression", labels=["relevance"])
    assert [r["budget_met"] for r in ranker.rank("a", ["b", "c"], latency_ms=1e6)] == [True, True]
    assert [r["budget_met"] for r in ranker.rank("a", ["b", "c"])] == [None, None]


def test_a_budget_that_nothing_meets_runs_the_fastest(tiny, clock, monkeypatch):
    run = Runner.native_run
    monkeypatch.setattr(Runner, "native_run", lambda *arguments: clock.sleep(0.05) or run(*arguments))
    result = tiny().answer("who?", CONTEXTS[1], latency_ms=0)
    assert (result["length"], result["budget_met"]) == ("fast", False)


def test_the_length_of_the_texts_decides(tiny, clock):
    """8 tokens are 40 rows at full; 56 tokens fit in 200 ms with fewer."""
    engine = tiny()
    assert engine.answer("who?", "a", latency_ms=200)["length"] == "full"
    longer = engine.answer("who?", "a " * 40, latency_ms=200)
    assert longer["length"] != "full" and longer["budget_met"]
    both = engine.answer(["who?"] * 2, ["a", "a " * 40], latency_ms=200)
    assert both[0]["length"] == both[1]["length"] != "full", "one config for the whole call"


def test_the_results_are_those_of_the_chosen_config(tiny, clock):
    engine = tiny()
    results = engine.answer(QUESTIONS, CONTEXTS, latency_ms=170)
    chosen = results[0]["length"]
    assert chosen != "full"
    same = engine.answer(QUESTIONS, CONTEXTS, length=chosen)
    assert [r | {"budget_met": None} for r in results] == same
    vectors = tiny("embedding")
    assert (vectors.encode(CONTEXTS, latency_ms=0) == vectors.encode(CONTEXTS, length="fast")).all()


def test_windows_are_sequences(tiny, clock):
    """A context of several windows costs their sum."""
    engine = tiny(max_length=40, doc_stride=9)
    assert engine.answer("who?", "a " * 20, latency_ms=200)["length"] == "full"
    assert engine.answer("who?", "a " * 100, latency_ms=200)["length"] == "fast"


def test_time_before_the_choice_is_spent(tiny, clock, monkeypatch):
    """Tokenization took 190 of 200 ms."""
    engine = tiny()
    windows = engine.text_encoder.windows
    monkeypatch.setattr(engine.text_encoder, "windows", lambda *a: clock.sleep(0.19) or windows(*a))
    result = engine.answer("who?", "a", latency_ms=200)
    assert (result["length"], result["budget_met"]) == ("fast", True)


def test_the_frontier_is_chosen_from(tiny, clock):
    engine = tiny(accuracies={"full": 80, "balanced": 60, "fast": 50, "frontier": 79})
    result = engine.answer("who?", CONTEXTS[1], latency_ms=150)
    assert (result["length"], result["accuracy"]["value"]) == ("frontier-1", 79)
    assert result["length_config"] == {"rule": "tokens", "values": [20, 19], "keep_cls": False}
    assert engine.answer("who?", CONTEXTS[1], length=result["length"])["macs"] == result["macs"]


def test_a_call_in_several_parts_has_one_budget(tiny, clock, monkeypatch):
    engine = tiny()
    whole = engine.answer(QUESTIONS, CONTEXTS, latency_ms=170)
    monkeypatch.setattr("qla_runtime.texts.text_encoder.BATCH_TEXTS", 1)
    assert engine.answer(QUESTIONS, CONTEXTS, latency_ms=170) == whole


def test_warming_up_does_what_first_calls_would(tmp_path):
    engine = Engine(tiny_package().save(tmp_path / "package"))
    engine.warm_up()
    assert engine.timekeeper._fit is not None and engine.text_encoder._tokenizer is not None
    assert engine.answer("who?", "ada", latency_ms=60_000)["budget_met"] is True


def test_calls_under_a_budget_tell_the_pace(tmp_path):
    engine = Engine(tiny_package().save(tmp_path / "package"))
    engine.timekeeper.use(fitted(milliseconds_per_row()))  # hundreds of times slower than this package runs
    engine.forward([[5] * 40], length="full")
    assert engine.timekeeper.pace.ratio == 1.0, "no budget, no prediction"
    for _ in range(30):
        engine.forward([[5] * 40], latency_ms=1000)
    assert engine.timekeeper.pace.ratio < 0.6


def test_evaluation_gives_each_question_its_budget(tiny, clock, monkeypatch, tmp_path):
    entry = [{"id": "1", "question": "who?", "answers": [{"text": "ada"}]}]
    data = {"data": [{"paragraphs": [{"context": text, "qas": entry} for text in ("ada", "ada, " * 14)]}]}
    path = tmp_path / "squad.json"
    path.write_text(json.dumps(data))
    engine, run = tiny(), Runner.native_run

    def as_predicted(self, batch, configs, index, want):
        clock.sleep(engine.cost_model.seconds(np.diff(batch.offsets), configs[0]))
        return run(self, batch, configs, index, want)

    monkeypatch.setattr(Runner, "native_run", as_predicted)
    assert evaluate.squad(engine, path, LatencyBudget(100)).within_budget == 0.5, "45 rows, and 95 at the least"
    assert evaluate.squad(engine, path, LatencyBudget(1000)).within_budget == 1
    assert evaluate.squad(engine, path, "fast").within_budget is None
