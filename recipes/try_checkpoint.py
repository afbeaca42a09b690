"""What a checkpoint is worth at some length configs, in INT8, a minute after it was written.

    python recipes/try_checkpoint.py CHECKPOINT dev-v1.1.json [--length 1,.97,.88,.74,.42,.1 ...]

Converts it into a temporary package and answers every N-th question of the articles at odd positions (dev-select),
so that what is chosen by this is never chosen by dev-report. Prints a Markdown table: F1, points below the same
model's full, and MACs as a share of full's.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tqdm import tqdm

from qla_runtime import Engine, LengthConfig, QlaError
from qla_runtime.convert import convert
from qla_runtime.evaluation import squad as evaluate
from qla_runtime.evaluation.questions import read_squad


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("dev", type=Path, help="SQuAD 1.1 dev-v1.1.json")
    parser.add_argument("--length", action="append", default=[], metavar="VALUES", help="ratios; repeatable")
    parser.add_argument("--every", type=int, default=2, metavar="N", help="of the questions (default: 2)")
    args = parser.parse_args()
    try:
        lengths = {"full": "full"} | {
            text: LengthConfig.ratio(map(float, text.split(",")), keep_cls=True) for text in args.length
        }
        questions = read_squad(args.dev, "odd")[:: args.every]
        with tempfile.TemporaryDirectory() as folder:
            package = Path(folder) / "package"
            convert(args.checkpoint, package, args.dev, articles="odd")
            engine = Engine(package)
            scores = {}
            for name, length in lengths.items():
                with tqdm(total=len(questions), desc=name, unit="question") as bar:
                    scores[name] = evaluate.answers(engine, questions, length, progress=bar.update)
    except (QlaError, ValueError) as error:
        sys.exit(f"error: {error}")
    full = scores["full"]
    print("| length | F1 | against full | MACs |\n|---|---|---|---|")
    for name, score in scores.items():
        print(f"| {name} | {score.f1:.2f} | {score.f1 - full.f1:+.2f} | {score.macs / full.macs:.3f} |")


if __name__ == "__main__":
    main()
