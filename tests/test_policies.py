"""Policies: what they choose, what results say, and what is refused.

Clocks and prices are made up wherever a measured time would decide.
"""

from __future__ import annotations

import json
import pickle
import time

import numpy as np
import pytest
from package_tools import TinyPackage, tiny_package

from qla_runtime import (
    Engine,
    Escalate,
    InputError,
    LatencyBudget,
    LengthConfig,
    MaxLoss,
    QlaError,
    UnsupportedError,
    cli,
)
from qla_runtime import engine as engine_module
from qla_runtime.evaluation import squad as evaluate
from qla_runtime.lengths import policies, timekeeper
from qla_runtime.lengths.configs import Accuracy, NamedLength, count_macs
from qla_runtime.lengths.cost_model import COUNTS, CostModel, Fit
from qla_runtime.lengths.table import LengthTable

FULL, HALF = LengthConfig.ratio((1.0, 1.0)), LengthConfig.ratio((0.5, 0.5))
INFO = {"hidden": 64, "intermediate": 128, "layers": 2, "outputs": 2}
QUESTIONS, CONTEXTS = ["who?", "what is it?", "x"], ["ada, bob.", "it is the sea. " * 3, "no"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache folder of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "qla_runtime"


class Clock:
    """Stands still unless told to go on."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def fitted(model: CostModel) -> Fit:
    """A fit of this moment that nothing speaks against."""
    return Fit(model, time.time())


@pytest.fixture
def clock(monkeypatch) -> Clock:
    """What engines read instead of the time."""
    clock = Clock()
    monkeypatch.setattr(engine_module, "perf_counter", clock)
    return clock


def milliseconds_per_row() -> CostModel:
    """A millisecond for each row of each layer and of the embeddings, and nothing else."""
    prices = tuple(1e-3 * (name == "rows") for name in COUNTS)
    return CostModel(2, 64, 128, prices, margin=0.0)


def measured(package: TinyPackage, **accuracies: float) -> TinyPackage:
    """The package with these accuracies in its configs; ``frontier`` is that of its only frontier entry."""
    for entry in package.length_configs["configs"] + package.length_configs["frontier"]:
        entry.pop("accuracy", None)
        if (value := accuracies.get(entry.get("name", "frontier"))) is not None:
            entry["accuracy"] = {"metric": "f1", "value": value, "data": "some"}
    return package


@pytest.fixture
def tiny(tmp_path):
    """Opens a tiny package of a task, with made-up prices."""

    def open_package(task: str = "span-qa", *, accuracies=None, **options) -> Engine:
        package = tiny_package(task, **options)
        if accuracies is not None:
            measured(package, **accuracies)
        engine = Engine(package.save(tmp_path / f"package-{len(list(tmp_path.iterdir()))}"))
        engine._times.use(fitted(milliseconds_per_row()))
        return engine

    return open_package


def refused(kind: type[QlaError], call, *words: str) -> None:
    with pytest.raises(kind) as error:
        call()
    assert type(error.value) is kind and all(word in str(error.value) for word in words), str(error.value)


# ---- choosing -------------------------------------------------------------------------------------


def candidate(name: str, ratio: float, value: float | None = None, data: str = "some") -> NamedLength:
    config = LengthConfig.ratio((ratio, ratio))
    accuracy = None if value is None else Accuracy("f1", value, data)
    macs = count_macs(INFO, {"kind": "span-qa"}, 40, config)
    return NamedLength(name, config, macs, ratio, accuracy)


def within(milliseconds: float, *candidates: NamedLength, pace: float = 1.0) -> str:
    left, ranked = milliseconds / 1e3, policies.best_first(candidates)
    return policies.within_time(ranked, milliseconds_per_row(), [40], lambda: left, pace)[0].name


def test_the_most_accurate_that_fits_is_chosen():
    # Rows of 40 tokens: full 40 * 5, half 40 * 2 + 20 * 3, tenth 40 * 2 + 4 * 3.
    all_three = candidate("tenth", 0.1, 70), candidate("half", 0.5, 83), candidate("full", 1.0, 82)
    assert within(1000, *all_three) == "half", "more accurate than full"
    assert within(140.5, *all_three) == "half"
    assert within(139.5, *all_three) == "tenth"
    assert within(1, *all_three) == "tenth", "nothing fits: the fastest"


def test_where_all_take_alike_and_nothing_fits_the_cheapest_runs():
    overhead = CostModel(2, 64, 128, (1.0, 0.0, 0.0, 0.0, 0.0), margin=0.1)
    ranked = [candidate("full", 1.0, 82), candidate("tenth", 0.1, 70), candidate("half", 0.5, 60)]
    assert policies.within_time(ranked, overhead, [40], lambda: 0.0)[0].name == "tenth"
    assert policies.within_time(ranked, overhead, [40], lambda: 2.0)[0].name == "full"


def test_a_slower_pace_leaves_less():
    all_three = candidate("tenth", 0.1, 70), candidate("half", 0.5, 81), candidate("full", 1.0, 82)
    assert [within(250, *all_three, pace=pace) for pace in (1.0, 1.2, 1.3, 1.8)] == [
        "full",
        "full",
        "half",
        "tenth",
    ]


def test_the_pace_follows_the_machine_and_forgives_an_interruption():
    pace = timekeeper.Pace()
    pace.saw(0.002, 2.0)
    assert pace.ratio == pytest.approx(1.1), "one interrupted call"
    for _ in range(60):
        pace.saw(0.002, 0.0025)
    assert pace.ratio == pytest.approx(1.25, abs=0.01)


def test_calls_under_a_budget_tell_the_pace(tmp_path):
    engine = Engine(tiny_package().save(tmp_path / "package"))
    engine._times.use(fitted(milliseconds_per_row()))  # hundreds of times slower than this package runs
    engine.forward([[5] * 40], length="full")
    assert engine._times.pace.ratio == 1.0, "no budget, no prediction"
    for _ in range(30):
        engine.forward([[5] * 40], latency_ms=1000)
    assert engine._times.pace.ratio < 0.6


def test_without_accuracies_more_macs_are_better():
    unknown = candidate("half", 0.5), candidate("full", 1.0, 82), candidate("tenth", 0.1, 99, data="other")
    assert [within(ms, *unknown) for ms in (1000, 199, 139)] == ["full", "half", "tenth"]


def test_a_config_without_accuracy_is_passed_over_where_others_have_one():
    some = candidate("full", 1.0, 82), candidate("half", 0.5), candidate("tenth", 0.1, 70)
    assert within(150, *some) == "tenth"


def test_time_that_passes_while_predicting_counts():
    clock = Clock()

    class Slow(CostModel):
        def safe_seconds(self, lengths, configs):
            clock.sleep(0.06)
            return super().safe_seconds(lengths, configs)

    slow = Slow(2, 64, 128, milliseconds_per_row().prices, margin=0.0)
    candidates = [candidate("full", 1.0), candidate("half", 0.5), candidate("tenth", 0.1)]
    for budget, expected in ((0.261, "full"), (0.259, "half"), (0.199, "tenth")):
        end = clock() + budget
        chosen, seconds = policies.within_time(candidates, slow, [40], lambda end=end: end - clock())
        assert chosen.name == expected
        assert seconds == pytest.approx(slow.seconds([40], chosen.config))


@pytest.mark.parametrize(
    "points, expected", [(0, "full"), (0.5, "full"), (1, "half"), (11.9, "half"), (12, "tenth")]
)
def test_the_cheapest_within_the_loss_is_chosen(points, expected):
    measured = candidate("full", 1.0, 82), candidate("half", 0.5, 81), candidate("tenth", 0.1, 70)
    assert policies.within_loss(MaxLoss(points), measured).name == expected


def test_candidates_are_named_configs_and_frontier_once_each():
    entry = {"rule": "ratio", "values": [1, 1], "keep_cls": True}
    package = {"configs": [entry | {"name": "twin"}, entry | {"name": "full"}], "frontier": [entry]}
    package["frontier"] += [
        entry | {"values": [1, 0.5], "name": "own"},
        entry | {"values": [1, 0.4], "name": "full"},
    ]
    table = LengthTable(package, INFO, {"kind": "span-qa", "max_length": 64})
    assert [c.name for c in table.distinct] == ["full", "own", "frontier-3"]
    assert list(table.frontier) == ["frontier-1", "own", "frontier-3"] and list(table.named) == ["twin", "full"]


def test_names_of_the_frontier_are_never_those_of_others():
    def entry(**more):
        return {"rule": "ratio", "values": [1, 0.5], "keep_cls": True} | more

    package = {
        "configs": [entry(name="full", values=[1, 1]), entry(name="frontier-2")],
        "frontier": [entry(name="frontier-2"), entry(name="frontier-2"), entry(), entry(name="frontier-3")],
    }
    table = LengthTable(package, INFO, {"kind": "span-qa", "max_length": 64})
    assert len(table.frontier) == 4 and not set(table.frontier) & set(table.named)


# ---- budgets, call by call ------------------------------------------------------------------------

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
    run = Engine._run
    monkeypatch.setattr(Engine, "_run", lambda *arguments: clock.sleep(1.001) or run(*arguments))
    assert set(call(engine, latency_ms=1000)) == {False}, "measured, not predicted"


def test_single_inputs_and_ranks_say_so_too(tiny, clock):
    assert tiny().answer("who?", "ada", latency_ms=1e6)["budget_met"] is True
    assert tiny("sequence-classification").classify("ada", latency_ms=1e6)["budget_met"] is True
    assert tiny("token-classification").tag("ada", latency_ms=1e6).budget_met is True
    ranker = tiny("sequence-classification", problem="regression", labels=["relevance"])
    assert [r["budget_met"] for r in ranker.rank("a", ["b", "c"], latency_ms=1e6)] == [True, True]
    assert [r["budget_met"] for r in ranker.rank("a", ["b", "c"])] == [None, None]


def test_a_budget_that_nothing_meets_runs_the_fastest(tiny, clock, monkeypatch):
    run = Engine._run
    monkeypatch.setattr(Engine, "_run", lambda *arguments: clock.sleep(0.05) or run(*arguments))
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
    windows = engine._texts.windows
    monkeypatch.setattr(engine._texts, "windows", lambda *a: clock.sleep(0.19) or windows(*a))
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
    monkeypatch.setattr("qla_runtime.texts.windows.BATCH_TEXTS", 1)
    assert engine.answer(QUESTIONS, CONTEXTS, latency_ms=170) == whole


def test_warming_up_does_what_first_calls_would(tmp_path):
    engine = Engine(tiny_package().save(tmp_path / "package"))
    engine.warm_up()
    assert engine._times._fit is not None and engine._texts._tokenizer is not None
    assert engine.answer("who?", "ada", latency_ms=60_000)["budget_met"] is True


# ---- losses ---------------------------------------------------------------------------------------


def test_max_loss(tiny):
    engine = tiny(accuracies={"full": 80, "balanced": 79.5, "fast": 70})
    assert engine.answer("who?", "ada", MaxLoss(0.5))["length"] == "balanced"
    assert engine.answer(QUESTIONS, CONTEXTS, MaxLoss(10))[2]["length"] == "fast"
    assert engine.forward([[1, 2]], length=MaxLoss(0)).length == ["full"]


@pytest.mark.parametrize("accuracies", [{}, {"full": 80}, {"fast": 70, "balanced": 75}])
def test_max_loss_needs_measured_configs(tiny, accuracies):
    engine = tiny(accuracies=accuracies)
    refused(UnsupportedError, lambda: engine.answer("a", "b", MaxLoss(1)), "MaxLoss(1)", "accuracy", "qla search")


# ---- escalation -----------------------------------------------------------------------------------


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
    assert policies.with_threshold(Escalate("balanced", "full"), package.length_configs).threshold == 0.5
    config = LengthConfig.ratio((0.5, 0.5))
    assert policies.with_threshold(Escalate(config, "full"), package.length_configs).threshold == 0.5


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


# ---- calibration ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "max_loss, expected",
    [(100, 0.0), (60, 0.0), (40, 0.2), (39, 0.6), (20, 0.6), (19, 0.9), (0, 0.9)],
)
def test_the_threshold_is_the_lowest_that_keeps_the_loss(max_loss, expected):
    """Repeating 0.1 gains 20 points of the mean, both 0.2 then 20 in all, 0.6 gains 20, 0.9 nothing."""
    sure = [0.9, 0.2, 0.1, 0.6, 0.2]
    cheap, dear = [100, 100, 0, 0, 0], [100, 100, 100, 100, 100]
    assert policies.escalation_threshold(sure, cheap, dear, max_loss) == expected


def test_a_dear_config_that_is_worse_is_not_run():
    assert policies.escalation_threshold([0.5, 0.6], [1, 1], [0, 1], 0) == 0.0


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
    refused(InputError, lambda: policies.escalation_threshold(*arguments), *words)


def test_calibration_keeps_the_loss_on_its_data(tiny):
    engine = tiny()
    contexts = [f"{text} and so on" for text in ("ada", "bob", "the sea", "it is so", "bread", "salt", "x y z")]
    full = engine.answer(["who?"] * 7, contexts)
    questions = [
        evaluate.Question(str(i), "who?", context, (result["answer"],))
        for i, (context, result) in enumerate(zip(contexts, full, strict=True))
    ]

    def f1(length) -> float:
        results = engine.answer(["who?"] * 7, contexts, length)
        truths = zip(results, questions, strict=True)
        return 100 * np.mean([evaluate.word_f1(r["answer"], q.answers[0]) for r, q in truths])

    for max_loss in (0, 10, 100):
        threshold = policies.calibrate_escalation(engine, questions, "fast", "full", max_loss)
        assert f1(Escalate("fast", "full", threshold)) >= f1("full") - max_loss - 1e-9
    assert policies.calibrate_escalation(engine, questions, "full", "full") == 0.0
    refused(InputError, lambda: policies.calibrate_escalation(engine, [], "fast", "full"), "no questions")
    refused(InputError, lambda: policies.calibrate_escalation(engine, questions, "fast", "full", -1), "max_loss")


# ---- values ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "policy, shown",
    [
        (LatencyBudget(5), "LatencyBudget(ms=5)"),
        (MaxLoss(0.5), "MaxLoss(points=0.5)"),
        (Escalate("fast", "full"), "Escalate(cheap='fast', dear='full', threshold=None)"),
    ],
)
def test_policies_are_values(policy, shown):
    assert repr(policy) == shown
    assert pickle.loads(pickle.dumps(policy)) == policy and hash(policy) == hash(
        pickle.loads(pickle.dumps(policy))
    )


def test_an_engine_with_a_cost_model_still_pickles(tiny):
    engine = tiny()
    assert pickle.loads(pickle.dumps(engine)).answer("a", "b") == engine.answer("a", "b")


# ---- evaluation and the command line --------------------------------------------------------------


def test_evaluation_gives_each_question_its_budget(tiny, clock, monkeypatch, tmp_path):
    entry = [{"id": "1", "question": "who?", "answers": [{"text": "ada"}]}]
    data = {"data": [{"paragraphs": [{"context": text, "qas": entry} for text in ("ada", "ada, " * 14)]}]}
    path = tmp_path / "squad.json"
    path.write_text(json.dumps(data))
    engine, run = tiny(), Engine._run

    def as_predicted(self, batch, index, plan, want):
        clock.sleep(engine.cost_model.seconds(np.diff(batch.offsets), plan.configs[0]))
        return run(self, batch, index, plan, want)

    monkeypatch.setattr(Engine, "_run", as_predicted)
    assert evaluate.squad(engine, path, LatencyBudget(100)).within_budget == 0.5, "45 rows, and 95 at the least"
    assert evaluate.squad(engine, path, LatencyBudget(1000)).within_budget == 1
    assert evaluate.squad(engine, path, "fast").within_budget is None


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> str:
    package = measured(tiny_package(), full=80, balanced=79.5, fast=70)
    return str(package.save(tmp_path_factory.mktemp("policies") / "package"))


def qla(capsys, *arguments: str) -> tuple[int, str, str]:
    """Exit status, standard output and standard error."""
    try:
        status = cli.main(arguments)
    except SystemExit as leaving:  # argparse leaves by itself
        status = leaving.code
    return status, *capsys.readouterr()


@pytest.mark.parametrize(
    "option, length, met",
    [
        (["--latency-ms", "60000"], "full", True),
        (["--latency-ms", "0"], "fast", False),
        (["--max-loss", "0.5"], "balanced", None),
        (["--escalate", "fast:balanced:1"], "balanced", None),
        (["--escalate", ".5,.5:9,4:0"], "ratio(0.5, 0.5)", None),
    ],
)
def test_the_command_line_has_policies(capsys, package, option, length, met):
    arguments = ["answer", "who?", "--context", "ada, bob.", "--model", package, *option]
    status, output, errors = qla(capsys, *arguments, "--json")
    result = json.loads(output)
    assert (status, errors, result["length"], result["budget_met"]) == (0, "", length, met)
    shown = qla(capsys, *arguments)[1]
    assert ("within the budget" in shown, "over the budget" in shown) == (met is True, met is False)


@pytest.mark.parametrize(
    "options, words",
    [
        (["--latency-ms", "5", "--length", "fast"], ["--latency-ms", "--length", "not allowed"]),
        (["--latency-ms", "5", "--max-loss", "1"], ["not allowed"]),
        (["--escalate", "fast:full", "--length", "fast"], ["not allowed"]),
        (["--latency-ms", "soon"], ["'soon'"]),
        (["--latency-ms", "-5"], ["-5", "0 or more"]),
        (["--latency-ms", "nan"], ["nan", "finite"]),
        (["--max-loss", "-1"], ["-1", "0 or more"]),
        (["--escalate", "fast"], ["'fast'", "CHEAP:DEAR"]),
        (["--escalate", "fast:"], ["'fast:'", "CHEAP:DEAR"]),
        (["--escalate", "fast:full:much"], ["'fast:full:much'", "threshold"]),
        (["--escalate", "fast:full:2"], ["threshold", "2.0"]),
        (["--escalate", "fast:full:1:1"], ["'fast:full:1:1'"]),
        (["--escalate", "fast:best"], ["'best'", "full, balanced, fast"]),
    ],
)
def test_the_command_line_refuses(capsys, package, options, words):
    status, output, errors = qla(capsys, "answer", "a", "--context", "b", "--model", package, *options)
    assert (status, output) == (2, "") and len(errors.splitlines()) == 1
    assert all(word in errors for word in words), errors
