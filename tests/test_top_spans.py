"""The search for answer spans, through Python's door: what ranks before what."""

from __future__ import annotations

import numpy as np
import pytest

from qla_runtime import _core

SCORES = ("against-null", "all-windows", "with-null")  # qla_span_score of qla/qla.h, from 0


def spans(logits: np.ndarray, windows: list[int], top_k: int, score: str) -> list[tuple[int, int, int]]:
    """(window, first, last) of one question's best spans. All tokens are context, and no two windows share one."""
    offsets = np.concatenate([[0], np.cumsum(windows)]).astype(np.int64)
    counts, window, first, last, _, _ = _core.top_spans(
        logits.astype(np.float32), np.ones(offsets[-1], np.uint8), offsets, np.array([0, len(windows)], np.int64),
        offsets[:-1].copy(), 30, top_k, SCORES.index(score),
    )  # fmt: skip
    return list(zip(*(column[0, : counts[0]].tolist() for column in (window, first, last)), strict=True))


@pytest.mark.parametrize("score", SCORES)
def test_of_equal_spans_the_earlier_ones_come_first(score):
    flat = np.zeros((6, 2))
    one_window = [(0, 0, 0), (0, 0, 1), (0, 0, 2), (0, 1, 1), (0, 1, 2)]
    assert spans(flat[:3], [3], 5, score) == one_window
    assert spans(flat, [3, 3], 5, score) == one_window


def test_spans_rank_by_the_sum_of_their_logits():
    logits = np.array([[0.0, 1.0], [2.0, 0.5], [1.0, 3.0]])
    assert spans(logits, [3], 4, SCORES[0]) == [(0, 1, 2), (0, 2, 2), (0, 0, 2), (0, 1, 1)]
