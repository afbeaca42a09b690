"""Makes the packaged default model: convert, score, and write the scores into the package.

    python recipes/default_model.py CHECKPOINT dev-v1.1.json [--lengths lengths.json] [--training-data "..."]

Calibration sees SQuAD dev articles at odd positions only (dev-select); the scores that the package and its card
carry are of the even ones (dev-report) and of the whole set. The weights depend on the checkpoint and the
calibration texts alone, so running this again gives the same bytes.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from tqdm import tqdm

from qla_runtime import Engine, LengthConfig, evaluate
from qla_runtime.convert import convert
from qla_runtime.convert.card import Provenance
from qla_runtime.convert.package_writer import check_target, json_bytes, update_package

DEFAULT = Path(__file__).resolve().parents[1] / "qla_runtime" / "models" / "minilm-l6-squad"
PROVENANCE = Provenance(
    license="the base model is Apache-2.0; SQuAD 1.1 is by Rajpurkar, Zhang, Lopyrev and Liang, CC BY-SA 4.0",
    base_model="all-MiniLM-L6-v2 (sentence-transformers), Apache-2.0",
    calibration_data="SQuAD 1.1 dev, articles at odd positions (CC BY-SA 4.0)",
)


def score(package: Path, dev: Path) -> dict[str, dict[str, evaluate.SquadScore]]:
    """EM and F1 of every named config, by articles: ``even`` (dev-report) and ``odd`` (dev-select)."""
    engine = Engine.from_pretrained(package)
    scores: dict[str, dict[str, evaluate.SquadScore]] = {}
    for name in engine.lengths:
        scores[name] = {}
        for articles in ("even", "odd"):
            total = len(evaluate.read_squad(dev, articles))
            with tqdm(total=total, desc=f"{name}, {articles} articles", unit="question") as bar:
                scores[name][articles] = evaluate.squad(engine, dev, name, articles=articles, progress=bar.update)
    return scores


def whole(parts: dict[str, evaluate.SquadScore], what: str) -> float:
    """A mean over both halves of the set."""
    questions = sum(part.questions for part in parts.values())
    return sum(getattr(part, what) * part.questions for part in parts.values()) / questions


def score_section(scores: dict[str, dict[str, evaluate.SquadScore]]) -> str:
    """The card's table of scores."""
    lines = [
        "## Scores",
        "",
        "SQuAD 1.1 dev, INT8, windows of 384 tokens sharing 128; dev-report is the articles at even positions,",
        "which no decision looked at. Print them with `qla eval squad dev-v1.1.json --length NAME`.",
        "",
        "| length | EM | F1 | F1, dev-report | MACs per question, of full |",
        "|---|---|---|---|---|",
    ]
    dense = whole(scores["full"], "macs")
    for name, parts in scores.items():
        lines.append(
            f"| {name} | {whole(parts, 'exact_match'):.2f} | {whole(parts, 'f1'):.2f} "
            f"| {parts['even'].f1:.2f} | {whole(parts, 'macs') / dense:.3f} |"
        )
    return "\n".join(lines) + "\n"


def write_scores(package: Path, scores: dict[str, dict[str, evaluate.SquadScore]]) -> None:
    """Adds accuracies to length_configs.json and the table to the card; the package is replaced at once."""
    lengths = json.loads((package / "length_configs.json").read_text())
    for entry in lengths["configs"]:
        entry["accuracy"] = {
            "metric": "f1",
            "value": round(scores[entry["name"]]["even"].f1, 2),
            "data": "SQuAD 1.1 dev, articles at even positions",
        }
    head, tail = (package / "README.md").read_text().split("## Length configs", 1)
    card = f"{head}{score_section(scores)}\n## Length configs{tail}"
    update_package(package, {"length_configs.json": json_bytes(lengths), "README.md": card.encode()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("dev", type=Path, help="SQuAD 1.1 dev-v1.1.json")
    parser.add_argument("--out", type=Path, default=DEFAULT)
    parser.add_argument("--lengths", type=Path, help='JSON: {"balanced": [ratios], "fast": [ratios]}')
    parser.add_argument(
        "--training-data",
        default="SQuAD 1.1 train (Rajpurkar et al., 2016), one epoch, plain fine-tuning",
        help="for the card",
    )
    args = parser.parse_args()
    args.out = check_target(args.out)
    lengths = None
    if args.lengths:
        named = json.loads(args.lengths.read_text())
        lengths = {name: LengthConfig.ratio(values, keep_cls=True) for name, values in named.items()}
    convert(
        args.checkpoint,
        args.out,
        args.dev,
        name=DEFAULT.name,
        articles="odd",
        length_configs=lengths,
        provenance=Provenance(**{**vars(PROVENANCE), "training_data": args.training_data}),
    )
    scores = score(args.out, args.dev)
    write_scores(args.out, scores)
    print(score_section(scores), file=sys.stderr)


if __name__ == "__main__":
    main()
