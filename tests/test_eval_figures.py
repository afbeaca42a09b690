"""Figures that data cannot give are sentences, never NaN; small samples are called small."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("qla_runtime._core", reason="the native module is not built")

from package_tools import tiny_package  # noqa: E402

from qla_runtime import Engine
from qla_runtime.errors import InputError, QlaError  # noqa: E402
from qla_runtime.evaluation.statistics import correlation, sampling_error, spearman
from qla_runtime.evaluation.sts import sts


@pytest.fixture(scope="module")
def embedding(tmp_path_factory) -> Path:
    return tiny_package("embedding").save(tmp_path_factory.mktemp("packages") / "embedding")


def write_sts(path: Path, rows: list[tuple[float, str, str]]) -> Path:
    path.write_text("".join(f"main\tx\t2012\t1\t{score}\t{a}\t{b}\n" for score, a, b in rows))
    return path


PAIRS = [(float(k), "a b c", "a b c " + "d " * k) for k in range(5)]


@pytest.mark.parametrize(
    ("rows", "kind", "words"),
    [
        ([], InputError, "holds 0 sentence pairs"),
        (PAIRS[:1], InputError, "holds 1 sentence pairs"),
        ([(3.0, a, b) for _, a, b in PAIRS], InputError, "all 5 items have the answer 3.0"),
        ([(score, "a", "b") for score, _, _ in PAIRS], QlaError, "gives all 5 pairs the same similarity"),
    ],
)
def test_no_correlation(embedding, tmp_path, rows, kind, words):
    path = write_sts(tmp_path / "sts.csv", rows)
    with pytest.raises(kind, match=words):
        sts(Engine(embedding), path)
    command = [sys.executable, "-m", "qla_runtime.cli", "eval", "sts", str(path), "--model", str(embedding)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(place for place in sys.path if place)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout) == (2, "") and "qla: error:" in done.stderr
    assert "nan" not in done.stderr.lower()


def test_bad_rows_of_a_test_set(embedding, tmp_path):
    path = write_sts(tmp_path / "sts.csv", PAIRS)
    whole = sts(Engine(embedding), path)
    assert math.isfinite(whole.spearman) and whole.pairs == 5
    path.write_text(path.read_text() + "a line that was cut\n")
    with pytest.raises(InputError, match="line 6 has 1 columns"):
        sts(Engine(embedding), path)
    with pytest.warns(UserWarning, match="skipped 1 of 6 rows"):
        assert sts(Engine(embedding), path, skip_bad_rows=True).spearman == whole.spearman


def test_a_constant_model_orders_nothing():
    assert correlation([1.0, 1.0, 1.0], [1, 2, 3]) == 0
    assert correlation([1.0, 2.0, 3.0], [1, 2, 3]) == 1


def test_sampling_error_is_what_other_samples_show():
    """Against the spread of 4,000 samples of a thousand items each."""
    draw = np.random.default_rng(3)
    scores = 100 * draw.binomial(300, 0.8, 4000) / 300
    # A standard deviation of n draws is known to 1 part in sqrt(2 n): three such parts.
    assert sampling_error("accuracy", 80.0, 300) == pytest.approx(scores.std(), rel=3 / math.sqrt(8000))
    x = draw.standard_normal((1000, 200))
    y = 0.8 * x + 0.6 * draw.standard_normal(x.shape)
    found = [100 * spearman(a, b) for a, b in zip(x, y, strict=True)]
    # Fisher's constant 1.03 is for normal pairs of modest correlation: within a quarter here.
    assert sampling_error("spearman", float(np.mean(found)), 200) == pytest.approx(np.std(found), rel=0.25)


def test_small_samples_are_called_small(embedding, tmp_path, monkeypatch):
    from qla_runtime.search import command
    from qla_runtime.search.options import SearchOptions
    from qla_runtime.search.pipeline import search

    monkeypatch.chdir(tmp_path)
    data = write_sts(tmp_path / "sts.csv", PAIRS)
    options = SearchOptions(cost="macs", generations=1, population=2, mutations=2, crossovers=1)
    with pytest.warns(UserWarning, match="5 items are a small sample"):
        report = search(embedding, data, options, run=tmp_path / "run", draw=False, progress=False)
    assert report["items"] == 5 and report["sampling_error"] >= 20
    assert "sampling error of spearman" in command.text(report)
    assert json.loads((tmp_path / "run" / "result.json").read_text())["small_sample"] == report["small_sample"]
