"""Exact match and F1 of a question answering model on SQuAD, 1.1 and 2.0."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qla_runtime.engine import Engine
from qla_runtime.errors import InputError
from qla_runtime.evaluation import squad2
from qla_runtime.evaluation.questions import Question, read_squad
from qla_runtime.evaluation.steps import Progress, steps
from qla_runtime.lengths.configs import LatencyBudget, Length

STEP = 256
"""Questions per engine call."""


@dataclass(frozen=True)
class SquadScore:
    """What a model scores.

    Attributes:
        exact_match: percent.
        f1: percent.
        questions: how many were asked.
        macs: multiply-accumulates per question, the mean.
        seconds: wall time.
        within_budget: the share of calls that kept within their latency budget, 0 to 1; None without a budget.
        squad2: the metrics of :func:`qla_runtime.evaluation.squad2.metrics`; None for SQuAD 1.1.
    """

    exact_match: float
    f1: float
    questions: int
    macs: float
    seconds: float
    within_budget: float | None = None
    squad2: dict[str, float] | None = None


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
        questions: at least one, as :func:`~qla_runtime.evaluation.questions.read_squad` gives them.
        length: a length config for all questions, or a policy. A latency budget holds for one question, so each
            question is then a call of its own.
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
    for part in steps(len(questions), 1 if budget else STEP, progress):
        chosen = questions[part]
        results = engine.answer([q.question for q in chosen], [q.context for q in chosen], length, **arguments)
        if version2:
            said += map(squad2.Prediction.of, results)
        for question, result in zip(chosen, results, strict=True):
            exact += question.exact_match(result["answer"])
            f1 += question.f1(result["answer"])
            macs += result["macs"]
            met += bool(result["budget_met"])
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
