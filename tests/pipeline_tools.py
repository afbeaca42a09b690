"""Pipelines of transformers beside those of this project, on one checkpoint with random weights. Needs torch."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import model_configs
import numpy as np
import torch
import transformers
from model_configs import TINY, Published
from transformers.modeling_outputs import BaseModelOutput, SequenceClassifierOutput, TokenClassifierOutput

from qla_runtime import Engine, pipeline
from qla_runtime.convert import convert

OUTPUTS = {
    "sequence-classification": SequenceClassifierOutput,
    "token-classification": TokenClassifierOutput,
    "embedding": BaseModelOutput,
}


@dataclass
class Beside:
    """A pipeline of this project, and two of transformers.

    Attributes:
        ours: the package's.
        same: transformers', with the engine's own outputs in place of its model's: results must be equal.
        theirs: transformers', with the checkpoint's model in float32.
    """

    ours: object
    same: object
    theirs: object

    @classmethod
    def open(cls, folder: Path, task: str, family: str, kind: str, labels=(), problem=None, **options) -> Beside:
        published = Published(
            "random", family, replace(TINY, heads=2), kind, len(labels), problem, pooling="mean", max_length=64
        )
        checkpoint = model_configs.save_checkpoint(published, folder / "checkpoint")
        config = json.loads((checkpoint / "config.json").read_text())
        if labels:
            config["id2label"] = dict(enumerate(labels))
            config["label2id"] = {label: i for i, label in enumerate(labels)}
        (checkpoint / "config.json").write_text(json.dumps(config))
        # A short limit, so that texts are too long.
        tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint, model_max_length=64)
        tokenizer.save_pretrained(checkpoint)
        convert(
            checkpoint, folder / "package", task=kind, scales="max-abs", max_length=64, length_configs={},
            progress=False,
        )  # fmt: skip
        engine = Engine(folder / "package", num_threads=1)

        def theirs() -> object:
            return transformers.pipeline(task, str(checkpoint), tokenizer=tokenizer, device="cpu", **options)

        same = theirs()
        same.model.forward = _forward(engine, kind)
        return cls(pipeline(task, engine, **options), same, theirs())


def _forward(engine: Engine, kind: str):
    """``forward`` of a model of transformers, which gives the engine's outputs."""

    def forward(input_ids=None, attention_mask=None, token_type_ids=None):
        mask = attention_mask.bool()
        ids = [row[kept].tolist() for row, kept in zip(input_ids, mask, strict=True)]
        types = None
        if token_type_ids is not None:
            types = [row[kept].tolist() for row, kept in zip(token_type_ids, mask, strict=True)]
        found = engine.forward(ids, token_type_ids=types)
        rows = found.last_hidden_state if kind == "embedding" else found.logits
        if kind != "sequence-classification":
            width = rows[0].shape[1]
            rows = [np.concatenate([row, np.zeros((mask.shape[1] - len(row), width), np.float32)]) for row in rows]
        stacked = torch.tensor(np.stack(rows))
        return OUTPUTS[kind](**{"last_hidden_state" if kind == "embedding" else "logits": stacked})

    return forward


def shape_of(value):
    """The structure of a result: its lists, keys and types, without its values."""
    if isinstance(value, dict):
        return {key: shape_of(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [shape_of(each) for each in value]
    return float if isinstance(value, (float, np.floating)) else type(value)


def near(found, expected, tolerance: float) -> bool:
    """Whether two results have the same structure, texts and integers, and numbers within ``tolerance``."""
    if isinstance(expected, dict):
        same = list(found) == list(expected)
        return same and all(near(found[key], expected[key], tolerance) for key in expected)
    if isinstance(expected, (list, tuple)):
        pairs = zip(found, expected, strict=False)
        return len(found) == len(expected) and all(near(a, b, tolerance) for a, b in pairs)
    if isinstance(expected, (float, np.floating)):
        return abs(found - expected) <= tolerance
    return found == expected
