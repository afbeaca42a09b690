"""``Engine.prepare`` and ``run``: calls of several callers in one batch, with the results that they have alone."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from package_tools import tiny_package
from policy_tools import CONTEXTS, QUESTIONS, measured, open_tiny, refused, stopped_clock

from qla_runtime import Engine, Escalate, InputError, LatencyBudget, LengthConfig, MaxLoss, UnsupportedError
from qla_runtime.arrays import Arrays, part
from qla_runtime.lengths.configs import LengthPlan
from qla_runtime.ragged import Ragged
from qla_runtime.runner import Runner
from qla_runtime.tasks.answer import AnswerTask
from qla_runtime.tasks.embed import EmbedTask
from qla_runtime.tasks.labels import LabelTask, ranked
from qla_runtime.tasks.prepared import Prepared, one_each
from qla_runtime.tasks.tag import TagTask

LONG = "it is the sea. " * 20
HALVES = LengthConfig.ratio((0.5, 0.5))
pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def tiny(tmp_path):
    """Opens a tiny package of a task, with made-up prices."""
    return partial(open_tiny, tmp_path)


@pytest.fixture
def clock(monkeypatch):
    return stopped_clock(monkeypatch)


@pytest.fixture
def runs(monkeypatch) -> list[Ragged]:
    """The batch of each native run."""
    run, batches = Runner.native_run, []
    monkeypatch.setattr(Runner, "native_run", lambda *given: batches.append(given[1]) or run(*given))
    return batches


# ---- the same results as alone --------------------------------------------------------------------


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_answers(tmp_path, runs, family):
    """Windows, options and length configs of five callers; bert has token types, this roberta has none."""
    package = tiny_package(family=family, max_length=40, doc_stride=9)
    engine = Engine(measured(package, full=80, balanced=79, fast=75).save(tmp_path / "package"))
    calls = [
        ((QUESTIONS, CONTEXTS), {}, None),
        ((["who?"], LONG), {"details": True}, "fast"),
        ((["who?", "x"], [LONG, "no"]), {"top_k": 3}, [HALVES, "full"]),
        ((["x"], LONG), {"handle_impossible_answer": True, "doc_stride": 2}, MaxLoss(10)),
        ((QUESTIONS, LONG), {"max_answer_tokens": 2}, ["frontier-1", "fast", str(HALVES)]),
    ]
    alone = [engine.answer(*texts, length, **options) for texts, options, length in calls]
    task = engine.as_task(AnswerTask)
    runs.clear()
    together = engine.run(
        [engine.prepare(task.answer(*texts, **options), length) for texts, options, length in calls]
    )
    assert together == alone
    assert len(runs) == 1 and runs[0].count > 20, "one batch of many windows"


def test_labels_and_relevances(tiny, runs):
    engine = tiny("sequence-classification", problem="regression", labels=["relevance"])
    task = engine.as_task(LabelTask)
    alone = [
        engine.classify(CONTEXTS, length=["fast", HALVES, None]),
        engine.rank("who?", [*CONTEXTS, LONG], "fast"),
        [engine.classify("a", "b", top_k=None)],
    ]
    runs.clear()
    labels, relevances, pair = engine.run(
        [
            engine.prepare(task.classify(CONTEXTS), ["fast", HALVES, None]),
            engine.prepare(task.rank("who?", [*CONTEXTS, LONG]), "fast"),
            engine.prepare(task.classify("a", "b", top_k=None)),
        ]
    )
    assert [labels, ranked(relevances), pair] == alone and len(runs) == 1


def test_spans(tiny, runs):
    engine = tiny("token-classification")
    task = engine.as_task(TagTask)
    texts = ["ada in london", LONG, " "]
    first, second = engine.tag(texts, ["fast", None, HALVES]), engine.tag("bob", aggregation_strategy="none")
    runs.clear()
    together = engine.run(
        [
            engine.prepare(task.tag(texts), ["fast", None, HALVES]),
            engine.prepare(task.tag("bob", aggregation_strategy="none")),
        ]
    )
    for found, alone in zip([*together[0], *together[1]], [*first, second], strict=True):
        assert list(found) == list(alone) and vars(found) == vars(alone)
    assert len(runs) == 1


@pytest.mark.filterwarnings("ignore:1 of 1 sentences")
def test_embeddings(tiny, runs):
    engine = tiny("embedding")
    task = engine.as_task(EmbedTask)
    first = engine.encode(CONTEXTS, "fast", prompt="x: ")
    second = engine.encode(LONG, truncate_dim=32, normalize_embeddings=True)
    runs.clear()
    together = engine.run(
        [
            engine.prepare(task.encode(CONTEXTS, prompt="x: "), "fast"),
            engine.prepare(task.encode(LONG, truncate_dim=32, normalize_embeddings=True)),
        ]
    )
    np.testing.assert_array_equal([result["vector"] for result in together[0]], first)
    np.testing.assert_array_equal(together[1][0]["vector"], second)
    assert [r["length"] for r in together[0]] == ["fast"] * 3 and together[1][0]["truncated"] and len(runs) == 1


# ---- budgets --------------------------------------------------------------------------------------
# Rows of the tiny model at a millisecond each: n tokens are 5 n with full, 2 n + 3 k where k are kept.


def asked(engine: Engine, context: str, length=None, **options):
    return engine.prepare(engine.as_task(AnswerTask).answer("who?", context), length, **options)


def test_one_config_is_chosen_for_all_budgets_of_a_batch(tiny, clock, runs):
    engine = tiny()
    alone = asked(engine, "a " * 20, latency_ms=200)
    assert engine.run([alone])[0][0]["length"] == "full"
    crowd = [asked(engine, "a " * 20, latency_ms=200) for _ in range(3)]
    results = [result for (result,) in engine.run(crowd)]
    assert len({result["length"] for result in results}) == 1 and results[0]["length"] != "full"
    assert [result["budget_met"] for result in results] == [True] * 3


def test_the_earliest_deadline_rules(tiny, clock):
    engine = tiny()
    early, late = asked(engine, "a " * 20, latency_ms=0), asked(engine, "a " * 20, latency_ms=10_000)
    clock.sleep(0.001)
    (first,), (second,) = engine.run([late, early])
    assert first["length"] == second["length"] == "fast"
    assert (first["budget_met"], second["budget_met"]) == (True, False), "each by its own deadline"


def test_calls_without_a_budget_take_their_share_of_the_time(tiny, clock):
    engine = tiny()
    budget = asked(engine, "a " * 20, latency_ms=200)
    (quick,), (fixed,) = engine.run([budget, asked(engine, "a " * 40, "full")])
    assert quick["length"] == "fast" and quick["budget_met"] is True
    assert fixed == engine.answer("who?", "a " * 40), "the length that it was asked with, and no budget"


def test_a_batch_under_a_budget_tells_the_pace(tiny):
    """Neither the other call's share of the prediction nor that of the time is left out."""
    engine = tiny()
    for _ in range(30):
        engine.run([asked(engine, "a", latency_ms=60_000), asked(engine, "a " * 40, "full")])
    assert engine.timekeeper.pace.ratio < 0.6, "predictions are hundreds of times too slow"


# ---- refusals -------------------------------------------------------------------------------------


def test_what_is_refused(tiny, clock):
    engine = tiny()
    task = engine.as_task(AnswerTask)
    refused(UnsupportedError, lambda: engine.as_task(TagTask), "tag() needs a token-classification model")
    refused(UnsupportedError, lambda: engine.as_task(LabelTask, "rank"), "rank() needs", "engine.answer(")
    refused(InputError, lambda: engine.prepare(task.answer("a", "b"), "slow"), "'slow'")
    refused(InputError, lambda: engine.prepare(task.answer("a", "b"), "fast", latency_ms=5), "pass one of them")
    policy = Escalate("fast", "full")
    refused(UnsupportedError, lambda: engine.prepare(task.answer("a", "b"), policy), "prepare() is for one run")
    refused(InputError, lambda: engine.run([]), "nothing to run")
    refused(InputError, lambda: engine.run([task.answer("a", "b").prepare()]), "prepared[0] has no length config")
    refused(
        InputError, lambda: engine.run([asked(engine, "b"), task.answer("a", "b")]), "prepared[1] is of type Call"
    )
    refused(InputError, lambda: engine.run(asked(engine, "b")), "prepared is of type Prepared", "a list")
    twin = tiny()
    refused(InputError, lambda: twin.run([asked(engine, "b")]), "prepared[0] was made by the engine of", twin.name)
    refused(InputError, lambda: engine.run(None), "prepared is of type NoneType")
    refused(InputError, lambda: engine.prepare("a"), "call is of type str", "as_task(AnswerTask).answer(...)")
    assert engine.run(iter([asked(engine, "b")])) == engine.run([asked(engine, "b")])
    prepared = asked(engine, "b")
    assert engine.prepare(task.answer("a", "b"), LatencyBudget(5)).deadline == 0.005
    engine.close()
    refused(InputError, lambda: engine.run([prepared]), "closed")
    refused(InputError, lambda: asked(engine, "b"), "closed")


# ---- arrays ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["span-qa", "sequence-classification", "token-classification", "embedding"])
def test_arrays_are_cut_by_sequences(tiny, kind):
    """Every array that a run can give, of two sequences from its middle."""
    rows = [[1, 2, 3], [4] * 9, [5], [6, 7], [8] * 30]
    engine = tiny(kind)
    whole, alone = arrays_of(engine, rows), arrays_of(engine, rows[1:3])
    cut = part(whole, Ragged.join(rows, None).offsets, slice(1, 3), kind)
    assert set(cut) == set(alone) == WANT | {"kept_counts"}
    for name in WANT - {"stages", "kept"}:  # kept positions have gaps, whose content is nobody's
        np.testing.assert_array_equal(cut[name], alone[name], err_msg=name)
    assert cut["kept"].shape == alone["kept"].shape


WANT = {"last_hidden", "logits", "kept", "hidden_states", "scores", "macs", "stages"}


def arrays_of(engine: Engine, rows: list[list[int]]) -> Arrays:
    """What one native run gives for these sequences."""
    batch = Ragged.join(rows, None)
    plan = LengthPlan((HALVES,), (0,) * batch.count, ("half",))
    ((arrays,),) = engine.run(
        [Prepared(batch, one_each(batch), frozenset(WANT), lambda arrays, plan: [arrays], plan)]
    )
    return arrays


def test_batches_with_and_without_token_types_join():
    typed, plain = Ragged.join([[1, 2], [3]], [[0, 1], [1]]), Ragged.join([[4]], None)
    both = Ragged.concatenated([typed, plain])
    assert both.ids.tolist() == [1, 2, 3, 4] and both.offsets.tolist() == [0, 2, 3, 4]
    assert both.type_ids.tolist() == [0, 1, 1, 0]
    assert Ragged.concatenated([plain, plain]).type_ids is None and Ragged.concatenated([plain]) is plain
    assert both.offsets.dtype == np.int64 and both.ids.dtype == both.type_ids.dtype == np.int32
