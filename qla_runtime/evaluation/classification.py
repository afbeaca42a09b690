"""Accuracy, F1 and Matthews correlation of a classifier. A figure that is not defined is 0, never NaN."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qla_runtime.engine import Engine
from qla_runtime.errors import InputError, UnsupportedError, a_model
from qla_runtime.evaluation.steps import Progress, steps
from qla_runtime.lengths.configs import Length
from qla_runtime.texts.data_sets import read_labelled
from qla_runtime.texts.files import Path

STEP = 64
"""Texts per engine call."""


@dataclass(frozen=True)
class Example:
    """A text, or a pair of texts, with its label as the file spells it."""

    text: str
    pair: str | None
    label: str


@dataclass(frozen=True)
class ClassificationScore:
    """What a classifier scores.

    Attributes:
        accuracy: percent.
        f1: percent. With two labels it is the F1 of the second one (as in GLUE), else ``f1_macro``.
        f1_macro: the mean F1 over labels, in percent.
        matthews: the Matthews correlation coefficient, -100 to 100.
        texts: how many were classified.
        macs: multiply-accumulates per text, the mean.
        seconds: wall time.
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

    The labels of the examples are the model's names, in any case, or the numbers of the model's labels, from 0.

    Args:
        engine: a classifier.
        examples: at least one, as :func:`read_examples` gives them.
        length: a length config for all texts, or a policy.
        progress: called with the number of examples done since the last call.

    Raises:
        InputError: no examples, or labels that the model does not have.
        UnsupportedError: the model is no classifier of one label per text.
    """
    if engine.task != "sequence-classification" or len(engine.labels) < 2:
        one = engine.task == "sequence-classification"
        kind = "a reranker, of one label" if one else a_model(engine.task)
        raise UnsupportedError(f"this needs a classifier of two labels or more; {engine.name!r} is {kind}")
    problem = engine.task_settings["problem"]
    if problem != "single_label":
        raise UnsupportedError(
            f"{engine.name!r} gives any number of labels to a text ({problem}); files with one "
            "label per text do not score it"
        )
    truth = np.array(_label_numbers([example.label for example in examples], engine.labels))
    found: list[int] = []
    macs = 0
    number = {label: i for i, label in enumerate(engine.labels)}
    began = time.perf_counter()
    for part in steps(len(examples), STEP, progress):
        chosen = examples[part]
        pairs = None if chosen[0].pair is None else [str(example.pair) for example in chosen]
        results = engine.classify([example.text for example in chosen], pairs, length)
        found += [number[result["label"]] for result in results]
        macs += sum(result["macs"] for result in results)
    seconds = time.perf_counter() - began
    confusion = np.zeros((len(number), len(number)), np.int64)
    np.add.at(confusion, (truth, np.array(found)), 1)
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
    f1: NDArray[np.float64] = 2 * np.diag(confusion) / np.maximum(confusion.sum(0) + confusion.sum(1), 1)
    return f1


def _matthews(confusion: NDArray[np.int64]) -> float:
    """Gorodkin's coefficient for any number of labels. For two labels it is Matthews' own."""
    total, truth, found = confusion.sum(), confusion.sum(1).astype(float), confusion.sum(0).astype(float)
    spread = np.sqrt((total**2 - truth @ truth) * (total**2 - found @ found))
    return float((np.trace(confusion) * total - truth @ found) / spread) if spread else 0.0
