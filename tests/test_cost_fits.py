"""Fits of the cost model: kept between processes, shared by those that start together, checked and made anew.

Clocks and prices are made up wherever a measured time would decide.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from package_tools import tiny_package

from qla_runtime import Engine, LengthConfig
from qla_runtime.fork_safe import ForkSafeLock
from qla_runtime.lengths import cost_cache, cost_model, timekeeper
from qla_runtime.lengths.cost_cache import CostCache
from qla_runtime.lengths.cost_model import CostModel, Fit, Survey
from qla_runtime.lengths.timekeeper import CHECK_CALLS, REFIT_ROUNDS, Timekeeper

FULL = LengthConfig.ratio((1.0, 1.0))
INFO = {"hidden": 64, "intermediate": 128, "layers": 2, "outputs": 2}
PRICES = (3e-4, 2e-5, 1e-6, 2e-12, 8e-12)
MODEL = CostModel(2, 64, 128, PRICES, 0.2)
FITTED = 1e-10
"""A call of 0.3 ms is the difference of two times below 10 s, rounded by 1e-15; a fit's condition is 20."""


pytestmark = pytest.mark.usefixtures("cache")


# ---- the cache ------------------------------------------------------------------------------------


@pytest.fixture
def fits(monkeypatch) -> list[int]:
    """One entry per fit; fits take no time."""
    done: list[int] = []
    monkeypatch.setattr(cost_model, "fit", lambda *_: done.append(1) or Fit(MODEL, time.time()))
    return done


def test_a_fit_is_kept_for_later_processes(tmp_path, cache, fits):
    path = tiny_package().save(tmp_path / "package")
    model = Engine(path, num_threads=1).cost_model
    assert Engine(path, num_threads=1).cost_model == model and len(fits) == 1
    assert sorted(file.suffix for file in cache.iterdir()) == [".json", ".lock"]


@pytest.mark.parametrize(
    "other",
    [
        lambda path, _: Engine(path, num_threads=2),
        lambda path, _: Engine(path, num_threads=1, isa="ref"),
        lambda path, _: Engine(tiny_package(seed=1).save(path), num_threads=1),
        lambda path, patch: (
            patch.setattr(cost_cache, "_cpu_model", lambda: "another") or Engine(path, num_threads=1)
        ),
    ],
    ids=["threads", "isa", "package", "cpu"],
)
def test_a_fit_is_kept_for_the_same_conditions_only(tmp_path, monkeypatch, fits, other):
    path = tiny_package().save(tmp_path / "package")
    _ = Engine(path, num_threads=1).cost_model
    _ = other(path, monkeypatch).cost_model
    assert len(fits) == 2


GOOD = {"model": asdict(MODEL), "made": 1e9, "doubt": ""}


def changed(**model) -> bytes:
    return json.dumps(GOOD | {"model": GOOD["model"] | model}).encode()


def reopened(tmp_path, cache, content: bytes) -> CostModel:
    """The cost model of an engine that finds this in place of what an earlier one left."""
    path = tiny_package().save(tmp_path / "package")
    _ = Engine(path).cost_model
    (file,) = cache.glob("*.json")
    assert json.loads(file.read_bytes())["model"] == json.loads(json.dumps(GOOD["model"]))
    file.write_bytes(content)
    return Engine(path).cost_model


def test_what_the_damaged_ones_are_made_of_is_taken(tmp_path, cache, fits):
    """Else each of them could be refused for another reason than its damage."""
    assert reopened(tmp_path, cache, changed(margin=0.3)) == replace(MODEL, margin=0.3) and len(fits) == 1


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\x00",
        b"[" * 100_000,
        b"[1]",
        b" " * 10_000_000 + json.dumps(GOOD).encode(),
        changed(prices=[1.0]),
        changed(prices=[0.0] * 5),
        changed(prices=[-1.0, 1, 1, 1, 1]),
        changed(prices=[float("nan")] * 5),
        changed(prices=[10**400, 1, 1, 1, 1]),
        changed(prices=None),
        changed(margin=40),
        changed(layers=3),
        changed(layers=None),
        changed(hidden=65),
        changed(hidden=float("inf")),
        changed(hidden="64"),
        json.dumps(GOOD | {"made": 1e12}).encode(),
        json.dumps(GOOD | {"made": float("nan")}).encode(),
        json.dumps(GOOD | {"doubt": 3}).encode(),
        json.dumps(GOOD | {"doubt": "\x1b[2J"}).encode(),
        json.dumps(GOOD["model"]).encode(),
    ],
)
def test_a_damaged_cache_is_replaced(tmp_path, cache, fits, content):
    assert reopened(tmp_path, cache, content) == MODEL and len(fits) == 2
    (file,) = cache.glob("*.json")
    assert json.loads(file.read_bytes())["model"]["hidden"] == 64


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("nowhere", path)])
@pytest.mark.parametrize("suffix", [".json", ".lock"])
def test_what_is_no_file_in_the_cache_does_no_harm(tmp_path, cache, fits, make, suffix):
    path = tiny_package().save(tmp_path / "package")
    model = Engine(path).cost_model
    (file,) = cache.glob(f"*{suffix}")
    file.unlink()
    make(file)
    for other in cache.glob("*.json") if suffix == ".lock" else ():
        other.unlink()
    assert Engine(path).cost_model == model and len(fits) == 2
    assert all(left.suffix in (".json", ".lock") for left in cache.glob("cost-*")), "no half-written file stays"


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path, cache, fits):
    cache.parent.mkdir()
    cache.write_text("a file where the folder should be")
    path = tiny_package().save(tmp_path / "package")
    assert Engine(path).cost_model.prices == Engine(path).cost_model.prices and len(fits) == 2


def test_no_home_is_no_cache(tmp_path, monkeypatch, fits):
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/paths/are/ignored")

    def no_home():
        raise RuntimeError("no home")

    monkeypatch.setattr(Path, "home", no_home)
    monkeypatch.chdir(tmp_path)
    assert Engine(tiny_package().save(tmp_path / "package")).cost_model.margin == 0.2
    assert not Path("relative").exists()


# ---- a doubtful fit -------------------------------------------------------------------------------


@pytest.fixture
def doubtful(monkeypatch) -> list[int]:
    """One entry per fit; every fit doubts itself."""
    done: list[int] = []
    monkeypatch.setattr(cost_model, "fit", lambda *_: done.append(1) or Fit(MODEL, time.time(), "busy"))
    return done


def test_processes_that_start_together_share_a_doubtful_fit_and_later_ones_do_not(tmp_path, doubtful, monkeypatch):
    path = tiny_package().save(tmp_path / "package")
    assert Engine(path).cost_model == Engine(path).cost_model == MODEL and len(doubtful) == 1
    monkeypatch.setattr(timekeeper, "FRESH_SECONDS", 0.0)
    assert Engine(path).cost_model == MODEL and len(doubtful) == 2


def test_a_doubtful_fit_does_not_replace_a_good_one(tmp_path, cache, fits, monkeypatch):
    path = tiny_package().save(tmp_path / "package")
    engine = Engine(path)
    assert engine.cost_model == MODEL
    (file,) = cache.glob("*.json")
    good = file.read_bytes()
    engine.timekeeper._keep(engine.timekeeper._cache, Fit(MODEL, time.time(), "busy"))
    assert file.read_bytes() == good
    engine.timekeeper._keep(engine.timekeeper._cache, Fit(replace(MODEL, margin=0.1), time.time()))
    assert file.read_bytes() != good


def test_explain_says_how_old_and_how_good_the_fit_is(tmp_path, fits):
    engine = Engine(tiny_package().save(tmp_path / "package"))
    assert "no fit yet" in engine.explain()
    engine.warm_up()
    assert "fitted 0 seconds ago (by this process); predictions are raised by 20%" in engine.explain()
    assert "nothing speaks against it" in engine.explain()
    again = Engine(engine.path)
    assert "(found on disk)" in again.explain()
    again.timekeeper.use(Fit(MODEL, time.time() - 7300, "the machine was busy"))
    for _ in range(3):
        again.timekeeper.saw(1.0, 0.9, lambda: 0.0)
    assert "fitted 2 hours ago" in again.explain() and "doubtful: the machine was busy" in again.explain()
    assert "3 calls under a budget since: the last 3 took 0.90 of the prediction" in again.explain()


# ---- processes that measure at the same time ------------------------------------------------------

HOLDER = """
import sys, time
from pathlib import Path
from qla_runtime.lengths.cost_cache import CostCache
with CostCache(Path(sys.argv[1])).lock(0.0) as mine:
    print(mine, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Starts a process that holds the lock of a cache file."""
    running = []

    def start(path: Path) -> subprocess.Popen:
        process = subprocess.Popen([sys.executable, "-c", HOLDER, path], stdout=subprocess.PIPE, text=True)
        running.append(process)
        assert process.stdout.readline() == "True\n"
        return process

    yield start
    for process in running:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_process_waits_for_another_but_not_for_ever(tmp_path, cache, fits, holder, monkeypatch):
    monkeypatch.setattr(timekeeper, "WAIT_SECONDS", 0.2)
    engine = Engine(tiny_package().save(tmp_path / "package"))
    process = holder(engine.timekeeper._cache._path)
    fit = engine.timekeeper.fit
    assert fit.doubt == "another process measured at the same time"
    assert not list(cache.glob("*.json")), "the other one leaves its own"
    process.kill()
    process.wait()
    engine.timekeeper.use(replace(fit, made=fit.made - 60))
    engine.warm_up()
    assert not engine.timekeeper.fit.doubt, "a lock goes with the process that held it"
    assert list(cache.glob("*.json"))


def test_only_one_holds_the_lock(tmp_path):
    path = tmp_path / "cost.json"
    with CostCache(path).lock(0.0) as first, CostCache(path).lock(0.05) as second:
        assert (first, second) == (True, False)
    with CostCache(path).lock(0.0) as again:
        assert again


def test_a_forked_child_does_not_keep_the_lock(tmp_path):
    path = tmp_path / "cost.json"
    ready, go = os.pipe(), os.pipe()
    with CostCache(path).lock(0.0):
        child = os.fork()
        if not child:
            os.write(ready[1], b"x")
            os.read(go[0], 1)
            os._exit(0)
        os.read(ready[0], 1)
    with CostCache(path).lock(0.0) as mine:
        assert mine, "while the child still lives"
    os.write(go[1], b"x")
    assert os.waitpid(child, 0)[1] == 0
    for descriptor in (*ready, *go):
        os.close(descriptor)


def test_a_child_forked_during_a_fit_fits_for_itself(tmp_path, monkeypatch):
    monkeypatch.setattr(timekeeper, "WAIT_SECONDS", 0.1)
    inside, leave = threading.Event(), threading.Event()
    monkeypatch.setattr(cost_model, "fit", lambda *_: inside.set() or leave.wait(30) and Fit(MODEL, time.time()))
    engine = Engine(tiny_package().save(tmp_path / "package"), num_threads=1)
    thread = threading.Thread(target=lambda: engine.cost_model)
    thread.start()
    assert inside.wait(30)
    monkeypatch.setattr(cost_model, "fit", lambda *_: Fit(MODEL, time.time()))
    child = os.fork()
    if not child:
        signal.alarm(20)
        try:
            met = engine.answer("who?", "ada", latency_ms=60_000)["budget_met"]
            os._exit(0 if met and engine.cost_model == MODEL else 1)
        finally:
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    leave.set()
    thread.join()
    assert engine.cost_model == MODEL


def test_a_child_forked_inside_a_lock_leaves_it():
    lock = ForkSafeLock()
    with lock.held(), lock.tried() as again:
        assert not again
        child = os.fork()
        if not child:
            with lock.tried() as mine:
                os._exit(0 if mine else 1)
    assert os.waitpid(child, 0)[1] == 0
    with lock.tried() as mine:
        assert mine


# ---- fits that do not hold ------------------------------------------------------------------------


class Simulation:
    """An engine of known prices under budgets, on a clock of its own: the machine runs ``load`` times as slow."""

    def __init__(self, tmp_path: Path, monkeypatch, fit: Fit, load: float = 1.0) -> None:
        self.now, self.load, self.running = 0.0, load, 1.0
        self.truth = replace(MODEL, margin=0.0)

        def survey(prepare, info, longest):
            return Survey(prepare, info, longest, lambda: self.now, lambda: self.running * self.now)

        monkeypatch.setattr(timekeeper, "Survey", survey)
        self.times = Timekeeper(tmp_path, lambda: "simulated", self.prepare, INFO, 384)
        self.times.__dict__["_cache"] = self.cache = CostCache(tmp_path / "cost.json")
        self.times.use(fit)

    def prepare(self, lengths, config):
        def call() -> None:
            self.now += self.load * self.truth.seconds(lengths, config)

        return call

    def call(self, tokens: int = 128, budget: float = 0.05) -> bool:
        """One call under a budget; whether it ended within."""
        began = self.now
        expected = self.times.model.seconds([tokens], FULL)
        self.prepare([tokens], FULL)()
        self.times.saw(expected, self.now - began, lambda: began + budget - self.now)
        return self.now - began <= budget

    def error(self) -> float:
        """By how many times predictions of several calls are wrong at most, the pace included."""
        ratios = [
            self.times.pace.ratio * self.times.model.seconds([n], FULL) / self.truth.seconds([n], FULL) / self.load
            for n in (8, 128, 384)
        ]
        return max(max(ratios), 1 / min(ratios))


def slower(model: CostModel, *factors: float) -> CostModel:
    return replace(model, prices=tuple(p * f for p, f in zip(model.prices, factors, strict=True)))


REFIT_CALLS = CHECK_CALLS + 1 + cost_model.SHAPES * REFIT_ROUNDS + 1


@pytest.mark.parametrize("factors", [(5.5,) * 5, (40, 5, 5, 5, 5), (1, 1, 9, 9, 9)])
@pytest.mark.parametrize("doubt", ["", "the machine was busy"])
def test_a_fit_of_a_busy_machine_is_replaced_within_fifty_calls(tmp_path, monkeypatch, factors, doubt):
    wrong = Fit(slower(MODEL, *factors), time.time() - 60, doubt)
    simulation = Simulation(tmp_path, monkeypatch, wrong)
    simulation.cache.save(wrong)
    assert simulation.error() > 4
    assert REFIT_CALLS < 50 and all([simulation.call() for _ in range(REFIT_CALLS)]), "no call beyond its budget"
    assert simulation.error() == pytest.approx(1.0, abs=FITTED)
    kept = simulation.cache.load(INFO)
    assert kept == simulation.times.fit and not kept.doubt and kept.made > wrong.made


def test_a_refit_waits_where_budgets_leave_no_time(tmp_path, monkeypatch):
    """Calls take all their budget; the pace repairs what it can."""
    wrong = Fit(slower(MODEL, *(5.5,) * 5), time.time() - 60)
    simulation = Simulation(tmp_path, monkeypatch, wrong)
    budget = simulation.truth.seconds([128], FULL) + 1e-9
    assert all([simulation.call(budget=budget) for _ in range(60)])
    assert simulation.times.fit == wrong and simulation.error() < 1.1


def test_a_refit_passes_over_calls_that_are_longer_than_what_a_budget_leaves(tmp_path, monkeypatch):
    simulation = Simulation(tmp_path, monkeypatch, Fit(slower(MODEL, *(55,) * 5), time.time() - 60))
    simulation.truth = slower(simulation.truth, *(10,) * 5)
    call, longest = (simulation.truth.seconds([n], FULL) for n in (16, 384))
    left = 2 * timekeeper.BOOKKEEPING_SECONDS
    assert left < longest
    assert all([simulation.call(16, call + left) for _ in range(2 * REFIT_CALLS)])


def test_what_calls_refute_is_marked_on_disk_for_processes_to_come(tmp_path, monkeypatch):
    wrong = Fit(slower(MODEL, *(5.5,) * 5), time.time() - 60)
    simulation = Simulation(tmp_path, monkeypatch, wrong)
    simulation.cache.save(wrong)
    for _ in range(CHECK_CALLS + 1):
        simulation.call()
    assert "later calls took 0.18 of its predictions" in simulation.cache.load(INFO).doubt


def test_a_better_fit_of_another_process_is_taken(tmp_path, monkeypatch):
    simulation = Simulation(tmp_path, monkeypatch, Fit(slower(MODEL, *(5.5,) * 5), time.time() - 60))
    good = Fit(MODEL, time.time() - 30)
    simulation.cache.save(good)
    for _ in range(CHECK_CALLS + 1):
        simulation.call()
    assert simulation.times.fit == good and simulation.times.pace.ratio == 1.0


def test_a_good_fit_outlives_a_busy_time(tmp_path, monkeypatch):
    good = Fit(MODEL, time.time() - 60)
    simulation = Simulation(tmp_path, monkeypatch, good, load=4.0)
    simulation.cache.save(good)
    simulation.running = 0.25
    for _ in range(200):
        simulation.call(budget=1.0)
    assert simulation.times.fit == good == simulation.cache.load(INFO), "refits there doubted themselves"
    assert simulation.error() < 1.05, "the pace follows"
    simulation.load = simulation.running = 1.0
    for _ in range(60):
        simulation.call(budget=1.0)
    assert simulation.error() < 1.05


def test_a_busy_machine_is_not_measured_over_and_over(tmp_path, monkeypatch):
    simulation = Simulation(tmp_path, monkeypatch, Fit(MODEL, time.time() - 60, "busy"), load=4.0)
    simulation.running = 0.25
    taken: list[int] = []
    measure = Survey.measure
    monkeypatch.setattr(Survey, "measure", lambda self: taken.append(1) or measure(self))
    for _ in range(2000):
        simulation.call(budget=1.0)
    assert len(taken) <= 7 * cost_model.SHAPES * REFIT_ROUNDS, "after 20, 40, 80, ... calls"


def test_a_doubtful_fit_is_replaced_soon_after_a_busy_time(tmp_path, monkeypatch):
    simulation = Simulation(tmp_path, monkeypatch, Fit(MODEL, time.time() - 60, "busy"), load=4.0)
    simulation.running = 0.25
    for _ in range(2000):
        simulation.call(budget=1.0)
    simulation.load = simulation.running = 1.0
    for _ in range(REFIT_CALLS):
        simulation.call(budget=1.0)
    assert simulation.error() == pytest.approx(1.0, abs=FITTED) and not simulation.times.fit.doubt


def test_a_fit_that_holds_is_left_alone(tmp_path, monkeypatch):
    good = Fit(MODEL, time.time() - 60)
    simulation = Simulation(tmp_path, monkeypatch, good)
    monkeypatch.setattr(Survey, "measure", lambda self: pytest.fail("nothing to measure"))
    for i in range(500):
        simulation.load = 1.3 if i % 3 else 0.9
        simulation.call()
    assert simulation.times.fit == good


def test_warming_up_replaces_a_fit_that_does_not_hold(tmp_path, fits):
    engine = Engine(tiny_package().save(tmp_path / "package"))
    engine.timekeeper.use(Fit(slower(MODEL, *(5.5,) * 5), time.time() - 60))
    engine.warm_up()
    assert not fits, "nobody knows yet"
    for _ in range(CHECK_CALLS):
        engine.timekeeper.saw(1.0, 0.18, lambda: 0.0)
    engine.warm_up()
    assert len(fits) == 1 and engine.cost_model == MODEL
