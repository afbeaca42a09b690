"""What the tests of the search share: tiny packages and data, short searches, and what they leave behind."""

from __future__ import annotations

import json
from pathlib import Path

from qla_runtime.search import SearchOptions, search

LAYERS = 3
OPTIONS = SearchOptions(
    articles="odd", sample=6, cost="macs", generations=3, population=3, mutations=3, crossovers=2, seed=1, grid=16
)


def squad(path: Path, questions: int = 8) -> Path:
    """A SQuAD file of two articles, the first (odd) with the questions."""
    words = "the quick brown fox jumps over a lazy dog and some more of them".split()
    articles = []
    for a, count in enumerate((questions, 3)):
        paragraphs = []
        for i in range(count):
            context = " ".join(words[i % 5 : i % 5 + 4 + i % 6])
            answer = {"text": words[i % 5 + 1], "answer_start": context.index(words[i % 5 + 1])}
            qas = [{"id": f"{a}-{i}", "question": f"which {words[i]}?", "answers": [answer]}]
            paragraphs.append({"context": context, "qas": qas})
        articles.append({"title": str(a), "paragraphs": paragraphs})
    path.write_text(json.dumps({"data": articles}))
    return path


def sts(path: Path, scores=(0.0, 1.5, 3.0, 4.0, 5.0)) -> Path:
    rows = [f"g\tf\t2020\t{i}\t{score}\ta cat is {i} big\ta dog was {i * i}" for i, score in enumerate(scores)]
    path.write_text("\n".join(rows) + "\n")
    return path


def run(package: Path, data: Path, folder: Path, options: SearchOptions = OPTIONS, **others) -> dict:
    return search(package, data, options, run=folder, num_threads=1, draw=False, progress=False, **others)


def found(folder: Path) -> tuple[list[str], dict]:
    """The measurements of a run, and its result without the place of the package."""
    result = json.loads((folder / "result.json").read_text())
    del result["package"]
    return (folder / "evaluations.jsonl").read_text().splitlines(), result
