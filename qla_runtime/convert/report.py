"""How near the INT8 engine comes to the float32 original: the figures a package carries in its card."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from qla_runtime.convert.calibration import Sample
from qla_runtime.convert.spec import TaskSpec

Result = tuple[np.ndarray, np.ndarray]
"""Of one sample: last hidden states (n, H), and the head's output ((n, outputs) or (outputs,))."""

Run = Callable[[Sequence[Sample]], Iterable[Result]]
"""Runs a model on samples, in order; results may come one by one."""


def torch_run(model) -> Run:
    """Runs a :class:`qla_runtime.modeling.Model`, one unpadded sample at a time."""
    import torch

    def run(samples: Sequence[Sample]) -> Iterable[Result]:
        for sample in samples:
            with torch.inference_mode():
                ids = torch.from_numpy(sample.ids.astype(np.int64))[None]
                type_ids = torch.from_numpy(sample.type_ids.astype(np.int64))[None]
                logits, output = model(ids, type_ids)
            yield output.last_hidden[0].numpy(), logits[0].numpy()

    return run


def engine_run(package: Path, task: TaskSpec) -> Run:
    """Runs the native engine on a package, one sample at a time, every token kept."""
    from qla_runtime import _core

    def run(samples: Sequence[Sample]) -> Iterable[Result]:
        engine = _core.Engine(str(package))
        for sample in samples:
            offsets = np.array([0, len(sample.ids)], np.int64)
            found = engine.run(sample.ids, offsets, sample.type_ids, [], None, {"last_hidden", "logits"})
            yield found["last_hidden"], found["logits"] if task.per_token else found["logits"][0]

    return run


def compare(
    task: TaskSpec,
    samples: Sequence[Sample],
    reference: Run,
    candidates: dict[str, Run],
    *,
    progress: bool = True,
) -> dict[str, Any]:
    """Runs every model on the same samples and measures each candidate against the reference.

    Returns:
        ``{"samples", "tokens", "agreement_means", "modes": {name: {"hidden_cosine_mean", "hidden_cosine_min",
        "agreement"}}}``. Cosines are per token, over all tokens of all samples.
    """
    total = len(samples) * (1 + len(candidates))
    with tqdm(total=total, desc="compare", unit="text", disable=not progress) as bar:

        def results(run: Run) -> list[Result]:
            collected = []
            for result in run(samples):
                collected.append(result)
                bar.update()
            return collected

        expected = results(reference)
        modes = {name: _measure(task, samples, expected, results(run)) for name, run in candidates.items()}
    return {
        "samples": len(samples),
        "tokens": sum(len(sample.ids) for sample in samples),
        "agreement_means": _AGREEMENTS[_agreement_kind(task)],
        "modes": modes,
    }


def table(report: dict[str, Any]) -> str:
    """The report as a Markdown table, which also reads well in a terminal."""
    size = {name: f"{report['bytes'][name] / 1e6:.1f} MB" for name in ("float32", "int8")}
    rows = [("", "hidden cosine, mean", "min", report["agreement_means"], "weights")]
    rows.append(("float32", "1", "1", "1", size["float32"]))
    for name, mode in report["modes"].items():
        figures = (f"{mode[key]:.4f}" for key in ("hidden_cosine_mean", "hidden_cosine_min", "agreement"))
        rows.append((f"int8, {name}", *figures, size["int8"]))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


_AGREEMENTS = {
    "span": "same answer span",
    "label": "same label",
    "labels": "same set of labels",
    "token": "same label, tokens",
    "score": "mean score difference",
    "embedding": "embedding cosine, mean",
}


def _agreement_kind(task: TaskSpec) -> str:
    if task.kind == "sequence-classification":
        return {"single_label": "label", "multi_label": "labels", "regression": "score"}[task.problem]
    return {"span-qa": "span", "token-classification": "token", "embedding": "embedding"}[task.kind]


def _measure(
    task: TaskSpec, samples: Sequence[Sample], expected: list[Result], actual: list[Result]
) -> dict[str, float]:
    hidden = np.concatenate([_cosine(a[0], e[0]) for a, e in zip(actual, expected, strict=True)])
    kind = _agreement_kind(task)
    agreement = [
        _agree(kind, task, sample, a[1], e[1]) for sample, a, e in zip(samples, actual, expected, strict=True)
    ]
    return {
        "hidden_cosine_mean": float(hidden.mean()),
        "hidden_cosine_min": float(hidden.min()),
        "agreement": float(np.mean(agreement)),
    }


def _agree(kind: str, task: TaskSpec, sample: Sample, a: np.ndarray, b: np.ndarray) -> float:
    if kind == "span":
        return best_span(a, sample, task.max_answer_tokens) == best_span(b, sample, task.max_answer_tokens)
    if kind == "embedding":
        return float(_cosine(a[None], b[None])[0])
    if kind == "score":
        return float(np.abs(a - b).mean())
    if kind == "labels":
        return bool(((a > 0) == (b > 0)).all())
    return float((a.argmax(-1) == b.argmax(-1)).mean())


def best_span(logits: np.ndarray, sample: Sample, max_tokens: int) -> tuple[int, int]:
    """First and last token of the best answer in one window: (n, 2) logits, context tokens only."""
    allowed = np.where(sample.is_context, 0.0, -np.inf)
    scores = (logits[:, 0] + allowed)[:, None] + (logits[:, 1] + allowed)[None, :]
    n = len(scores)
    near = np.triu(np.ones((n, n), bool)) & ~np.triu(np.ones((n, n), bool), max_tokens)
    first, last = np.unravel_index(np.where(near, scores, -np.inf).argmax(), scores.shape)
    return int(first), int(last)


def _cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Row by row, in double: float32 sums would round 0.9999 away."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    return (a * b).sum(-1) / np.maximum(np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1), 1e-30)
