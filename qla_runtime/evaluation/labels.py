"""Accuracy of classifiers, rerankers and taggers on labelled files, scored as the field scores them.

Figures are in percent. None is ever NaN: a figure that is not defined is 0.
"""

from __future__ import annotations

import argparse
import re
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qla_runtime.engine import Engine
from qla_runtime.errors import InputError, UnsupportedError
from qla_runtime.evaluation.squad import correlation
from qla_runtime.lengths.configs import Length
from qla_runtime.tasks.label_schemes import INSIDE, LabelScheme, Tag, chunks, read_labels
from qla_runtime.texts.data_sets import read_labelled
from qla_runtime.texts.files import Path, read_lines, shown

STEP = 64
"""Inputs per engine call, between two reports of progress."""

DEPTH = 10
"""Documents of a ranking that count."""

Progress = Callable[[int], Any]


# ------------------------------------------------------------------------------------- classification


@dataclass(frozen=True)
class Example:
    """A text, or a pair of texts, with its label as the file spells it."""

    text: str
    pair: str | None
    label: str


@dataclass(frozen=True)
class ClassificationScore:
    """Percent but for ``texts``, mean ``macs`` per text and ``seconds`` of wall time.

    ``f1`` is that of the second label where there are two (as in GLUE), else the mean over labels, which
    ``f1_macro`` always is. ``matthews`` is the correlation coefficient, -100 to 100.
    """

    accuracy: float
    f1: float
    f1_macro: float
    matthews: float
    texts: int
    macs: float
    seconds: float

    def __str__(self) -> str:
        return (
            f"accuracy {self.accuracy:.2f}   F1 {self.f1:.2f} (mean over labels {self.f1_macro:.2f})   "
            f"Matthews {self.matthews:.2f}\n"
            f"{self.texts} texts, {self.macs / 1e9:.3f} G MACs each on average, {self.seconds:.1f} s"
        )


def read_examples(path: Path, *, skip_bad_rows: bool = False) -> list[Example]:
    """The rows of a table with a column of texts, perhaps one of second texts, and one of labels.

    Raises:
        InputError: as :func:`qla_runtime.texts.data_sets.read_labelled`.
    """
    found = read_labelled(path, skip_bad_rows=skip_bad_rows)
    pairs = [(text, None) if isinstance(text, str) else text for text in found.texts]
    return [Example(text, pair, label) for (text, pair), label in zip(pairs, found.labels, strict=True)]


def classification(
    engine: Engine, examples: Sequence[Example], length: Length = None, progress: Progress | None = None
) -> ClassificationScore:
    """How often a classifier gives the right label.

    A file's labels are the model's names, in any case, or the numbers of the model's labels, from 0.

    Raises:
        InputError: no examples, or labels that the model does not have.
        UnsupportedError: the model is no classifier of one label per text.
    """
    if engine.task != "sequence-classification" or len(engine.labels) < 2:
        kind = "reranker, of one label" if engine.task == "sequence-classification" else f"{engine.task} model"
        raise UnsupportedError(f"this needs a classifier of two labels or more; {engine.name!r} is a {kind}")
    problem = engine.task_settings["problem"]
    if problem != "single_label":
        raise UnsupportedError(
            f"{engine.name!r} gives any number of labels to a text ({problem}); files with one "
            "label per text do not score it"
        )
    truth = np.array(_label_numbers([example.label for example in examples], engine.labels))
    found, macs = [], 0
    number = {label: i for i, label in enumerate(engine.labels)}
    began = time.perf_counter()
    for part in _steps(examples, progress):
        pairs = None if part[0].pair is None else [str(example.pair) for example in part]
        results = engine.classify([example.text for example in part], pairs, length)
        found += [number[result["label"]] for result in results]
        macs += sum(result["macs"] for result in results)
    seconds = time.perf_counter() - began
    confusion = np.zeros((len(number), len(number)), np.int64)
    np.add.at(confusion, (truth, found), 1)
    f1 = _f1_by_label(confusion)
    present = (confusion.sum(0) + confusion.sum(1)) > 0
    macro = float(f1[present].mean())
    return ClassificationScore(
        accuracy=100 * float(np.trace(confusion) / len(truth)),
        f1=100 * (float(f1[1]) if len(number) == 2 else macro),
        f1_macro=100 * macro,
        matthews=100 * _matthews(confusion),
        texts=len(truth),
        macs=macs / len(truth),
        seconds=seconds,
    )


def _label_numbers(labels: Sequence[str], names: Sequence[str]) -> list[int]:
    if not labels:
        raise InputError("there are no examples to score; give at least one")
    by_name = {name.lower(): i for i, name in enumerate(names)}
    if len(by_name) == len(names) and all(label.lower() in by_name for label in labels):
        return [by_name[label.lower()] for label in labels]
    by_number = {str(i): i for i in range(len(names))}
    if all(label in by_number for label in labels):
        return [by_number[label] for label in labels]
    wrong = next((label for label in labels if label.lower() not in by_name), labels[0])
    raise InputError(
        f"the file's label {wrong[:60]!r} is none of the model's ({', '.join(names[:10])}"
        f"{', ...' if len(names) > 10 else ''}); write these names, or their numbers from 0 to {len(names) - 1}"
    )


def _f1_by_label(confusion: NDArray[np.int64]) -> NDArray[np.float64]:
    hits = np.diag(confusion)
    return 2 * hits / np.maximum(confusion.sum(0) + confusion.sum(1), 1)


def _matthews(confusion: NDArray[np.int64]) -> float:
    """Gorodkin's coefficient of any number of labels; Matthews' own where there are two."""
    total, truth, found = confusion.sum(), confusion.sum(1).astype(float), confusion.sum(0).astype(float)
    spread = np.sqrt((total**2 - truth @ truth) * (total**2 - found @ found))
    return float((np.trace(confusion) * total - truth @ found) / spread) if spread else 0.0


# -------------------------------------------------------------------------------------------- ranking


@dataclass(frozen=True)
class RankingScore:
    """Percent: mean reciprocal rank and nDCG of the first ten documents, over ``queries`` with a relevant one.

    ``left_out`` counts the queries without. ``seconds`` is wall time.
    """

    mrr_at_10: float
    ndcg_at_10: float
    queries: int
    left_out: int
    documents: int
    seconds: float

    def __str__(self) -> str:
        left_out = f" ({self.left_out} more have no relevant document)" if self.left_out else ""
        return (
            f"MRR@10 {self.mrr_at_10:.2f}   nDCG@10 {self.ndcg_at_10:.2f}\n"
            f"{self.queries} queries{left_out}, {self.documents} documents, {self.seconds:.1f} s"
        )


@dataclass(frozen=True)
class CorrelationScore:
    """Percent: correlation of the model's scores with the file's, by value and by rank."""

    pearson: float
    spearman: float
    pairs: int
    seconds: float

    def __str__(self) -> str:
        return (
            f"Pearson {self.pearson:.2f}   Spearman {self.spearman:.2f}\n{self.pairs} pairs, {self.seconds:.1f} s"
        )


@dataclass(frozen=True)
class Query:
    """A query with its documents and how relevant each is; 0 is not at all."""

    text: str
    documents: tuple[str, ...]
    relevance: tuple[float, ...]


def read_queries(path: Path, *, skip_bad_rows: bool = False) -> list[Query]:
    """The pairs of a table by their first text, in order of appearance; labels are numbers of 0 or more.

    Raises:
        InputError: as :func:`qla_runtime.texts.data_sets.read_labelled`; single texts; a label that is no number.
    """
    found: dict[str, list[tuple[str, float]]] = {}
    for example in read_examples(path, skip_bad_rows=skip_bad_rows):
        if example.pair is None:
            raise InputError(
                f"{shown(path)}: has one text per row; a ranking needs pairs of a query and a document"
            )
        found.setdefault(example.text, []).append((example.pair, _relevance(example.label, path)))
    return [Query(text, *zip(*documents, strict=True)) for text, documents in found.items()]


def _relevance(label: str, path: Path) -> float:
    try:
        value = float(label)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise InputError(
            f"{shown(path)}: the label {label[:60]!r} is no relevance; write a number, 0 for not relevant"
        )
    return value


def ranking(
    engine: Engine, queries: Sequence[Query], length: Length = None, progress: Progress | None = None
) -> RankingScore | CorrelationScore:
    """How well a reranker orders the documents of each query.

    Files of human scores, where a query has one document as a rule (STS), get correlations instead. Documents of
    equal score stand in the worst order.

    Raises:
        InputError: no query has a relevant document.
        UnsupportedError: the model is no reranker.
    """
    began = time.perf_counter()
    scores = []
    for query in queries:
        results = engine.rank(query.text, query.documents, length)
        by_index = {result["index"]: result["score"] for result in results}
        scores.append(np.array([by_index[i] for i in range(len(query.documents))]))
        if progress:
            progress(1)
    seconds = time.perf_counter() - began
    documents = sum(len(query.documents) for query in queries)
    if 2 * len(queries) > documents:
        found, truth = np.concatenate(scores), np.concatenate([query.relevance for query in queries])
        pearson = np.corrcoef(found, truth)[0, 1] if len(found) > 1 and np.ptp(found) and np.ptp(truth) else 0.0
        return CorrelationScore(100 * float(pearson), 100 * correlation(found, truth), documents, seconds)
    ordered = [
        np.array(query.relevance)[np.lexsort((query.relevance, -row))]
        for query, row in zip(queries, scores, strict=True)
        if any(query.relevance)
    ]
    if not ordered:
        raise InputError("no query has a relevant document (a label above 0); there is nothing to score")
    return RankingScore(
        mrr_at_10=100 * float(np.mean([_reciprocal_rank(row) for row in ordered])),
        ndcg_at_10=100 * float(np.mean([_ndcg(row) for row in ordered])),
        queries=len(ordered),
        left_out=len(queries) - len(ordered),
        documents=documents,
        seconds=seconds,
    )


def _reciprocal_rank(relevance: NDArray[np.float64]) -> float:
    """``relevance`` in the order of the ranking."""
    hits = np.flatnonzero(relevance[:DEPTH])
    return 1 / (1 + int(hits[0])) if len(hits) else 0.0


def _ndcg(relevance: NDArray[np.float64]) -> float:
    """With the relevance itself as gain, as trec_eval has it."""
    best = np.sort(relevance)[::-1]
    discount = 1 / np.log2(np.arange(2, 2 + min(DEPTH, len(relevance))))
    return float(relevance[:DEPTH] @ discount / (best[:DEPTH] @ discount))


# --------------------------------------------------------------------------------------------- tagging


@dataclass(frozen=True)
class Sentence:
    """Words, and the tag of each."""

    words: tuple[str, ...]
    tags: tuple[str, ...]


@dataclass(frozen=True)
class TaggingScore:
    """Percent of entities. One is found where its name and both ends are right, as in conlleval and seqeval.

    ``truncated`` sentences were longer than the model reads; their ends count as untagged.
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


_UNTAGGED = Tag(INSIDE, "")
_COMMENT = re.compile(r"# ?(id|sent_id|text|newdoc|newpar)\b")


def read_conll(path: Path, *, skip_bad_rows: bool = False) -> list[Sentence]:
    """The sentences of a CoNLL file: a word and, in the last column, its tag per line; blank lines between them.

    Columns stand between tabs where a line has one, else between blanks. ``-DOCSTART-`` lines and comments
    (``# id``, ``# text``) are left out.

    Raises:
        InputError: the file cannot be read, holds no sentence, or has a line without a tag. With ``skip_bad_rows``
            a sentence with such a line is left out, and a warning counts them.
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
    """How many entities a tagger finds. A word has the label of its first piece.

    The file's tags and the model's labels may be written in different schemes; the names of entities must agree.

    Raises:
        InputError: no sentences, or a file and a model without a common entity name.
        UnsupportedError: the model does not label tokens.
    """
    if engine.task != "token-classification":
        raise UnsupportedError(
            f"this needs a token-classification model; {engine.name!r} is a {engine.task} model"
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
    for part in _steps(sentences, progress):
        texts = [" ".join(sentence.words) for sentence in part]
        results = engine.tag(texts, length, aggregation_strategy="none", ignore_labels=[])
        for sentence, tokens in zip(part, results, strict=True):
            truncated += tokens.truncated
            labels = _word_labels(sentence.words, tokens)
            truth = _entities(file_scheme, [file_number[tag] for tag in sentence.tags])
            guess = _entities(model_scheme, [None if label is None else model_number[label] for label in labels])
            expected.update(name for name, _, _ in truth)
            found.update(name for name, _, _ in guess)
            hits.update(name for name, _, _ in truth & guess)
    seconds = time.perf_counter() - began
    precision, recall = _share(hits.total(), found.total()), _share(hits.total(), expected.total())
    return TaggingScore(
        precision=precision,
        recall=recall,
        f1=_share(2 * hits.total(), found.total() + expected.total()),
        entities=expected.total(),
        sentences=len(sentences),
        truncated=truncated,
        seconds=seconds,
        f1_by_entity={
            name: _share(2 * hits[name], found[name] + expected[name]) for name in sorted(expected | found)
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


def _word_labels(words: Sequence[str], tokens: Iterable[dict[str, Any]]) -> list[str | None]:
    """The label of the first token of each word of ``" ".join(words)``; None for a word without a token."""
    entries = iter(tokens)
    entry = next(entries, None)
    labels: list[str | None] = []
    end = -1
    for word in words:
        begin, end = end + 1, end + 1 + len(word)
        # A token may hold the blank before its word, or nothing else.
        while entry is not None and entry["start"] < begin - 1:
            entry = next(entries, None)
        labels.append(entry["label"] if entry is not None and entry["start"] < end else None)
    return labels


def _entities(scheme: LabelScheme, labels: Sequence[int | None]) -> set[tuple[str, int, int]]:
    """The named chunks of a sentence; a word without a label is outside."""
    tags = [_UNTAGGED if label is None else scheme.tags[label] for label in labels]
    return {chunk for chunk in chunks(tags) if chunk[0] not in scheme.outside and chunk[0] != _UNTAGGED.entity}


def _share(part: int, whole: int) -> float:
    return 100 * part / whole if whole else 0.0


# ------------------------------------------------------------------------------------- command line


def add_commands(add: Callable[[str, str], argparse.ArgumentParser], positive: Callable[[str], int]) -> None:
    """``qla eval classify``, ``rank`` and ``tag``; ``add`` makes a subcommand of a name and a line of help."""
    table = "a table with named columns of texts and labels (.tsv, .csv or .jsonl)"
    for name, text, file, read, measure in (
        (
            "classify",
            "accuracy, F1 and Matthews correlation on labelled texts",
            table,
            read_examples,
            classification,
        ),
        (
            "rank",
            "MRR@10 and nDCG@10 on labelled pairs, or correlations with scores",
            table,
            read_queries,
            ranking,
        ),
        ("tag", "precision, recall and F1 of entities on a CoNLL file", "the CoNLL file", read_conll, tagging),
    ):
        parser = add(name, text)
        parser.add_argument("file", metavar="FILE", help=file)
        parser.add_argument(
            "--limit", type=positive, metavar="N", help="only the first N texts, queries or sentences"
        )
        parser.add_argument(
            "--skip-bad-rows", action="store_true", help="leave out rows that cannot be read, and count them"
        )
        parser.set_defaults(read=read, measure=measure, what=name)


def _steps(items: Sequence[Any], progress: Progress | None) -> Iterable[Sequence[Any]]:
    for start in range(0, len(items), STEP):
        part = items[start : start + STEP]
        yield part
        if progress:
            progress(len(part))
