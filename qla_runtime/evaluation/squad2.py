"""The metrics of SQuAD 2.0, whose questions may have no answer, by the formulas of its official script."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qla_runtime.evaluation.questions import Question
from qla_runtime.tasks.results import Answer


@dataclass(frozen=True)
class Prediction:
    """A model's reply to one question.

    Attributes:
        answer: the reply; ``""`` is "no answer".
        best_span: the best text of the context, also where the reply is "no answer".
        null_score: the probability that there is no answer, 0 to 1.
    """

    answer: str
    best_span: str
    null_score: float

    @classmethod
    def of(cls, result: Answer) -> Prediction:
        """Reads a result of ``Engine.answer`` with ``top_k=2``: one of its two answers is a span."""
        best_span = next(entry["answer"] for entry in result["answers"] if entry["answer"])
        return cls(result["answer"], best_span, result["null_score"])


def metrics(questions: Sequence[Question], predictions: Sequence[Prediction]) -> dict[str, float]:
    """The official metrics, under their official names, in percent.

    - ``exact``, ``f1`` and ``total``: over all questions.
    - ``HasAns_exact`` and so on: over the questions with an answer. Absent where there are none.
    - ``NoAns_exact`` and so on: over the questions without an answer. Absent where there are none.
    - ``best_exact`` and ``best_f1``: the best values that a threshold on ``null_score`` reaches. The reply is "no
      answer" above it, and the best span below.
    - ``best_exact_thresh`` and ``best_f1_thresh``: these thresholds.

    Args:
        questions: at least one.
        predictions: one per question.
    """
    pairs = list(zip(questions, predictions, strict=True))
    exact = [question.exact_match(said.answer) for question, said in pairs]
    f1 = [question.f1(said.answer) for question, said in pairs]
    found = _means("", exact, f1)
    for name, wanted in (("HasAns_", True), ("NoAns_", False)):
        chosen = [i for i, question in enumerate(questions) if bool(question.answers) == wanted]
        if chosen:
            found |= _means(name, [exact[i] for i in chosen], [f1[i] for i in chosen])
    for name, score in (("exact", "exact_match"), ("f1", "f1")):
        values = [getattr(question, score)(said.best_span) for question, said in pairs]
        best, threshold = _best_threshold(questions, values, [said.null_score for said in predictions])
        found |= {f"best_{name}": best, f"best_{name}_thresh": threshold}
    return found


def _means(name: str, exact: Sequence[float], f1: Sequence[float]) -> dict[str, float]:
    count = len(exact)
    return {f"{name}exact": 100 * sum(exact) / count, f"{name}f1": 100 * sum(f1) / count, f"{name}total": count}


def _best_threshold(
    questions: Sequence[Question], scores: Sequence[float], null_scores: Sequence[float]
) -> tuple[float, float]:
    """The best mean of ``scores`` in percent, and the null score above which the reply is then "no answer"."""
    # With a threshold below all null scores, every question without an answer is right, and no other.
    current = best = float(sum(not question.answers for question in questions))
    threshold = 0.0
    for i in sorted(range(len(questions)), key=lambda i: null_scores[i]):
        current += scores[i] if questions[i].answers else -1.0
        if current > best:
            best, threshold = current, null_scores[i]
    return 100 * best / len(questions), threshold
