"""Scores of answers in long contexts: which rule tells right answers from wrong ones, whatever the length.

    python -m bench.qa_scores dev-v1.1.json --articles even [--questions 150] [--windows 80]

Each question is asked of its own paragraph, and of longer and longer stretches of windows around it, which the
neighbouring paragraphs of the file fill. Every rule scores the same logits. Prints Markdown tables.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from qla_runtime import Engine, _core, evaluate
from qla_runtime.evaluate import Question
from qla_runtime.windows import QuestionWindows, TextEncoder

SIZES = (2, 5, 20, 80)
"""Windows of the longer contexts."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Windows:
    """What the windows of one context say about one question; every array has one entry per window.

    Attributes:
        start, end: logits of the best span's first and last token.
        all_starts, all_ends: log of the sum of exp over the context's logits.
        null_start, null_end: logits of the first token, "not here".
        place: int64 (windows, 2), the best span's characters.
        f1, exact: how good the best span is, 0 to 1.
    """

    start: Floats
    end: Floats
    all_starts: Floats
    all_ends: Floats
    null_start: Floats
    null_end: Floats
    place: NDArray[np.int64]
    f1: Floats
    exact: Floats

    def __len__(self) -> int:
        return len(self.start)

    def part(self, begin: int, end: int) -> Windows:
        """Some neighbouring windows, as a context of its own."""
        return Windows(**{name: values[begin:end] for name, values in vars(self).items()})

    @property
    def sums(self) -> Floats:
        """Start plus end logit of each window's best span."""
        return self.start + self.end

    @property
    def nulls(self) -> Floats:
        """The same of "not here"."""
        return self.null_start + self.null_end

    @property
    def alone(self) -> Floats:
        """Log of each best span's probability in its window."""
        return self.sums - self.all_starts - self.all_ends

    @property
    def with_null(self) -> Floats:
        """The same, with "not here" in the softmax."""
        starts = np.logaddexp(self.all_starts, self.null_start)
        return self.sums - starts - np.logaddexp(self.all_ends, self.null_end)


# --------------------------------------------------------------------------------------------- rules

Rule = Callable[[Windows, int], float]
"""Windows and the one that holds the answer -> the log of its score."""


def all_windows(windows: Windows, best: int) -> float:
    """One softmax over the context tokens of all windows."""
    starts, ends = np.logaddexp.reduce(windows.all_starts), np.logaddexp.reduce(windows.all_ends)
    return float(windows.sums[best] - starts - ends)


def best_window(windows: Windows, best: int) -> float:
    """One softmax over the context tokens of the best window."""
    return float(windows.alone[best])


def window_and_null(windows: Windows, best: int) -> float:
    """transformers' rule: the softmax of the best window, with its first token."""
    return float(windows.with_null[best])


def best_window_and_null(windows: Windows, best: int) -> float:
    """The best window's softmax, times the share of its span against its own null."""
    return float(windows.alone[best] - np.logaddexp(0, windows.nulls[best] - windows.sums[best]))


def _others(windows: Windows, best: int) -> Floats:
    """Sums of the windows that say something else than the best one."""
    return windows.sums[(windows.place != windows.place[best]).any(1)]


def against_runner_up(windows: Windows, best: int) -> float:
    """The best window's softmax, times its span's share against the best span of another window."""
    others = _others(windows, best)
    margin = others.max() - windows.sums[best] if len(others) else -np.inf
    return float(windows.alone[best] - np.logaddexp(0, margin))


def among_windows(windows: Windows, best: int) -> float:
    """The best window's softmax, times its span's share among the best spans of all windows."""
    return float(
        windows.alone[best]
        + windows.sums[best]
        - np.logaddexp.reduce([windows.sums[best], *_others(windows, best)])
    )


RULES: dict[str, Rule] = {
    "all-windows": all_windows,
    "best-window": best_window,
    "window and null": window_and_null,
    "best window times null": best_window_and_null,
    "against runner-up": against_runner_up,
    "among windows": among_windows,
}

CHOICES: dict[str, Callable[[Windows], Floats]] = {
    "sum of logits": lambda windows: windows.sums,
    "probability in its window": lambda windows: windows.alone,
    "the same, with null": lambda windows: windows.with_null,
    "sum less null": lambda windows: windows.sums - windows.nulls,
}
"""Which window's best span is the answer: the highest of these."""


# ---------------------------------------------------------------------------------------------- data


class Reader:
    """The engine's logits, window by window."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.task = engine._config["task"]
        self.texts = TextEncoder(engine.path, self.task["max_length"], cut=False)

    def __call__(self, question: Question, context: str) -> tuple[Windows, QuestionWindows]:
        windows = self.texts.windows([question.question], [context], self.task["doc_stride"], ["question"])
        batch = windows.batch
        logits = np.empty((len(batch.ids), 2), np.float32)
        for w in range(0, batch.count, 64):
            stop = min(w + 64, batch.count)
            tokens = slice(batch.offsets[w], batch.offsets[stop])
            arrays = self.engine._core.run(
                batch.ids[tokens],
                batch.offsets[w : stop + 1] - batch.offsets[w],
                None if batch.type_ids is None else batch.type_ids[tokens],
                [],
                None,
                {"logits"},
            )
            logits[tokens] = arrays["logits"]
        each = np.arange(batch.count + 1)  # every window as a question of its own
        found = _core.best_spans(
            np.ascontiguousarray(logits[:, 0]),
            np.ascontiguousarray(logits[:, 1]),
            windows.is_context,
            batch.offsets,
            each,
            self.task["max_answer_tokens"],
        )
        first, last = (batch.offsets[:-1] + tokens for tokens in found[1:3])
        place = np.array(
            [windows.characters(0, w, int(f), int(e)) for w, f, e in zip(each, *found[1:3], strict=False)]
        )
        spans = [context[a:b] for a, b in place]
        starts, ends = logits.astype(np.float64).T
        hidden = np.where(windows.is_context, 0.0, -np.inf)
        summary = Windows(
            start=starts[first],
            end=ends[last],
            all_starts=np.logaddexp.reduceat(starts + hidden, batch.offsets[:-1]),
            all_ends=np.logaddexp.reduceat(ends + hidden, batch.offsets[:-1]),
            null_start=starts[batch.offsets[:-1]],
            null_end=ends[batch.offsets[:-1]],
            place=place,
            f1=np.array([question.f1(span) for span in spans]),
            exact=np.array([question.exact_match(span) for span in spans]),
        )
        return summary, windows


@dataclass(frozen=True)
class Sample:
    """A question: its own paragraph's windows, and those of the long context with the place of the paragraph."""

    short: Windows
    long: Windows
    home: int

    def context(self, size: int) -> Windows:
        """``size`` windows around the paragraph, or all there are."""
        begin = int(np.clip(self.home - size // 2, 0, max(0, len(self.long) - size)))
        return self.long.part(begin, begin + size)


def collect(engine: Engine, questions: Sequence[Question], count: int, windows: int) -> list[Sample]:
    """``count`` questions, evenly drawn, with the logits of contexts of about ``windows`` windows."""
    read = Reader(engine)
    paragraphs = list(dict.fromkeys(question.context for question in questions))
    samples = []
    for number in tqdm(np.linspace(0, len(questions) - 1, count).astype(int), unit="question"):
        question = questions[number]
        at = paragraphs.index(question.context)
        # A window brings at most max_length - doc_stride new tokens, of some five characters each.
        most = windows * (read.task["max_length"] - read.task["doc_stride"]) * 5
        before: list[str] = []
        after: list[str] = []
        # The paragraph's place in the context differs from question to question.
        share = (number * 0.618) % 1
        low, high, size = at - 1, at + 1, len(question.context)
        while size < most and (low >= 0 or high < len(paragraphs)):
            if high >= len(paragraphs) or (
                low >= 0 and sum(map(len, before)) <= share * (size - len(question.context))
            ):
                before.append(paragraphs[low])
                size, low = size + len(paragraphs[low]), low - 1
            else:
                after.append(paragraphs[high])
                size, high = size + len(paragraphs[high]), high + 1
        head = "\n".join(reversed(before)) + "\n"
        context = head + question.context + "\n" + "\n".join(after)
        long, where = read(question, context)
        middle = len(head) + len(question.context) // 2
        home = [w for w in range(len(long)) if where.locate(0, w, middle, middle + 1)]
        samples.append(Sample(read(question, question.context)[0], long, home[len(home) // 2] if home else 0))
    return samples
