"""The cost model: what a call is made of, and how prices are found. Clocks are made up where they decide."""

from __future__ import annotations

import time

import numpy as np
import pytest
from package_tools import tiny_package

from qla_runtime import Engine, InputError, LengthConfig
from qla_runtime.lengths import cost_model
from qla_runtime.lengths.configs import count_macs
from qla_runtime.lengths.cost_model import COUNTS, CostModel

FULL, HALF = LengthConfig.ratio((1.0, 1.0)), LengthConfig.ratio((0.5, 0.5))
INFO = {"hidden": 64, "intermediate": 128, "layers": 2, "outputs": 2}
FITTED = 1e-10
"""A call of 0.3 ms is the difference of two times below 10 s, rounded by 1e-15; a fit's condition is 20."""


pytestmark = pytest.mark.usefixtures("cache")


class Clock:
    """Stands still unless told to go on."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def refused(kind, call, *words: str) -> None:
    with pytest.raises(kind) as error:
        call()
    assert type(error.value) is kind and all(word in str(error.value) for word in words), str(error.value)


# ---- counts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config", [LengthConfig.ratio((0.7, 0.7, 0.1)), LengthConfig.ratio((1.0,) * 3), LengthConfig.tokens((9, 4, 1))]
)
def test_kept_is_the_scalar_rule_for_all_lengths_and_configs_at_once(config):
    lengths = np.arange(1, 513)
    expected = np.array([config.kept(int(n)) for n in lengths]).T
    both = cost_model._kept(lengths.astype(float), [LengthConfig.ratio((1.0,) * 3), config])
    assert (both[1] == expected).all() and (both[0] == lengths).all()


@pytest.mark.parametrize("config", [FULL, HALF, LengthConfig.ratio((1.0, 0.2))])
def test_counts_are_those_of_count_macs(config):
    lengths = [3, 40, 40]
    counts = dict(zip(COUNTS, cost_model._counts(64, 128, lengths, [config])[0], strict=True))
    head = sum(2 * 64 * (n + 1) for n in lengths)
    # The engine projects attention's output for kept rows only, where count_macs counts as the papers do.
    not_projected = 64 * 64 * sum(n - config.kept(n)[-1] for n in lengths)
    expected = sum(count_macs(INFO, {"kind": "span-qa"}, n, config) for n in lengths) - head - not_projected
    assert counts["linear_macs"] + counts["attention_macs"] + 64 * counts["rows"] == expected
    assert (counts["calls"], counts["sequences"]) == (1, 3)
    assert config != FULL or counts["rows"] == 5 * 83


def test_dropping_costs_less_of_everything_that_can_be_dropped():
    full, half = cost_model._counts(64, 128, [40], [FULL, HALF])
    assert (half[:2] == full[:2]).all() and (half[2:] < full[2:]).all()


# ---- fitting --------------------------------------------------------------------------------------


def test_nnls_is_optimal():
    random = np.random.default_rng(0)
    for _ in range(20):
        a, b = random.standard_normal((9, 5)), random.standard_normal(9)
        x = cost_model.nnls(a, b)
        gradient = a.T @ (a @ x - b)
        # Karush, Kuhn and Tucker: no entry is negative, none at zero should grow, the others are stationary,
        # but for double roundings of 1e-16 in sums of numbers of order 1 to 100.
        assert (x >= 0).all() and (gradient > -1e-12).all() and np.abs(gradient[x > 0]).max(initial=0) < 1e-12


def test_nnls_of_nothing_to_gain_is_zero():
    assert (cost_model.nnls(-np.ones((4, 2)), np.ones(4)) == 0).all()


class Machine:
    """Runs calls at known prices, on a clock of its own; ``disturb(i)`` seconds are added to the i-th call."""

    def __init__(self, prices: tuple[float, ...], disturb=lambda i: 0.0) -> None:
        self.truth = CostModel(2, 64, 128, prices, 0.0)
        self.clock, self.disturb, self.calls = Clock(), disturb, 0

    def prepare(self, lengths, config):
        def call() -> None:
            self.clock.sleep(self.truth.seconds(lengths, config) + self.disturb(self.calls))
            self.calls += 1

        return call

    def fit(self, running: float = 1.0) -> CostModel:
        found = cost_model.fit(self.prepare, INFO, 384, self.clock, lambda: running * self.clock())
        self.doubt = found.doubt
        return found.model


PRICES = (3e-4, 2e-5, 1e-6, 2e-12, 8e-12)


@pytest.mark.parametrize("prices", [PRICES, (0.0, 0.0, 0.0, 1e-12, 0.0)])
def test_a_fit_finds_the_prices(prices):
    model = Machine(prices).fit()
    for lengths in ([5], [384], [100] * 7, [10, 200, 30]):
        for config in (FULL, HALF):
            expected = Machine(prices).truth.seconds(lengths, config)
            assert model.seconds(lengths, config) == pytest.approx(expected, rel=FITTED)
            assert model.safe_seconds(lengths, [config]) == pytest.approx([1.1 * expected], rel=FITTED)
    assert model.margin == cost_model.MIN_MARGIN


def test_disturbed_calls_do_not_count():
    """Four rounds of nine are ten times too slow."""
    shapes = len(cost_model._shapes(384, 2))
    machine = Machine(PRICES, lambda i: 0.005 * ((i - 1) // shapes % 2 == 1))
    model = machine.fit()
    assert machine.calls == 1 + shapes * cost_model.MAX_ROUNDS
    assert model.seconds([384], FULL) == pytest.approx(machine.truth.seconds([384], FULL), rel=FITTED)


def test_a_call_that_fits_badly_raises_the_margin():
    shapes = len(cost_model._shapes(384, 2))
    model = Machine(PRICES, lambda i: 0.001 * (i % shapes == 0)).fit()
    assert cost_model.MIN_MARGIN < model.margin <= cost_model.MAX_MARGIN


@pytest.mark.parametrize("running, doubtful", [(1.0, False), (0.85, False), (0.75, True), (0.1, True)])
def test_a_fit_on_a_busy_machine_doubts_itself(running, doubtful):
    machine = Machine(PRICES)
    machine.fit(running)
    assert bool(machine.doubt) == doubtful
    assert not doubtful or f"{running:.0%} of their time" in machine.doubt


def test_a_fit_whose_calls_scatter_doubts_itself():
    machine = Machine(PRICES, lambda i: 0.01 * (i % cost_model.SHAPES == 2))
    assert machine.fit().margin > cost_model.MAX_SURE_MARGIN and "longer than the fit says" in machine.doubt


def test_there_are_as_many_shapes_as_said():
    assert len(cost_model._shapes(384, 2)) == cost_model.SHAPES


def test_a_survey_without_the_longest_calls_still_fits():
    machine = Machine(PRICES)
    survey = cost_model.Survey(machine.prepare, INFO, 384, machine.clock, machine.clock)
    for turn in range(3 * cost_model.SHAPES):
        survey.skip() if turn % cost_model.SHAPES >= 6 else survey.measure()
    found = survey.fit()
    assert found.model.seconds([384], FULL) == pytest.approx(machine.truth.seconds([384], FULL), rel=FITTED)


def test_a_call_that_was_mostly_skipped_does_not_count():
    machine = Machine(PRICES, lambda i: 1.0 * (i == 0))
    survey = cost_model.Survey(machine.prepare, INFO, 384, machine.clock, machine.clock)
    for turn in range(3 * cost_model.SHAPES):
        survey.skip() if turn in (cost_model.SHAPES, 2 * cost_model.SHAPES) else survey.measure()
    found = survey.fit()
    assert found.model.seconds([384], FULL) == pytest.approx(machine.truth.seconds([384], FULL), rel=FITTED)


def test_every_measured_call_begins_after_a_rest():
    began = []
    survey = cost_model.Survey(lambda lengths, config: lambda: began.append(time.perf_counter()), INFO, 384)
    for _ in range(3):
        asked = time.perf_counter()
        survey.measure()
        assert began[-1] - asked >= cost_model.REST_SECONDS


def test_a_survey_of_too_few_calls_gives_no_fit():
    machine = Machine(PRICES)
    survey = cost_model.Survey(machine.prepare, INFO, 384, machine.clock, machine.clock)
    for turn in range(3 * cost_model.SHAPES):
        survey.skip() if turn % cost_model.SHAPES >= 5 else survey.measure()
    assert survey.fit() is None


def test_a_slow_model_is_measured_once():
    machine = Machine(tuple(1000 * price for price in PRICES))
    machine.fit()
    assert machine.calls == 1 + len(cost_model._shapes(384, 2))


@pytest.mark.parametrize(
    "lengths, config, words",
    [
        ([], FULL, ["[]", "at least 1"]),
        ([5, 0], FULL, ["[5, 0]", "at least 1"]),
        ([5, float("nan")], FULL, ["nan", "at least 1"]),
        ([5, 10**400], FULL, ["lengths are", "at least 1"]),
        (["x"], FULL, ["'x'", "at least 1"]),
        ([5], LengthConfig.ratio([0.5]), ["1 entries", "2 layers"]),
    ],
)
def test_what_cannot_be_predicted(lengths, config, words):
    refused(InputError, lambda: CostModel(2, 64, 128, PRICES, 0.1).seconds(lengths, config), *words)


def test_a_real_fit_is_quick_and_orders_calls(tmp_path):
    engine = Engine(tiny_package().save(tmp_path / "package"))
    began = time.perf_counter()
    model = engine.cost_model
    assert time.perf_counter() - began < 5  # under one on an idle machine
    assert model.seconds([64] * 500, FULL) > model.seconds([8], HALF) > 0
    assert engine.cost_model is model
