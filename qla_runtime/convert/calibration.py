"""Which texts calibrate and which are compared, cut into token sequences. Same file in, same samples out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from qla_runtime.errors import InputError
from qla_runtime.texts.tokenizer import TextRules, open_tokenizer

POOL = 8
"""Texts looked at per sample picked, so that the picked lengths follow the file's own distribution."""


@dataclass(frozen=True)
class Sample:
    """One token sequence, unpadded."""

    ids: np.ndarray
    """(n,) int32."""
    type_ids: np.ndarray
    """(n,) int32."""
    is_context: np.ndarray
    """(n,) bool: tokens of the second text (of the first, where there is no second); no special tokens."""


@dataclass(frozen=True)
class Samples:
    calibrate: list[Sample]
    """What static ranges are found on; empty where none are wanted."""
    check: list[Sample]
    """What the accuracy report runs; disjoint from ``calibrate`` when ``held_out``."""
    held_out: bool


def pick_samples(
    texts: list[tuple[str, str | None]],
    tokenizer_json: str,
    rules: TextRules | None = None,
    *,
    max_length: int,
    type_vocab_size: int,
    calibrate: int = 96,
    check: int = 200,
    check_tokens: int | None = None,
) -> Samples:
    """Picks samples at lengths spread over the file's distribution, without any randomness.

    Texts evenly spaced over the file form a pool; its even members are for calibration, its odd ones for the
    check; of each the lengths' evenly spaced quantiles are taken. Without calibration all are for the check.

    Args:
        texts: texts, or pairs of texts.
        tokenizer_json: what cuts them into tokens.
        max_length: tokens of a sample at most.
        type_vocab_size: token types that the model knows.
        calibrate: samples for calibration at most; 0 for none.
        check: samples for the check at most.
        check_tokens: about how many tokens the check may have in all; None for any number.

    Raises:
        InputError: no text gives a sequence of three tokens.
    """
    step = max(1, len(texts) // (POOL * (calibrate + check)))
    pool = texts[::step]
    rules = rules or TextRules()
    tokenizer = open_tokenizer(tokenizer_json, rules, max_length)
    inputs = [text if pair is None else (text, pair) for text, pair in pool]
    # The traced graph holds for three tokens and more; less than [CLS] x [SEP] says nothing anyway.
    types = type_vocab_size if rules.token_types else 1
    samples = [_sample(e, types) for e in tokenizer.encode_batch(inputs) if len(e.ids) >= 3]
    if not samples:
        raise InputError("calibration texts tokenize to nothing; give some dozens of typical inputs")
    if calibrate == 0:
        return Samples([], _within(samples, check, check_tokens), True)
    held_out = len(samples) >= 8
    first, second = (samples[::2], samples[1::2]) if held_out else (samples, samples)
    return Samples(_quantiles(first, calibrate), _within(second, check, check_tokens), held_out)


def _sample(encoding: Any, type_vocab_size: int) -> Sample:
    type_ids = np.asarray(encoding.type_ids, np.int32)
    owner = np.asarray([-1 if s is None else s for s in encoding.sequence_ids])
    return Sample(
        np.asarray(encoding.ids, np.int32),
        type_ids if type_vocab_size > 1 else np.zeros_like(type_ids),
        (owner >= 0) & (owner == owner.max()),
    )


def _quantiles(samples: list[Sample], count: int) -> list[Sample]:
    ordered = sorted(samples, key=lambda sample: len(sample.ids))
    if len(ordered) <= count:
        return ordered
    return [ordered[i] for i in np.linspace(0, len(ordered) - 1, count).round().astype(int)]


def _within(samples: list[Sample], count: int, tokens: int | None) -> list[Sample]:
    """Fewer samples where ``count`` of them would have more than about ``tokens`` tokens."""
    chosen = _quantiles(samples, count)
    total = sum(len(sample.ids) for sample in chosen)
    if tokens is None or total <= tokens:
        return chosen
    return _quantiles(samples, max(1, len(chosen) * tokens // total))
