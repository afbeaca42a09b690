"""Makes the packaged default model: convert, search, score, and write the scores into the package.

    python recipes/default_model.py CHECKPOINT dev-v1.1.json --training-data TEXT [--search RUN] [--master FOLDER]

Calibration, search and escalation thresholds see SQuAD dev articles at odd positions only (dev-select); the
accuracies that the package promises are of the even ones (dev-report), which nothing is chosen by. The weights
depend on the checkpoint alone, so running this again gives the same ones.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from qla_runtime import Engine, Escalate, LengthConfig
from qla_runtime.convert import convert
from qla_runtime.errors import InputError
from qla_runtime.evaluation import squad as evaluate
from qla_runtime.evaluation.escalation import calibrate_escalation
from qla_runtime.lengths.configs import Accuracy, Length
from qla_runtime.model.card import LENGTH_HEADING, Provenance
from qla_runtime.model.package import CARD, LENGTHS, check_target, json_bytes, update_package
from qla_runtime.search import SearchOptions, search
from qla_runtime.search.package import Package

ROOT = Path(__file__).resolve().parents[1]
DEFAULT = ROOT / "qla_runtime" / "models" / "minilm-l6-squad"
DATA = "SQuAD 1.1 dev, articles at even positions"
ESCALATION = ("fast", "full")
ESCALATION_LOSS = 0.25
"""Points of F1 below ``full`` that escalating may cost, on the articles that the threshold is chosen by."""
FRONTIER_LOSS = 3.0
"""Points of F1 below ``full`` beyond which a config of the frontier is not worth offering."""

PROVENANCE = Provenance(
    license="the base model is Apache-2.0; SQuAD 1.1 is by Rajpurkar, Zhang, Lopyrev and Liang, CC BY-SA 4.0",
    checkpoint="models/minilm-l6-squad of the repository",
    base_model="all-MiniLM-L6-v2 (sentence-transformers), Apache-2.0",
    calibration_data="SQuAD 1.1 dev, articles at odd positions (CC BY-SA 4.0)",
)
SEARCH = SearchOptions(
    sample=2000,
    cost="macs",  # the package is for many machines
    start=(
        (1, 0.97, 0.88, 0.74, 0.42, 0.1),
        (1, 0.97, 0.88, 0.64, 0.33, 0.08),
        (1, 0.95, 0.84, 0.55, 0.25, 0.06),
        (1, 0.94, 0.8, 0.47, 0.19, 0.06),
        (1, 0.90625, 0.75, 0.40625, 0.15625, 0.046875),
        (1, 0.875, 0.734375, 0.390625, 0.21875, 0.046875),
        (1, 0.87, 0.69, 0.36, 0.14, 0.047),
    ),
    generations=2,
    population=6,
    mutations=10,
    crossovers=8,
)
"""It begins with shapes that earlier searches found, and that the model is trained around."""
SHARES = {"balanced": 0.7, "fast": 0.6}
"""A named config is the most accurate of the frontier that costs no more of full than this."""

Scores = dict[str, dict[str, evaluate.SquadScore]]
"""By length, then by articles: ``even`` (dev-report) and ``odd`` (dev-select)."""


@dataclass(frozen=True)
class Lengths:
    """What the package will offer: its named configs, and the frontier that the search drew."""

    named: dict[str, LengthConfig]
    frontier: list[LengthConfig]

    @classmethod
    def read(cls, path: Path) -> Lengths:
        """A file like ``{"balanced": [ratios], "fast": [ratios]}``."""
        return cls({name: _ratio(values) for name, values in json.loads(path.read_text()).items()}, [])

    @classmethod
    def search(cls, checkpoint: str, dev: Path, run: Path) -> Lengths:
        """Searches on dev-select with a package of its own, so that the default appears once, complete."""
        with tempfile.TemporaryDirectory() as folder:
            package = Path(folder) / DEFAULT.name
            convert(checkpoint, package, dev, name=DEFAULT.name, articles="odd", provenance=PROVENANCE)
            found = search(package, dev, SEARCH, run=run)
        frontier = found["frontier"]
        named = {
            name: max((entry for entry in frontier if entry["cost"] <= share), key=lambda entry: entry["accuracy"])
            for name, share in SHARES.items()
        }
        worthwhile = [entry for entry in frontier if entry["loss"] <= FRONTIER_LOSS]
        return cls(
            {name: _ratio(entry["values"]) for name, entry in named.items()},
            [_ratio(entry["values"]) for entry in worthwhile],
        )


def _ratio(values: Iterable[float]) -> LengthConfig:
    return LengthConfig.ratio(values, keep_cls=True)


def measure(engine: Engine, dev: Path, name: str, length: Length, articles: str) -> evaluate.SquadScore:
    """EM, F1 and MACs at one length, with a progress bar."""
    questions = evaluate.read_squad(dev, articles)
    with tqdm(total=len(questions), desc=f"{name}, {articles} articles", unit="question") as bar:
        return evaluate.answers(engine, questions, length, progress=bar.update)


def score(engine: Engine, dev: Path, lengths: dict[str, Length]) -> Scores:
    """Every length on both halves of the set."""
    return {
        name: {articles: measure(engine, dev, name, length, articles) for articles in ("even", "odd")}
        for name, length in lengths.items()
    }


def whole(parts: dict[str, evaluate.SquadScore], what: str) -> float:
    """A mean over both halves of the set."""
    questions = sum(part.questions for part in parts.values())
    return sum(getattr(part, what) * part.questions for part in parts.values()) / questions


def score_section(scores: Scores) -> str:
    """The card's table of scores."""
    lines = [
        "## Scores",
        "",
        "SQuAD 1.1 dev, INT8, windows of 384 tokens sharing 128; dev-report is the articles at even positions,",
        "which no decision looked at. Print them with `qla eval squad dev-v1.1.json --length NAME`",
        "(or `--escalate CHEAP:DEAR`). MACs count real lengths.",
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


def accuracy(f1: float) -> Accuracy:
    """What the package promises."""
    return Accuracy("f1", round(f1, 2), DATA)


def finish(package: Path, dev: Path, frontier: list[LengthConfig]) -> Scores:
    """Measures, and writes what was measured: accuracies, the frontier, the threshold, the card's table."""
    engine = Engine.from_pretrained(package)
    cheap, dear = ESCALATION
    questions = evaluate.read_squad(dev, "odd")
    threshold = round(calibrate_escalation(engine, questions, cheap, dear, ESCALATION_LOSS), 4)
    escalate = f"escalate {cheap}:{dear}:{threshold:g}"
    scores = score(
        engine, dev, {name: name for name in engine.lengths} | {escalate: Escalate(cheap, dear, threshold)}
    )

    named = {n: (engine.lengths[n].config, accuracy(scores[n]["even"].f1)) for n in engine.lengths}
    measured = []
    for number, config in enumerate(frontier, 1):
        found = measure(engine, dev, f"frontier, {number} of {len(frontier)}", config, "even")
        measured.append((config, accuracy(found.f1)))
    searched = Package(package)
    searched.write_lengths(named, measured)

    promised = accuracy(scores[escalate]["even"].f1)
    lengths = searched.lengths().with_threshold(cheap, dear, threshold, promised).to_json()
    head, tail = (package / CARD).read_text().split(LENGTH_HEADING, 1)
    card = f"{head}{score_section(scores)}\n{LENGTH_HEADING}{tail}"
    update_package(package, {LENGTHS: json_bytes(lengths), CARD: card.encode()})
    return scores


def keep_master(checkpoint: Path, folder: Path, trained_on: str, scores: Scores) -> None:
    """Copies the half-precision checkpoint: re-quantization and later training start from it.

    The folder is complete or the old one: the copy takes its place by rename.
    """
    fresh = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.copytree(checkpoint, fresh)
    em, f1 = whole(scores["full"], "exact_match"), whole(scores["full"], "f1")
    card = f"""# minilm-l6-squad, the master

The half-precision Hugging Face checkpoint that the packaged default model was converted from. Not in the wheel.

- Base model: {PROVENANCE.base_model}
- Training data: {trained_on}
- Licence and attribution: {PROVENANCE.license}
- SQuAD 1.1 dev, converted to INT8, every token kept: EM {em:.2f}, F1 {f1:.2f}

[recipes/default_model.py](../../recipes/default_model.py) makes the package from it; the scores of every length
config are on the [package's card](../../qla_runtime/models/minilm-l6-squad/README.md); how it was trained is in
[docs/training.md](../../docs/training.md).
"""
    (fresh / "README.md").write_text(card, encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    fresh.rename(folder)


def check_master(checkpoint: Path, folder: Path) -> None:
    """Raises InputError for a ``--master`` that must not be replaced, before hours of measuring."""
    if folder.resolve() == checkpoint.resolve():
        raise InputError(f"--master {folder} is the checkpoint itself, which is kept already; leave it out")
    if folder.exists() and not (folder / "config.json").is_file():
        raise InputError(f"--master {folder} exists and is no checkpoint; it is left alone. Choose another folder")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("dev", type=Path, help="SQuAD 1.1 dev-v1.1.json")
    parser.add_argument("--out", type=Path, default=DEFAULT)
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--search", type=Path, metavar="RUN", help="search length configs; RUN is its folder")
    choice.add_argument("--lengths", type=Path, help='JSON: {"balanced": [ratios], "fast": [ratios]}')
    parser.add_argument("--master", type=Path, metavar="FOLDER", help="also keep the checkpoint here")
    parser.add_argument("--training-data", required=True, help="for the cards: data, recipe, steps, time")
    args = parser.parse_args()
    args.out = check_target(args.out)
    if args.master:
        check_master(args.checkpoint, args.master)
    if args.search:
        lengths = Lengths.search(args.checkpoint, args.dev, args.search)
    else:
        lengths = Lengths.read(args.lengths) if args.lengths else None
    convert(
        args.checkpoint,
        args.out,
        args.dev,
        name=DEFAULT.name,
        articles="odd",
        length_configs=lengths.named if lengths else None,
        compare_activations=True,
        provenance=Provenance(**{**vars(PROVENANCE), "training_data": args.training_data}),
    )
    scores = finish(args.out, args.dev, lengths.frontier if lengths else [])
    if args.master:
        keep_master(args.checkpoint, args.master, args.training_data, scores)
    print(score_section(scores), file=sys.stderr)


if __name__ == "__main__":
    main()
