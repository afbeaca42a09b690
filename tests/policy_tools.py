"""Engines of tiny packages with made-up prices, and a clock that stands still."""

from __future__ import annotations

import time
from pathlib import Path

from package_tools import TinyPackage, tiny_package

from qla_runtime import Engine
from qla_runtime.lengths.cost_model import COUNTS, CostModel, Fit

QUESTIONS, CONTEXTS = ["who?", "what is it?", "x"], ["ada, bob.", "it is the sea. " * 3, "no"]


class Clock:
    """Stands still unless told to go on."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def stopped_clock(monkeypatch) -> Clock:
    """What engines read instead of the time."""
    clock = Clock()
    for module in ("engine", "runner"):
        monkeypatch.setattr(f"qla_runtime.{module}.perf_counter", clock)
    return clock


def fitted(model: CostModel) -> Fit:
    """A fit of this moment that nothing speaks against."""
    return Fit(model, time.time())


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


def open_tiny(folder: Path, task: str = "span-qa", *, accuracies=None, **options) -> Engine:
    """A tiny package of a task, saved below ``folder`` and opened with made-up prices."""
    package = tiny_package(task, **options)
    if accuracies is not None:
        measured(package, **accuracies)
    engine = Engine(package.save(folder / f"package-{len(list(folder.iterdir()))}"))
    engine.timekeeper.use(fitted(milliseconds_per_row()))
    return engine


def refused(kind: type[Exception], call, *words: str) -> None:
    """Checks that the call raises exactly this error, with these words."""
    try:
        call()
    except Exception as error:
        assert type(error) is kind and all(word in str(error) for word in words), str(error)
    else:
        raise AssertionError(f"no {kind.__name__}")
