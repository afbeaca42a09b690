"""Sentences per second of whole files: qla beside SentenceTransformer.encode, in one run.

    python -m bench.bulk --texts FILE.txt --checkpoint FOLDER [--python PATH] [--rounds 5]

Every round asks each in turn, each in a process of its own that keeps its model open. All have the same threads.
The checkpoint is a sentence-transformers folder; qla opens the package `--package`, or the packaged model. PATH is
a Python that has sentence-transformers, and optimum-intel[openvino] for OpenVINO.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[1]
OURS = ("qla embed", "qla embed, fast", "Engine.encode")
PEERS = ("sentence-transformers, torch", "sentence-transformers, openvino")


def serve(name: str, texts: list[str], model: str, threads: int, folder: Path) -> None:
    """A worker: for every line on standard input, one pass over the texts and its seconds on standard output."""
    run = (ours if name in OURS else peer)(name, texts, model, threads, folder)
    for _ in sys.stdin:
        began = time.perf_counter()
        run()
        print(time.perf_counter() - began, flush=True)


def ours(name: str, texts: list[str], model: str, threads: int, folder: Path):
    from qla_runtime import Engine

    engine = Engine.from_pretrained(model, num_threads=threads)
    if name == "Engine.encode":
        return lambda: engine.encode(texts)
    from qla_runtime.bulk.job import embed_file
    from qla_runtime.bulk.options import FileOptions

    source = folder / "texts.txt"
    length = "fast" if name.endswith("fast") else "full"
    return lambda: embed_file(engine, source, folder / "out.parquet", length, files=FileOptions(overwrite=True))


def peer(name: str, texts: list[str], model: str, threads: int, folder: Path):
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(threads)
    backend = name.rsplit(" ", 1)[1]
    # An int8 model of OpenVINO needs a calibration of its own; this is what backend="openvino" gives by itself.
    options = {"export": True, "ov_config": {"INFERENCE_NUM_THREADS": threads}} if backend == "openvino" else None
    encoder = SentenceTransformer(model, backend=backend, device="cpu", model_kwargs=options)
    return lambda: encoder.encode(texts, batch_size=32)


class Worker:
    """A worker in a process of its own."""

    def __init__(self, python: str, name: str, arguments: argparse.Namespace) -> None:
        model = arguments.package if name in OURS else arguments.checkpoint
        model = os.path.abspath(model) if os.path.exists(model) else model
        command = [python, "-m", "bench.bulk", "--worker", name, "--texts", str(arguments.texts.resolve())]
        command += ["--count", str(arguments.count), "--checkpoint", model, "--threads", str(arguments.threads)]
        environment = os.environ | {"OMP_NUM_THREADS": str(arguments.threads)}
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            [*command, "--folder", str(arguments.folder)],
            stdin=pipe,
            stdout=pipe,
            env=environment,
            text=True,
            cwd=ROOT,
        )

    def seconds(self) -> float | None:
        """One pass; None where the worker has ended."""
        assert self._process.stdin and self._process.stdout
        try:
            print(file=self._process.stdin, flush=True)
        except BrokenPipeError:
            return None
        line = self._process.stdout.readline()
        return float(line) if line else None

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


def compare(arguments: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of each pass by name, one per round."""
    workers = {name: Worker(sys.executable, name, arguments) for name in OURS}
    workers |= {name: Worker(arguments.python or sys.executable, name, arguments) for name in PEERS}
    times: dict[str, list[float]] = {}
    for turn in range(arguments.rounds + 1):
        for name, worker in workers.items():
            took = worker.seconds()
            if took is None:
                print(f"{name} is absent: its process ended, and said why above", file=sys.stderr)
            elif turn:  # the first round warms up
                times.setdefault(name, []).append(took)
        workers = {name: worker for name, worker in workers.items() if turn == 0 or name in times}
    for worker in workers.values():
        worker.close()
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=Path, required=True, help="a text per line")
    parser.add_argument("--count", type=int, default=5000, help="texts of a pass (default: 5000)")
    parser.add_argument("--checkpoint", required=True, help="sentence-transformers folder")
    parser.add_argument("--package", default="all-minilm-l6-v2", help="of qla (default: the packaged model)")
    parser.add_argument("--python", help="interpreter of the peers (default: this one)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    texts = arguments.texts.read_text(encoding="utf-8").splitlines()
    texts = [texts[i % len(texts)] for i in range(arguments.count)]
    if arguments.worker:
        serve(arguments.worker, texts, arguments.checkpoint, arguments.threads, arguments.folder)
        return
    import tempfile

    with tempfile.TemporaryDirectory(prefix="qla-bulk-") as folder:
        arguments.folder = Path(folder)
        (arguments.folder / "texts.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")
        times = compare(arguments)
    if arguments.json:
        print(json.dumps(times))
        return
    best = len(texts) / median(times["qla embed"])
    print(f"{len(texts):,} texts, {arguments.threads} threads, median of {arguments.rounds} rounds")
    for name, seconds in times.items():
        rate = len(texts) / median(seconds)
        print(f"{name:<34} {rate:>9,.0f} texts/s   qla embed is {best / rate:.2f} x")


if __name__ == "__main__":
    main()
