"""The whole encoder alone: every case of shapes.txt, length configs, threads and streams."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from tqdm import tqdm

from bench import kernels, machine, models, workloads
from bench.worker.runtimes import named_accuracy, parse_length
from qla_runtime import Engine, InputError, _core

TURN_SECONDS = 0.1
"""A turn makes as many passes as fit, and at least one."""


@dataclass
class Run:
    """One case with one length config, and what its rounds took."""

    case: str
    length: str
    one_pass: Callable[[], int]
    """Runs the case's batches once; returns the multiply-accumulates they took."""
    sequences: int
    tokens: int
    weight_bytes: int
    macs: int = 0
    ms: list[float] = field(default_factory=list)
    """A median per turn."""
    passes: list[float] = field(default_factory=list)
    """Every pass but each turn's first, which wakes threads and finds the caches full of another case."""

    def turn(self) -> None:
        times = []
        began = time.perf_counter()
        while not times or time.perf_counter() - began < TURN_SECONDS:
            start = time.perf_counter()
            self.macs = self.one_pass()
            times.append(1e3 * (time.perf_counter() - start))
        self.passes += times[1:] or times
        self.ms.append(median(times[1:] or times))

    def record(self) -> dict[str, Any]:
        names = ("case", "length", "sequences", "tokens", "macs", "weight_bytes", "ms", "passes")
        return {name: getattr(self, name) for name in names}


def record(
    *,
    model: str | None = None,
    random: str | None = None,
    threads: int | None = None,
    isa: str | None = None,
    cases: Sequence[str] | None = None,
    rounds: int = 15,
    squad: str | None = None,
    sts: str | None = None,
) -> dict[str, Any]:
    """Measures; what ``bench.report.encoder_text`` reads. Cases that cannot be made are in ``refused``.

    Raises:
        InputError: an unknown case or random model, or no case that can be made.
        QlaError: machine_bench could not be built.
    """
    facts = machine.facts()
    chosen = workloads.read(list(cases or ()), random)
    with ExitStack() as stack:
        if random:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="qla-bench-"))
            model = str(models.write_package(random, Path(folder)))
        return _record(facts, chosen, model, threads, isa, rounds, squad, sts)


def _record(
    facts: dict[str, Any],
    cases: Sequence[workloads.Case],
    model: str | None,
    threads: int | None,
    isa: str | None,
    rounds: int,
    squad: str | None,
    sts: str | None,
) -> dict[str, Any]:
    engine = Engine.from_pretrained(model, num_threads=threads, isa=isa)
    runs, refused = plan(engine, cases, squad, sts)
    if not runs:
        raise InputError("; ".join(refused.values()))
    limits = kernels.limits(engine.num_threads, isa)
    for run in tqdm(runs, desc="warm up", unit="run"):
        run.turn()
        run.ms.clear()
        run.passes.clear()
    for _ in tqdm(range(rounds), desc="encoder", unit="round"):
        for run in runs:
            run.turn()
    return {
        "machine": facts,
        "machine_in_words": machine.in_words(facts),
        "model": engine.name,
        "threads": engine.num_threads,
        "isa": isa or _core.available_isas()[-1],
        "accuracy": named_accuracy(engine),
        "limits": limits,
        "cases": [run.record() for run in runs],
        "throughput": throughput(engine, model, isa, rounds),
        "refused": refused,
    }


def plan(
    engine: Engine, cases: Sequence[workloads.Case], squad: str | None, sts: str | None
) -> tuple[list[Run], dict[str, str]]:
    """All runs, and the cases that cannot be made with the reason."""
    runs: list[Run] = []
    refused: dict[str, str] = {}
    for case in cases:
        try:
            made = workloads.batches(case, engine, squad, sts)
        except InputError as error:
            refused[case.name] = str(error)
            continue
        for length in ("full", *case.lengths):
            try:
                parsed = parse_length(length)
                engine.forward(made[0][:1], length=parsed)
            except InputError as error:  # a config that this package does not have, or of another depth
                refused[f"{case.name} {length}"] = str(error)
                continue

            def one_pass(made=made, length=parsed) -> int:
                return sum(int(engine.forward(rows, length=length).macs.sum()) for rows in made)

            rows = [row for batch in made for row in batch]
            read = len(made) * machine.weight_bytes(engine)
            runs.append(Run(case.name, length, one_pass, len(rows), sum(map(len, rows)), read))
    return runs, refused


def throughput(engine: Engine, model: str | None, isa: str | None, rounds: int) -> list[dict[str, Any]]:
    """Sequences per second: one thread and all of them at 8x384, one stream and as many as threads at 1x128."""
    most = engine.num_threads
    settings = {"8x384": [(1, 1), (most, 1)], "1x128": [(1, 1), (most, 1), (1, most)]}
    found, turns = [], []
    for name, choices in settings.items():
        rows = workloads.batches(workloads.Case(name), engine, None, None)[0]
        for threads, streams in dict.fromkeys(choices):
            opened = Engine.from_pretrained(model, num_threads=threads, streams=streams, isa=isa)
            rates: list[float] = []
            found.append({"case": name, "threads": threads, "streams": streams, "sequences_per_second": rates})
            turns.append((opened, rows, streams, rates))
    for _ in tqdm(range(rounds), desc="throughput", unit="round"):
        for opened, rows, streams, rates in turns:
            rates.append(sequences_per_second(opened, rows, streams))
    return found


def sequences_per_second(engine: Engine, rows: Sequence[Any], callers: int) -> float:
    """With so many Python threads calling at once."""
    began = time.perf_counter()
    engine.forward(rows)
    calls = 1 + int(2 * TURN_SECONDS / (time.perf_counter() - began))

    def caller(_: int) -> None:
        for _ in range(calls):
            engine.forward(rows)

    with ThreadPoolExecutor(callers) as pool:
        began = time.perf_counter()
        list(pool.map(caller, range(callers)))
        return callers * calls * len(rows) / (time.perf_counter() - began)
