"""How near a package comes to the model it was made from: the figures it carries in its card."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from qla_runtime.bars import bar
from qla_runtime.convert.calibration import Sample
from qla_runtime.convert.noise import quiet
from qla_runtime.convert.scale_sources import TRAINED
from qla_runtime.model.spec import TaskSpec

if TYPE_CHECKING:
    from torch import Tensor

    from qla_runtime.checkpoints.reader import Checkpoint
    from qla_runtime.model.float_model import Model

Result = tuple[np.ndarray, np.ndarray]
"""Of one sample: last hidden states (n, H), and the head's output ((n, outputs) or (outputs,))."""

Run = Callable[[Sequence[Sample]], Iterable[Result]]
"""Runs a model on samples, in order; results may come one by one."""


def torch_run(model: Any) -> Run:
    """Runs a model, called as :class:`qla_runtime.model.float_model.Model` is, a sample at a time, unpadded."""
    import torch

    def run(samples: Sequence[Sample]) -> Iterable[Result]:
        for sample in samples:
            with torch.inference_mode():
                ids = torch.from_numpy(sample.ids.astype(np.int64))[None]
                type_ids = torch.from_numpy(sample.type_ids.astype(np.int64))[None]
                found = model(ids, type_ids)
            yield found.last_hidden[0].numpy(), found.outputs[0].numpy()

    return run


@dataclass(frozen=True)
class Reference:
    """The model that a package is compared with."""

    run: Run
    name: str
    """In words, for the report."""


def reference_of(source: Checkpoint, model: Model, first_token: int | None = None) -> Reference:
    """The checkpoint as transformers loads it, so that a misread weight shows; else as we read it.

    A checkpoint that was trained with roundings is compared with the model that rounds, as no other was trained.

    transformers' own model counts only where it finds every tensor that it wants: it fills the others with random
    numbers.

    Args:
        source: the checkpoint.
        model: its float32 model, as we read it; changed where it is to round.
        first_token: the one that stands before every text, if there is one.
    """
    if source.format is not None:
        from qla_runtime.model.fake_quantized import fake_quantize

        rounding = fake_quantize(model, source.format, first_token)
        return Reference(torch_run(rounding), "the fake-quantized model that was trained")
    theirs = _transformers_model(source)
    if theirs is None:
        return Reference(torch_run(model), "qla_runtime's own float32 model, as transformers cannot load this one")
    return Reference(torch_run(_Theirs(theirs, model)), "transformers' float32 model")


_AUTO_CLASSES = {
    "span-qa": "AutoModelForQuestionAnswering",
    "sequence-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "embedding": "AutoModel",
}


def _transformers_model(source: Checkpoint) -> Any:
    with quiet():
        try:
            import torch
            import transformers

            transformers.logging.disable_progress_bar()
            model, found = getattr(transformers, _AUTO_CLASSES[source.task.kind]).from_pretrained(
                source.folder,
                local_files_only=True,
                dtype=torch.float32,
                attn_implementation="eager",
                output_loading_info=True,
            )
        except Exception:  # transformers raises many kinds; each means that there is no such model
            return None
    # Embeddings come from the token states: the pooler that AutoModel also wants takes no part.
    unused = "pooler." if source.task.kind == "embedding" else "\0"
    missing = [name for name in found["missing_keys"] if not name.startswith(unused)]
    return None if missing or found["mismatched_keys"] else model.eval()


class _Theirs:
    """A transformers model whose record has ours: ``last_hidden`` and ``outputs``."""

    def __init__(self, theirs: Any, ours: Model):
        self._theirs, self._ours = theirs, ours

    def __call__(self, ids: Tensor, type_ids: Tensor) -> Any:
        found = self._theirs(input_ids=ids, token_type_ids=type_ids, output_hidden_states=True)
        last_hidden, kind = found.hidden_states[-1], self._ours.task.kind
        if kind == "embedding":
            outputs = self._ours.logits(last_hidden)
        elif kind == "span-qa":
            import torch

            outputs = torch.stack([found.start_logits, found.end_logits], -1)
        else:
            outputs = found.logits
        return SimpleNamespace(last_hidden=last_hidden, outputs=outputs)


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
    with bar(total, "comparing", progress, unit="text", delay=0) as shown:

        def results(run: Run) -> list[Result]:
            collected = []
            for result in run(samples):
                collected.append(result)
                shown.update()
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
    """The report's figures as a Markdown table, which also reads well in a terminal."""
    size = {name: f"{report['bytes'][name] / 1e6:.1f} MB" for name in ("float32", "package")}
    rows: list[tuple[str, ...]] = [("", "hidden cosine, mean", "min", report["agreement_means"], "weights")]
    reference = "fake-quantized" if report["scales"] == TRAINED else "float32"
    rows.append((reference, "1", "1", "1", size["float32"]))
    for name, mode in report["modes"].items():
        figures = (f"{mode[key]:.4f}" for key in ("hidden_cosine_mean", "hidden_cosine_min", "agreement"))
        rows.append((f"{report['weights']}, {name}", *figures, size["package"]))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def sentence(report: dict[str, Any]) -> str:
    """What the table compares, and on what."""
    return (
        f"The package against {report['reference']}, every token kept, on {report['samples']:,} texts "
        f"({report['tokens']:,} tokens) of {report['texts']}"
    )


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
