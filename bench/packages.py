"""Packages beside each other: INT8 and ternary weights of a model, or a model and a smaller one.

Every package is opened in a process of its own. All of them run the same token ids and take turns.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

from tqdm import tqdm

from bench import machine, models, workloads
from bench.peers import PAUSE, WORKER, Absent, Worker, environment
from bench.report import OURS, number, table
from qla_runtime import Engine, InputError, QlaError

CASES = ("1x8", "1x32", "1x128", "1x384", "8x128")

TURN_SECONDS = 0.2


def record(
    packages: Sequence[str] = (),
    *,
    random: str | None = None,
    cases: Sequence[str] = CASES,
    threads: int | None = None,
    isa: str | None = None,
    rounds: int = 9,
) -> dict[str, Any]:
    """Measures; what :func:`text` reads.

    Args:
        packages: folders or names of packages, at least two.
        random: instead, a size of :mod:`bench.models`: INT8 and ternary weights, both random.
        cases: shapes BxN: a batch of B sequences of N tokens.
        threads: of each; None: as many as there are cores.
        isa: the highest instruction set.
        rounds: of turns; figures are medians.

    Raises:
        InputError: fewer than two packages, or a case that is no shape.
        QlaError: a package cannot be opened.
    """
    shapes = workloads.parse("\n".join(cases), source="cases")
    for case in shapes:
        if not case.shape:
            raise InputError(f"the case {case.name} is real texts; use shapes such as 8x128")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="qla-bench-")))
        if random:
            both = {name: models.write_package(random, folder / name, name) for name in ("w8a8", "w2a8")}
            paths = {f"{random} {name}": str(path) for name, path in both.items()}
        else:
            paths = {package: package for package in packages}
        if len(paths) < 2:
            raise InputError(f"{len(paths)} package to compare; name at least two different ones")
        engines = [Engine.from_pretrained(path, num_threads=threads, isa=isa) for path in paths.values()]
        # The smallest vocabulary has only ids that all have.
        smallest = min(engines, key=lambda engine: engine.info["vocab_size"])
        made = {case.name: workloads.batches(case, smallest, None, None) for case in shapes}
        workloads.save(folder / "cases.npz", made)
        found: dict[str, Any] = {
            "machine_in_words": machine.in_words(machine.facts()),
            "threads": engines[0].num_threads,
            "packages": {
                name: {"disk_bytes": sum(file.stat().st_size for file in Path(engine.path).iterdir())}
                for name, engine in zip(paths, engines, strict=True)
            },
        }
        for engine in engines:
            engine.close()
        workers = {
            name: stack.enter_context(_opened(path, folder, found["threads"], isa)) for name, path in paths.items()
        }
        found["times"] = {case.name: _turns(workers, case.name, rounds) for case in shapes}
        for name, worker in workers.items():
            found["packages"][name] |= {
                "open_ms": worker.hello["import_load_ms"],
                "peak_rss_mb": worker.ask(shapes[-1].name)["peak_rss_mb"],
            }
    return found


class _opened:
    """A worker that ends with the block.

    Raises:
        QlaError: its package cannot be opened.
    """

    def __init__(self, path: str, folder: Path, threads: int, isa: str | None) -> None:
        command = [sys.executable, str(WORKER), OURS, "--threads", str(threads), "--artifacts", str(folder)]
        command += ["--model", path, "--cases", str(folder / "cases.npz")]
        try:
            self._worker = Worker(command, environment(OURS, threads, isa))
        except Absent as error:
            raise QlaError(f"{path}: {error}") from None

    def __enter__(self) -> Worker:
        return self._worker

    def __exit__(self, *_: object) -> None:
        self._worker.close()


def _turns(workers: dict[str, Worker], case: str, rounds: int) -> dict[str, list[float]]:
    """By package, the milliseconds of each round."""
    times: dict[str, list[float]] = {name: [] for name in workers}
    for worker in workers.values():
        worker.ask(case)
    for _ in tqdm(range(rounds), desc=case, unit="round"):
        for name, worker in workers.items():
            answer = worker.ask(case, seconds=TURN_SECONDS)
            if "refused" in answer:
                raise QlaError(f"{name} at {case}: {answer['refused']}")
            # The first pass of a turn finds the caches full of another package.
            times[name].append(median(answer["ms"][1:] or answer["ms"]))
            time.sleep(PAUSE)
    return times


def text(found: dict[str, Any], markdown: bool) -> str:
    """The whole report of ``qla bench packages``: milliseconds, and times of the first package in brackets."""
    names = list(found["packages"])
    rows = []
    for case, times in found["times"].items():
        first, *others = (median(times[name]) for name in names)
        rows.append([case, number(first), *(f"{number(ms)} ({ms / first:.2f})" for ms in others)])
    sizes = [
        [name, number(of["disk_bytes"] / 1e6), number(of["open_ms"]), number(of["peak_rss_mb"])]
        for name, of in found["packages"].items()
    ]
    title = "### " if markdown else ""
    return "\n\n".join(
        [
            found["machine_in_words"],
            f"{title}Milliseconds per call, {found['threads']} threads; in brackets, times the first",
            table(["", *names], rows, markdown),
            f"{title}Sizes",
            table(["", "disk, MB", "import and open, ms", "peak memory, MB"], sizes, markdown),
        ]
    )
