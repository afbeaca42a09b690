"""How an engine makes a trace, and the forms in which a trace is shown."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from qla_runtime.engine import Engine
from qla_runtime.errors import InputError, shown
from qla_runtime.lengths.configs import LengthConfig, NamedLength, Policy
from qla_runtime.tasks.answer import AnswerTask
from qla_runtime.trace import page, terminal
from qla_runtime.trace.followed import following
from qla_runtime.trace.record import CONTEXT, QUESTION, Record, Run


@dataclass(frozen=True, repr=False)
class Trace(Record):
    """A :class:`Record` that shows itself: as text, as a page, in a notebook."""

    def __repr__(self) -> str:
        """One line: a notebook keeps it beside the page, and shows it where it does not trust the page."""
        answers = ", ".join(f"{run.length} keeps {run.kept[-1]}: {shown(run.answer, 40)}" for run in self.runs)
        return f"<Trace of {self.model!r}: {self.tokens_read} tokens; {answers}>"

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
    call = following(engine, engine.as_task(AnswerTask).answer(question, context), (QUESTION, CONTEXT))
    found = [one for (one,) in engine.run([engine.prepare(call, length) for length in chosen])]
    runs = [
        Run(
            length=each.length,
            answer=each.result["answer"],
            score=each.result["score"],
            start=each.result["start"],
            end=each.result["end"],
            macs=each.macs,
            share=each.macs / each.full_macs,
            kept=each.kept,
            depth=each.depth,
        )
        for each in found
    ]
    return Trace(
        model=engine.name,
        question=question,
        context=context,
        layers=engine.layers,
        windows=found[0].windows,
        tokens=found[0].tokens,
        tokens_read=found[0].tokens_read,
        runs=tuple(runs),
    )
