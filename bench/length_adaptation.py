"""What length adaptation buys on SQuAD dev: accuracy, end-to-end time, latency budgets, escalation.

    python -m bench.length_adaptation accuracy dev-v1.1.json [--beside PACKAGE]
    python -m bench.length_adaptation time dev-v1.1.json [--bert-base BATCHES]
    python -m bench.length_adaptation budgets dev-v1.1.json --ms 3 5 8
    python -m bench.length_adaptation escalate dev-v1.1.json --thresholds 0.2 0.4 0.6
    python -m bench.length_adaptation losses dev-v1.1.json --articles odd

Each prints a Markdown table. What is timed takes turns, batch by batch, so that a slow moment slows all
alike; times are of whole `answer` calls, tokenization included.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from qla_runtime import Engine, Escalate, LatencyBudget, LengthConfig
from qla_runtime.evaluation import squad as evaluate
from qla_runtime.evaluation.squad import Question
from qla_runtime.lengths.configs import Length

BATCH = 32


def answers(engine: Engine, questions: Sequence[Question], length: object) -> list[dict[str, Any]]:
    """One call."""
    return engine.answer([q.question for q in questions], [q.context for q in questions], length)


def f1(results: Sequence[dict[str, Any]], questions: Sequence[Question]) -> list[float]:
    """F1 of each answer, in percent."""
    return [100 * q.f1(result["answer"]) for result, q in zip(results, questions, strict=True)]


def read_json(engine: Engine, name: str) -> dict[str, Any]:
    """A file of the engine's package."""
    return json.loads((engine.path / name).read_text(encoding="utf-8"))


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Prints Markdown."""
    for row in (head, ["---"] * len(head), *rows):
        print("| " + " | ".join(str(cell) for cell in row) + " |")


# ------------------------------------------------------------------------------------------ accuracy


def scored(engine: Engine, questions: Sequence[Question], length: Length, name: str) -> evaluate.SquadScore:
    """Exact match, F1 and MACs, with a progress bar."""
    with tqdm(total=len(questions), desc=name, unit="question") as bar:
        return evaluate.answers(engine, questions, length, progress=bar.update)


def constant_rate(share: float, cost: Callable[[LengthConfig], float], layers: int) -> LengthConfig:
    """The config that keeps r^i in layer i and costs ``share`` of full, to a thousandth of r."""
    low, high = 0.5, 1.0
    while high - low > 1e-3:
        middle = (low + high) / 2
        config = LengthConfig.ratio([middle**i for i in range(1, layers + 1)], keep_cls=True)
        low, high = (middle, high) if cost(config) < share else (low, middle)
    return LengthConfig.ratio([high**i for i in range(1, layers + 1)], keep_cls=True)


def accuracy(args: argparse.Namespace) -> None:
    """F1 by config: of the package, of another model at the same configs, of constant rates at equal MACs."""
    engine = Engine.from_pretrained(args.package)
    beside = Engine.from_pretrained(args.beside) if args.beside else None
    questions = evaluate.read_squad(args.data, args.articles)
    some = questions[::20]
    full_cost = sum(r["macs"] for r in answers(engine, some, "full"))

    def cost(length: LengthConfig) -> float:
        return sum(r["macs"] for r in answers(engine, some, length)) / full_cost

    rows = []
    full = scored(engine, questions, "full", "full")
    for name, entry in engine.lengths.items():
        ours = full if name == "full" else scored(engine, questions, entry.config, name)
        share = ours.macs / full.macs
        row = [name, f"{ours.f1:.2f}", f"{ours.f1 - full.f1:+.2f}", f"{share:.3f}"]
        if beside:
            row.append(f"{scored(beside, questions, entry.config, f'{name}, beside').f1:.2f}")
        if name == "full":
            row.append("")
        else:
            rate = constant_rate(share, cost, engine.layers)
            row.append(f"{scored(engine, questions, rate, f'{name}, constant rate').f1:.2f}")
        rows.append(row)
    table(["length", "F1", "against full", "MACs", *(["F1, beside"] if beside else []), "F1, constant rate"], rows)


# ---------------------------------------------------------------------------------------------- time


class BertBase:
    """BERT-base in torch, float32, with random weights: the same arithmetic, and times do not depend on values."""

    def __init__(self, engine: Engine) -> None:
        import torch
        from transformers import BertConfig, BertModel

        torch.set_num_threads(engine.num_threads)
        self.model = BertModel(BertConfig(), add_pooling_layer=False).eval()
        self.torch = torch

    def seconds(self, lengths: Sequence[int]) -> float:
        """One call over a batch padded to its longest sequence."""
        torch = self.torch
        mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
        ids = torch.randint(1000, 30000, mask.shape) * mask
        with torch.inference_mode():
            began = time.perf_counter()
            self.model(input_ids=ids, attention_mask=mask)
            return time.perf_counter() - began


def end_to_end(args: argparse.Namespace) -> None:
    """Wall time of the whole set in batches of 32, in its order, by config."""
    engine = Engine.from_pretrained(args.package)
    questions = evaluate.read_squad(args.data, args.articles)
    parts = [questions[i : i + BATCH] for i in range(0, len(questions), BATCH)]
    baseline = BertBase(engine) if args.bert_base else None
    sampled = set(np.linspace(0, len(parts) - 1, args.bert_base, dtype=int).tolist()) if baseline else set()
    answers(engine, parts[0], None)
    if baseline:
        baseline.seconds([engine.max_length] * BATCH)
    seconds: dict[str, float] = defaultdict(float)
    there: dict[str, float] = defaultdict(float)
    tokens = 0
    for number, part in enumerate(tqdm(parts, unit="batch")):
        for name in engine.lengths:
            began = time.perf_counter()
            answers(engine, part, name)
            spent = time.perf_counter() - began
            seconds[name] += spent
            there[name] += spent * (number in sampled)
        windows = engine.windows([q.question for q in part], [q.context for q in part])
        lengths = np.diff(windows.batch.offsets).tolist()
        tokens += sum(lengths)
        if number in sampled:
            there["BERT-base, torch fp32"] += baseline.seconds(lengths)
    head = ["length", "seconds", "tokens per second", "against full"]
    rows = [[n, f"{s:.1f}", f"{tokens / s:,.0f}", f"{seconds['full'] / s:.2f}x"] for n, s in seconds.items()]
    if baseline:
        head.append(f"against BERT-base, torch fp32 ({len(sampled)} of the batches)")
        slow = there.pop("BERT-base, torch fp32")
        rows = [[*row, f"{slow / there[row[0]]:.0f}x"] for row in rows]
    table(head, rows)
    print(f"\n{len(questions)} questions, {tokens:,} tokens, {engine.num_threads} threads")


# ------------------------------------------------------------------------------------------- budgets


def budgets(args: argparse.Namespace) -> None:
    """One question per call under LatencyBudgets, against always full and always fast.

    The shares are of calls that ``fast`` fits in, and near a budget that is a matter of luck: a second run of
    ``fast`` says how much of it.
    """
    engine = Engine.from_pretrained(args.package)
    engine.warm_up()
    questions = evaluate.read_squad(args.data, args.articles)
    questions = questions[:: max(1, len(questions) // args.questions)][: args.questions]
    lengths: dict[str, object] = {"full": "full", "fast": "fast", "fast again": "fast"}
    lengths |= {f"LatencyBudget({ms:g})": LatencyBudget(ms) for ms in args.ms}
    milliseconds: dict[str, list[float]] = defaultdict(list)
    scores: dict[str, list[float]] = defaultdict(list)
    for question in tqdm(questions, unit="question"):
        for name, length in lengths.items():
            began = time.perf_counter()
            results = answers(engine, [question], length)
            milliseconds[name].append(1e3 * (time.perf_counter() - began))
            scores[name] += f1(results, [question])
    times = {name: np.array(values) for name, values in milliseconds.items()}
    mean = {name: np.array(values) for name, values in scores.items()}
    rows = []
    for ms in args.ms:
        fits = times["fast"] <= ms
        row = [f"{ms:g} ms", f"{fits.mean():.1%}"]
        row += [
            f"{(times[name][fits] <= ms).mean():.1%}" for name in (f"LatencyBudget({ms:g})", "full", "fast again")
        ]
        row += [f"{mean[name][fits].mean():.2f}" for name in (f"LatencyBudget({ms:g})", "full", "fast")]
        rows.append(row)
    head = [
        "budget",
        "calls `fast` fits in",
        "of these within: budget",
        "full",
        "fast again",
        "F1: budget",
        "full",
        "fast",
    ]
    table(head, rows)
    medians = ", ".join(f"{name} {np.median(times[name]):.2f} ms" for name in lengths)
    print(f"\n{len(questions)} questions, one per call; medians: {medians}")


# ------------------------------------------------------------------------------------------ escalate


def escalate(args: argparse.Namespace) -> None:
    """Accuracy and time of single configs and of Escalate, and the single configs' line at that time."""
    engine = Engine.from_pretrained(args.package)
    questions = evaluate.read_squad(args.data, args.articles)
    lengths: dict[str, object] = {name: name for name in engine.lengths}
    for number, entry in enumerate(read_json(engine, "length_configs.json")["frontier"], 1):
        lengths[f"frontier {number}"] = LengthConfig(entry["rule"], tuple(entry["values"]), entry["keep_cls"])
    lengths["Escalate(fast, full)"] = Escalate("fast", "full")
    lengths |= {f"Escalate(fast, full, {t:g})": Escalate("fast", "full", t) for t in args.thresholds}
    seconds: dict[str, float] = defaultdict(float)
    scores: dict[str, list[float]] = defaultdict(list)
    again: dict[str, int] = defaultdict(int)
    for start in tqdm(range(0, len(questions), BATCH), unit="batch"):
        part = questions[start : start + BATCH]
        for name, length in lengths.items():
            began = time.perf_counter()
            results = answers(engine, part, length)
            seconds[name] += time.perf_counter() - began
            scores[name] += f1(results, part)
            again[name] += sum(r["length"] == "full" for r in results) if "Escalate" in name else 0
    mean = {name: float(np.mean(values)) for name, values in scores.items()}
    single = sorted((seconds[n], mean[n]) for n in lengths if "Escalate" not in n)
    best = np.maximum.accumulate([accuracy for _, accuracy in single])
    rows = []
    for name in lengths:
        line = float(np.interp(seconds[name], [s for s, _ in single], best))
        row = [name, f"{mean[name]:.2f}", f"{seconds[name]:.1f}"]
        if "Escalate" in name:
            row += [f"{again[name] / len(questions):.1%}", f"{mean[name] - line:+.2f}"]
        rows.append(row + [""] * (5 - len(row)))
    table(["length", "F1", "seconds", "run again", "above the single configs' line"], rows)


# ------------------------------------------------------------------------------------------- losses


def losses(args: argparse.Namespace) -> None:
    """Why configs lose: answers of full that were voted out, and answers still there that are read otherwise."""
    engine = Engine.from_pretrained(args.package)
    questions = evaluate.read_squad(args.data, args.articles)
    windows = engine.windows([q.question for q in questions], [q.context for q in questions])
    # With several windows the best one of another length may be another one.
    single = np.flatnonzero(np.diff(windows.questions) == 1)
    questions = [questions[i] for i in single]
    full = answers(engine, questions, "full")
    ends = [
        windows.locate(int(i), int(windows.questions[i]), r["start"], r["end"])
        for i, r in zip(single, full, strict=True)
    ]
    dense = np.array(f1(full, questions))
    rows = []
    for name in engine.lengths:
        if name == "full":
            continue
        found = engine.answer([q.question for q in questions], [q.context for q in questions], name, details=True)
        there = np.array(
            [
                [end is not None and set(end) <= set(kept) for kept in result["kept"]]
                for end, result in zip(ends, found, strict=True)
            ]
        )
        lost = (dense - np.array(f1(found, questions))) / len(questions)
        out = ~there[:, -1]
        rows.append(
            [
                name,
                " ".join(f"{share:.1%}" for share in 1 - there.mean(axis=0)),
                f"{lost.sum():.2f}",
                f"{lost[out].sum():.2f}",
                f"{lost[~out].sum():.2f}",
            ]
        )
    head = [
        "length",
        "answers of full voted out, by layer",
        "F1 lost",
        "of it where voted out",
        "where still there",
    ]
    table(head, rows)
    print(f"\n{len(questions)} questions of one window each")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for name, run in (
        ("accuracy", accuracy),
        ("time", end_to_end),
        ("budgets", budgets),
        ("escalate", escalate),
        ("losses", losses),
    ):
        command = commands.add_parser(name, help=run.__doc__)
        command.set_defaults(run=run)
        command.add_argument("data", help="SQuAD 1.1 dev-v1.1.json")
        command.add_argument("--package", help="package folder; none for the packaged default")
        whole = name in ("accuracy", "time")
        command.add_argument("--articles", choices=evaluate.ARTICLES, default="all" if whole else "even")
        if name == "accuracy":
            command.add_argument("--beside", help="package of another model, scored at the same configs")
        if name == "time":
            command.add_argument("--bert-base", type=int, default=0, metavar="BATCHES", help="time it on so many")
        if name == "budgets":
            command.add_argument("--ms", type=float, nargs="+", required=True)
            command.add_argument("--questions", type=int, default=500)
        if name == "escalate":
            command.add_argument("--thresholds", type=float, nargs="*", default=[])
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
