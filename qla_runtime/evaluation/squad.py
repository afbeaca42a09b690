"""Accuracy on public test sets, scored as their authors score them: SQuAD 1.1 and 2.0, and the STS benchmark."""

from __future__ import annotations

import os
import re
import string
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from qla_runtime.engine import Engine
from qla_runtime.errors import InputError, QlaError
from qla_runtime.evaluation import squad2
from qla_runtime.lengths.configs import LatencyBudget, Length
from qla_runtime.texts import squad as squad_file
from qla_runtime.texts.data_sets import read_scored_pairs
from qla_runtime.texts.squad import ARTICLES as ARTICLES

STEP = 256
"""Inputs per engine call, between two reports of progress."""

Progress = Callable[[int], Any]
"""Called with the number of inputs done since the last call."""


@dataclass(frozen=True)
class Question:
    """One question of a SQuAD file, with every accepted answer; none where SQuAD 2.0 says that there is none.

    Attributes:
        version2: whether the file allows for questions without an answer.
    """

    id: str
    question: str
    context: str
    answers: tuple[str, ...]
    version2: bool = False

    def f1(self, answer: str) -> float:
        """:func:`word_f1` against the accepted answer that fits best, 0 to 1."""
        if "" in self._truths and not normalize_answer(answer):
            return 1.0
        return max(word_f1(answer, truth) for truth in self._truths)

    def exact_match(self, answer: str) -> float:
        """1.0 where :func:`exact_match` finds one of the accepted answers, else 0.0."""
        return max(exact_match(answer, truth) for truth in self._truths)

    @property
    def _truths(self) -> Sequence[str]:
        """What counts as right: SQuAD 2.0 leaves out answers without a word, and takes "" where none is left."""
        if not self.version2:
            return self.answers
        return [answer for answer in self.answers if normalize_answer(answer)] or [""]


@dataclass(frozen=True)
class SquadScore:
    """``exact_match`` and ``f1`` in percent, mean ``macs`` per question, ``seconds`` of wall time.

    ``within_budget`` is the share of calls that kept within their latency budget; None where there was none.
    ``squad2`` holds the metrics of :func:`qla_runtime.evaluation.squad2.metrics`; None for SQuAD 1.1.
    """

    exact_match: float
    f1: float
    questions: int
    macs: float
    seconds: float
    within_budget: float | None = None
    squad2: dict[str, float] | None = None


@dataclass(frozen=True)
class StsScore:
    """``spearman`` in percent (cosine similarity against human scores), ``seconds`` of wall time."""

    spearman: float
    pairs: int
    seconds: float


def squad(
    engine: Engine,
    path: str | os.PathLike[str],
    length: Length = None,
    *,
    articles: str = "all",
    limit: int | None = None,
    progress: Progress | None = None,
    options: Mapping[str, Any] | None = None,
) -> SquadScore:
    """Exact match and F1 over a SQuAD file, 1.1 or 2.0.

    Args:
        engine: a span-qa model.
        path: the JSON file.
        length: as for :func:`answers`.
        articles: ``all``, or the articles at ``odd`` or ``even`` positions.
        limit: only the first so many questions.
        progress: as for :func:`answers`.
        options: as for :func:`answers`.

    Raises:
        InputError: the file is missing or not laid out like SQuAD, or no question is left of it.
        UnsupportedError: the model does not answer questions.
    """
    questions = read_squad(path, articles)[:limit]
    if not questions:
        raise InputError(f"{path}: no question is left with articles={articles!r} and limit={limit}; choose more")
    return answers(engine, questions, length, progress=progress, options=options)


def answers(
    engine: Engine,
    questions: Sequence[Question],
    length: Length = None,
    *,
    progress: Progress | None = None,
    options: Mapping[str, Any] | None = None,
) -> SquadScore:
    """Exact match and F1 over questions.

    Args:
        engine: a span-qa model.
        questions: at least one, as :func:`read_squad` gives them.
        length: a length config for all questions, or a policy. A latency budget is one question's: each is
            then a call of its own.
        progress: called with the number of questions done since the last call.
        options: further arguments of ``Engine.answer``, such as ``handle_impossible_answer``.

    Raises:
        InputError: no questions, or an option out of range.
        UnsupportedError: the model does not answer questions.
    """
    if not questions:
        raise InputError("there are no questions to score; give at least one")
    exact, f1, macs, met = 0.0, 0.0, 0, 0
    budget = isinstance(length, LatencyBudget)
    version2 = any(question.version2 for question in questions)
    arguments = {**(options or {}), **({"top_k": 2} if version2 else {})}
    said: list[squad2.Prediction] = []
    if budget:
        engine.warm_up()
    began = time.perf_counter()
    for part in _steps(len(questions), 1 if budget else STEP):
        chosen = questions[part]
        results = engine.answer([q.question for q in chosen], [q.context for q in chosen], length, **arguments)
        if version2:
            said += map(squad2.Prediction.of, results)
        for question, result in zip(chosen, results, strict=True):
            exact += question.exact_match(result["answer"])
            f1 += question.f1(result["answer"])
            macs += result["macs"]
            met += bool(result["budget_met"])
        if progress:
            progress(len(chosen))
    count = len(questions)
    return SquadScore(
        exact_match=100 * exact / count,
        f1=100 * f1 / count,
        questions=count,
        macs=macs / count,
        seconds=time.perf_counter() - began,
        within_budget=met / count if budget else None,
        squad2=squad2.metrics(questions, said) if version2 else None,
    )


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
    scores, firsts, seconds = read_sts(path, skip_bad_rows=skip_bad_rows)
    check_varied(scores, str(path))
    cosines = np.empty(len(scores))
    began = time.perf_counter()
    for part in _steps(len(scores)):
        a = engine.encode(firsts[part], length).astype(np.float64)
        b = engine.encode(seconds[part], length).astype(np.float64)
        norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        cosines[part] = (a * b).sum(1) / np.maximum(norms, np.finfo(np.float64).tiny)
        if progress:
            progress(len(a))
    found = spearman(cosines, scores)
    if not np.isfinite(found):
        raise QlaError(
            f"{engine.name}: gives all {len(scores)} pairs the same similarity, so there is no correlation to "
            "report; the model tells no sentence from another"
        )
    return StsScore(100 * found, len(scores), time.perf_counter() - began)


def read_squad(path: str | os.PathLike[str], articles: str = "all") -> list[Question]:
    """The questions of a SQuAD file, 1.1 or 2.0, in its order.

    Raises:
        InputError: no such file, no JSON, or an entry that SQuAD does not have; the message names the place.
    """
    return [
        Question(found.id, found.question, found.context, found.answers, found.version2)
        for found in squad_file.read_squad(path, articles)
    ]


def read_sts(
    path: str | os.PathLike[str], *, skip_bad_rows: bool = False
) -> tuple[list[float], list[str], list[str]]:
    """Human scores (0 to 5), first and second sentences of an STS benchmark file or of GLUE's STS-B.

    Raises:
        InputError: no such file, fewer than two pairs, or a line without its columns or with a score that is no
            number.
    """
    return read_scored_pairs(path, skip_bad_rows=skip_bad_rows)


def normalize_answer(text: str) -> str:
    """SQuAD's normalization: lower case, no punctuation, no articles, single spaces."""
    lower = "".join(c for c in text.lower() if c not in _PUNCTUATION)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", lower).split())


def spearman(a: ArrayLike, b: ArrayLike) -> float:
    """Rank correlation of two vectors, ties sharing their mean rank; NaN where one of them is constant."""
    x, y = _ranks(np.asarray(a)), _ranks(np.asarray(b))
    x, y = x - x.mean(), y - y.mean()
    spread = np.sqrt((x @ x) * (y @ y))
    return float(x @ y / spread) if spread else float("nan")


def correlation(found: ArrayLike, truth: ArrayLike) -> float:
    """:func:`spearman`, and 0 for a model that says the same of everything: it orders nothing."""
    value = spearman(found, truth)
    return value if np.isfinite(value) else 0.0


def sampling_error(metric: str, score: float, items: int) -> float:
    """The standard error, in points, with which a sample tells a metric: what another sample would change.

    Args:
        metric: ``spearman``; any other is a mean of values from 0 to 1, such as ``f1`` and ``accuracy``.
        score: what the sample scores, in percent.
        items: how many items it has.
    """
    share = min(max(score / 100, -1.0), 1.0)
    if metric == "spearman":
        # Fisher's transformation has the error 1.03 / sqrt(n - 3); its slope here is 1 - share^2.
        return 100 * (1 - share**2) * 1.03 / np.sqrt(max(items - 3, 1))
    # Values from 0 to 1 vary the most when each is 0 or 1.
    return 100 * float(np.sqrt(max(share, 0.0) * (1 - max(share, 0.0)) / items))


def check_varied(answers: Sequence[Any], data: str) -> None:
    """Refuses test data whose answers are all the same.

    Raises:
        InputError: no item has another answer than the rest, which tells no model or config from another.
    """
    if len(set(answers)) < 2:
        same = f"have the answer {answers[0]!r}" if len(answers) else "are missing"
        raise InputError(
            f"{data}: all {len(answers)} items {same}, which tells no config from another; give more varied data"
        )


_PUNCTUATION = frozenset(string.punctuation)


def exact_match(answer: str, truth: str) -> float:
    """1.0 where the normalized answers are equal, else 0.0."""
    return float(normalize_answer(answer) == normalize_answer(truth))


def word_f1(answer: str, truth: str) -> float:
    """Harmonic mean of precision and recall over words."""
    words, expected = normalize_answer(answer).split(), normalize_answer(truth).split()
    common = sum((Counter(words) & Counter(expected)).values())
    return 2 * common / (len(words) + len(expected)) if common else 0.0


def _ranks(values: np.ndarray) -> np.ndarray:
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[which]


def _steps(count: int, step: int = STEP) -> Iterator[slice]:
    return (slice(start, min(start + step, count)) for start in range(0, count, step))
