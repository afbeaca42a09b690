"""Spearman correlation of an embedding model's similarities with human scores, as on the STS benchmark."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qla_runtime.engine import Engine
from qla_runtime.errors import QlaError
from qla_runtime.evaluation.statistics import check_varied, spearman
from qla_runtime.evaluation.steps import Progress, steps
from qla_runtime.lengths.configs import Length
from qla_runtime.texts.data_sets import read_scored_pairs
from qla_runtime.texts.files import shown

STEP = 256
"""Pairs per step, which is two engine calls."""


@dataclass(frozen=True)
class StsScore:
    """What a model scores.

    Attributes:
        spearman: correlation of cosine similarity and human score, in percent.
        pairs: how many pairs of sentences were compared.
        seconds: wall time.
    """

    spearman: float
    pairs: int
    seconds: float


Pairs = tuple[Sequence[float], Sequence[str], Sequence[str]]
"""Human scores, first sentences and second sentences, one of each per pair."""


def sts(
    engine: Engine,
    path: str | os.PathLike[str],
    length: Length = None,
    *,
    progress: Progress | None = None,
    skip_bad_rows: bool = False,
) -> StsScore:
    """Spearman correlation of cosine similarities with the human scores of an STS benchmark file.

    Args:
        engine: an embedding model.
        path: an STS benchmark file (``sts-test.csv``), or a table whose columns are named (GLUE's STS-B).
        length: a length config for all sentences.
        progress: called with the number of pairs done since the last call.
        skip_bad_rows: leave out rows that cannot be used, with a warning, in place of an error.

    Raises:
        InputError: the file is missing or laid out otherwise, or all its scores are equal.
        QlaError: the model gives every pair the same similarity, which correlates with nothing.
        UnsupportedError: the model gives no embeddings.
    """
    pairs = read_scored_pairs(path, skip_bad_rows=skip_bad_rows)
    return similarities(engine, pairs, shown(path), length, progress=progress)


def similarities(
    engine: Engine,
    pairs: Pairs,
    data: str,
    length: Length = None,
    *,
    progress: Progress | None = None,
) -> StsScore:
    """Spearman correlation of cosine similarities with human scores.

    Args:
        engine: an embedding model.
        pairs: as :func:`~qla_runtime.texts.data_sets.read_scored_pairs` gives them.
        data: the name of the data, for messages.
        length: a length config for all sentences.
        progress: called with the number of pairs done since the last call.

    Raises:
        InputError: all scores are equal.
        QlaError: the model gives every pair the same similarity, which correlates with nothing.
        UnsupportedError: the model gives no embeddings.
    """
    scores, firsts, seconds = pairs
    check_varied(scores, data)
    cosines = np.empty(len(scores))
    began = time.perf_counter()
    for part in steps(len(scores), STEP, progress):
        a = engine.encode(firsts[part], length).astype(np.float64)
        b = engine.encode(seconds[part], length).astype(np.float64)
        norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        cosines[part] = (a * b).sum(1) / np.maximum(norms, np.finfo(np.float64).tiny)
    found = spearman(cosines, scores)
    if not np.isfinite(found):
        raise QlaError(
            f"{engine.name}: gives all {len(scores)} pairs the same similarity, so there is no correlation to "
            "report; the model tells no sentence from another"
        )
    return StsScore(100 * found, len(scores), time.perf_counter() - began)
