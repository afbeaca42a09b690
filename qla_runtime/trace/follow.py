"""How an engine makes a trace, and the forms in which a trace is shown."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qla_runtime.arrays import Arrays, kept_positions
from qla_runtime.engine import Engine
from qla_runtime.errors import InputError
from qla_runtime.lengths.configs import LengthConfig, LengthPlan, NamedLength, Policy
from qla_runtime.tasks.answer import AnswerTask
from qla_runtime.tasks.prepared import Prepared
from qla_runtime.tasks.results import Answer
from qla_runtime.texts.windows import QuestionWindows
from qla_runtime.trace import page, terminal
from qla_runtime.trace.record import CONTEXT, QUESTION, SPECIAL, Record, Run, Token


@dataclass(frozen=True)
class Trace(Record):
    """A :class:`Record` that shows itself: as text, as a page, in a notebook."""

    def text(self, *, styled: bool = False, width: int = 80) -> str:
        """The trace for a terminal.

        Args:
            styled: the text itself, faded by ANSI codes; False lists per layer the words that it drops.
            width: columns that lines are broken at; the plain form has long lines instead.
        """
        return terminal.styled(self, width) if styled else terminal.plain(self)

    def html(self) -> str:
        """The trace as a page that needs nothing else: no network, no other file, no script to be legible."""
        return page.html(self)

    def _repr_html_(self) -> str:
        """What a notebook shows: :meth:`html` in a frame of its own, whose styles and script do not reach out."""
        return page.frame(self)

    def write_html(self, path: str | os.PathLike[str]) -> None:
        """Writes :meth:`html` to a file, in UTF-8.

        Raises:
            InputError: the file cannot be written.
        """
        try:
            Path(path).write_text(self.html(), encoding="utf-8")
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise InputError(f"{path}: cannot be written ({reason}); give a file that you may write") from error


def trace(
    engine: Engine,
    question: str,
    context: str,
    lengths: Sequence[str | LengthConfig | NamedLength] | None = None,
) -> Trace:
    """Follows the tokens of a question and its context through the layers.

    Args:
        engine: a span-qa model.
        question: the question.
        context: the text that holds the answer; longer than the model reads, it is read in overlapping windows.
        lengths: the configs to compare, as names or LengthConfigs; None: every config that the package names.

    Raises:
        InputError: an empty text, a question that leaves no room for a context, no lengths, or an unknown one.
        UnsupportedError: the model does not answer questions.
    """
    for name, value in (("question", question), ("context", context)):
        if not isinstance(value, str):
            raise InputError(f"{name} is of type {type(value).__name__}; it must be one text. Trace one at a time")
    chosen = list(engine.lengths) if lengths is None else list(lengths)
    if not chosen:
        raise InputError("there are no lengths to trace; pass at least one name or LengthConfig, or None for all")
    for length in chosen:
        if isinstance(length, Policy):
            raise InputError(
                f"lengths holds a {type(length).__name__}, but a policy chooses a length config for a call; list "
                "names and LengthConfigs"
            )
    call = engine.as_task(AnswerTask).answer(question, context)
    followed = [_followed(engine.prepare(call, length)) for length in chosen]

    tokens = _tokens(engine, question, context)
    windows = engine.windows([question], [context])
    offsets = windows.batch.offsets
    sources = _sources(windows, tokens)
    full_macs = sum(engine.macs(size) for size in np.diff(offsets).tolist())

    runs = []
    for ((answer, found),) in engine.run(followed):
        kept = [kept_positions(found, offsets, window) for window in range(windows.batch.count)]
        runs.append(
            Run(
                length=answer["length"],
                answer=answer["answer"],
                score=answer["score"],
                start=answer["start"],
                end=answer["end"],
                macs=answer["macs"],
                share=answer["macs"] / full_macs,
                kept=tuple(sum(map(len, layer)) for layer in zip(*kept, strict=True)),
                depth=tuple(_depth(kept, sources, len(tokens)).tolist()),
            )
        )
    return Trace(
        model=engine.name,
        question=question,
        context=context,
        layers=engine.layers,
        windows=windows.batch.count,
        tokens=tuple(tokens),
        tokens_read=len(windows.batch.ids),
        runs=tuple(runs),
    )


def _followed(prepared: Prepared[Answer]) -> Prepared[tuple[Answer, Arrays]]:
    """The same run, whose results hold the answer and which tokens each layer kept."""

    def read(arrays: Arrays, plan: LengthPlan) -> list[tuple[Answer, Arrays]]:
        return [(answer, arrays) for answer in prepared.read(arrays, plan)]

    return Prepared(prepared.batch, prepared.inputs, prepared.want | {"kept"}, read, prepared.plan)


def _tokens(engine: Engine, question: str, context: str) -> list[Token]:
    """The input before it is cut into windows."""
    encoding = engine.text_encoder.encode([(question, context)], with_offsets=True).encodings[0]
    parts = {None: SPECIAL, 0: QUESTION, 1: CONTEXT}
    return [
        Token(text, parts[sequence], *offsets)
        for text, sequence, offsets in zip(encoding.tokens, encoding.sequence_ids, encoding.offsets, strict=True)
    ]


def _sources(windows: QuestionWindows, tokens: Sequence[Token]) -> list[NDArray[np.int64]]:
    """Per window, which of ``tokens`` it reads: all but those of the context that lie in other windows."""
    of_context = [i for i, token in enumerate(tokens) if token.part == CONTEXT]
    begin, end = of_context[0], of_context[-1] + 1
    widths = [int(flags.sum()) for flags in np.split(windows.is_context, windows.batch.offsets[1:-1])]
    everything = np.arange(len(tokens))
    return [
        np.concatenate([everything[:begin], everything[first : first + width], everything[end:]])
        for first, width in zip(windows.positions, widths, strict=True)
    ]


def _depth(
    kept: Sequence[Sequence[NDArray[np.int32]]], sources: Sequence[NDArray[np.int64]], tokens: int
) -> NDArray[np.int16]:
    """int16 (tokens,): layers that kept each token, in the window that kept it longest."""
    depth = np.zeros(tokens, np.int16)
    for layers, source in zip(kept, sources, strict=True):
        of_window = np.zeros(len(source), np.int16)
        for positions in layers:
            of_window[positions] += 1
        depth[source] = np.maximum(depth[source], of_window)
    return depth
