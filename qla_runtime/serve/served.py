"""The models of a server, by the names that clients call them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import TypeVar

from qla_runtime.engine import Engine
from qla_runtime.errors import InputError, shown
from qla_runtime.lengths.configs import Length, MaxLoss, check_amount
from qla_runtime.serve.batcher import Batcher
from qla_runtime.serve.jobs import Job, Lane
from qla_runtime.serve.options import ServeOptions
from qla_runtime.serve.outcome import Outcome
from qla_runtime.tasks.prepared import Call

Result = TypeVar("Result")


@dataclass(frozen=True)
class Wants:
    """What a request asks about length; at most one is set.

    Attributes:
        length: the name of a config, or a config spelled out as ``Engine`` takes it.
        latency_ms: milliseconds in which the answer should be there, its time in the queue included.
        max_loss: points of the package's metric that may be lost against ``full``.

    Raises:
        InputError: more than one is set.
    """

    length: str | None = None
    latency_ms: float | None = None
    max_loss: float | None = None

    def __post_init__(self) -> None:
        given = [field.name for field in fields(self) if getattr(self, field.name) is not None]
        if len(given) > 1:
            raise InputError(
                f"{' and '.join(given)} are given, and each chooses the length config; send one of them"
            )
        if self.latency_ms is not None:
            check_amount("latency_ms", self.latency_ms, "milliseconds")
        if self.max_loss is not None:
            check_amount("max_loss", self.max_loss, "points of the model's metric")


class ServedModel:
    """A model under a name, or under an alias that also names a length config.

    Attributes:
        name: as clients name it.
        engine: the opened package.
        alias_length: of the alias ``minilm:fast``, ``"fast"``; None where the name is the model's own.
    """

    def __init__(self, name: str, lane: Lane, batcher: Batcher, alias_length: str | None = None) -> None:
        self.name = name
        self.engine: Engine = lane.engine
        self.alias_length = alias_length
        self._lane, self._batcher = lane, batcher

    def alias(self, length: str) -> ServedModel:
        """The same model and queue, with a length config for all requests."""
        return ServedModel(f"{self.name}:{length}", self._lane, self._batcher, length)

    async def run(
        self, make: Callable[[], Call[Result]], wants: Wants, *, gone: Callable[[], bool] | None = None
    ) -> Outcome[Result]:
        """Runs a request, in a batch with whatever else is waiting.

        Args:
            make: gives the call, from a method of ``engine.as_task(...)``. It runs on a thread of its own.
            wants: what the request asks about length.
            gone: whether the client has left; a request without a client is not run.

        Raises:
            QlaError: what ``make`` raises, or what the engine refuses.
            Overloaded: the request waited longer than the server allows.
            Stopping: the server is shutting down.
            ClientGone: the client has left, and the request was not run.
        """
        loop = asyncio.get_running_loop()
        job = Job(
            self._lane, make, self._length(wants), wants.latency_ms, gone or _never, loop, loop.create_future()
        )
        self._batcher.submit(job)
        return await job.future

    def _length(self, wants: Wants) -> Length:
        if self.alias_length is None:
            return MaxLoss(wants.max_loss) if wants.max_loss is not None else wants.length
        if wants != Wants():
            raise InputError(
                f"the model {shown(self.name)} names a length config, and the request asks for another; send one "
                "of the two"
            )
        return self.alias_length


class Models:
    """The models of a server.

    Args:
        engines: by the names that clients call them; the first is the one for requests that name none.
        options: of the server.

    Attributes:
        stopping: whether the server is on its way down.

    Raises:
        InputError: no model, or a name with a colon.
    """

    stopping = False

    def __init__(self, engines: Mapping[str, Engine], options: ServeOptions) -> None:
        if not engines:
            raise InputError("there is no model to serve; give a package")
        for name in engines:
            if not name or ":" in name:
                raise InputError(
                    f"a model's name is {name!r}; it must be a text without a colon, which stands before a length "
                    "config's name"
                )
        self.batcher = Batcher(options)
        self._models = {
            name: ServedModel(name, self.batcher.lane(name, engine), self.batcher)
            for name, engine in engines.items()
        }
        self._aliases: dict[str, ServedModel] = {}

    def get(self, name: str | None) -> ServedModel:
        """The model of a name or an alias; None is the first one.

        Raises:
            InputError: no model has the name, or the model has no length config of the alias.
        """
        if name is None:
            return next(iter(self))
        found = self._models.get(name) or self._aliases.get(name)
        return found or self._alias(name)

    def __iter__(self) -> Iterator[ServedModel]:
        return iter(self._models.values())

    @property
    def ready(self) -> bool:
        """Whether new requests should come here: false from the first SIGTERM on."""
        return not self.stopping

    def close(self) -> None:
        """Runs what has been accepted; new requests get :class:`Stopping`."""
        self.batcher.close()

    def _alias(self, name: str) -> ServedModel:
        own, colon, length = name.rpartition(":")
        model = self._models.get(own if colon else name)
        if model is None:
            raise InputError(f"model {shown(name)} is not served here; use one of {', '.join(self._models)}")
        lengths = (*model.engine.lengths, *model.engine.frontier)
        if length not in lengths:
            raise InputError(
                f"model {shown(own)} has no length config {shown(length)}; use one of {', '.join(lengths)}"
            )
        return self._aliases.setdefault(name, model.alias(length))


def _never() -> bool:
    return False
