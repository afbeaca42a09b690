"""Precision, recall and F1 of a tagger's entities. A figure that is not defined is 0, never NaN."""

from __future__ import annotations

import re
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from qla_runtime.engine import Engine
from qla_runtime.errors import InputError, UnsupportedError, a_model
from qla_runtime.evaluation.steps import Progress, steps
from qla_runtime.lengths.configs import Length
from qla_runtime.tasks.label_schemes import INSIDE, LabelScheme, Tag, chunks, read_labels
from qla_runtime.tasks.results import TaggedToken
from qla_runtime.texts.files import Path, read_lines, shown

STEP = 64
"""Sentences per engine call."""

_UNTAGGED = Tag(INSIDE, "")
_COMMENT = re.compile(r"# ?(id|sent_id|text|newdoc|newpar)\b")


@dataclass(frozen=True)
class Sentence:
    """Words, and the tag of each."""

    words: tuple[str, ...]
    tags: tuple[str, ...]


@dataclass(frozen=True)
class TaggingScore:
    """What a tagger scores.

    An entity is found where its name and both ends are right, as in conlleval and seqeval.

    Attributes:
        precision: the share of the model's entities that are in the file, in percent.
        recall: the share of the file's entities that the model finds, in percent.
        f1: their harmonic mean, in percent.
        entities: how many the file has.
        sentences: how many were tagged.
        truncated: how many sentences were longer than the model reads. Their ends count as untagged.
        seconds: wall time.
        f1_by_entity: F1 by the entity's name, in percent.
    """

    precision: float
    recall: float
    f1: float
    entities: int
    sentences: int
    truncated: int
    seconds: float
    f1_by_entity: dict[str, float]

    def __str__(self) -> str:
        lines = [f"precision {self.precision:.2f}   recall {self.recall:.2f}   F1 {self.f1:.2f}"]
        lines += [f"  {name:<12} F1 {f1:.2f}" for name, f1 in self.f1_by_entity.items()]
        cut = f" ({self.truncated} longer than the model reads)" if self.truncated else ""
        lines.append(f"{self.entities} entities in {self.sentences} sentences{cut}, {self.seconds:.1f} s")
        return "\n".join(lines)


def read_conll(path: Path, *, skip_bad_rows: bool = False) -> list[Sentence]:
    """The sentences of a CoNLL file.

    A line holds a word and, in its last column, the word's tag. Columns stand between tabs where a line has one,
    else between blanks. Blank lines separate sentences. ``-DOCSTART-`` lines and comments (``# id``, ``# text``)
    are left out.

    Args:
        path: the file.
        skip_bad_rows: leave out sentences with a line that has no tag, with a warning, in place of an error.

    Raises:
        InputError: the file cannot be read, holds no sentence, or has a line without a tag.
    """
    sentences: list[Sentence] = []
    rows: list[tuple[str, str]] = []
    bad: list[int] = []
    spoiled = False
    for number, line in enumerate([*read_lines(path), ""], 1):
        columns = line.split("\t") if "\t" in line else line.split()
        columns = [column.strip() for column in columns]
        if not any(columns) or columns[0] == "-DOCSTART-":
            if rows and not spoiled:
                sentences.append(Sentence(*zip(*rows, strict=True)))
            rows, spoiled = [], False
        elif not rows and _COMMENT.match(line):
            continue
        elif len(columns) < 2 or not columns[0] or not columns[-1]:
            if not skip_bad_rows:
                raise InputError(
                    f"{shown(path)}: line {number} has no tag beside its word; a line of a CoNLL file holds a "
                    "word and, in its last column, its tag. Correct it, or skip such sentences (--skip-bad-rows)"
                )
            bad.append(number)
            spoiled = True
        else:
            rows.append((columns[0], columns[-1]))
    if not sentences:
        raise InputError(f"{shown(path)}: holds no sentence; give a CoNLL file, a word and its tag on each line")
    if bad:
        warnings.warn(
            f"{shown(path)}: left out sentences with {len(bad)} lines without a tag, the first at line {bad[0]}",
            stacklevel=2,
        )
    return sentences


def tagging(
    engine: Engine, sentences: Sequence[Sentence], length: Length = None, progress: Progress | None = None
) -> TaggingScore:
    """How many entities a tagger finds. A word has the label of its first token.

    The file's tags and the model's labels may be written in different schemes; the names of entities must agree.

    Args:
        engine: a tagger.
        sentences: as :func:`read_conll` gives them.
        length: a length config for all sentences, or a policy.
        progress: called with the number of sentences done since the last call.

    Raises:
        InputError: no sentences, or a file and a model without a common entity name.
        UnsupportedError: the model does not label tokens.
    """
    if engine.task != "token-classification":
        raise UnsupportedError(
            f"this needs a token-classification model; {engine.name!r} is {a_model(engine.task)}"
        )
    theirs = sorted({tag for sentence in sentences for tag in sentence.tags})
    file_scheme, file_number = read_labels(theirs), {tag: i for i, tag in enumerate(theirs)}
    model_scheme, model_number = read_labels(engine.labels), {label: i for i, label in enumerate(engine.labels)}
    _check_names(file_scheme, model_scheme)
    hits: Counter[str] = Counter()
    expected: Counter[str] = Counter()
    found: Counter[str] = Counter()
    truncated = 0
    began = time.perf_counter()
    for part in steps(len(sentences), STEP, progress):
        texts = [" ".join(sentence.words) for sentence in sentences[part]]
        results = engine.tag(texts, length, aggregation_strategy="none", ignore_labels=[])
        for sentence, tokens in zip(sentences[part], results, strict=True):
            truncated += tokens.truncated
            labels = _word_labels(sentence.words, tokens)
            truth = entities(file_scheme, [file_number[tag] for tag in sentence.tags])
            guess = entities(model_scheme, [None if label is None else model_number[label] for label in labels])
            expected.update(name for name, _, _ in truth)
            found.update(name for name, _, _ in guess)
            hits.update(name for name, _, _ in truth & guess)
    seconds = time.perf_counter() - began
    precision, recall = _percent(hits.total(), found.total()), _percent(hits.total(), expected.total())
    return TaggingScore(
        precision=precision,
        recall=recall,
        f1=_percent(2 * hits.total(), found.total() + expected.total()),
        entities=expected.total(),
        sentences=len(sentences),
        truncated=truncated,
        seconds=seconds,
        f1_by_entity={
            name: _percent(2 * hits[name], found[name] + expected[name]) for name in sorted(expected | found)
        },
    )


def _check_names(theirs: LabelScheme, ours: LabelScheme) -> None:
    names = [{tag.entity for tag in scheme.tags} - scheme.outside for scheme in (theirs, ours)]
    if not names[0]:
        raise InputError("the file tags no entity; there is nothing to score")
    if not names[0] & names[1]:
        shown_names = [", ".join(sorted(some)[:5]) or "none" for some in names]
        raise InputError(
            f"the file's entities ({shown_names[0]}) and the model's ({shown_names[1]}) have no name in common; "
            "give a file with the model's names"
        )


def _word_labels(words: Sequence[str], tokens: Iterable[TaggedToken]) -> list[str | None]:
    """The label of the first token of each word; None for a word without a token."""
    entries = list(tokens)
    first = first_tokens(words, [entry["start"] for entry in entries])
    return [None if i is None else entries[i]["label"] for i in first]


def first_tokens(words: Sequence[str], starts: Sequence[int]) -> list[int | None]:
    """The first token of each word of ``" ".join(words)``, by number; None for a word without a token.

    Args:
        words: of a sentence.
        starts: where each token begins in the sentence, ascending, special tokens left out.
    """
    found: list[int | None] = []
    token, end = 0, -1
    for word in words:
        begin, end = end + 1, end + 1 + len(word)
        # A token may hold the blank before its word, or nothing else.
        while token < len(starts) and starts[token] < begin - 1:
            token += 1
        found.append(token if token < len(starts) and starts[token] < end else None)
    return found


def entities(scheme: LabelScheme, labels: Sequence[int | None]) -> set[tuple[str, int, int]]:
    """The named chunks of a sentence; a word without a label is outside."""
    tags = [_UNTAGGED if label is None else scheme.tags[label] for label in labels]
    return {chunk for chunk in chunks(tags) if chunk[0] not in scheme.outside and chunk[0] != _UNTAGGED.entity}


def _percent(part: int, whole: int) -> float:
    return 100 * part / whole if whole else 0.0
