"""Ours against the peers: same weights, same token ids, same thread count, asked in turn.

    python bench/peers.py --checkpoint HF_FOLDER --package QLA_FOLDER --peers openvino-int8 torch-fp32

Prints, per shape, the median milliseconds of every runtime and how many times faster than the peer qla is.
A peer that cannot be started is reported as absent, never silently dropped.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def read_shapes() -> list[str]:
    lines = (HERE / "shapes.txt").read_text().splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


class Worker:
    """A runtime in a process of its own; `absent` says why when it did not start."""

    def __init__(self, name: str, args: argparse.Namespace) -> None:
        self.name = name
        command = [args.peer_python if name != "qla" else sys.executable, str(HERE / "peer_worker.py"), name]
        command += [
            "--threads",
            str(args.threads),
            "--package",
            args.package,
            "--checkpoint",
            args.checkpoint,
        ]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        ready = self.process.stdout.readline()
        self.absent = "" if ready else self.process.stderr.read().strip().splitlines()[-1]

    def time(self, shape: tuple[int, int], repeat: int) -> list[float]:
        self.process.stdin.write(json.dumps({"shape": shape, "repeat": repeat}) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())["ms"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, help="Hugging Face folder the peers load")
    parser.add_argument("--package", required=True, help="the same weights as a qla package")
    parser.add_argument("--peers", nargs="*", default=["openvino-int8"])
    parser.add_argument("--peer-python", default=sys.executable, help="interpreter that has the peers installed")
    parser.add_argument("--shapes", nargs="*", default=read_shapes(), metavar="BxN")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path, help="write all times here")
    args = parser.parse_args()

    workers = [Worker(name, args) for name in ["qla", *args.peers]]
    for worker in workers:
        if worker.absent:
            print(f"absent: {worker.name}: {worker.absent}")
    workers = [worker for worker in workers if not worker.absent]
    if not workers or workers[0].name != "qla":
        sys.exit("qla itself did not start")
    record: dict[str, dict[str, list[float]]] = {}
    for text in args.shapes:
        batch, tokens = (int(x) for x in text.split("x"))
        times: dict[str, list[float]] = {worker.name: [] for worker in workers}
        for worker in workers:
            worker.time((batch, tokens), 3)  # compile, page in, warm up
        for _ in range(args.rounds):
            for worker in workers:
                times[worker.name] += worker.time((batch, tokens), 1 + 8 // batch)[-3:]
        record[text] = times
        ours = statistics.median(times["qla"])
        cells = [f"{text:>7}  qla {ours:8.2f} ms"]
        for worker in workers[1:]:
            theirs = statistics.median(times[worker.name])
            cells.append(f"{worker.name} {theirs:8.2f} ms ({theirs / ours:.2f}x)")
        print("   ".join(cells), flush=True)
    if args.json:
        args.json.write_text(json.dumps({"threads": args.threads, "ms": record}, indent=1))


if __name__ == "__main__":
    main()
