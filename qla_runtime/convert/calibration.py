"""Calibration texts: which of them, cut into which token sequences. Same file in, same samples out."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qla_runtime.errors import InputError
from qla_runtime.tokenizer import TextRules, open_tokenizer

POOL = 8
"""Texts looked at per sample picked, so that the picked lengths follow the file's own distribution."""

FORMATS = "a SQuAD-layout .json, a .txt (one text per line), or a .tsv/.csv (text TAB text_pair)"


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
    check: list[Sample]
    """What the accuracy report runs; disjoint from ``calibrate`` when ``held_out``."""
    held_out: bool


def read_texts(path: str | Path, *, articles: str = "all") -> list[tuple[str, str | None]]:
    """Reads (text, text_pair or None) from a file.

    Args:
        path: see :data:`FORMATS`.
        articles: of a SQuAD file, take ``all`` articles or only those at ``odd`` positions (the 1st, 3rd,
            ...), which keeps the others unseen for reporting.

    Raises:
        InputError: no such file, another format, or nothing in it.
    """
    path = Path(path)
    if articles not in ("all", "odd"):
        raise InputError(f"articles is {articles!r}; it must be 'all' or 'odd'")
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"calibration file {path.name!r} cannot be read: {error}") from error
    if path.suffix == ".json":
        texts = _squad(path.name, content, articles)
    elif path.suffix == ".txt":
        texts = [(line.strip(), None) for line in content.splitlines() if line.strip()]
    elif path.suffix in (".tsv", ".csv"):
        texts = _pairs(path.name, content)
    else:
        raise InputError(f"calibration file {path.name!r} must be {FORMATS}")
    if not texts:
        raise InputError(f"calibration file {path.name!r} holds no text; give some dozens of typical inputs")
    return texts


def pick_samples(
    texts: list[tuple[str, str | None]],
    tokenizer_json: str,
    rules: TextRules | None = None,
    *,
    max_length: int,
    type_vocab_size: int,
    calibrate: int = 96,
    check: int = 200,
) -> Samples:
    """Picks samples at lengths spread over the file's distribution, without any randomness.

    Texts evenly spaced over the file form a pool; its even members are for calibration, its odd ones for the
    check; of each the lengths' evenly spaced quantiles are taken.

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
    held_out = len(samples) >= 8
    first, second = (samples[::2], samples[1::2]) if held_out else (samples, samples)
    return Samples(_quantiles(first, calibrate), _quantiles(second, check), held_out)


def _sample(encoding, type_vocab_size: int) -> Sample:
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


def _squad(name: str, content: str, articles: str) -> list[tuple[str, str | None]]:
    try:
        data = json.loads(content)["data"]
        return [
            (question["question"].strip(), paragraph["context"])
            for article in data[:: 2 if articles == "odd" else 1]
            for paragraph in article["paragraphs"]
            for question in paragraph["qas"]
        ]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(
            f"calibration file {name!r} is not in SQuAD layout (data > paragraphs > context, qas > "
            f"question): {type(error).__name__}: {error}"
        ) from error


def _pairs(name: str, content: str) -> list[tuple[str, str | None]]:
    pairs: list[tuple[str, str | None]] = []
    for number, line in enumerate(content.splitlines(), 1):
        if not line.strip():
            continue
        columns = line.split("\t")
        if len(columns) != 2 or not all(column.strip() for column in columns):
            raise InputError(f"calibration file {name!r}, line {number}: expected text TAB text_pair")
        pairs.append((columns[0].strip(), columns[1].strip()))
    return pairs
