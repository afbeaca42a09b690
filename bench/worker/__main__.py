"""One runtime in one process: prepares or serves a model on command.

    python bench/worker RUNTIME --prepare ...     converts the checkpoint, and ends
    python bench/worker RUNTIME --cases FILE ...  opens it, then answers requests

The driver (`peers.py`) starts one of these per runtime, each in an interpreter of its own, and asks them in turn,
so that a noisy moment of the machine hits all of them. Needs numpy and the runtime, nothing else of this project.

Protocol: one JSON object a line. First the worker says {"versions", "facts", "import_load_ms"}; then it answers

    {"case": "8x384", "length": "full", "seconds": 0.1}  with  {"ms": [...], "peak_rss_mb": ...}

where every entry of ms is one pass over the case's batches, as many as fit in the seconds and at least one; or
with {"refused": why}.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from runtimes import RUNTIMES, Batch, Runtime


def peak_rss_mb() -> float:
    """Peak resident memory of this process in MB, as the kernel counts it."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return int(status["VmHWM"].split()[0]) / 1024


def read_cases(path: Path) -> dict[str, list[Batch]]:
    """What `workloads.save` wrote."""
    with np.load(path) as file:
        names = {key.rsplit(".", 1)[0] for key in file}
        return {
            name: read_batches(*(file[f"{name}.{part}"] for part in ("ids", "lengths", "batch"))) for name in names
        }


def read_batches(ids: np.ndarray, lengths: np.ndarray, batch: np.ndarray) -> list[Batch]:
    rows = np.split(ids, np.cumsum(lengths)[:-1])
    return [Batch.of(rows[i : i + int(batch)]) for i in range(0, len(rows), int(batch))]


class Server:
    """Answers requests, one after the other."""

    def __init__(self, runtime: Runtime, cases: dict[str, list[Batch]]) -> None:
        self.runtime = runtime
        self.cases = cases
        self.inputs: dict[tuple[str, str], list[Any]] = {}

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        case, length = request["case"], request["length"]
        began = time.perf_counter()
        try:
            inputs = self.prepared(case, length)
            ready = time.perf_counter()
            times = []
            while not times or time.perf_counter() - ready < request["seconds"]:
                times.append(self.one_pass(inputs))
        except Exception as error:  # whatever a runtime raises is its answer
            return {"refused": f"{type(error).__name__}: {error}".splitlines()[0]}
        return {"ms": times, "prepare_ms": 1e3 * (ready - began), "peak_rss_mb": peak_rss_mb()}

    def prepared(self, case: str, length: str) -> list[Any]:
        if (case, length) not in self.inputs:
            batches = self.cases[case]
            if self.runtime.no_ragged and len({batch.ids.shape for batch in batches}) > 1:
                raise ValueError(self.runtime.no_ragged)
            self.inputs[case, length] = [self.runtime.inputs(batch, length) for batch in batches]
        return self.inputs[case, length]

    def one_pass(self, inputs: list[Any]) -> float:
        began = time.perf_counter()
        for one in inputs:
            self.runtime.run(one)
        return 1e3 * (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runtime", choices=RUNTIMES)
    parser.add_argument(
        "--model", help="Hugging Face folder; for qla a package folder (default: the packaged one)"
    )
    parser.add_argument("--artifacts", type=Path, required=True, help="folder of what --prepare leaves")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--cases", type=Path, help="batches to serve")
    parser.add_argument("--prepare", action="store_true")
    args = parser.parse_args()
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print to standard output; the protocol must stay clean
    began = time.perf_counter()
    runtime = RUNTIMES[args.runtime](args.model, args.artifacts, args.threads)
    if args.prepare:
        runtime.prepare()
        return
    runtime.load()
    loaded = 1e3 * (time.perf_counter() - began)
    cases = read_cases(args.cases)
    hello = {"versions": runtime.versions(), "facts": runtime.facts(), "import_load_ms": loaded}
    print(json.dumps(hello), file=channel, flush=True)
    server = Server(runtime, cases)
    for line in sys.stdin:
        print(json.dumps(server.answer(json.loads(line))), file=channel, flush=True)


if __name__ == "__main__":
    main()
