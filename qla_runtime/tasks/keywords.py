"""The keyword arguments of the engine's methods, for the overloads that type checkers read.

A method with overloads would otherwise list them once per overload.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TypedDict

from qla_runtime.progress import Progress


class _Keywords(TypedDict, total=False):
    latency_ms: float | None
    progress: Progress


class AnswerKeywords(_Keywords, total=False):
    """The keyword arguments of :meth:`Engine.answer`."""

    details: bool
    top_k: int
    max_answer_tokens: int | None
    doc_stride: int | None
    handle_impossible_answer: bool | None
    null_threshold: float | None
    score: str | None


class ClassifyKeywords(_Keywords, total=False):
    """The keyword arguments of :meth:`Engine.classify`."""

    top_k: int | None
    truncate: bool


class TagKeywords(_Keywords, total=False):
    """The keyword arguments of :meth:`Engine.tag`."""

    truncate: bool
    aggregation_strategy: str
    label_scheme: str | None
    ignore_labels: Collection[str] | None


class EncodeKeywords(_Keywords, total=False):
    """The keyword arguments of :meth:`Engine.encode`, prompts left out."""

    truncate: bool
    truncate_dim: int | None
    normalize_embeddings: bool
