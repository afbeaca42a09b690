"""Question answering: what a call may ask for, which spans of a context answer it, and when there is no answer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qla_runtime import _core
from qla_runtime.arrays import Arrays, kept_positions
from qla_runtime.errors import InputError, shown
from qla_runtime.lengths.configs import LengthPlan
from qla_runtime.options import check_choice, check_count, check_switch
from qla_runtime.real_numbers import as_float
from qla_runtime.tasks.prepared import Call, Prepared, Task, amount
from qla_runtime.tasks.results import Answer, Span
from qla_runtime.texts.inputs import check_texts
from qla_runtime.texts.ranges import trim
from qla_runtime.texts.windows import QuestionWindows

SCORES = ("against-null", "all-windows", "with-null")
"""The rules of ``score=``, in the order of ``qla_span_score`` in qla/qla.h."""

MAX_TOP_K = 1024
"""Answers per question that ``top_k=`` may ask for."""


class AnswerTask(Task):
    """What a model for question answering does."""

    kind = "span-qa"
    method = "answer"
    usage = "engine.answer(question, context)"

    def answer(
        self,
        question: str | Iterable[str],
        context: str | Iterable[str],
        *,
        details: bool = False,
        **options: Any,
    ) -> Call[Answer]:
        """Checks the arguments of :meth:`qla_runtime.Engine.answer`; ``options`` are those of
        :meth:`AnswerOptions.checked`.

        Raises:
            InputError: an empty or missing text, unequal numbers, or an option out of range.
        """
        check_switch("details", details)
        chosen = AnswerOptions.checked(self.model.settings, **options)
        pairs, single = _checked_pairs(question, context)
        return Call(pairs, "question", single, partial(self.prepare, options=chosen, details=details))

    def windows(
        self, questions: Iterable[str], contexts: Iterable[str], doc_stride: int | None = None
    ) -> QuestionWindows:
        """Checks the arguments of :meth:`qla_runtime.Engine.windows`, and cuts the windows.

        Raises:
            InputError: an argument that :meth:`answer` refuses.
            PackageError: the tokenizer fails.
        """
        stride = AnswerOptions.checked(self.model.settings, doc_stride=doc_stride).doc_stride
        pairs, _ = _checked_pairs(questions, contexts)
        names = [f"question[{i}]" for i in range(len(pairs))]
        asked, read = zip(*pairs, strict=True)
        return self.model.encoder.windows(asked, read, stride, names)

    def prepare(
        self,
        pairs: Sequence[tuple[str, str]],
        names: Sequence[str],
        options: AnswerOptions,
        details: bool = False,
    ) -> Prepared[Answer]:
        """The windows of some questions and contexts.

        Raises:
            InputError: a question that leaves no room for its context, or a context without a token.
            PackageError: the tokenizer fails.
        """
        questions, contexts = zip(*pairs, strict=True)
        windows = self.model.encoder.windows(questions, contexts, options.doc_stride, names)
        want = {"logits", "macs", "kept"} if details else {"logits", "macs"}

        def read(arrays: Arrays, plan: LengthPlan) -> list[Answer]:
            return _results(windows, contexts, options, details, arrays, plan)

        return Prepared(windows.batch, windows.questions, frozenset(want), read)


def _checked_pairs(
    question: str | Iterable[str], context: str | Iterable[str]
) -> tuple[list[tuple[str, str]], bool]:
    """Each question with its context, and whether the caller passed a single question."""
    questions, single = check_texts(question, "question")
    contexts, single_context = check_texts(context, "context")
    if single_context and not single:
        contexts, single_context = contexts * len(questions), False
    if single != single_context or len(questions) != len(contexts):
        raise InputError(
            f"question is {amount(questions, single)} and context {amount(contexts, single_context)}; pass "
            "two texts, or two lists of the same length, or a list of questions and one context for all"
        )
    return list(zip(questions, contexts, strict=True)), single


def _results(
    windows: QuestionWindows,
    contexts: Sequence[str],
    options: AnswerOptions,
    details: bool,
    arrays: Arrays,
    plan: LengthPlan,
) -> list[Answer]:
    """What the windows of some questions gave, question by question."""
    macs = np.add.reduceat(arrays["macs"], windows.questions[:-1])
    results = []
    for q, found in enumerate(read_answers(windows, arrays["logits"], contexts, options)):
        best, report = found.entries[0], plan.report(q)
        result: Answer = {
            "answer": best["answer"],
            "score": best["score"],
            "start": best["start"],
            "end": best["end"],
            "length": report["length"],
            "length_config": report["length_config"],
            "accuracy": report["accuracy"],
            "macs": int(macs[q]),
            "budget_met": None,
            "no_answer": found.no_answer,
            "null_score": found.null_score,
        }
        if options.top_k != 1:
            result["answers"] = found.entries
        if details:
            result["windows"] = int(windows.questions[q + 1] - windows.questions[q])
            result["tokens"] = windows.tokens(q, found.window)
            positions = kept_positions(arrays, windows.batch.offsets, found.window)
            result["kept"] = [row.tolist() for row in positions]
        results.append(result)
    return results


@dataclass(frozen=True)
class AnswerOptions:
    """What one call of ``Engine.answer`` asks for, checked, with the package's own values in the gaps.

    Attributes:
        top_k: answers per question.
        max_answer_tokens: tokens of an answer at most.
        doc_stride: context tokens that two neighbouring windows share.
        handle_impossible_answer: whether "no answer" competes with the spans.
        null_threshold: the null score above which there is no answer; None: above the best span's score.
        score: one of :data:`SCORES`.
    """

    top_k: int
    max_answer_tokens: int
    doc_stride: int
    handle_impossible_answer: bool
    null_threshold: float | None
    score: str

    @classmethod
    def checked(
        cls,
        task: Mapping[str, Any],
        *,
        top_k: Any = 1,
        max_answer_tokens: Any = None,
        doc_stride: Any = None,
        handle_impossible_answer: Any = None,
        null_threshold: Any = None,
        score: Any = None,
    ) -> AnswerOptions:
        """The arguments of ``Engine.answer`` for a package whose ``task`` this is; None takes the package's.

        Raises:
            InputError: a value out of range, or two that exclude each other.
        """
        longest = task["max_length"]
        if max_answer_tokens is None:
            max_answer_tokens = task["max_answer_tokens"]
        if doc_stride is None:
            doc_stride = task["doc_stride"]
        stride_remedy = f"windows have {longest} tokens, and None takes the package's own stride"
        impossible = _impossible(task, handle_impossible_answer, null_threshold)
        return cls(
            top_k=check_count("top_k", top_k, "1 gives the best answer alone", most=MAX_TOP_K),
            max_answer_tokens=min(
                check_count("max_answer_tokens", max_answer_tokens, "None takes the package's own limit"), longest
            ),
            doc_stride=check_count("doc_stride", doc_stride, stride_remedy, least=0, most=longest - 1),
            handle_impossible_answer=impossible,
            null_threshold=None if null_threshold is None else as_float(null_threshold),
            score=_score(score, impossible),
        )


@dataclass(frozen=True)
class Answers:
    """What was found for one question.

    Attributes:
        entries: ``top_k`` spans at most, best first. "No answer" is ``""`` at 0 to 0, with the null score.
        null_score: the probability that no window holds an answer.
        window: the window (its global number) of the best span.
    """

    entries: list[Span]
    null_score: float
    window: int

    @property
    def no_answer(self) -> bool:
        """Whether the best entry is "no answer"."""
        return self.entries[0]["answer"] == ""


def read_answers(
    windows: QuestionWindows, logits: NDArray[np.float32], contexts: Sequence[str], options: AnswerOptions
) -> list[Answers]:
    """The answers of several questions.

    Args:
        windows: of these questions. Context tokens that show no text may be marked in it.
        logits: float32 (tokens, 2): start and end, of the windows' tokens.
        contexts: one per question.
        options: how many answers, how long, and what their scores mean.

    Raises:
        InputError: a context in which no token shows any text.
    """
    spans = _Spans.search(windows, logits, options)
    invisible = [q for q in range(len(contexts)) if any(a == b for a, b in spans.ranges(q, contexts[q]))]
    if invisible:
        for q in invisible:
            windows.mark_invisible(q, contexts[q])
        spans = _Spans.search(windows, logits, options)
    return [spans.answers(q, context, options) for q, context in enumerate(contexts)]


@dataclass(frozen=True)
class _Spans:
    """Spans as tokens; row ``q`` of an array holds those of question ``q``, best first, ``counts[q]`` of them."""

    windows: QuestionWindows
    counts: NDArray[np.int32]
    window: NDArray[np.int32]
    first: NDArray[np.int32]
    last: NDArray[np.int32]
    score: NDArray[np.float32]
    null_score: NDArray[np.float32]

    @classmethod
    def search(cls, windows: QuestionWindows, logits: NDArray[np.float32], options: AnswerOptions) -> _Spans:
        found = _core.top_spans(
            logits,
            windows.is_context,
            windows.batch.offsets,
            windows.questions,
            windows.positions,
            options.max_answer_tokens,
            options.top_k,
            SCORES.index(options.score),
        )
        return cls(windows, *found)

    def ranges(self, question: int, context: str) -> list[tuple[int, int]]:
        """The character ranges of a question's spans, without white space at their ends."""
        rows = [
            column[question, : self.counts[question]].tolist() for column in (self.window, self.first, self.last)
        ]
        return [trim(context, *self.windows.characters(question, *span)) for span in zip(*rows, strict=True)]

    def answers(self, question: int, context: str, options: AnswerOptions) -> Answers:
        entries: dict[tuple[int, int], Span] = {}
        scores = self.score[question].tolist()
        for (start, end), score in zip(self.ranges(question, context), scores, strict=False):
            # Tokens that are parts of one character have the same range.
            entries.setdefault(
                (start, end), {"answer": context[start:end], "score": score, "start": start, "end": end}
            )
        null = float(self.null_score[question])
        best = list(entries.values())
        if options.handle_impossible_answer:
            best = _with_null(best, null, options.null_threshold)[: options.top_k]
        return Answers(best, null, int(self.window[question, 0]))


def _with_null(spans: list[Span], score: float, threshold: float | None) -> list[Span]:
    """Spans, best first, with "no answer" where its score puts it; the threshold rules the first place alone."""
    null: Span = {"answer": "", "score": score, "start": 0, "end": 0}
    if threshold is None:
        return sorted([*spans, null], key=lambda entry: -entry["score"])  # stable: a span before an equal null
    if score > threshold:
        return [null, *spans]
    return [spans[0], *sorted([*spans[1:], null], key=lambda entry: -entry["score"])]


def _impossible(task: Mapping[str, Any], asked: Any, threshold: Any) -> bool:
    if asked is not None and not isinstance(asked, (bool, np.bool_)):
        raise InputError(
            f"handle_impossible_answer is {shown(asked)}; it must be True or False, or None for what the package "
            "says"
        )
    if threshold is None:
        return bool(task.get("no_answer", False) if asked is None else asked)
    if not 0 <= as_float(threshold) <= 1:
        raise InputError(
            f"null_threshold is {shown(threshold)}; it must be a number from 0 to 1, which the null score is "
            "compared with, or None to compare it with the best span's score"
        )
    if asked is not None and not asked:
        raise InputError(
            f"null_threshold is {shown(threshold)} with handle_impossible_answer=False, which gives an answer "
            "always; leave one of them out"
        )
    return True


def _score(asked: Any, impossible: bool) -> str:
    if asked is None:
        return "with-null" if impossible else "against-null"
    rule = check_choice("score", asked, SCORES, ", or None")
    if impossible and rule != "with-null":
        raise InputError(
            f"score is {rule!r}, which cannot be compared with the null score; use score='with-null', or "
            "handle_impossible_answer=False"
        )
    return rule
