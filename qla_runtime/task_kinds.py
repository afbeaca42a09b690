"""The kinds of task that a package can name, and what a model's head gives for each."""

from __future__ import annotations

TASK_KINDS = ("span-qa", "sequence-classification", "token-classification", "embedding")
"""``task.kind`` of a package's ``config.json``."""


def outputs(kind: str, labels: int) -> int:
    """Numbers that the head gives per row: start and end for span QA, else one per label. 0: there is no head."""
    return {"span-qa": 2, "embedding": 0}.get(kind, labels)


def per_token(kind: str) -> bool:
    """Whether the head gives a row per token. Else it gives one per sequence; an embedding is such a row, too."""
    return kind in ("span-qa", "token-classification")
