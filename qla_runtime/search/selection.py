"""The data that a search chooses by: what is measured, on which items, of which lengths."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from qla_runtime.engine import Engine
from qla_runtime.errors import InputError, UnsupportedError, a_model
from qla_runtime.evaluation.questions import read_squad
from qla_runtime.evaluation.statistics import check_varied, correlation
from qla_runtime.lengths.configs import LengthConfig
from qla_runtime.ragged import Ragged
from qla_runtime.search.package import Package
from qla_runtime.tasks.results import Label
from qla_runtime.texts.data_sets import read_labelled, read_scored_pairs
from qla_runtime.texts.text_encoder import TextEncoder, batches


@dataclass(frozen=True)
class Selection(ABC):
    """Items with known answers.

    Attributes:
        items: one tuple or object per item.
        data: where they come from, in words.
        total: how many there are to choose from.
    """

    items: Sequence[Any]
    data: str
    total: int

    metric = ""
    """The name of what :meth:`score` gives."""

    def sample(self, count: int | None) -> Selection:
        """``count`` of the items, evenly spaced; all of them for None, or where there are no more.

        Raises:
            InputError: all of the sample have the same answer, so that any model scores the same.
        """
        if count is not None and count < len(self.items):
            rows = (i * len(self.items) // count for i in range(count))
            chosen = replace(self, items=[self.items[row] for row in rows])
        else:
            chosen = self
        chosen.check()
        return chosen

    @property
    def description(self) -> str:
        """File, articles and number of items, for whoever reads a score."""
        return f"{self.data}, {len(self.items)} of {self.total} items"

    @abstractmethod
    def score(self, engine: Engine, config: LengthConfig) -> float:
        """The metric in percent, higher is better."""

    @abstractmethod
    def sequences(self, encoder: TextEncoder) -> Ragged:
        """Every sequence that :meth:`score` runs, in token ids."""

    def check(self) -> None:
        """Raises InputError where the items tell no model from another."""
        if len(self.items) < 1:
            raise InputError(f"{self.data}: holds no items; give a file with some")


@dataclass(frozen=True)
class Questions(Selection):
    """SQuAD questions: mean F1 over words.

    Attributes:
        stride: tokens that two neighbouring windows of a context share.
    """

    stride: int

    metric = "f1"

    def score(self, engine: Engine, config: LengthConfig) -> float:
        found = engine.answer([q.question for q in self.items], [q.context for q in self.items], config)
        scores = [question.f1(result["answer"]) for question, result in zip(self.items, found, strict=True)]
        return 100 * sum(scores) / len(scores)

    def sequences(self, encoder: TextEncoder) -> Ragged:
        parts = []
        for part in batches([q.context for q in self.items], [q.question for q in self.items]):
            chosen = self.items[part]
            texts = [q.question for q in chosen], [q.context for q in chosen]
            parts.append(encoder.windows(*texts, self.stride, [q.id for q in chosen]).batch)
        return Ragged.concatenated(parts)


class Pairs(Selection):
    """Sentence pairs with human scores: Spearman correlation of cosine similarities with them."""

    metric = "spearman"

    def check(self) -> None:
        super().check()
        check_varied([score for score, _, _ in self.items], self.data)

    def score(self, engine: Engine, config: LengthConfig) -> float:
        truth, firsts, seconds = zip(*self.items, strict=True)
        a, b = (engine.encode(texts, config).astype(np.float64) for texts in (list(firsts), list(seconds)))
        cosines = (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
        return 100 * correlation(cosines, truth)

    def sequences(self, encoder: TextEncoder) -> Ragged:
        _, firsts, seconds = zip(*self.items, strict=True)
        return _encode([*firsts, *seconds], encoder)


class Labels(Selection):
    """Texts, or pairs of texts, with labels: the share that the model labels so."""

    metric = "accuracy"

    def check(self) -> None:
        super().check()
        check_varied([label for label, _ in self.items], self.data)

    def score(self, engine: Engine, config: LengthConfig) -> float:
        labels = [label for label, _ in self.items]
        found = [result["label"] for result in self._results(engine, config)]
        return 100 * float(np.mean([a == b for a, b in zip(found, labels, strict=True)]))

    def sequences(self, encoder: TextEncoder) -> Ragged:
        return _encode([text for _, text in self.items], encoder)

    def _results(self, engine: Engine, config: LengthConfig) -> list[Label]:
        texts = [text for _, text in self.items]
        if isinstance(texts[0], str):
            return engine.classify(texts, None, config)
        firsts, seconds = zip(*texts, strict=True)
        return engine.classify(list(firsts), list(seconds), config)


class Numbers(Labels):
    """Texts, or pairs of texts, with numbers: Spearman correlation of the model's numbers with them."""

    metric = "spearman"

    def score(self, engine: Engine, config: LengthConfig) -> float:
        found = [result["score"] for result in self._results(engine, config)]
        return 100 * correlation(found, [label for label, _ in self.items])


def read_selection(package: Package, path: Path, articles: str, *, skip_bad_rows: bool = False) -> Selection:
    """The selection data that fits the package's task.

    Args:
        package: for its task and labels.
        path: SQuAD 1.1 json for span QA, an STS benchmark csv for embeddings, a GLUE-like tsv with labels or
            scores for sequence classification.
        articles: of a SQuAD file.
        skip_bad_rows: leave out rows of a table that cannot be used, with a warning, in place of an error.

    Raises:
        InputError: the file is missing, empty, or laid out otherwise, or has a label that the model has not.
        UnsupportedError: a task that has no metric here.
    """
    task = package.task
    if task["kind"] == "span-qa":
        questions = read_squad(path, articles)
        where = path.name if articles == "all" else f"{path.name}, articles at {articles} positions"
        return Questions(questions, where, len(questions), task["doc_stride"])
    if task["kind"] == "embedding":
        pairs = list(zip(*read_scored_pairs(path, skip_bad_rows=skip_bad_rows), strict=True))
        return Pairs(pairs, path.name, len(pairs))
    if task["kind"] == "sequence-classification" and task["problem"] != "multi_label":
        return _labelled(task, path, skip_bad_rows)
    problem = task.get("problem", task["kind"]).replace("_", "-")
    raise UnsupportedError(
        f"a search measures span-qa, embedding, single-label and regression models; this is {a_model(problem)}"
    )


def _labelled(task: dict[str, Any], path: Path, skip_bad_rows: bool) -> Selection:
    table = read_labelled(path, skip_bad_rows=skip_bad_rows)
    if task["problem"] == "regression":
        items = [(_number(label, path), text) for label, text in zip(table.labels, table.texts, strict=True)]
        return Numbers(items, path.name, len(items))
    names = {name: name for name in task["labels"]}
    if not set(table.labels) <= set(names):
        names = {str(i): name for i, name in enumerate(task["labels"])}
    unknown = sorted(set(table.labels) - set(names))
    if unknown:
        raise InputError(
            f"{path.name}: label {unknown[0]!r} is none of the model's ({', '.join(task['labels'])}), by name or "
            "by number; give data of the model's own task"
        )
    items = [(names[label], text) for label, text in zip(table.labels, table.texts, strict=True)]
    return Labels(items, path.name, len(items))


def _number(label: str, path: Path) -> float:
    try:
        number = float(label)
    except ValueError:
        number = float("nan")
    if not np.isfinite(number):
        raise InputError(f"{path.name}: label {label!r} is no number, and the model predicts numbers")
    return number


def _encode(texts: Sequence[str] | Sequence[tuple[str, str]], encoder: TextEncoder) -> Ragged:
    return Ragged.concatenated(
        [encoder.encode(texts[part])[0] for part in batches(["".join(text) for text in texts])]
    )
