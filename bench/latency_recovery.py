"""Latency budgets after a crowded start: what processes that start together predict, and how soon `full` is back.

    python -m bench.latency_recovery [--processes 2 3 4 6]

So many processes open the packaged model and ask for its cost model at the same moment, then run calls under a
budget side by side. Once with one cache for all, as on one machine, and once with a cache each, as in containers.
Then all but one end. That one runs more calls on the quiet machine, under a budget of twice what `full` takes
there. The table says how many calls it was until `full` was chosen. A new process then does the same.

`prediction` is what the fits expect of `full`, as a multiple of what it takes on the quiet machine, lowest and
highest. The machine must have nothing else to do; what `full` takes is measured before and after, and the script
says when the two differ.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np

CALLS = 64
"""Calls within which `full` must be back. A check takes 20 calls, and a refit 27."""

TOKENS = 384
"""Of each call: the longest sequence of the packaged model."""

CROWDED_SECONDS = 2.0
"""How long the processes run side by side."""


class Worker:
    """A process with an engine, asked over pipes, one JSON line each way."""

    def __init__(self, cache: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--worker"],
            env={**os.environ, "XDG_CACHE_HOME": cache},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def send(self, task: str, **options: Any) -> None:
        self._process.stdin.write(json.dumps({"task": task, **options}) + "\n")
        self._process.stdin.flush()

    def answer(self) -> Any:
        return json.loads(self._process.stdout.readline())

    def ask(self, task: str, **options: Any) -> Any:
        self.send(task, **options)
        return self.answer()

    def end(self) -> None:
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


def serve() -> None:
    """What a worker does: one answer per line that it reads."""
    from qla_runtime import Engine, LengthConfig

    engine = Engine.from_pretrained()
    ids = [np.random.default_rng(0).integers(1000, 20_000, TOKENS).tolist()]
    full = LengthConfig.ratio([1.0] * engine.layers)

    def fit() -> dict[str, Any]:
        predicted = engine.cost_model.seconds([TOKENS], full)
        return {"predicted": predicted, "doubt": engine.explain().count("doubtful:") > 0}

    def crowded(seconds: float) -> int:
        until, calls = time.perf_counter() + seconds, 0
        while time.perf_counter() < until:
            engine.forward(ids, latency_ms=30)
            calls += 1
        return calls

    def until_full(ms: float, calls: int) -> dict[str, Any]:
        chosen, met = [], []
        for _ in range(calls):
            output = engine.forward(ids, latency_ms=ms)
            chosen.append(output.length[0])
            met.append(output.budget_met)
        first = chosen.index("full") + 1 if "full" in chosen else None
        return {"first": first, "last_ten": chosen[-10:], "met": sum(met), "explain": engine.explain()}

    def measure() -> float:
        times = []
        for _ in range(15):
            began = time.perf_counter()
            engine.forward(ids, length="full")
            times.append(time.perf_counter() - began)
        return statistics.median(times)

    tasks = {"fit": fit, "crowded": crowded, "until_full": until_full, "measure": measure, "ready": lambda: True}
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(tasks[request.pop("task")](**request)), flush=True)


def crowd(processes: int, shared: bool) -> dict[str, Any]:
    """One row of the table."""
    with tempfile.TemporaryDirectory() as folder:
        caches = [folder if shared else os.path.join(folder, str(i)) for i in range(processes)]
        workers = [Worker(cache) for cache in caches]
        try:
            for worker in workers:
                worker.ask("ready")
            fits = all_at_once(workers, "fit")
            all_at_once(workers, "crowded", seconds=CROWDED_SECONDS)
            for worker in workers[1:]:
                worker.end()
            took = workers[0].ask("measure")
            recovered = workers[0].ask("until_full", ms=2e3 * took, calls=CALLS)
            after = workers[0].ask("measure")
            late = Worker(caches[0])
            workers.append(late)
            late.ask("ready")
            late.ask("fit")
            new = late.ask("until_full", ms=2e3 * took, calls=CALLS)
        finally:
            for worker in workers:
                worker.end()
    predictions = [fit["predicted"] / took for fit in fits]
    return {
        "processes": processes,
        "shared": shared,
        "lowest": min(predictions),
        "highest": max(predictions),
        "doubtful": sum(fit["doubt"] for fit in fits),
        "full_after": recovered["first"],
        "full_at_the_end": recovered["last_ten"].count("full"),
        "within": recovered["met"] / CALLS,
        "new_process": new["first"],
        "steady": abs(after / took - 1) < 0.2,
    }


def all_at_once(workers: list[Worker], task: str, **options: Any) -> list[Any]:
    for worker in workers:
        worker.send(task, **options)
    return [worker.answer() for worker in workers]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, nargs="+", default=[2, 3, 4, 6])
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        serve()
        return
    print("| processes | cache | prediction | doubtful | `full` again after | within the budget | a new process |")
    print("|---|---|---|---|---|---|---|")
    for shared in (True, False):
        for processes in arguments.processes:
            row = crowd(processes, shared)
            full = "never" if row["full_after"] is None else f"{row['full_after']} calls"
            new = "no full" if row["new_process"] is None else f"{row['new_process']} calls"
            print(
                f"| {processes} | {'one' if shared else 'each its own'} | {row['lowest']:.2f} to "
                f"{row['highest']:.2f} | {row['doubtful']} of {processes} | {full} | {row['within']:.0%} | {new} |"
                f"{'' if row['steady'] else ' (the machine was not quiet)'}",
                flush=True,
            )


if __name__ == "__main__":
    main()
