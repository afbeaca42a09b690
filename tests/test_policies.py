"""Policies as values, and what they choose from named configs. Prices are made up."""

from __future__ import annotations

import pickle
from functools import partial

import pytest
from policy_tools import CONTEXTS, QUESTIONS, Clock, milliseconds_per_row, open_tiny, refused

from qla_runtime import Escalate, LatencyBudget, LengthConfig, MaxLoss, UnsupportedError
from qla_runtime.lengths import policies, timekeeper
from qla_runtime.lengths.configs import Accuracy, NamedLength, count_macs
from qla_runtime.lengths.cost_model import CostModel
from qla_runtime.lengths.table import LengthTable

INFO = {"hidden": 64, "intermediate": 128, "layers": 2, "outputs": 2}
pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def tiny(tmp_path):
    """Opens a tiny package of a task, with made-up prices."""
    return partial(open_tiny, tmp_path)


# ---- budgets


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
    assert pace.ratio == pytest.approx(1.25, abs=0.16 * 0.9**60)  # each call makes a tenth of what is left of 0.15


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


# ---- losses


def test_max_loss(tiny):
    engine = tiny(accuracies={"full": 80, "balanced": 79.5, "fast": 70})
    assert engine.answer("who?", "ada", MaxLoss(0.5))["length"] == "balanced"
    assert engine.answer(QUESTIONS, CONTEXTS, MaxLoss(10))[2]["length"] == "fast"
    assert engine.forward([[1, 2]], length=MaxLoss(0)).length == ["full"]


@pytest.mark.parametrize("accuracies", [{}, {"full": 80}, {"fast": 70, "balanced": 75}])
def test_max_loss_needs_measured_configs(tiny, accuracies):
    engine = tiny(accuracies=accuracies)
    refused(UnsupportedError, lambda: engine.answer("a", "b", MaxLoss(1)), "MaxLoss(1)", "accuracy", "qla search")


# ---- values


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
