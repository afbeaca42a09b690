"""Kinds of input that several protocols have: texts, and what is refused in their place."""

from __future__ import annotations

from typing import Any

from qla_runtime.engine import Engine
from qla_runtime.serve.bodies import Either, Field, Flag, ListOf, Text
from qla_runtime.serve.errors import INVALID, ServeError
from qla_runtime.serve.options import ServeOptions

LIMIT = "--max-client-batch-size"
"""The server's option for texts per request, as messages name it."""


def texts(options: ServeOptions, remedy: str = "") -> Either:
    """A text, or a list of as many texts as one request may have.

    Args:
        options: of the server.
        remedy: what a client can do that sent token ids, behind "send texts".
    """

    def refuse(value: Any, where: str) -> str | None:
        first = value[0] if isinstance(value, list) and value else None
        if isinstance(first, list) and first:
            first = first[0]
        if not isinstance(first, int) or isinstance(first, bool):
            return None
        return (
            f"{where} holds token ids; this model reads texts with a tokenizer of its own, so send texts{remedy}"
        )

    return Either((Text(), many(options)), refuse)


def many(options: ServeOptions) -> ListOf:
    """A list of as many texts as one request may have."""
    return ListOf(Text(), most=options.max_client_batch_size, limit=LIMIT)


TRUNCATE = {
    "truncate": Field(
        Flag(),
        None,
        "Cut texts that are longer than the model reads; false: refuse them. Default: as the server says.",
    ),
    "truncation_direction": Field(
        Text(choices=("left", "right", "Left", "Right")),
        None,
        "The side that is cut. Packages fix it, so another than the package's is refused.",
    ),
}
PROMPT_NAME = Field(
    Text(),
    None,
    "The name of one of the model's prompts, to put before each text. Default: the model's own default.",
)


def cut_side(engine: Engine) -> str:
    """The side where the model's package cuts texts that are too long: ``right`` or ``left``."""
    side: str = (engine.text_encoder.load().truncation or {}).get("direction", "right")
    return side.lower()


def check_direction(engine: Engine, asked: str | None) -> None:
    """Raises ServeError where a request asks for another side to be cut than the package cuts."""
    if asked is not None and asked.lower() != (side := cut_side(engine)):
        message = f"truncation_direction is {asked!r}, and this model's package cuts on the {side}; leave it out"
        raise ServeError(INVALID, message, field="truncation_direction")
