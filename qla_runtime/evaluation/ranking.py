"""MRR and nDCG of a reranker, or correlations with human scores. A figure that is not defined is 0, never NaN."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qla_runtime.engine import Engine
from qla_runtime.errors import InputError
from qla_runtime.evaluation.classification import read_examples
from qla_runtime.evaluation.statistics import correlation
from qla_runtime.evaluation.steps import Progress
from qla_runtime.lengths.configs import Length
from qla_runtime.texts.files import Path, shown

DEPTH = 10
"""Documents of a ranking that count."""


@dataclass(frozen=True)
class RankingScore:
    """What a reranker scores on queries with several documents each.

    Attributes:
        mrr_at_10: mean reciprocal rank of the first relevant document among the first ten, in percent.
        ndcg_at_10: normalized discounted cumulative gain of the first ten documents, in percent.
        queries: how many queries have a relevant document. The figures are means over these.
        left_out: how many have none.
        documents: how many documents were scored, of all queries.
        seconds: wall time.
    """

    mrr_at_10: float
    ndcg_at_10: float
    queries: int
    left_out: int
    documents: int
    seconds: float

    def __str__(self) -> str:
        left_out = f" ({self.left_out} more have no relevant document)" if self.left_out else ""
        return (
            f"MRR@10 {self.mrr_at_10:.2f}   nDCG@10 {self.ndcg_at_10:.2f}\n"
            f"{self.queries} queries{left_out}, {self.documents} documents, {self.seconds:.1f} s"
        )


@dataclass(frozen=True)
class CorrelationScore:
    """How a reranker's scores agree with human ones.

    Attributes:
        pearson: correlation of the scores, in percent.
        spearman: correlation of their ranks, in percent.
        pairs: how many pairs of texts were scored.
        seconds: wall time.
    """

    pearson: float
    spearman: float
    pairs: int
    seconds: float

    def __str__(self) -> str:
        return (
            f"Pearson {self.pearson:.2f}   Spearman {self.spearman:.2f}\n{self.pairs} pairs, {self.seconds:.1f} s"
        )


@dataclass(frozen=True)
class Query:
    """A query, its documents, and how relevant each document is. A relevance of 0 is not relevant."""

    text: str
    documents: tuple[str, ...]
    relevance: tuple[float, ...]


def read_queries(path: Path, *, skip_bad_rows: bool = False) -> list[Query]:
    """The pairs of a table, put together by their first text, in order of appearance.

    Raises:
        InputError: as :func:`qla_runtime.texts.data_sets.read_labelled`; single texts; or a label that is no
            number of 0 or more.
    """
    found: dict[str, list[tuple[str, float]]] = {}
    for example in read_examples(path, skip_bad_rows=skip_bad_rows):
        if example.pair is None:
            raise InputError(
                f"{shown(path)}: has one text per row; a ranking needs pairs of a query and a document"
            )
        found.setdefault(example.text, []).append((example.pair, _relevance(example.label, path)))
    return [Query(text, *zip(*documents, strict=True)) for text, documents in found.items()]


def _relevance(label: str, path: Path) -> float:
    try:
        value = float(label)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise InputError(
            f"{shown(path)}: the label {label[:60]!r} is no relevance; write a number, 0 for not relevant"
        )
    return value


def ranking(
    engine: Engine, queries: Sequence[Query], length: Length = None, progress: Progress | None = None
) -> RankingScore | CorrelationScore:
    """How well a reranker orders the documents of each query.

    In files of human scores (STS) a query has one document as a rule. They get correlations instead. Documents
    of equal score stand in the worst order.

    Args:
        engine: a reranker.
        queries: as :func:`read_queries` gives them.
        length: a length config for all pairs, or a policy.
        progress: called with the number of queries done since the last call.

    Raises:
        InputError: no query has a relevant document.
        UnsupportedError: the model is no reranker.
    """
    began = time.perf_counter()
    scores = []
    for query in queries:
        results = engine.rank(query.text, query.documents, length)
        by_index = {result["index"]: result["score"] for result in results}
        scores.append(np.array([by_index[i] for i in range(len(query.documents))]))
        if progress:
            progress(1)
    seconds = time.perf_counter() - began
    documents = sum(len(query.documents) for query in queries)
    if 2 * len(queries) > documents:
        found, truth = np.concatenate(scores), np.concatenate([query.relevance for query in queries])
        pearson = np.corrcoef(found, truth)[0, 1] if len(found) > 1 and np.ptp(found) and np.ptp(truth) else 0.0
        return CorrelationScore(100 * float(pearson), 100 * correlation(found, truth), documents, seconds)
    ordered = [
        _in_order(np.array(query.relevance), row)
        for query, row in zip(queries, scores, strict=True)
        if any(query.relevance)
    ]
    if not ordered:
        raise InputError("no query has a relevant document (a label above 0); there is nothing to score")
    return RankingScore(
        mrr_at_10=100 * float(np.mean([_reciprocal_rank(row) for row in ordered])),
        ndcg_at_10=100 * float(np.mean([_ndcg(row) for row in ordered])),
        queries=len(ordered),
        left_out=len(queries) - len(ordered),
        documents=documents,
        seconds=seconds,
    )


def _in_order(relevance: NDArray[np.float64], scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Relevance by falling score, and in the worst order where scores are equal."""
    return relevance[np.lexsort((relevance, -scores))]


def _reciprocal_rank(relevance: NDArray[np.float64]) -> float:
    """``relevance`` in the order of the ranking."""
    hits = np.flatnonzero(relevance[:DEPTH])
    return 1 / (1 + int(hits[0])) if len(hits) else 0.0


def _ndcg(relevance: NDArray[np.float64]) -> float:
    """``relevance`` in the order of the ranking. It is the gain itself, as in trec_eval."""
    best = np.sort(relevance)[::-1]
    discount = 1 / np.log2(np.arange(2, 2 + min(DEPTH, len(relevance))))
    return float(relevance[:DEPTH] @ discount / (best[:DEPTH] @ discount))
