"""Ours against the peers: same weights, same token ids, same thread count, asked in turn.

A peer that cannot be prepared, started or capped is reported as absent with the reason, never silently dropped.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from statistics import median
from typing import IO, Any

from tqdm import tqdm

import qla_runtime
from bench import kernels, machine, models, workloads
from bench.report import OURS, percentile_99
from qla_runtime import Engine, InputError, QlaError, _core

WORKER = Path(__file__).with_name("worker")
"""A folder of its own: Python puts it on the path, and libraries look for a package called `kernels`."""

PEERS = (
    "openvino-int8",
    "openvino-bf16",
    "onnxruntime-int8",
    "ctranslate2-int8",
    "ipex-int8",
    "inductor-int8",
    "torch-bf16",
    "torch-fp32",
    "bert-base-fp32",
)

FIRST_CALL = "1x128"
"""The case of a fresh process's first call."""

PAUSE = 0.25
"""Seconds between two turns: OpenMP's idle threads spin for up to 0.2, and would take the next runtime's cores."""

WARM_UPS = 2
"""Passes before the first round: TorchScript watches a new shape once, and optimizes for it in the second."""

LEAST_ROUNDS = 3
"""Even of a case that takes longer than its time."""

CAPS = {
    "QLA_MAX_ISA": ("avx2", "avxvnni", "avx512vnni"),
    # oneDNN: OpenVINO, torch, CTranslate2
    "ONEDNN_MAX_CPU_ISA": ("AVX2", "AVX2_VNNI", "AVX512_CORE_VNNI"),
    "MKL_ENABLE_INSTRUCTIONS": ("AVX2", "AVX2", "AVX512_E1"),
    "ATEN_CPU_CAPABILITY": ("avx2", "avx2", "avx512"),
    # By default CTranslate2's own kernels go no higher than AVX2.
    "CT2_FORCE_CPU_ISA": ("AVX2", "AVX2", "AVX2"),
}
"""What holds runtimes to avx2, avxvnni and avx512vnni; amx is the highest, and needs no cap."""

IPEX_CAPS = {"ATEN_CPU_CAPABILITY": ("avx2", "avx2_vnni", "avx512_vnni")}
"""The extension reads torch's variable with names of its own, and sets oneDNN's limit by it."""

ISAS = ("avx2", "avxvnni", "avx512vnni", "amx")

NO_CAP = {"onnxruntime-int8": "its kernels (MLAS) take the best instructions there are and have no cap"}


class Absent(Exception):
    """A runtime is not there; the message says why."""


@dataclass(frozen=True)
class Options:
    """What one run of the comparison is to do."""

    checkpoint: str | None = None
    random: str | None = None
    package: str | None = None
    peers: Sequence[str] = PEERS
    pythons: Sequence[str] = ()
    cases: Sequence[str] | None = None
    threads: int | None = None
    isa: str | None = None
    rounds: int = 15
    openings: int = 3
    turn_seconds: float = 0.1
    case_seconds: float = 180.0
    squad: str | None = None
    sts: str | None = None
    artifacts: str | None = None


def interpreter(name: str, pythons: Sequence[str]) -> str:
    """The Python that serves a peer: the last ``NAME=PATH`` that fits its name or the part before the dash, else
    the last plain ``PATH``, else this one."""
    chosen = sys.executable
    fits = (name, name.partition("-")[0])
    for spec in sorted(pythons, key=lambda spec: "=" in spec):
        peer, equals, path = spec.rpartition("=")
        if not equals or peer in fits:
            chosen = path
    return chosen


def environment(name: str, threads: int, isa: str | None) -> dict[str, str]:
    """What a worker starts with.

    Raises:
        Absent: ``isa`` is given, and this runtime cannot be held to it.
    """
    found = os.environ | {"OMP_NUM_THREADS": str(threads)}
    if isa and name in NO_CAP:
        raise Absent(f"cannot be capped to {isa}: {NO_CAP[name]}")
    if isa and isa != ISAS[-1]:
        caps = CAPS | (IPEX_CAPS if name.startswith("ipex") else {})
        found |= {variable: values[ISAS.index(isa)] for variable, values in caps.items()}
    if name == OURS:  # installed or not, it is the one that this process has imported
        root = str(Path(qla_runtime.__file__).parents[1])
        found["PYTHONPATH"] = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    return found


class Worker:
    """A runtime in a process of its own, which bench/worker describes.

    Raises:
        Absent: it did not start; later, from ``ask``, that it ended.
    """

    def __init__(self, command: Sequence[str], environ: Mapping[str, str]) -> None:
        self._log: IO[str] = tempfile.TemporaryFile("w+", errors="replace")
        try:
            self._process = subprocess.Popen(
                command, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True
            )
        except OSError as error:
            raise Absent(f"{command[0]} cannot be started: {error.strerror}") from None
        self.hello: dict[str, Any] = self._read()

    def ask(self, case: str, length: str = "full", seconds: float = 0.0) -> dict[str, Any]:
        """Passes over a case's batches for so many seconds, and at least one."""
        assert self._process.stdin
        try:
            print(
                json.dumps({"case": case, "length": length, "seconds": seconds}),
                file=self._process.stdin,
                flush=True,
            )
        except BrokenPipeError:
            pass  # then there is no answer to read either
        return self._read()

    def close(self) -> None:
        self._process.kill()  # a server has nothing to finish
        self._process.communicate()
        self._log.close()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        self._process.wait()
        raise Absent(last_words(self._log, self._process.returncode))


def last_words(log: IO[str], status: int) -> str:
    """The last line that a process wrote, which in Python names the exception."""
    log.seek(0)
    lines = [line for line in log.read().splitlines() if line.strip()]
    return lines[-1].strip() if lines else f"ended with status {status} and no word"


@dataclass
class Fleet:
    """The workers that are there, and why others are not."""

    options: Options
    threads: int
    folder: Path
    workers: dict[str, Worker] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)

    def command(self, name: str, *more: str) -> list[str]:
        python = sys.executable if name == OURS else interpreter(name, self.options.pythons)
        model = self.options.package if name == OURS else self.options.checkpoint
        artifacts = self.folder / name
        fixed = [python, str(WORKER), name, "--threads", str(self.threads), "--artifacts", str(artifacts)]
        return [*fixed, *(["--model", model] if model else []), *more]

    def prepare(self, name: str) -> None:
        """Converts the checkpoint for a runtime, unless its folder says that this was done."""
        done = self.folder / name / "done"
        if done.exists():
            return
        done.parent.mkdir(parents=True, exist_ok=True)
        environ = environment(name, self.threads, self.options.isa)
        with tempfile.TemporaryFile("w+", errors="replace") as log:
            try:
                status = subprocess.run(
                    self.command(name, "--prepare"), env=environ, stdout=log, stderr=log
                ).returncode
            except OSError as error:
                raise Absent(f"{error.filename} cannot be started: {error.strerror}") from None
            if status:
                raise Absent(last_words(log, status))
        done.touch()

    def open(self, name: str, cases: Path) -> dict[str, float]:
        """Starts a worker in the place of an older one; what opening took."""
        if name in self.workers:
            self.workers.pop(name).close()
        worker = Worker(
            self.command(name, "--cases", str(cases)), environment(name, self.threads, self.options.isa)
        )
        self.workers[name] = worker
        first = worker.ask(FIRST_CALL)
        if "refused" in first:
            raise Absent(first["refused"])
        return {
            "import_load_ms": worker.hello["import_load_ms"],
            "first_call_ms": first["prepare_ms"] + first["ms"][0],
            "peak_rss_mb": first["peak_rss_mb"],
        }

    def lose(self, name: str, reason: str) -> None:
        self.absent[name] = reason
        if name in self.workers:
            self.workers.pop(name).close()

    def close(self) -> None:
        for worker in self.workers.values():
            worker.close()


def compare(options: Options) -> dict[str, Any]:
    """Measures everything that ``options`` name.

    Returns:
        The record that ``bench.report`` turns into tables and plots: plain values, ready for JSON.

    Raises:
        InputError: an unknown case or peer, an ISA that is not here.
        QlaError: qla itself did not start.
    """
    unknown = set(options.peers) - set(PEERS)
    if unknown:
        raise InputError(f"no peer {', '.join(sorted(unknown))}; use {', '.join(PEERS)}")
    if options.isa and options.isa not in set(_core.available_isas()).intersection(ISAS):
        raise InputError(f"--isa is {options.isa!r}; use one of {', '.join(ISAS)} that this CPU has")
    cases = workloads.read(list(options.cases or ()), options.random)
    facts = machine.facts()
    with ExitStack() as stack:
        folder = Path(options.artifacts or stack.enter_context(tempfile.TemporaryDirectory(prefix="qla-bench-")))
        if options.random:
            folder /= options.random
            package = models.write_package(options.random, folder)
            options = replace(options, checkpoint=str(folder / "checkpoint"), package=str(package))
        engine = Engine.from_pretrained(options.package, num_threads=options.threads)
        fleet = Fleet(options, engine.num_threads, folder)
        stack.callback(fleet.close)
        refused: dict[str, dict[str, str]] = {}
        saved = folder / "cases.npz"
        cases = save_cases(cases, engine, options, saved, refused)
        opening = open_all(fleet, saved)
        if OURS not in fleet.workers:
            raise QlaError(f"qla itself did not start: {fleet.absent[OURS]}")
        hellos = {name: worker.hello for name, worker in fleet.workers.items()}
        limits = kernels.limits(fleet.threads, options.isa)
        passes = {case.name: measure(fleet, case, refused) for case in cases}
        if OURS in fleet.absent:
            raise QlaError(f"qla itself {fleet.absent[OURS]}")
        ours = hellos[OURS]["facts"]
        return {
            "machine": facts,
            "machine_in_words": machine.in_words(facts),
            "model": engine.name,
            "threads": fleet.threads,
            "isa": options.isa,
            "explain": without_path(ours["explain"], engine.path),
            "kernels": kernels_of(ours["explain"]),
            "accuracy": ours["accuracy"],
            "peers": [name for name in options.peers if name in hellos],
            "versions": {name: hello["versions"] for name, hello in hellos.items()},
            "opening": opening,
            "limits": limits,
            "work": {case.name: work(engine, case, options) for case in cases},
            "times": {
                case: {name: [median(turn) for turn in turns] for name, turns in runners.items()}
                for case, runners in passes.items()
            },
            "p99": {
                case: {name: percentile_99(chain.from_iterable(turns)) for name, turns in runners.items()}
                for case, runners in passes.items()
            },
            "absent": fleet.absent,
            "refused": refused,
        }


def save_cases(
    cases: list[workloads.Case], engine: Engine, options: Options, path: Path, refused: dict[str, dict[str, str]]
) -> list[workloads.Case]:
    """Writes the batches of all cases that can be made; returns these."""
    made = {FIRST_CALL: workloads.batches(workloads.Case(FIRST_CALL), engine, None, None)}
    for case in cases:
        try:
            made[case.name] = workloads.batches(case, engine, options.squad, options.sts)
        except InputError as error:
            refused.setdefault("everybody", {})[case.name] = str(error)
    path.parent.mkdir(parents=True, exist_ok=True)
    workloads.save(path, made)
    return [case for case in cases if case.name in made]


def open_all(fleet: Fleet, cases: Path) -> dict[str, dict[str, list[float]]]:
    """Prepares every runtime, opens each several times over in turn, and leaves the last ones running."""
    names = [OURS, *fleet.options.peers]
    found: dict[str, dict[str, list[float]]] = {}
    with tqdm(total=len(names) * (1 + fleet.options.openings), unit="step") as bar:
        for name in names:
            bar.set_description(f"prepare {name}")
            with absent_if_raised(fleet, name):
                fleet.prepare(name)
            bar.update()
        for _ in range(fleet.options.openings):
            for name in names:
                bar.set_description(f"open {name}")
                if name not in fleet.absent:
                    with absent_if_raised(fleet, name):
                        for key, value in fleet.open(name, cases).items():
                            found.setdefault(name, {}).setdefault(key, []).append(value)
                bar.update()
    return {name: values for name, values in found.items() if name not in fleet.absent}


@contextmanager
def absent_if_raised(fleet: Fleet, name: str):
    try:
        yield
    except Absent as error:
        fleet.lose(name, str(error))


def work(engine: Engine, case: workloads.Case, options: Options) -> dict[str, int]:
    """Multiply-accumulates of one pass over a case at full length, and bytes of weights that its calls read."""
    made = workloads.batches(case, engine, options.squad, options.sts)
    macs = sum(int(engine.forward(rows).macs.sum()) for rows in made)
    return {"macs": macs, "weight_bytes": len(made) * machine.weight_bytes(engine)}


def measure(
    fleet: Fleet, case: workloads.Case, refused: dict[str, dict[str, str]]
) -> dict[str, list[list[float]]]:
    """Rounds over everybody: runner -> per round, the milliseconds of its passes.

    A runner is a runtime, or qla and a config.
    """
    options = fleet.options
    turns = [(OURS, OURS, "full")] + [(f"{OURS} {length}", OURS, length) for length in case.lengths]
    turns += [(name, name, "full") for name in fleet.workers if name != OURS]
    times: dict[str, list[list[float]]] = {}

    def turn(runner: str, name: str, length: str, seconds: float) -> list[float]:
        """One worker's turn; empty where it refused or ended."""
        if name in fleet.absent or case.name in refused.get(runner, {}):
            return []
        try:
            answer = fleet.workers[name].ask(case.name, length, seconds)
        except Absent as error:
            fleet.lose(name, f"ended at {case.name}: {error}")
            return []
        if "refused" in answer:
            refused.setdefault(runner, {})[case.name] = answer["refused"]
        return answer.get("ms", [])

    with tqdm(total=options.rounds + 1, desc=case.name, unit="round") as bar:
        for runner in turns * WARM_UPS:
            turn(*runner, 0.0)
        bar.update()
        began = time.perf_counter()
        for done in range(options.rounds):
            if done >= LEAST_ROUNDS and time.perf_counter() - began > options.case_seconds:
                break
            for runner in turns:
                passes = turn(*runner, options.turn_seconds)
                if passes:
                    # The first pass of a turn wakes threads and finds caches full of another runtime.
                    times.setdefault(runner[0], []).append(passes[1:] or passes)
                    time.sleep(PAUSE)
            bar.update()
    return times


def kernels_of(explained: str) -> dict[str, str]:
    """Operation -> kernel, out of ``Engine.explain()``."""
    lines = explained.partition("\nkernels\n")[2].splitlines()
    found = {}
    for line in lines:
        if not line.startswith("  "):
            break
        operation, kernel = line.split()[:2]
        found[operation] = kernel
    return found


def without_path(explained: str, path: Path) -> str:
    """A report is passed on; where the package lies here is nobody's business."""
    return explained.replace(str(path), path.name)
