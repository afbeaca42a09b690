"""Plain text -> a sentence per line, what ``qla train length-drop`` takes for sentence embeddings.

    python recipes/sentence_lines.py TEXT OUT.txt [--count N] [--seed N]

A sentence ends at ``.``, ``!`` or ``?``, closing quotes and brackets included, before white space and a capital
or a digit, opening quotes and brackets included; or at the end of a line. Those of 4 to 60 words stay, each
once, in random order: training takes batches of like length anyway, and ``--count`` then takes an even sample.
"""

from __future__ import annotations

import argparse
import random
import re
from collections.abc import Iterable
from pathlib import Path

from tqdm import tqdm

_END = re.compile(r"""(?:(?<=[.!?])|(?<=[.!?]["')]))\s+(?=["'(]?[^\W_a-zß-öø-ÿ])""")
FEWEST_WORDS, MOST_WORDS = 4, 60


def sentences(lines: Iterable[str]) -> list[str]:
    """The sentences of a text, in its order, without repetitions."""
    found: dict[str, None] = {}
    for line in lines:
        for sentence in _END.split(line.strip()):
            if FEWEST_WORDS <= len(sentence.split()) <= MOST_WORDS:
                found[sentence] = None
    return list(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--count", type=int, metavar="N", help="sentences (default: all)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of their order (default: 0)")
    args = parser.parse_args()
    with open(args.text, encoding="utf-8") as file:
        found = sentences(tqdm(file, unit="line"))
    random.Random(args.seed).shuffle(found)
    args.out.write_text("".join(f"{sentence}\n" for sentence in found[: args.count]), encoding="utf-8")


if __name__ == "__main__":
    main()
