"""Shortest way to the C door from a test: ragged int batches in, every result out."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from qla_runtime import _core

RATIO, TOKENS = 0, 1
ISAS = ("ref", "avx2", "avxvnni", "avx512vnni", "amx")
EVERYTHING = {"last_hidden", "logits", "kept", "hidden_states", "scores", "macs"}


def available_isas() -> list[str]:
    return _core.available_isas()


def random_batch(lengths: list[int], vocab_size: int, types: int = 1, seed: int = 0) -> tuple[np.ndarray, ...]:
    """(ids int32[T], offsets int64[S+1], type_ids int32[T])"""
    random = np.random.default_rng(seed)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    ids = random.integers(0, vocab_size, offsets[-1], dtype=np.int32)
    return ids, offsets, random.integers(0, types, offsets[-1], dtype=np.int32)


def run(engine, batch, lengths=(), index=None, want=EVERYTHING) -> dict[str, np.ndarray]:
    ids, offsets, types = batch
    if index is not None:
        index = np.asarray(index, np.int32)
    return engine.run(ids, offsets, types, list(lengths), index, want)


def select(batch, sequences: list[int]) -> tuple[np.ndarray, ...]:
    """The batch made of these sequences, in this order."""
    ids, offsets, types = batch
    spans = [np.arange(offsets[s], offsets[s + 1]) for s in sequences]
    rows = np.concatenate(spans)
    sizes = [len(span) for span in spans]
    return ids[rows], np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64), types[rows]


def rows_of(result: dict[str, np.ndarray], batch, s: int) -> dict[str, bytes]:
    """The bytes of everything that belongs to sequence s (tokens are a result's second-last or last axis)."""
    _, offsets, _ = batch
    span = slice(offsets[s], offsets[s + 1])
    count = len(offsets) - 1
    logits = result["logits"]
    return {
        "last_hidden": result["last_hidden"][span].tobytes(),
        "hidden_states": result["hidden_states"][:, span].tobytes(),
        "scores": result["scores"][:, span].tobytes(),
        "kept": result["kept"][:, span].tobytes(),
        "kept_counts": result["kept_counts"][:, s].tobytes(),
        "macs": result["macs"][s : s + 1].tobytes(),
        "logits": (logits[s] if len(logits) == count else logits[span]).tobytes(),
    }


def default_package() -> Path:
    import qla_runtime

    return Path(qla_runtime.__file__).parent / "models" / "minilm-l6-squad"
