"""What is run: the cases of shapes.txt as batches of token ids, the same for every runtime."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qla_runtime import Engine, InputError
from qla_runtime.evaluation import squad as evaluate

SHAPES = Path(__file__).with_name("shapes.txt")

MOST_TOKENS = 512
"""Positions of every model here."""

SEQUENCES = 512
"""Of a case of real texts."""

BATCH = 32
"""Sequences of a batch of real texts."""

TEXTS = ("squad", "squad-sorted", "sts", "sts-sorted")

Batches = list[list[NDArray[np.int32]]]
"""Token ids: batches of sequences of any lengths."""


@dataclass(frozen=True)
class Case:
    """One line of shapes.txt. ``lengths`` are the length configs besides full, as they are spelled there."""

    name: str
    lengths: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, int] | None:
        """Batch and tokens; None for real texts."""
        found = re.fullmatch(r"(\d+)x(\d+)", self.name)
        return (int(found[1]), int(found[2])) if found else None


def parse(text: str, source: str = SHAPES.name) -> list[Case]:
    """The cases of a shapes file.

    Raises:
        InputError: a line that is no case, or is one twice; a file without any.
    """
    cases: dict[str, Case] = {}
    for number, line in enumerate(text.splitlines(), 1):
        name, *lengths = line.split("#")[0].split() or [""]
        if not name:
            continue
        case = Case(name, tuple(lengths))
        where = f"{source}: line {number}: {name!r}"
        if case.shape is None and name not in TEXTS:
            raise InputError(f"{where} is no case; use BATCHxTOKENS, or one of {', '.join(TEXTS)}")
        if case.shape and not (case.shape[0] >= 1 and 1 <= case.shape[1] <= MOST_TOKENS):
            raise InputError(f"{where} is out of range; use at least one sequence of 1 to {MOST_TOKENS} tokens")
        if name in cases:
            raise InputError(f"{where} is there already; put all its length configs on one line")
        for length in lengths:
            if not re.fullmatch(r"\d+(,\d+)+|[a-z][\w.-]*", length):
                raise InputError(
                    f"{where} has the length config {length!r}; use a name, or counts such as 315,251,33"
                )
        cases[name] = case
    if not cases:
        raise InputError(f"{source}: there is no case; give one per line, such as 8x128")
    return list(cases.values())


def read(chosen: list[str] | None = None) -> list[Case]:
    """The cases of shapes.txt, or those of them that are chosen by name.

    Raises:
        InputError: a chosen name that is not there.
    """
    cases = parse(SHAPES.read_text())
    unknown = set(chosen or ()) - {case.name for case in cases}
    if unknown:
        raise InputError(f"no case {', '.join(sorted(unknown))} in {SHAPES.name}; add a line there, or use "
                         f"{', '.join(case.name for case in cases)}")  # fmt: skip
    return [case for case in cases if not chosen or case.name in chosen]


def batches(case: Case, engine: Engine, squad: str | None, sts: str | None) -> Batches:
    """A case's batches.

    Args:
        case: which.
        engine: whose tokenizer and vocabulary are used.
        squad: SQuAD 1.1 dev, the JSON file.
        sts: an STS benchmark file.

    Raises:
        InputError: the case needs a file that is not given, or the file holds too little.
    """
    if case.shape:
        # Token ids of content words, no padding: nothing that a runtime could skip.
        draw = np.random.default_rng(case.shape[0] * 1000 + case.shape[1])
        words = engine.info["vocab_size"] - 1
        return [list(draw.integers(min(1000, words - 1), words, case.shape, np.int32))]
    kind, _, order = case.name.partition("-")
    file = {"squad": squad, "sts": sts}[kind]
    if file is None:
        raise InputError(f"the case {case.name} needs --{kind} FILE")
    rows = (squad_rows if kind == "squad" else sts_rows)(engine, file)
    if len(rows) < SEQUENCES:
        raise InputError(f"{file} gives {len(rows)} sequences; {case.name} needs {SEQUENCES}")
    rows = rows[:SEQUENCES]
    if order == "sorted":
        rows.sort(key=len)
    return [rows[i : i + BATCH] for i in range(0, SEQUENCES, BATCH)]


def squad_rows(engine: Engine, file: str) -> list[NDArray[np.int32]]:
    """Windows of evenly spaced questions, at least SEQUENCES of them where the file has as many."""
    questions = evaluate.read_squad(file)
    questions = questions[:: max(1, len(questions) // SEQUENCES)]
    asked = [question.question for question in questions]
    return _rows(engine.windows(asked, [question.context for question in questions]).batch)


def sts_rows(engine: Engine, file: str) -> list[NDArray[np.int32]]:
    """Evenly spaced sentences, at least SEQUENCES of them where the file has as many."""
    _, firsts, seconds = evaluate.read_sts(file)
    sentences = list(chain.from_iterable(zip(firsts, seconds, strict=True)))
    sentences = sentences[:: max(1, len(sentences) // SEQUENCES)]
    return _rows(engine.text_encoder.encode(sentences).batch)


def _rows(batch) -> list[NDArray[np.int32]]:
    return np.split(batch.ids, batch.offsets[1:-1])


def save(path: Path, cases: dict[str, Batches]) -> None:
    """Writes batches for the worker, which reads them with numpy alone."""
    arrays = {}
    for name, parts in cases.items():
        rows = list(chain.from_iterable(parts))
        arrays[f"{name}.ids"] = np.concatenate(rows)
        arrays[f"{name}.lengths"] = np.array([len(row) for row in rows])
        arrays[f"{name}.batch"] = np.array(len(parts[0]))
    np.savez(path, **arrays)
