"""Whether a question-answering checkpoint was trained on questions without an answer."""

from __future__ import annotations

import re
from dataclasses import replace

from qla_runtime.checkpoints.reader import Checkpoint
from qla_runtime.errors import InputError, a_model
from qla_runtime.model.card import front_matter

_SQUAD2 = re.compile(r"squad[-_ .]?(v?2(?!\d)|v?2\.0)", re.IGNORECASE)


def with_no_answer(source: Checkpoint, asked: bool | None) -> Checkpoint:
    """The checkpoint with its task's ``no_answer`` settled.

    Args:
        source: any checkpoint; what is no span QA comes back as it is.
        asked: what the caller says; None looks for "squad2" in the checkpoint's name and in its card's
            ``datasets``, the only places that tell.

    Raises:
        InputError: ``asked`` is given for a model that does not answer questions.
    """
    if source.task.kind != "span-qa":
        if asked is not None:
            raise InputError(
                f"no_answer is {asked}, and this is {a_model(source.task.kind)}, which does not answer questions; "
                "leave it out (--no-answer, --always-answer)"
            )
        return source
    if asked is None:
        hints = (source.source, front_matter(source.card).get("datasets", ""))
        asked = any(_SQUAD2.search(hint) for hint in hints)
    return replace(source, task=replace(source.task, no_answer=asked))
