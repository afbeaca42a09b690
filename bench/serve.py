"""`qla serve` under load, beside the same engine called directly, and beside a peer's server.

All servers are up at the same time and take turns. The client runs on the same machine and shares its cores with
them, as the report says: its CPU time is counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from tqdm import tqdm

from bench import machine, models
from bench.load import Load, Record, request
from bench.report import number, table
from qla_runtime import Engine, InputError, QlaError, pipeline
from qla_runtime.tasks.answer import AnswerTask
from qla_runtime.tasks.embed import EmbedTask
from qla_runtime.tasks.prepared import Call
from qla_runtime.texts.data_sets import read_scored_pairs
from qla_runtime.texts.squad import read_squad

REQUESTS = {"sentences": 1024, "questions": 512}
"""Different requests of a workload."""

DIRECT_BATCH = 64
"""Calls that the engine runs at once where it is called directly: as many as the clients of the load that it
is compared with."""

START_SECONDS = 120

OVERLOAD = 1.3
"""Requests per second of the overload, relative to what the server answers with every token kept."""

SOAK_SAMPLES = 20
"""How often memory is read in a soak."""


@dataclass(frozen=True)
class Workload:
    """One kind of request.

    Attributes:
        name: ``sentences`` or ``questions``.
        package: the model.
        path: the route.
        bodies: of the requests.
        calls: the same as calls of the engine, in that order.
        fits: whether a response's JSON is what the engine gives for the request of that number.
    """

    name: str
    package: str
    path: str
    bodies: list[dict[str, Any]]
    calls: list[Callable[[], Call[Any]]]
    fits: Callable[[int, Any], bool]

    @property
    def requests(self) -> list[bytes]:
        """As bytes."""
        return [request(self.path, json.dumps(body).encode()) for body in self.bodies]


def sentences(engine: Engine, file: str) -> Workload:
    """Single sentences of an STS benchmark file, to be embedded."""
    _, firsts, seconds = read_scored_pairs(file)
    texts = _spaced(list(chain.from_iterable(zip(firsts, seconds, strict=True))), REQUESTS["sentences"])
    task = engine.as_task(EmbedTask)
    vectors = engine.encode(texts, normalize_embeddings=True)
    return Workload(
        "sentences",
        "all-minilm-l6-v2",
        "/embed",
        [{"inputs": text} for text in texts],
        [partial(task.encode, text, normalize_embeddings=True) for text in texts],
        lambda i, found: np.array_equal(np.array(found[0], np.float32), vectors[i]),
    )


def questions(engine: Engine, file: str) -> Workload:
    """Questions of SQuAD with their paragraphs. POST / gives what the pipeline gives."""
    asked = _spaced(read_squad(file), REQUESTS["questions"])
    task = engine.as_task(AnswerTask)
    pipe = pipeline("question-answering", engine)
    answers = pipe(question=[each.question for each in asked], context=[each.context for each in asked])
    return Workload(
        "questions",
        "minilm-l6-squad",
        "/",
        [{"inputs": {"question": each.question, "context": each.context}} for each in asked],
        [partial(task.answer, each.question, each.context) for each in asked],
        lambda i, found: found == answers[i],
    )


def _spaced(items: Sequence[Any], count: int) -> list[Any]:
    return list(items[:: max(1, len(items) // count)][:count])


# -------------------------------------------------------------------------------------------- servers


@dataclass
class Running:
    """A server that is up."""

    name: str
    process: subprocess.Popen[str]
    address: tuple[str, int]

    def memory_mb(self) -> float:
        """Resident memory of the process and its children, what they share counted once each."""
        return sum(_proportional_mb(pid) for pid in _family(self.process.pid))


@contextlib.contextmanager
def started(name: str, command: Sequence[str], environment: Mapping[str, str] | None = None) -> Iterator[Running]:
    """A server process that prints ``serving http://HOST:PORT`` on standard error once it is up.

    Raises:
        QlaError: it ends before, or takes too long.
    """
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            text=True,
            env={**os.environ, **(environment or {})},
        )
        try:
            end = time.monotonic() + START_SECONDS
            while True:
                errors.seek(0)
                said = errors.read()
                if found := re.search(r"serving http://(.+):(\d+)", said):
                    break
                if process.poll() is not None or time.monotonic() > end:
                    raise QlaError(f"{name} does not start: {said.strip()[-500:]}")
                time.sleep(0.05)
            yield Running(name, process, (found[1], int(found[2])))
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()


def ours(package: str, threads: int, *more: str) -> list[str]:
    """The command line of our server. Its limit of concurrent requests is above the most clients."""
    command = [sys.executable, "-m", "qla_runtime.cli", "serve", package, "--port", "0", "--drain-s", "0"]
    return [*command, "--threads", str(threads), "--max-concurrent-requests", "4096", *more]


def _family(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *chain.from_iterable(_family(int(child)) for child in children)]


def _proportional_mb(pid: int) -> float:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("Pss:")).split()[1]) / 1024


# ------------------------------------------------------------------------------------------- measuring


def direct_per_second(engine: Engine, calls: Sequence[Callable[[], Call[Any]]], seconds: float) -> float:
    """Requests per second of the engine in this process: prepared one by one, and run in batches."""
    done, began = 0, time.perf_counter()
    while (now := time.perf_counter() - began) < seconds or not done:
        first = done % len(calls)
        batch = calls[first : first + DIRECT_BATCH]
        engine.run([engine.prepare(make()) for make in batch])
        done += len(batch)
    return done / now


def loaded(address: tuple[str, int], work: Workload, clients: int, seconds: float, **options: Any) -> Record:
    """What a closed or an open loop sees."""
    load = Load(address, work.requests, clients, **options)
    return asyncio.run(load.run(seconds, warm_up=min(1.0, seconds / 4)))


def wrong_answers(address: tuple[str, int], work: Workload, records: Sequence[Record]) -> int:
    """How many of the answers that a server gave under load are not those that the engine gives.

    Each request is sent once more, alone; that answer is compared with the engine's, and its checksum with those
    of all answers under load.
    """
    alone: dict[int, int] = {}
    wrong = 0
    connection = http.client.HTTPConnection(*address)
    for i, body in enumerate(work.bodies):
        connection.request("POST", work.path, json.dumps(body), {"content-type": "application/json"})
        found = connection.getresponse().read()
        wrong += not work.fits(i, json.loads(found))
        alone[i] = zlib.crc32(found)
    connection.close()
    return wrong + sum(sums != {alone[i]} for record in records for i, sums in record.sums.items())


def record(
    *,
    sts: str | None,
    squad: str | None,
    threads: int | None = None,
    clients: Sequence[int] = (1, 8, 64, 512),
    seconds: float = 5.0,
    rounds: int = 3,
    serve: Sequence[str] = (),
    peer_python: str | None = None,
    overload_ms: float | None = None,
    soak_s: float | None = None,
) -> dict[str, Any]:
    """Measures; what :func:`text` reads.

    Args:
        sts: an STS benchmark file, for the sentences.
        squad: SQuAD dev, for the questions.
        threads: of the engine, of all workers of a server together, and of the peer.
        clients: how many at once, in turn.
        seconds: of each load.
        rounds: of all loads.
        serve: ways to run our server, as more options in one text each; the first is the plain one.
        peer_python: interpreter of the peer; None: no peer.
        overload_ms: also measures an overload, with ``--keep-latency`` of so many milliseconds and without it.
        soak_s: also reads memory for so many seconds under the load of the most clients.

    Raises:
        InputError: no file is given.
        QlaError: a server does not start.
    """
    facts = machine.facts()
    found: dict[str, Any] = {"machine": facts, "machine_in_words": machine.in_words(facts), "seconds": seconds}
    found |= {"workloads": [], "clients": list(clients), "rounds": rounds}
    for file, package, make in ((sts, "all-minilm-l6-v2", sentences), (squad, "minilm-l6-squad", questions)):
        if file is not None:
            engine = Engine.from_pretrained(package, num_threads=threads)
            work = make(engine, file)
            found["threads"] = engine.num_threads
            peer = peer_python if work.name == "sentences" else None
            found["workloads"].append(
                _workload(engine, work, clients, seconds, rounds, serve or ("",), peer, overload_ms, soak_s)
            )
    if not found["workloads"]:
        raise InputError("there is nothing to send; give --sts FILE, --squad FILE, or both")
    return found


def _workload(
    engine: Engine,
    work: Workload,
    clients: Sequence[int],
    seconds: float,
    rounds: int,
    serve: Sequence[str],
    peer_python: str | None,
    overload_ms: float | None,
    soak_s: float | None,
) -> dict[str, Any]:
    with ExitStack() as stack:
        up = [
            stack.enter_context(
                started(f"qla serve {more}".strip(), ours(work.package, engine.num_threads, *more.split()))
            )
            for more in serve
        ]
        if peer_python is not None:
            up.append(stack.enter_context(_peer(peer_python, engine.num_threads, stack)))
        direct: list[float] = []
        seen: dict[tuple[str, int], list[Record]] = {(each.name, n): [] for each in up for n in clients}
        for _ in tqdm(range(rounds), desc=work.name, unit="round"):
            direct.append(direct_per_second(engine, work.calls, seconds))
            for n in clients:
                for each in up:
                    seen[each.name, n].append(loaded(each.address, work, n, seconds))
        result: dict[str, Any] = {"name": work.name, "direct": direct, "loads": []}
        for (name, n), records in seen.items():
            result["loads"].append({"server": name, "clients": n, **_summary(records)})
        result["wrong"] = {
            each.name: wrong_answers(each.address, work, [r for n in clients for r in seen[each.name, n]])
            for each in up
            if each.name.startswith("qla")
        }
        if soak_s is not None:
            result["soak"] = _soak(up[0], work, max(clients), soak_s)
    if overload_ms is not None:
        capacity = median(r.per_second for r in seen[up[0].name, max(n for n in clients if n <= 64)])
        result["overload"] = _overload(engine, work, OVERLOAD * capacity, overload_ms, seconds, rounds)
    return result


def _summary(records: Sequence[Record]) -> dict[str, Any]:
    return {
        "per_second": [each.per_second for each in records],
        "p50_ms": [1e3 * each.quantile(0.5) for each in records],
        "p99_ms": [1e3 * each.quantile(0.99) for each in records],
        "failed": sum(count for each in records for status, count in each.statuses.items() if status != 200),
        "answered": sum(each.statuses[200] for each in records),
    }


@contextlib.contextmanager
def _peer(python: str, threads: int, stack: ExitStack) -> Iterator[Running]:
    """sentence-transformers with OpenVINO behind uvicorn, on random weights of the same shape."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="qla-bench-")))
    checkpoint = models.write_checkpoint("minilm-l6", folder / "checkpoint")
    worker = Path(__file__).with_name("worker") / "sentence_server.py"
    environment = {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    command = [python, str(worker), str(checkpoint), "--threads", str(threads)]
    with started("sentence-transformers, OpenVINO", command, environment) as running:
        yield running


def _overload(
    engine: Engine, work: Workload, per_second: float, keep_ms: float, seconds: float, rounds: int
) -> dict[str, Any]:
    """More requests than the server can answer with every token kept: it lowers the config, or it refuses."""
    ways = {
        "refusing": ("--max-queue-ms", f"{keep_ms:g}"),
        "--keep-latency": ("--keep-latency", f"{keep_ms:g}", "--max-queue-ms", f"{keep_ms:g}"),
    }
    result: dict[str, Any] = {"per_second": per_second, "keep_ms": keep_ms, "ways": {}}
    for name, more in ways.items():
        with started(name, ours(work.package, engine.num_threads, *more)) as running:
            records = [loaded(running.address, work, 512, seconds, per_second=per_second) for _ in range(rounds)]
            result["ways"][name] = _summary(records)
    return result


def _soak(running: Running, work: Workload, clients: int, seconds: float) -> dict[str, Any]:
    """Memory over time, under load."""
    memory: list[float] = []

    async def watched() -> Record:
        load = Load(running.address, work.requests, clients)
        task = asyncio.create_task(load.run(seconds))
        for _ in range(SOAK_SAMPLES):
            await asyncio.sleep(seconds / SOAK_SAMPLES)
            memory.append(running.memory_mb())
        return await task

    seen = asyncio.run(watched())
    wrong = wrong_answers(running.address, work, [seen])
    return {"clients": clients, "seconds": seconds, "memory_mb": memory, "wrong": wrong, **_summary([seen])}


# --------------------------------------------------------------------------------------------- in words


def text(found: Mapping[str, Any], markdown: bool) -> str:
    """The whole report of ``qla bench serve``."""
    title = "### " if markdown else ""
    parts = [found["machine_in_words"]]
    for work in found["workloads"]:
        direct = median(work["direct"])
        rows = [["engine called directly", "", number(direct), "", "", "1", "", ""]]
        for load in work["loads"]:
            rate = median(load["per_second"])
            rows.append(
                [
                    load["server"],
                    str(load["clients"]),
                    number(rate),
                    number(median(load["p50_ms"])),
                    number(median(load["p99_ms"])),
                    f"{rate / direct:.2f}",
                    str(load["answered"]),
                    str(load["failed"]),
                ]
            )
        heads = ["", "clients", "requests/s", "p50 ms", "p99 ms", "of direct", "answered", "failed"]
        said = f"{title}{work['name'].capitalize()}, {found['threads']} threads, the client on the same cores"
        parts.append(f"{said}\n\n{table(heads, rows, markdown)}")
        parts += [f"{name}: {wrong} wrong answers" for name, wrong in work["wrong"].items()]
        if "overload" in work:
            parts.append(_overload_text(work["overload"], markdown))
        if "soak" in work:
            soak = work["soak"]
            memory = ", ".join(number(mb) for mb in soak["memory_mb"])
            parts.append(
                f"{soak['clients']} clients for {soak['seconds']:g} s: {soak['answered']} answered, "
                f"{soak['failed']} failed, {soak['wrong']} wrong; memory in MB: {memory}"
            )
    return "\n\n".join(parts)


def _overload_text(found: Mapping[str, Any], markdown: bool) -> str:
    rows = [
        [
            name,
            str(way["answered"]),
            str(way["failed"]),
            number(median(way["p50_ms"])),
            number(median(way["p99_ms"])),
        ]
        for name, way in found["ways"].items()
    ]
    said = f"Overload: {number(found['per_second'])} requests/s begin, {found['keep_ms']:g} ms are to be kept"
    return f"{said}\n\n{table(['', 'answered', 'refused', 'p50 ms', 'p99 ms'], rows, markdown)}"
