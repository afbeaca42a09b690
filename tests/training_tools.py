"""What the tests of training share: tiny checkpoints' data, short runs, and what runs leave behind."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (pip install 'qla_runtime[train]')")
pytest.importorskip("transformers", reason="transformers is not installed")

from checkpoint_tools import save_checkpoint  # noqa: E402

from qla_runtime.training import run  # noqa: E402
from qla_runtime.training.data import Batch, Features  # noqa: E402
from qla_runtime.training.options import LoopOptions  # noqa: E402
from qla_runtime.training.recipes.length_drop import LengthDropOptions  # noqa: E402
from qla_runtime.training.run_folder import read_log  # noqa: E402
from qla_runtime.training.start import Start  # noqa: E402

STEPS = 6
LOOP = LoopOptions(steps=STEPS, learning_rate=1e-3, checkpoint_minutes=0, log_steps=1)
SANDWICH = LengthDropOptions(batch_tokens=256, random_passes=2, layer_drop=0.3)
LOSS = 2e-6
"""Relative: some 30 float32 roundings of 6e-8, one after another, lie between outputs and their mean loss."""


def squad(path: Path, articles: int = 4, context_words: int = 30) -> Path:
    """A SQuAD file in the words of the tiny tokenizer; the answer is what stands after the question's word."""
    data = []
    for a in range(articles):
        words = [f"w{5 + (a * 11 + i * 7) % 90}" for i in range(context_words)]
        context = " ".join(words)
        qas = []
        for i in range(0, context_words - 2, 3):
            text = f"{words[i + 1]} {words[i + 2]}"
            start = len(" ".join(words[: i + 1])) + 1
            answer = {"text": text, "answer_start": start}
            qas.append({"id": f"{a}-{i}", "question": f"{words[i]} w4", "answers": [answer]})
        data.append({"title": str(a), "paragraphs": [{"context": context, "qas": qas}]})
    path.write_text(json.dumps({"version": "1.1", "data": data}))
    return path


def table(path: Path, labels=("no", "yes"), rows: int = 40) -> Path:
    lines = ["sentence1\tsentence2\tlabel"]
    lines += [f"w{5 + i} w{6 + i}\tw{7 + i % 9}\t{labels[i % len(labels)]}" for i in range(rows)]
    path.write_text("\n".join(lines) + "\n")
    return path


def lines(path: Path) -> Path:
    path.write_text("\n\n".join(" ".join(f"w{4 + (i + j) % 90}" for j in range(3 + i % 9)) for i in range(40)))
    return path


def answerer(folder: Path) -> Path:
    """A tiny checkpoint with a span-QA head."""
    return save_checkpoint(folder / "tiny-qa", "Bert", "span-qa")


def train(checkpoint: Path, data: Path, out: Path, **changes):
    settings = dict(loop=LOOP, options=SANDWICH, max_length=24 if data.suffix == ".json" else 16, progress=False)
    return run.train(checkpoint, data, out, **{**settings, **changes})


def saved(out: Path) -> tuple[bytes, dict]:
    """The newest checkpoint: bytes of the weights, and the state."""
    folder = max((out / "checkpoints").glob("step-*"))
    return (folder / "model.safetensors").read_bytes(), torch.load(folder / "state.pt", weights_only=True)


def assert_same_run(one: Path, other: Path) -> None:
    (weights, state), (other_weights, other_state) = saved(one), saved(other)
    assert weights == other_weights
    assert {**state, "seconds": 0, "optimizer": 0, "random": 0} == {
        **other_state, "seconds": 0, "optimizer": 0, "random": 0
    }  # fmt: skip
    for key in ("exp_avg", "exp_avg_sq", "step"):
        for number, moments in state["optimizer"]["state"].items():
            assert torch.equal(moments[key], other_state["optimizer"]["state"][number][key])
    losses = [
        [{k: v for k, v in entry.items() if "second" not in k} for entry in read_log(run)] for run in (one, other)
    ]
    assert losses[0] == losses[1]


def batch_of(mask, labels=None) -> Batch:
    mask = torch.tensor(mask)
    return Batch(
        torch.zeros(mask.shape, dtype=torch.int64), torch.zeros(mask.shape, dtype=torch.int64), mask, labels,
        np.arange(len(mask)),
    )  # fmt: skip


def started(checkpoint: Path, data: Path) -> tuple[Start, Features]:
    """A span-QA run's start and its features, in windows of 24 tokens."""
    start = Start.open(checkpoint, data, max_length=24)
    return start, start.features(start.tokenizer(data.parent), False)


def qla_train(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "qla_runtime.cli", "train", "length-drop", *map(str, arguments)]
