"""Prints the tables of docs/results.md from its records, and draws its picture.

python recipes/ternary_table.py [--plot docs/results/accuracy.png]
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

RECORDS = Path(__file__).resolve().parents[1] / "docs" / "results" / "runs"
METRICS = {"STS-B": "spearman", "CoLA": "matthews", "MRPC": "accuracy", "RTE": "accuracy", "SST-2": "accuracy"}
ROWS: Mapping[str, tuple[str, str]] = {
    "FP32": ("float", "model"),
    "INT8 after training": ("float", "engine"),
    "W8A8 trained": ("w8a8", "engine"),
    "W2A8, labels alone": ("none", "engine"),
    "W2A8, labels alone, learning rate 1e-4": ("none-1e-4", "engine"),
    "W2A8, score": ("score", "engine"),
    "W2A8, map": ("map", "engine"),
    "W2A8, output": ("output", "engine"),
    "W2A8, unified": ("unified", "engine"),
    "W2A8, unified, gamma 0.25": ("gamma-0.25", "engine"),
    "W2A8, unified, gamma 1": ("gamma-1", "engine"),
    "W2A8, unified, one scale per matrix": ("matrix", "engine"),
    "W2A8, unified, ternary embeddings": ("small", "engine"),
}
"""By name in the tables: the variant, and which of its models."""

Record = Mapping[str, Any]


def read(folder: Path) -> list[Record]:
    """The records."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]


def figure(values: Sequence[float]) -> str:
    """Mean, and with several seeds the least and the largest."""
    if not values:
        return ""
    spread = f" ({min(values):.1f} to {max(values):.1f}, {len(values)} seeds)" if len(values) > 1 else ""
    return f"{mean(values):.1f}{spread}"


def accuracy(records: Iterable[Record], split: str) -> str:
    """A row per kind of model, a column per task."""
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    for record in records:
        for name, (variant, model) in ROWS.items():
            if record["variant"] == variant:
                found[name, record["task"]].append(record[split][model][METRICS[record["task"]]])
    tasks = [task for task in METRICS if any(key[1] == task for key in found)]
    rows = [
        [name, *(figure(found[name, task]) for task in tasks)]
        for name in ROWS
        if any(found[name, task] for task in tasks)
    ]
    return table(["", *(f"{task}, {METRICS[task]}" for task in tasks)], rows)


def sizes(records: Sequence[Record]) -> str:
    """Of a package, by kind of model; losses and tasks change nothing but a label's name."""
    found: dict[tuple[str, str], str] = {}
    for name, (variant, model) in ROWS.items():
        of_kind = [record for record in records if record["variant"] == variant]
        if of_kind and model == "engine":
            bits, package = (mean(record[key] for record in of_kind) for key in (_BITS, "package_bytes"))
            found.setdefault((f"{bits:.3f}", f"{package / 1e6:.2f}"), name.partition(", labels alone")[0])
    return table(["", "bits per encoder weight", "package, MB"], [[name, *size] for size, name in found.items()])


_BITS = "bits_per_encoder_weight"


def agreement(records: Sequence[Record]) -> str:
    """Engine and trained model beside each other, over all runs of a task that round in training."""
    rows, same, texts = [], 0, 0
    for task in METRICS:
        trained = [record for record in records if record["task"] == task and record["variant"] != "float"]
        if not trained:
            continue
        cosines = [record["hidden_cosine"] for record in trained]
        least = f"{mean(c['mean'] for c in cosines):.4f}, {min(c['min'] for c in cosines):.4f}"
        apart = f"{max(record['dev']['apart'] for record in trained):.3f}"
        equal = ""
        if trained[0]["dev"]["same"] is None:
            apart += ", of scores from 0 to 5"
        else:
            here, all_ = (sum(record["dev"][key] for record in trained) for key in ("same", "compared"))
            same, texts, equal = same + here, texts + all_, _share(here, all_)
        rows.append([task, str(len(trained)), least, equal, apart])
    if texts:
        rows.append(["all", "", "", _share(same, texts), ""])
    head = ["", "runs", "cosine of hidden states, mean and least", "same label on dev"]
    return table([*head, "largest difference of a score"], rows)


def _share(part: int, whole: int) -> str:
    return f"{part} of {whole} ({100 * part / whole:.2f} %)"


def costs(records: Iterable[Record]) -> str:
    """Steps and hours."""
    rows = [
        [
            record["task"],
            record["variant"],
            str(record["seed"]),
            str(record["steps"]),
            f"{record['seconds'] / 60:.0f}",
        ]
        for record in records
    ]
    return table(["task", "variant", "seed", "steps", "minutes"], rows)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def plot(records: Sequence[Record], out: Path) -> None:
    """Accuracy over megabytes: a picture per task. Short runs are hollow."""
    from matplotlib.figure import Figure

    tasks = [task for task in METRICS if any(record["task"] == task for record in records)]
    drawing = Figure(figsize=(4 * len(tasks) + 3, 3.8), layout="constrained")
    for axes, task in zip(drawing.subplots(1, len(tasks), squeeze=False)[0], tasks, strict=True):
        for i, (name, (variant, model)) in enumerate(ROWS.items()):
            for short in (False, True):
                of_kind = [r for r in records if (r["task"], r["variant"], r["short"]) == (task, variant, short)]
                if not of_kind:
                    continue
                key = "float32_bytes" if model == "model" else "package_bytes"
                size = mean(record[key] for record in of_kind) / 1e6
                scores = [record["dev"][model][METRICS[task]] for record in of_kind]
                error = [[mean(scores) - min(scores)], [max(scores) - mean(scores)]]
                label = f"{name} (short)" if short else name
                axes.errorbar(
                    size, mean(scores), error, fmt="o", capsize=3, label=label, color=f"C{i}",
                    markerfacecolor="none" if short else f"C{i}",
                )  # fmt: skip
        axes.set(title=task, xlabel="MB", ylabel=f"{METRICS[task]} on dev, percent", xscale="log")
        axes.set_xticks([10, 20, 50, 100], ["10", "20", "50", "100"])
        axes.minorticks_off()
        axes.set_xlim(6, 130)
        axes.grid(alpha=0.3)
    found = [axes.get_legend_handles_labels() for axes in drawing.axes]
    entries = {label: handle for handles, labels in found for handle, label in zip(handles, labels, strict=True)}
    drawing.legend(list(entries.values()), list(entries), loc="outside right center", fontsize="small")
    drawing.savefig(out, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plot", type=Path, metavar="PNG")
    parser.add_argument("--records", type=Path, default=RECORDS, metavar="FOLDER", help="(default: %(default)s)")
    args = parser.parse_args()
    every = read(args.records)
    records = [record for record in every if not record["short"]]
    short = [record for record in every if record["short"] or record["variant"] == "float"]
    parts: dict[str, Callable[[], str]] = {
        "Accuracy on dev": lambda: accuracy(records, "dev"),
        "Accuracy on the last 10 % of train": lambda: accuracy(records, "select"),
        "Accuracy on dev of short runs": lambda: accuracy(short, "dev"),
        "Accuracy on the last 10 % of train of short runs": lambda: accuracy(short, "select"),
        "Sizes": lambda: sizes(every),
        "Engine against trained model": lambda: agreement(every),
        "Runs": lambda: costs(every),
    }
    print("\n\n".join(f"## {title}\n\n{make()}" for title, make in parts.items()))
    if args.plot:
        plot(every, args.plot)


if __name__ == "__main__":
    main()
