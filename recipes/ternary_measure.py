"""What a trained checkpoint and its package give on labelled texts, beside each other."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open

from qla_runtime import Engine
from qla_runtime.checkpoints.reader import open_checkpoint
from qla_runtime.checkpoints.tokenizer_files import first_token
from qla_runtime.evaluation.statistics import correlation
from qla_runtime.model.fake_quantized import fake_quantize
from qla_runtime.model.float_model import Model
from qla_runtime.model.formats import LINEARS
from qla_runtime.texts.data_sets import read_labelled
from qla_runtime.texts.text_encoder import TextEncoder
from qla_runtime.training.data import Features, encode_labels, text_features
from qla_runtime.training.device import Device

BATCH_TOKENS = 4096


@dataclass(frozen=True)
class Measurement:
    """Of one file. Figures are in percent.

    Attributes:
        texts: rows of the file.
        engine: figures of the package, on all of them.
        compared: how many of them, the first ones, the checkpoint ran on as it was trained: in float, or
            fake-quantized.
        model: its figures on these.
        same: of these, rows of which both give the same label; None for regression, which has none.
        apart: the largest difference of the two scores (regression), or of the two probabilities of the engine's
            label.
    """

    texts: int
    engine: dict[str, float]
    compared: int
    model: dict[str, float]
    same: int | None
    apart: float

    def to_json(self) -> dict[str, Any]:
        """For a record."""
        return dataclasses.asdict(self)


def measure(checkpoint: Path, package: Path, path: Path, compared: int | None) -> Measurement:
    """Runs the engine on every row of a GLUE-like table, and the model in float32 on the first ``compared``."""
    source = open_checkpoint(checkpoint)
    model = source.load_model()
    if source.format is not None:
        fake_quantize(model, source.format, first_token(source.tokenizer_json, source.text))
    encoder = TextEncoder(
        source.tokenizer_json.encode, source.task.max_length, cut=True, vocab_size=source.encoder.vocab_size,
        type_vocab_size=source.encoder.type_vocab_size, rules=source.text,
    )  # fmt: skip
    data = read_labelled(path)
    truth = encode_labels(data, source.task, path)
    n = min(compared or len(truth), len(truth))
    ours = outputs(model, text_features(data.texts[:n], None, encoder, source.encoder, False))

    engine = Engine(package)
    paired = not isinstance(data.texts[0], str)
    texts, pairs = zip(*data.texts, strict=True) if paired else (data.texts, None)
    results = engine.classify(list(texts), list(pairs) if pairs else None)
    scores = np.array([result["score"] for result in results])
    if source.task.problem == "regression":
        apart = float(np.abs(scores[:n] - ours[:, 0]).max())
        figures = _spearman(scores, truth), n, _spearman(ours[:, 0], truth[:n])
        return Measurement(len(truth), *figures, None, apart)
    names = {name: number for number, name in enumerate(engine.labels)}
    theirs = np.array([names[result["label"]] for result in results])
    mine = ours.argmax(1)
    shares = torch.from_numpy(ours).softmax(1).numpy()[np.arange(n), theirs[:n]]
    apart = float(np.abs(shares - scores[:n]).max())
    same = int((mine == theirs[:n]).sum())
    return Measurement(len(truth), _of_labels(theirs, truth), n, _of_labels(mine, truth[:n]), same, apart)


@torch.inference_mode()
def outputs(model: Model, features: Features) -> NDArray[np.float32]:
    """(rows, labels) logits, in float32 whatever the machine has."""
    device = Device.choose("fp32")
    model.to(device.device)
    found = np.zeros((len(features), len(model.task.labels)), np.float32)
    for rows in features.plan(BATCH_TOKENS, np.random.default_rng(0)):
        found[rows] = device.run(model, features.batch(rows).to(device.device)).outputs.cpu().numpy()
    return found


def parameters(checkpoint: Path) -> int:
    """Numbers in a checkpoint."""
    with safe_open(checkpoint / "model.safetensors", "np") as tensors:
        return sum(math.prod(tensors.get_slice(name).get_shape()) for name in list(tensors.keys()))


def encoder_bits(package: Path) -> float:
    """Stored bits per weight of the encoder's linear modules, with the scales of their columns."""
    encoder = json.loads((package / "config.json").read_text(encoding="utf-8"))["encoder"]
    hidden = encoder["hidden"]
    weights = encoder["layers"] * (4 * hidden * hidden + 2 * hidden * encoder["intermediate"])
    stored = 0
    with safe_open(package / "model.safetensors", "np") as tensors:
        for name in list(tensors.keys()):
            parts = name.split(".")
            if parts[0] == "layers" and parts[2] in LINEARS and parts[3] in ("weight", "scale"):
                stored += tensors.get_tensor(name).nbytes
    return 8 * stored / weights


def _of_labels(found: NDArray[np.int64], truth: NDArray[np.int64]) -> dict[str, float]:
    """Of two classes, Matthews correlation is that of the numbers 0 and 1, and is 0 where all have one label."""
    hits = int(((found == 1) & (truth == 1)).sum())
    figures = {
        "accuracy": (found == truth).mean(),
        "f1": 2 * hits / max(int((found == 1).sum() + (truth == 1).sum()), 1),
        "matthews": correlation(found, truth),
    }
    return {name: round(100 * float(value), 3) for name, value in figures.items()}


def _spearman(found: NDArray[np.floating], truth: NDArray[np.floating]) -> dict[str, float]:
    return {"spearman": round(100 * correlation(found, truth), 3)}
