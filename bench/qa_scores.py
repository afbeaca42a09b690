"""Scores of answers in long contexts: which rule picks right answers, and tells them from wrong ones.

    python -m bench.qa_scores dev-v1.1.json --articles even [--questions 60] [--windows 80]

Each question is asked of its own paragraph, and of longer and longer stretches of windows around it, which the
neighbouring paragraphs of the file fill. Every rule works on the same logits. Prints Markdown tables.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from qla_runtime import Engine, _core
from qla_runtime.evaluation.questions import ARTICLES, Question, read_squad
from qla_runtime.tasks.answer import SCORES
from qla_runtime.texts.windows import QuestionWindows

SIZES = (2, 5, 20)
"""Windows of the contexts between a paragraph and the longest."""

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


def against_runner_up(windows: Windows, best: int) -> float:
    """The best window's softmax, times the best span's share against the best span of another place."""
    others = windows.sums[(windows.place != windows.place[best]).any(1)]
    margin = others.max() - windows.sums[best] if len(others) else -np.inf
    return float(windows.alone[best] - np.logaddexp(0, margin))


def against_null(windows: Windows, best: int) -> float:
    """One softmax over all windows, each window's logits less its null's; twins of the answer count once."""
    rivals = (windows.place != windows.place[best]).any(1)
    rivals[best] = True
    starts = np.logaddexp.reduce((windows.all_starts - windows.null_start)[rivals])
    ends = np.logaddexp.reduce((windows.all_ends - windows.null_end)[rivals])
    return float(windows.sums[best] - windows.nulls[best] - starts - ends)


RULES: dict[str, Rule] = {
    "all-windows": all_windows,
    "best window": best_window,
    "with-null": window_and_null,
    "against runner-up": against_runner_up,
    "against-null": against_null,
}

CHOICES: dict[str, Callable[[Windows], Floats]] = {
    "sum of logits (all-windows)": lambda windows: windows.sums,
    "probability in its window": lambda windows: windows.alone,
    "the same with null (with-null)": lambda windows: windows.with_null,
    "sum less null (against-null)": lambda windows: windows.sums - windows.nulls,
}
"""Which window's best span is the answer: the highest of these."""

REPORTED = (
    ("sum of logits (all-windows)", "all-windows"),
    ("sum of logits (all-windows)", "best window"),
    ("sum of logits (all-windows)", "against runner-up"),
    ("sum of logits (all-windows)", "with-null"),
    ("the same with null (with-null)", "with-null"),
    ("sum of logits (all-windows)", "against-null"),
    ("sum less null (against-null)", "best window"),
    ("sum less null (against-null)", "against-null"),
)
"""The pairs of a choice and a rule that are worth a line."""


# ---------------------------------------------------------------------------------------------- data


class Reader:
    """The engine's logits, window by window."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def __call__(self, question: Question, context: str) -> tuple[Windows, QuestionWindows]:
        windows = self.engine.windows([question.question], [context])
        batch = windows.batch
        logits = np.empty((len(batch.ids), 2), np.float32)
        for w in range(0, batch.count, 64):
            stop = min(w + 64, batch.count)
            bounds = batch.offsets[w : stop + 1].tolist()
            rows = [slice(*pair) for pair in pairwise(bounds)]
            types = None if batch.type_ids is None else [batch.type_ids[row] for row in rows]
            found = self.engine.forward([batch.ids[row] for row in rows], token_type_ids=types)
            logits[bounds[0] : bounds[-1]] = np.concatenate(found.logits)
        each = np.arange(batch.count + 1)  # every window as a question of its own
        _, _, first, last, _, _ = _core.top_spans(
            logits,
            windows.is_context,
            batch.offsets,
            each,
            windows.positions,
            self.engine.task_settings["max_answer_tokens"],
            top_k=1,
            score=SCORES.index("all-windows"),
        )
        first, last = first[:, 0], last[:, 0]
        place = np.array(
            [windows.characters(0, w, int(f), int(e)) for w, f, e in zip(each, first, last, strict=False)]
        )
        spans = [context[a:b] for a, b in place]
        starts, ends = logits.astype(np.float64).T
        hidden = np.where(windows.is_context, 0.0, -np.inf)
        summary = Windows(
            start=starts[batch.offsets[:-1] + first],
            end=ends[batch.offsets[:-1] + last],
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
    """A question: the windows of its paragraph, and of the long context, where ``home`` holds the answer."""

    short: Windows
    long: Windows
    home: int

    def context(self, size: int) -> Windows:
        """``size`` windows around the answer, or all there are; 0: the paragraph alone."""
        if size == 0:
            return self.short
        begin = int(np.clip(self.home - size // 2, 0, max(0, len(self.long) - size)))
        return self.long.part(begin, begin + size)


def around(paragraphs: Sequence[str], at: int, characters: int, share: float) -> tuple[str, str]:
    """The text before and behind a paragraph, ``characters`` in all, about ``share`` of it before."""
    before: list[str] = []
    after: list[str] = []
    low, high, sizes = at - 1, at + 1, [0, 0]
    while sum(sizes) < characters and (low >= 0 or high < len(paragraphs)):
        if high >= len(paragraphs) or (low >= 0 and sizes[0] <= share * sum(sizes)):
            before.insert(0, paragraphs[low])
            sizes[0], low = sizes[0] + len(paragraphs[low]), low - 1
        else:
            after.append(paragraphs[high])
            sizes[1], high = sizes[1] + len(paragraphs[high]), high + 1
    return "\n".join([*before, ""]), "\n".join(["", *after])


def collect(engine: Engine, questions: Sequence[Question], count: int, windows: int) -> list[Sample]:
    """``count`` questions, evenly drawn, with the logits of contexts of about ``windows`` windows."""
    read, settings = Reader(engine), engine.task_settings
    paragraphs = list(dict.fromkeys(question.context for question in questions))
    # A window brings at most max_length - doc_stride new tokens, of some five characters each.
    characters = windows * (settings["max_length"] - settings["doc_stride"]) * 5
    samples = []
    for number in tqdm(np.linspace(0, len(questions) - 1, count).astype(int), unit="question"):
        question = questions[number]
        share = (number * 0.618) % 1  # the paragraph's place in the context differs from question to question
        head, tail = around(paragraphs, paragraphs.index(question.context), characters, share)
        long, where = read(question, head + question.context + tail)
        begin = len(head) + question.context.index(question.answers[0])
        holds = [w for w in range(len(long)) if where.locate(0, w, begin, begin + len(question.answers[0]))]
        samples.append(Sample(read(question, question.context)[0], long, holds[0]))
    return samples


# -------------------------------------------------------------------------------------------- tables


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Prints Markdown."""
    for row in (head, ["---"] * len(head), *rows):
        print("| " + " | ".join(str(cell) for cell in row) + " |")
    print()


def roc_auc(scores: Sequence[float], right: Sequence[bool]) -> float:
    """How often a right answer scores higher than a wrong one."""
    values, good = np.asarray(scores), np.asarray(right)
    above = values[good][:, None] - values[~good]
    return float((above > 0).mean() + 0.5 * (above == 0).mean())


def over_coverage(scores: Sequence[float], f1: Sequence[float]) -> float:
    """Mean F1 of the best scored part of the answers, averaged over every size of that part."""
    ordered = np.asarray(f1)[np.argsort(-np.asarray(scores), kind="stable")]
    return float((np.cumsum(ordered) / np.arange(1, len(ordered) + 1)).mean())


def choices_table(samples: Sequence[Sample], sizes: Sequence[int]) -> None:
    """F1 and exact match of each way to choose the window."""
    rows = []
    for name, choice in CHOICES.items():
        cells = []
        for size in sizes:
            contexts = [sample.context(size) for sample in samples]
            best = [int(choice(windows).argmax()) for windows in contexts]
            f1 = np.mean([windows.f1[b] for windows, b in zip(contexts, best, strict=True)])
            exact = np.mean([windows.exact[b] for windows, b in zip(contexts, best, strict=True)])
            cells.append(f"{100 * f1:.1f} / {100 * exact:.1f}")
        rows.append([name, *cells])
    table(["answer by, F1 / EM", *(names(sizes))], rows)


def rules_table(samples: Sequence[Sample], sizes: Sequence[int]) -> None:
    """How well each rule's score tells right from wrong, and how it drifts."""
    rows = []
    for chosen, name in REPORTED:
        scores: list[list[float]] = []
        f1: list[list[float]] = []
        for size in sizes:
            contexts = [sample.context(size) for sample in samples]
            best = [int(CHOICES[chosen](windows).argmax()) for windows in contexts]
            scores.append([RULES[name](windows, b) for windows, b in zip(contexts, best, strict=True)])
            f1.append([float(windows.f1[b]) for windows, b in zip(contexts, best, strict=True)])
        right = np.array(f1) >= 0.5
        always = right[0] & right[-1]
        medians = np.median(np.exp(np.array(scores))[:, always], axis=1)
        each = [roc_auc(s, r) for s, r in zip(scores, right, strict=True)]
        pooled = np.array(scores).ravel()
        rows.append(
            [
                chosen,
                name,
                *(f"{value:.3f}" for value in (each[0], each[-1], roc_auc(pooled, right.ravel()))),
                f"{100 * over_coverage(pooled, np.array(f1).ravel()):.1f}",
                " ".join(f"{value:.2f}" for value in medians),
            ]
        )
    last = names(sizes)[-1]
    head = ["answer by", "score", "AUC, paragraph", f"AUC, {last}", "AUC, pooled", "F1 over coverage, pooled"]
    table([*head, "median score of the same right answers: " + ", ".join(names(sizes))], rows)


def names(sizes: Sequence[int]) -> list[str]:
    """Column heads."""
    return [f"{size} windows" if size else "own paragraph" for size in sizes]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="SQuAD 1.1 dev-v1.1.json")
    parser.add_argument("--articles", choices=ARTICLES, default="even")
    parser.add_argument("--questions", type=int, default=60)
    parser.add_argument("--windows", type=int, default=80)
    parser.add_argument("--package", help="package folder (default: the packaged model)")
    args = parser.parse_args()
    engine = Engine.from_pretrained(args.package)
    samples = collect(engine, read_squad(args.data, args.articles), args.questions, args.windows)
    sizes = [0, *(size for size in SIZES if size < args.windows), args.windows]
    print(f"{len(samples)} questions of {args.articles} articles; right means F1 of at least 0.5\n")
    choices_table(samples, sizes)
    rules_table(samples, sizes)


if __name__ == "__main__":
    main()
