"""What a route is: a path, what its body may hold, which models it is for, and the function that answers it.

The route's file translates only: from a body to a call of a task, and from results to a body. What all routes
share is here: which model a request means, what it asks about length, and the headers that say what ran.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar
from urllib.parse import quote

from qla_runtime.engine import Engine
from qla_runtime.errors import InputError, QlaError, UnsupportedError, a_model, shown
from qla_runtime.serve.bodies import Field, Kind, Number, Record, Text
from qla_runtime.serve.errors import BACKEND, INVALID, NOT_FOUND, OVERLOADED, UNHEALTHY, ServeError
from qla_runtime.serve.options import ServeOptions
from qla_runtime.serve.outcome import Outcome
from qla_runtime.serve.refusals import Overloaded, Stopping
from qla_runtime.serve.served import Models, ServedModel, Wants
from qla_runtime.tasks.prepared import Call
from qla_runtime.tasks.results import fact

Result = TypeVar("Result")


# --------------------------------------------------------------------------------- what models can do


@dataclass(frozen=True)
class Ability:
    """What a route needs of a model.

    Attributes:
        said: such a model, in words.
        fits: whether an engine is one.
    """

    said: str
    fits: Callable[[Engine], bool]


ANY = Ability("a model", lambda engine: True)
EMBEDS = Ability("an embedding model", lambda engine: engine.task == "embedding")
ANSWERS = Ability("a question answering model", lambda engine: engine.task == "span-qa")
TAGS = Ability("a token classification model", lambda engine: engine.task == "token-classification")
CLASSIFIES = Ability("a classification model", lambda engine: engine.task == "sequence-classification")
RANKS = Ability(
    "a cross-encoder, a classification model of one label",
    lambda engine: CLASSIFIES.fits(engine) and len(engine.labels) == 1,
)


# ------------------------------------------------------------------------------- a request, a response


@dataclass(frozen=True)
class Asked:
    """A request whose body has been read.

    Attributes:
        model: which it means.
        body: its fields, with their defaults.
        wants: what it asks about length.
        options: of the server.
        models: of the server.
        gone: whether the client has left.
    """

    model: ServedModel
    body: Mapping[str, Any]
    wants: Wants
    options: ServeOptions
    models: Models
    gone: Callable[[], bool]

    async def run(self, make: Callable[[], Call[Result]]) -> Outcome[Result]:
        """Runs a call; ``make`` builds it, on another thread."""
        return await self.model.run(make, self.wants, gone=self.gone)

    @property
    def truncate(self) -> bool:
        """Whether texts that are too long are cut: as the body says, else as the server's option."""
        asked: bool | None = self.body.get("truncate")
        return self.options.auto_truncate if asked is None else asked


@dataclass(frozen=True)
class Reply:
    """A response.

    Attributes:
        content: of the body: JSON types, numpy arrays and numpy numbers. Bytes are sent as they are.
        outcome: what ran, for the headers; None: nothing did.
        characters: of the texts that ran.
        media_type: of the body.
        status: of the response.
    """

    content: Any
    outcome: Outcome[Any] | None = None
    characters: int = 0
    media_type: str = "application/json"
    status: int = 200


@dataclass(frozen=True)
class Operation:
    """A route.

    Attributes:
        path: of a server of one model; :mod:`qla_runtime.serve.app` also puts it behind ``/models/NAME``.
        answer: makes the response.
        summary: for the OpenAPI document.
        reply: JSON schema of the response; None where it is no JSON.
        method: of HTTP.
        body: what the request's body may hold; None: it has none.
        ability: what it needs of a model.
        tag: its group in the OpenAPI document.
        per_model: whether there is such a path behind ``/models/NAME``, too.
        listed: whether the OpenAPI document has it.
    """

    path: str
    answer: Callable[[Asked], Awaitable[Reply]]
    summary: str
    reply: Mapping[str, Any] | None
    method: str = "POST"
    body: Kind | None = None
    ability: Ability = ANY
    tag: str = ""
    per_model: bool = True
    listed: bool = True


# ------------------------------------------------------------------- fields that many routes have in common

WANTS = {
    "length": Field(
        Text(),
        None,
        "How many tokens each layer keeps: the name of a length config of the model, or a config spelled out, "
        "such as `ratio(1, 1, 0.5, 0.5, 0.25, 0.25)`.",
    ),
    "latency_ms": Field(
        Number(above=0),
        None,
        "Milliseconds in which the answer should be there, the time in the queue included. The server picks the "
        "best length config that is predicted to make it. Not with `length`.",
    ),
    "max_loss": Field(
        Number(least=0),
        None,
        "Points of the model's metric that may be lost. The server picks the cheapest length config that loses no "
        "more, for models whose package has these figures. Not with `length` or `latency_ms`.",
    ),
}


def work(fields: Mapping[str, Field], *, told_by: str | None = None, model: Field | None = None) -> Record:
    """The body of a route that runs a model: its own fields, ``model``, and what it may ask about length."""
    named = model or Field(
        Text(), None, "The name of a served model, or `NAME:LENGTH`. Default: the first that fits the route."
    )
    return Record({**fields, "model": named, **WANTS}, told_by, tuple(WANTS))


def choose_model(models: Models, name: str | None, ability: Ability, path: str) -> ServedModel:
    """The model that a request means: the one that it names, else the first that can do it.

    Raises:
        ServeError: there is none of that name, or it does something else.
    """
    if name is None:
        found = next((model for model in models if ability.fits(model.engine)), None)
        if found is None:
            kinds = ", ".join(f"{model.name} ({model.engine.task})" for model in models)
            raise ServeError(
                BACKEND, f"{path} needs {ability.said}, and this server has none: it serves {kinds}", field="model"
            )
        return found
    try:
        found = models.get(name)
    except InputError as error:
        raise ServeError(NOT_FOUND, str(error), field="model") from None
    if not ability.fits(found.engine):
        fitting = [model.name for model in models if ability.fits(model.engine)]
        remedy = f"name {' or '.join(fitting)} instead" if fitting else "POST / runs it, and no other fits"
        raise ServeError(
            BACKEND, f"{path} needs {ability.said}; {found.name} is {a_model(found.engine.task)}; {remedy}",
            field="model",
        )  # fmt: skip
    return found


def named_model(in_path: str | None, in_body: str | None) -> str | None:
    """The model's name in a request: of its path, its body, or both.

    Raises:
        ServeError: they name two models.
    """
    if in_path is None or in_body is None or in_path == in_body:
        return in_path or in_body
    if in_body.startswith(f"{in_path}:"):
        return in_body
    raise ServeError(
        INVALID,
        f"the path names the model {shown(in_path)} and the body {shown(in_body)}; leave the body's model out",
        field="model",
    )


def as_serve_error(error: QlaError) -> ServeError:
    """What an error of the runtime is over HTTP, in the words of a JSON body."""
    if isinstance(error, ServeError):
        return error
    message = str(error)
    for python, json in _SPELLINGS:
        message = message.replace(python, json)
    if isinstance(error, Overloaded):
        return ServeError(OVERLOADED, message, retry_after=error.retry_after)
    if isinstance(error, Stopping):
        return ServeError(UNHEALTHY, message, retry_after=1)
    if isinstance(error, (InputError, UnsupportedError)):
        return ServeError(INVALID, message)
    return ServeError(BACKEND, message)  # the package fails


_SPELLINGS = (
    ("truncate=True", '"truncate": true'),
    ("truncation=True", '"truncate": true'),
    ("truncate_dim", "dimensions"),
    ("Use one of these or a LengthConfig", "Use one of these, or spell a config out"),
    ("pass a config's name", "send a config's name"),
    ("MaxLoss(", "max_loss ("),
    (" (None)", ""),
)


# ------------------------------------------------------------------------------------------- headers


def headers(reply: Reply) -> list[tuple[bytes, bytes]]:
    """Headers that say what ran: text-embeddings-inference's, and which length configs they were."""
    ran = reply.outcome
    if ran is None:
        return []
    total = b"%d" % (1e3 * ran.total_s)
    found = [
        (b"x-compute-type", b"cpu"),
        (b"x-compute-characters", b"%d" % reply.characters),
        (b"x-compute-tokens", b"%d" % ran.tokens),
        (b"x-compute-time", total),
        (b"x-total-time", total),
        (b"x-tokenization-time", b"%d" % (1e3 * ran.tokenization_s)),
        (b"x-queue-time", b"%d" % (1e3 * ran.queue_s)),
        (b"x-inference-time", b"%d" % (1e3 * ran.inference_s)),
        (b"x-qla-length", b",".join(map(_spelled, dict.fromkeys(ran.lengths)))),
        (b"x-qla-macs", b"%d" % ran.kept_macs),
        (b"x-qla-truncated", b"%d" % sum(map(_truncated, ran.results))),
    ]
    met = [fact(result, "budget_met") for result in ran.results]
    if met and met[0] is not None:
        found.append((b"x-qla-budget-met", b"true" if all(met) else b"false"))
    return found


@lru_cache(maxsize=256)
def _spelled(length: str) -> bytes:
    """A length config's name as a header may have it."""
    return quote(length, safe=" ().=;:-_").encode()


def _truncated(result: Any) -> bool:
    """Whether an input was cut. What never cuts, as question answering, does not say."""
    if isinstance(result, dict):
        return bool(result.get("truncated"))
    return bool(getattr(result, "truncated", False) or getattr(result, "cut", False))


def characters(texts: Iterable[str | Sequence[str]]) -> int:
    """Characters of texts or of pairs of texts."""
    return sum(len(text) if isinstance(text, str) else sum(map(len, text)) for text in texts)
