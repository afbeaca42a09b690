"""recipes/: what is not already tested as the package's own functions."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("safetensors", reason="recipes need safetensors")
from safetensors.numpy import load_file, save_file  # noqa: E402

RECIPES = Path(__file__).resolve().parents[1] / "recipes"


def mean(out: Path, *parts: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(RECIPES / "mean_of_checkpoints.py"), str(out), *map(str, parts)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def checkpoint(folder: Path, seed: int, rows: int = 3) -> Path:
    folder.mkdir()
    draw = np.random.default_rng(seed)
    save_file(
        {"a": draw.normal(size=(rows, 2)).astype(np.float16), "b": np.ones(2, np.float16)},
        folder / "model.safetensors",
    )
    (folder / "config.json").write_text(f'{{"seed": {seed}}}')
    return folder


def test_mean_of_checkpoints(tmp_path):
    first, second = checkpoint(tmp_path / "first", 1), checkpoint(tmp_path / "second", 2)
    done = mean(tmp_path / "mean", 0.75, first, 0.25, second)
    assert done.returncode == 0, done.stderr
    one, two, found = (load_file(folder / "model.safetensors") for folder in (first, second, tmp_path / "mean"))
    expected = 0.75 * one["a"].astype(np.float64) + 0.25 * two["a"].astype(np.float64)
    # Rounded to float16 once, and to float32 twice before.
    assert np.abs(found["a"] - expected).max() <= 2.0**-11 * np.abs(expected).max() * (1 + 2.0**-10)
    assert (found["b"] == 1).all() and found["a"].dtype == np.float16
    assert (tmp_path / "mean" / "config.json").read_text() == '{"seed": 1}'


def test_mean_refuses(tmp_path):
    first, other = checkpoint(tmp_path / "first", 1), checkpoint(tmp_path / "other", 2, rows=4)
    for parts, message in (
        ((0.7, first, 0.7, first), "add up to 1"),
        ((0.5, first, 0.5, other), "has other tensors"),
        ((1, tmp_path), "has no model.safetensors"),
        ((0.5, first, 0.5), "a share before each checkpoint"),
        ((first, 0.5), "a share before each checkpoint"),
    ):
        done = mean(tmp_path / "mean", *parts)
        assert done.returncode != 0 and message in done.stderr and "Traceback" not in done.stderr
        assert not (tmp_path / "mean").exists()
