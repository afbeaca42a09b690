"""Requests between the event loop and the engine: a job, the pieces it runs in, and the queue of a model."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from time import perf_counter
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from qla_runtime.engine import Engine
from qla_runtime.errors import InputError
from qla_runtime.lengths.configs import Length, LengthConfig
from qla_runtime.serve.metrics import Recorder
from qla_runtime.serve.options import ServeOptions
from qla_runtime.serve.outcome import Outcome
from qla_runtime.serve.pressure import Costs, Pressure
from qla_runtime.tasks.prepared import Call, Prepared
from qla_runtime.tasks.results import fact

Result = TypeVar("Result")


@dataclass(eq=False)
class Job(Generic[Result]):
    """One request.

    Attributes:
        lane: of its model.
        make: gives the checked call.
        length: as the engine takes it; None: the server's choice.
        latency_ms: of the whole request, its time in the queue included.
        gone: whether the client has left.
        loop: the event loop that waits.
        future: of that loop; gets the :class:`Outcome`.
        arrived: when it came, as ``perf_counter`` says.
        single: whether it is one input and not a list.
        pieces_left: pieces that have not run.
    """

    lane: Lane
    make: Callable[[], Call[Result]]
    length: Length
    latency_ms: float | None
    gone: Callable[[], bool]
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Outcome[Result]]
    arrived: float = field(default_factory=perf_counter)
    single: bool = True
    tokenization_s: float = 0.0
    inference_s: float = 0.0
    tokens: int = 0
    kept_tokens: int = 0
    full_macs: int = 0
    parts: list[list[Result]] = field(default_factory=list)
    pieces_left: int = 0

    @property
    def adapts(self) -> bool:
        """Whether the request leaves its length config to the server."""
        return self.length is None and self.latency_ms is None

    @property
    def dropped(self) -> bool:
        """Whether nobody waits for it any more."""
        return self.future.done() or self.gone()

    def outcome(self) -> Outcome[Result]:
        """Once all pieces have run."""
        results = self.parts[0] if len(self.parts) == 1 else [result for part in self.parts for result in part]
        total = perf_counter() - self.arrived
        return Outcome(
            results,
            [fact(result, "length") for result in results],
            self.tokens,
            sum([fact(result, "macs") for result in results]),
            self.full_macs,
            self.tokenization_s,
            max(0.0, total - self.tokenization_s - self.inference_s),
            self.inference_s,
            total,
            self.kept_tokens,
        )


@dataclass(eq=False)
class Piece(Generic[Result]):
    """What runs in one batch of a job: all of it, unless that is more than a batch may hold.

    Attributes:
        job: whose it is.
        number: among the job's pieces.
        prepared: its inputs.
        tokens: of these.
        cost: float64 (configs,): seconds with each config that the lane's ``pressure`` may choose.
    """

    job: Job[Result]
    number: int
    prepared: Prepared[Result]
    tokens: int
    cost: NDArray[np.float64] = field(default_factory=lambda: np.zeros(1))

    def lengths(self) -> list[int]:
        """Tokens of each sequence."""
        found: list[int] = np.diff(self.prepared.batch.offsets).tolist()
        return found


class Lane:
    """The queue of one model, and what is known of its costs.

    Args:
        engine: of the model.
        options: of the server.
        recorder: counts its requests; None: nobody counts.

    Attributes:
        engine: the engine.
        ready: pieces that may run.
        used: seconds of batches that the lane has had, for fairness among models.
        costs: predicts seconds.
        pressure: lowers the length config under load; None: nothing does.
        recorder: as given.
    """

    def __init__(self, engine: Engine, options: ServeOptions, recorder: Recorder | None) -> None:
        self.engine, self.recorder = engine, recorder
        self.ready: deque[Piece[Any]] = deque()
        self.used = 0.0
        self.pressure: Pressure | None = None
        if options.keep_latency is not None:
            self.pressure = Pressure(
                engine, 1e-3 * options.keep_latency, options.keep_latency_floor, options.streams
            )
        self._most, self._most_of_request = options.max_batch_tokens, options.max_request_tokens
        named = {**engine.lengths, **engine.frontier}
        self._configs = {name: entry.config for name, entry in named.items()}
        self._full_macs: dict[int, int] = {}
        self._last_layer: dict[tuple[str, int], int] = {}
        self._costs: Costs | None = None

    @property
    def costs(self) -> Costs:
        """What batches with every token kept take."""
        if self._costs is None:
            self._costs = Costs(self.engine, [self.engine.lengths["full"]])
        return self._costs

    def pieces(self, job: Job[Result], call: Call[Result]) -> list[Piece[Result]]:
        """Tokenizes a job.

        Raises:
            QlaError: what the task or the engine refuses, or more tokens than a request may have.
        """
        prepared = self._prepare(job, call)
        job.tokens = len(prepared.batch.ids)
        job.single = call.single
        if self._most_of_request is not None and job.tokens > self._most_of_request:
            raise InputError(
                f"the request has {job.tokens} tokens, and this server takes {self._most_of_request} "
                "(--max-request-tokens); send fewer or shorter texts at once"
            )
        made = [prepared]
        if job.tokens > self._most and call.count > 1:
            lengths = np.diff(prepared.batch.offsets)
            of_input = np.add.reduceat(lengths, prepared.inputs[:-1])
            made = [self._prepare(job, call.only(part)) for part in _cut(of_input.tolist(), self._most)]
        job.parts = [[]] * len(made)
        job.pieces_left = len(made)
        return [Piece(job, i, each, len(each.batch.ids)) for i, each in enumerate(made)]

    def ran(self, piece: Piece[Result], results: list[Result]) -> None:
        """Adds what a piece gave to its job."""
        job = piece.job
        job.parts[piece.number] = results
        labels = [fact(result, "length") for result in results]
        if len(labels) == 1:
            of_sequence = labels * piece.prepared.batch.count
        else:
            of_sequence = np.repeat(labels, np.diff(piece.prepared.inputs)).tolist()
        for label, tokens in zip(of_sequence, piece.lengths(), strict=True):
            job.kept_tokens += self._kept_last(label, tokens)
            macs = self._full_macs.get(tokens)
            if macs is None:
                macs = self._full_macs[tokens] = self.engine.macs(tokens)
            job.full_macs += macs

    def _kept_last(self, label: str, tokens: int) -> int:
        """Tokens that the last layer keeps of a sequence."""
        kept = self._last_layer.get((label, tokens))
        if kept is None:
            config = self._configs.get(label)
            if config is None:  # of configs that are spelled out there is no end
                return LengthConfig.parse(label).kept(tokens)[-1]
            kept = self._last_layer[label, tokens] = config.kept(tokens)[-1]
        return kept

    def _prepare(self, job: Job[Result], call: Call[Result]) -> Prepared[Result]:
        if job.latency_ms is None:
            return self.engine.prepare(call, job.length)
        # The budget began when the request came.
        left = job.latency_ms - 1e3 * (perf_counter() - job.arrived)
        return self.engine.prepare(call, latency_ms=max(0.0, left))


def _cut(tokens: Sequence[int], most: int) -> Iterator[list[int]]:
    """Numbers of inputs, in runs of at most ``most`` tokens, and of one input where that has more."""
    ends = list(accumulate(tokens))
    first = 0
    for i in range(1, len(ends)):
        if ends[i] - (ends[first - 1] if first else 0) > most:
            yield list(range(first, i))
            first = i
    yield list(range(first, len(ends)))
