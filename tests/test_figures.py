"""Figures of an evaluation that depend on what is easily forgotten."""

from __future__ import annotations

import numpy as np
import pytest
from package_tools import tiny_package

from qla_runtime import Engine
from qla_runtime.evaluation.classification import Example, classification
from qla_runtime.evaluation.statistics import sampling_error


def test_a_label_that_is_only_ever_found_counts_in_the_mean(tmp_path):
    """By scikit-learn's rule: the mean is over the labels of the file and those that the model gave."""
    package, texts = tiny_package("sequence-classification", labels=["no", "yes"]), list("abcdefgh")
    results = Engine(package.save(tmp_path / "all")).classify(texts, top_k=None)
    shares = [next(entry["score"] for entry in result["scores"] if entry["label"] == "no") for result in results]
    middle = float(np.median(shares))
    package.tensors["head.bias"][0] -= np.log(middle / (1 - middle))  # half of the texts get either label
    engine = Engine(package.save(tmp_path / "half"))
    assert sorted(result["label"] for result in engine.classify(texts)) == ["no"] * 4 + ["yes"] * 4
    score = classification(engine, [Example(text, None, "no") for text in texts])
    assert score.f1_macro == pytest.approx(100 * (2 / 3 + 0) / 2)


def test_sampling_error_of_a_correlation_by_fisher():
    assert sampling_error("spearman", 0.0, 28) == pytest.approx(100 * 1.03 / 5)
    assert sampling_error("spearman", 60.0, 28) == pytest.approx(64 * 1.03 / 5)
    assert sampling_error("spearman", 0.0, 3) == pytest.approx(103)
