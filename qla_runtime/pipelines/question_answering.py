"""Extractive question answering, which left transformers with version 5.

Call forms, defaults, scores and keys are those of ``QuestionAnsweringPipeline`` in transformers 4.57.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from qla_runtime import _core
from qla_runtime.arrays import Arrays
from qla_runtime.errors import InputError, shown
from qla_runtime.lengths.configs import LengthPlan
from qla_runtime.options import check_count, check_switch
from qla_runtime.pipelines.base import Found, Given, Options, Pipeline
from qla_runtime.tasks.answer import MAX_TOP_K, SCORES
from qla_runtime.tasks.prepared import Call, Prepared
from qla_runtime.tasks.results import Span
from qla_runtime.texts.inputs import check_texts
from qla_runtime.texts.windows import QuestionWindows

_MOST_ANSWERS = (MAX_TOP_K - 10) // 2
"""Aligned to words, ``2 * top_k + 10`` spans of each window are looked at, as in transformers."""


@dataclass(frozen=True, kw_only=True)
class AnswerOptions(Options):
    """What a call may ask for.

    Attributes:
        top_k: answers at most.
        max_answer_len: tokens of an answer at most.
        max_seq_len: tokens of a window, the question and special tokens included; None: 384, or what the package
            reads if that is less.
        doc_stride: context tokens that neighbouring windows share; None: 128, or half a window if that is less.
        handle_impossible_answer: let "no answer" (``""``) compete with the spans.
        align_to_words: extend answers to whole words.
        max_question_len: accepted as in transformers, without an effect: a question is never cut.
        padding: accepted as in transformers, without an effect: the engine does not pad.
        topk: the former name of ``top_k``.
    """

    top_k: int | None = None
    max_answer_len: int | None = None
    max_seq_len: int | None = None
    doc_stride: int | None = None
    handle_impossible_answer: bool | None = None
    align_to_words: bool | None = None
    max_question_len: int | None = None
    padding: bool | str | None = None
    topk: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("top_k", "topk"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name), "1 gives the best answer alone", most=_MOST_ANSWERS)
        if self.max_answer_len is not None:
            check_count("max_answer_len", self.max_answer_len, "leave it out for 15 tokens")
        for name in ("handle_impossible_answer", "align_to_words"):
            if getattr(self, name) is not None:
                check_switch(name, getattr(self, name))


class QuestionAnsweringPipeline(Pipeline):
    """Finds the answer to a question in a context.

    Example::

        >>> oracle = pipeline("question-answering")
        >>> oracle(question="Where do I live?", context="My name is Wolfgang and I live in Berlin")
        {'score': 0.97..., 'start': 34, 'end': 40, 'answer': 'Berlin'}
    """

    task = "question-answering"
    kinds = ("span-qa",)
    takes = AnswerOptions

    def __call__(
        self,
        *examples: Any,
        question: str | Sequence[str] | None = None,
        context: str | Sequence[str] | None = None,
        data: Any = None,
        X: Any = None,  # noqa: N803  the name that scikit-learn uses, and transformers took
        **options: Any,
    ) -> Any:
        """Answers questions.

        Args:
            examples: the other way to pass a question and a context: both texts, or an example, or a list of
                examples, or an iterator. An example is a dict with ``question`` and ``context``, or an object
                with ``question_text`` and ``context_text``.
            question: one or several questions.
            context: a context for all questions, or one per question.
            data: a list of examples.
            X: the same.
            options: of :class:`AnswerOptions`.

        Returns:
            For one question (also as a list of one) a dict of ``score``, ``start``, ``end`` (characters of the
            context) and ``answer``; with ``top_k`` above 1 a list of them, best first, if there are several. For
            several questions a list of these, and for an iterator an iterator.

            ``score`` is ``p_start * p_end`` within the answer's window. As in transformers, scores of spans with
            the same text add up, so that an answer which several windows hold may score above 1.

        Raises:
            InputError: no question, no context, or an option out of range.
        """
        asked = self._options(options)
        inputs, what = _examples(examples, question, context, data if data is not None else X)
        if isinstance(inputs, list):
            single = len(inputs) == 1
            found = self._run(Given(inputs, what, single), asked)
            return found[0] if single else found
        return self._results(inputs, asked)

    def make_call(self, given: Given, options: AnswerOptions) -> Call[Found]:
        """As :meth:`Pipeline.make_call`."""
        pairs = [_pair(example, name) for name, example in given.named()]
        return given.call(pairs, partial(self._prepare, options=options))

    def _prepare(
        self, pairs: Sequence[tuple[str, str]], names: Sequence[str], options: AnswerOptions
    ) -> Prepared[Found]:
        longest = min(384, self.engine.max_length) if options.max_seq_len is None else options.max_seq_len
        encoder = self.encoder(longest, name="max_seq_len")
        stride = min(longest // 2, 128) if options.doc_stride is None else options.doc_stride
        check_count("doc_stride", stride, f"windows have {longest} tokens (max_seq_len)", least=0, most=longest)
        questions, contexts = zip(*pairs, strict=True)
        windows = encoder.windows(questions, contexts, stride, names)
        reading = _Reading(
            top_k=options.top_k or options.topk or 1,
            max_tokens=min(options.max_answer_len or 15, longest),
            to_words=options.align_to_words is not False,
            may_be_none=bool(options.handle_impossible_answer),
        )

        def read(arrays: Arrays, plan: LengthPlan) -> list[Found]:
            macs = np.add.reduceat(arrays["macs"], windows.questions[:-1])
            return [
                Found.of(best[0] if len(best) == 1 else best, best[0]["score"], plan, q, macs[q])
                for q, best in enumerate(reading.answers(windows, arrays["logits"], contexts))
            ]

        return Prepared(windows.batch, windows.questions, frozenset({"logits", "macs"}), read)


# ------------------------------------------------------------------------------------------ call forms


def _examples(positional: tuple[Any, ...], question: Any, context: Any, data: Any) -> tuple[Any, str]:
    """The examples of a call, and the argument that they came as: a list, or what is to be iterated."""
    if positional:
        if len(positional) == 2 and all(isinstance(each, str) for each in positional):
            return [{"question": positional[0], "context": positional[1]}], "inputs"
        data = positional[0] if len(positional) == 1 else list(positional)
    if data is None:
        return _paired(question, context), "question"
    if isinstance(data, str):
        raise InputError("there is a single text; pass question= and context=")
    if isinstance(data, tuple):
        return list(data), "inputs"
    return [data] if isinstance(data, Mapping) or hasattr(data, "question_text") else data, "inputs"


def _paired(question: Any, context: Any) -> list[dict[str, str]]:
    if question is None or context is None:
        missing = "question" if question is None else "context"
        raise InputError(f"{missing} is missing; pass question= and context=")
    questions, single = check_texts(question, "question")
    contexts, one_context = check_texts(context, "context")
    if one_context:
        contexts = contexts * len(questions)
    if (single and not one_context) or len(questions) != len(contexts):
        raise InputError(
            f"there are {len(questions)} questions and {len(contexts)} contexts; pass one context for all "
            "questions, or one per question"
        )
    return [{"question": q, "context": c} for q, c in zip(questions, contexts, strict=True)]


def _pair(example: Any, name: str) -> tuple[str, str]:
    if isinstance(example, Mapping):
        missing = [key for key in ("question", "context") if key not in example]
        if missing:
            raise InputError(f"{name} has no {missing[0]!r}; an example is a dict of 'question' and 'context'")
        question, context = example["question"], example["context"]
    elif hasattr(example, "question_text") and hasattr(example, "context_text"):
        question, context = example.question_text, example.context_text
    else:
        raise InputError(f"{name} is {shown(example)}; an example is a dict of 'question' and 'context'")
    for part, text in (("question", question), ("context", context)):
        if not isinstance(text, str):
            raise InputError(f"the {part} of {name} is {shown(text)}; it must be a text")
        check_texts(text, f"the {part} of {name}")
    return str(question), str(context)


# ------------------------------------------------------------------------------------- from logits to answers


@dataclass(frozen=True)
class _Reading:
    """What a call wants to read from logits."""

    top_k: int
    max_tokens: int
    to_words: bool
    may_be_none: bool

    def answers(
        self, windows: QuestionWindows, logits: NDArray[np.float32], contexts: Sequence[str]
    ) -> list[list[Span]]:
        """Per question its answers, best first."""
        found = self._candidates(windows, logits)
        blank = [
            q
            for q, (spans, _) in enumerate(found)
            if any(not contexts[q][span.start : span.end].strip() for span in spans)
        ]
        if blank:  # transformers would answer with white space
            for q in blank:
                windows.mark_invisible(q, contexts[q])
            found = self._candidates(windows, logits)
        return [self._best(spans, null, context) for (spans, null), context in zip(found, contexts, strict=True)]

    def _candidates(
        self, windows: QuestionWindows, logits: NDArray[np.float32]
    ) -> list[tuple[list[_Candidate], float]]:
        """Per question the best spans of each window, window by window, and the null score."""
        bounds, owned = _searched(windows)
        counts, window, first, last, score, null = _core.top_spans(
            logits,
            windows.is_context,
            windows.batch.offsets,
            bounds,
            windows.positions,
            self.max_tokens,
            self.top_k * 2 + 10 if self.to_words else self.top_k,
            SCORES.index("with-null"),
        )
        characters = windows.word_characters if self.to_words else windows.characters
        found = []
        for q, (begin, end) in enumerate(zip(owned[:-1], owned[1:], strict=True)):
            spans = [
                _Candidate(
                    float(score[row, k]), *characters(q, window[row, k], int(first[row, k]), int(last[row, k]))
                )
                for row in range(begin, end)
                for k in range(counts[row])
            ]
            found.append((spans, float(null[begin:end].min())))
        return found

    def _best(self, spans: Sequence[_Candidate], null: float, context: str) -> list[Span]:
        """Answers, best first. Spans of the same text are one answer, whose scores add up."""
        answers: dict[str, Span] = {}
        for span in spans:
            text = context[span.start : span.end]
            answer = answers.setdefault(
                text.lower(), {"score": 0.0, "start": span.start, "end": span.end, "answer": text}
            )
            answer["score"] += span.score
        best = list(answers.values())
        if self.may_be_none:
            best.append({"score": null, "start": 0, "end": 0, "answer": ""})
        return sorted(best, key=lambda answer: -answer["score"])[: self.top_k]


class _Candidate(NamedTuple):
    """A span of a window: its score there, its first character, and one past its last."""

    score: float
    start: int
    end: int


def _searched(windows: QuestionWindows) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """What is searched by itself: each window; one that shows nothing goes with one of its question that does.

    Returns:
        int64: part ``i`` has the windows ``[bounds[i], bounds[i + 1])``; int64: question ``q`` the parts
        ``[owned[q], owned[q + 1])``.
    """
    offsets = windows.batch.offsets
    bounds, owned = [0], [0]
    for begin, end in zip(windows.questions[:-1].tolist(), windows.questions[1:].tolist(), strict=True):
        shows = [bool((windows.is_context[offsets[w] : offsets[w + 1]] == 1).any()) for w in range(begin, end)]
        seen = np.cumsum(shows)
        bounds += [begin + i for i in range(1, end - begin) if shows[i] and seen[i] > 1] + [end]
        owned.append(len(bounds) - 1)
    return np.array(bounds, np.int64), np.array(owned, np.int64)
