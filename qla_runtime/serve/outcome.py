"""What a request gave, and what it took."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

Result = TypeVar("Result")


@dataclass(frozen=True)
class Outcome(Generic[Result]):
    """What a request gave.

    Attributes:
        results: one per input, as the engine's methods give them (:mod:`qla_runtime.tasks.results`).
        lengths: the name of the length config that each input ran with.
        tokens: of all inputs, special tokens included.
        kept_macs: multiply-accumulates that ran.
        full_macs: those of the same inputs with every token kept.
        tokenization_s: seconds of checking and tokenizing.
        queue_s: seconds of waiting, before tokenization and after it.
        inference_s: seconds of the batches that it was in.
        total_s: seconds from the call of ``ServedModel.run`` to here.
        kept_tokens: of ``tokens``, those that the last layer kept.
    """

    results: list[Result]
    lengths: list[str]
    tokens: int
    kept_macs: int
    full_macs: int
    tokenization_s: float
    queue_s: float
    inference_s: float
    total_s: float
    kept_tokens: int
