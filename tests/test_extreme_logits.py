"""Scores are probabilities whatever the logits: e to the power of 9,000 is no number."""

from __future__ import annotations

import math

import pytest
from package_tools import tiny_package

from qla_runtime import Engine

FAR = 9_000.0
"""Close to the largest bias that a package may hold."""


def engine_of(tmp_path, task: str, bias: list[float], **options) -> Engine:
    package = tiny_package(task, **options)
    package.tensors["head.bias"][: len(bias)] = bias
    return Engine(package.save(tmp_path / "package"), num_threads=1)


@pytest.mark.parametrize("problem", ["single_label", "multi_label"])
def test_labels(tmp_path, problem):
    labels = ["sure", "never", "no"]
    engine = engine_of(tmp_path, "sequence-classification", [FAR, -FAR, -FAR], labels=labels, problem=problem)
    scores = {entry["label"]: entry["score"] for entry in engine.classify("a b", top_k=None)["scores"]}
    assert scores == {"sure": 1.0, "never": 0.0, "no": 0.0}


def test_tags(tmp_path):
    engine = engine_of(tmp_path, "token-classification", [0.0, FAR])
    spans = engine.tag("a b")
    assert spans and all(span["score"] == 1.0 for span in spans)


def test_answers(tmp_path):
    """The bias is the same for all tokens, so it changes no probability but by the logits' own rounding."""
    answers = [engine_of(tmp_path / f"{far}", "span-qa", [far, -far]).answer("a?", "b c d") for far in (0.0, FAR)]
    assert math.isclose(*(answer["score"] for answer in answers), rel_tol=0.01)
