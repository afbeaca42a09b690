"""Accuracy of the float model: the figures that tell, while it trains, whether training helps.

Read and scored as the INT8 engine's outputs are (:mod:`qla_runtime.tasks.answer`,
:mod:`qla_runtime.evaluation.squad`); in percent, higher is better.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from qla_runtime.errors import InputError
from qla_runtime.evaluation.questions import read_squad
from qla_runtime.evaluation.statistics import check_varied, correlation
from qla_runtime.evaluation.tagging import entities, read_conll
from qla_runtime.lengths.configs import LengthConfig
from qla_runtime.model.float_model import Model
from qla_runtime.tasks.answer import AnswerOptions, read_answers
from qla_runtime.tasks.label_schemes import read_labels
from qla_runtime.texts.data_sets import read_labelled, read_scored_pairs
from qla_runtime.texts.text_encoder import TextEncoder, batches
from qla_runtime.training.data import UNTAGGED, Features, encode_labels, encode_tags, tag_features, text_features
from qla_runtime.training.device import Device

BATCH_TOKENS = 16384

Run = Callable[[Features], list[NDArray[np.float32]]]
"""Features -> for each the model's outputs: (n, 2) logits for span QA, else a vector."""
Measure = Callable[[Run], float]


def assessor(
    model: Model,
    encoder: TextEncoder,
    path: Path,
    lengths: Mapping[str, LengthConfig | None],
    device: Device,
    sample: int | None = 1000,
    skip_bad_rows: bool = False,
) -> Callable[[], dict[str, float]]:
    """A function that measures the model as it stands when called, at each length config.

    Args:
        model: what to measure.
        encoder: its tokenizer; it must not cut texts for span QA, and must for the others.
        path: what the task asks for: SQuAD json (F1), a GLUE-like table with labels (accuracy; Spearman for
            scores), a CoNLL file (F1 of entities), or an STS benchmark csv (Spearman) for embeddings.
        lengths: name -> config; None keeps every token.
        device: where it runs.
        sample: about this many of the file's items, evenly spaced; None for all. Of a SQuAD file only the
            articles at odd positions are taken, which are there to choose by.
        skip_bad_rows: leave out rows that cannot be used, with a warning, in place of an error.

    Returns:
        A function without arguments; its figures are called after metric and config, such as ``f1 full``.

    Raises:
        InputError: the file has another layout or nothing in it, or a config has not one entry per layer.
    """
    for config in lengths.values():
        if config is not None:
            config.check_layers(model.encoder.spec.layers)
    prepare = {"span-qa": _squad, "embedding": _sts, "token-classification": _tags}.get(model.task.kind, _labelled)
    metric, measure = prepare(model, encoder, path, sample, skip_bad_rows)

    def assess() -> dict[str, float]:
        runs = {name: partial(_run, model, device, config) for name, config in lengths.items()}
        return {f"{metric} {name}": 100 * measure(run) for name, run in runs.items()}

    return assess


def _squad(model: Model, encoder: TextEncoder, path: Path, sample: int | None, _: bool) -> tuple[str, Measure]:
    questions = _sampled(read_squad(path, "odd"), sample, path)
    options = AnswerOptions.checked(model.task.to_json())
    parts = []
    for part in batches([q.context for q in questions], [q.question for q in questions]):
        chosen = questions[part]
        texts = [q.question for q in chosen], [q.context for q in chosen]
        windows = encoder.windows(*texts, model.task.doc_stride, [q.id for q in chosen])
        parts.append((chosen, windows, Features.of([windows.batch], None, model.encoder.spec)))

    def measure(run: Run) -> float:
        total = 0.0
        for chosen, windows, features in parts:
            found = read_answers(windows, np.concatenate(run(features)), [q.context for q in chosen], options)
            total += sum(q.f1(answers.entries[0]["answer"]) for q, answers in zip(chosen, found, strict=True))
        return total / len(questions)

    return "f1", measure


def _sts(model: Model, encoder: TextEncoder, path: Path, sample: int | None, skip: bool) -> tuple[str, Measure]:
    found = read_scored_pairs(path, skip_bad_rows=skip)
    pairs = _sampled(list(zip(*found, strict=True)), sample, path)
    scores, firsts, seconds = (list(column) for column in zip(*pairs, strict=True))
    check_varied(scores, path.name)
    features = text_features(firsts + seconds, None, encoder, model.encoder.spec, False)

    def measure(run: Run) -> float:
        vectors = np.stack(run(features)).astype(np.float64)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return correlation((vectors[: len(scores)] * vectors[len(scores) :]).sum(1), scores)

    return "spearman", measure


def _tags(model: Model, encoder: TextEncoder, path: Path, sample: int | None, skip: bool) -> tuple[str, Measure]:
    sentences = _sampled(read_conll(path, skip_bad_rows=skip), sample, path)
    tags = encode_tags(sentences, model.task, path)
    features = tag_features(sentences, tags, encoder, model.encoder.spec, False)
    assert features.tags is not None  # tag_features gives them
    rows = np.split(features.tags, features.ragged.offsets[1:-1])
    first = [row != UNTAGGED for row in rows]
    scheme = read_labels(model.task.labels)
    # Words without a token, and those that were cut off, are left out of both sides.
    truth = [entities(scheme, row[at].tolist()) for row, at in zip(rows, first, strict=True)]

    def measure(run: Run) -> float:
        hits = found = 0
        for right, at, logits in zip(truth, first, run(features), strict=True):
            guess = entities(scheme, logits[at].argmax(1).tolist())
            hits, found = hits + len(guess & right), found + len(guess)
        return 2 * hits / max(1, found + sum(map(len, truth)))

    return "f1", measure


def _labelled(
    model: Model, encoder: TextEncoder, path: Path, sample: int | None, skip: bool
) -> tuple[str, Measure]:
    data = read_labelled(path, skip_bad_rows=skip)
    rows = _sampled(list(zip(data.texts, encode_labels(data, model.task, path), strict=True)), sample, path)
    texts, labels = (list(column) for column in zip(*rows, strict=True))
    features = text_features(texts, None, encoder, model.encoder.spec, False)
    if model.task.problem == "regression":
        check_varied(labels, path.name)
        return "spearman", lambda run: correlation(np.stack(run(features))[:, 0], labels)
    return "accuracy", lambda run: float((np.stack(run(features)).argmax(1) == labels).mean())


def _sampled(items: list[Any], sample: int | None, path: Path) -> list[Any]:
    if not items:
        raise InputError(f"{path.name}: holds nothing to measure with (of SQuAD, only odd articles)")
    return items[:: max(1, len(items) // sample)] if sample else items


@torch.no_grad()
def _run(
    model: Model, device: Device, config: LengthConfig | None, features: Features
) -> list[NDArray[np.float32]]:
    outputs: dict[int, NDArray[np.float32]] = {}
    for rows in features.plan(BATCH_TOKENS, np.random.default_rng(0)):
        batch = features.batch(rows).to(device.device)
        values = device.run(model, batch, config).outputs.float().cpu().numpy()
        for row, value, length in zip(rows, values, features.lengths[rows], strict=True):
            outputs[int(row)] = value[:length] if model.task.per_token else value
    return [outputs[row] for row in range(len(features))]
