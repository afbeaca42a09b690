"""Batches of requests, by a budget of tokens and without a timer.

A request passes three kinds of threads. The event loop puts it into a queue. A tokenizing thread prepares it. A
runner takes, as soon as it is free, what is ready up to ``max_batch_tokens``, runs it as one batch and hands the
results to the loop. So a lone request waits for nobody, and under load batches grow by themselves.

The engine gives a sequence the same bits in every batch, so who shared a batch cannot be seen in a result.
"""

from __future__ import annotations

import asyncio
import math
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from queue import SimpleQueue
from time import perf_counter
from typing import Any, Generic, TypeVar

import numpy as np

from qla_runtime.engine import Engine
from qla_runtime.errors import InputError
from qla_runtime.lengths.configs import Length
from qla_runtime.serve.options import ServeOptions
from qla_runtime.serve.refusals import Overloaded, QueueTimeout, Stopping
from qla_runtime.tasks.prepared import Call, Prepared
from qla_runtime.tasks.results import fact

Result = TypeVar("Result")

LONG_CHARACTERS = 50_000
"""A request of more characters is tokenized on a thread of its own, so that it holds up none but its like."""

RATE_SHARE = 0.2
"""The weight of the latest batch in the measured tokens per second."""


@dataclass(frozen=True)
class Outcome(Generic[Result]):
    """What a request gave.

    Attributes:
        results: one per input, as the engine's methods give them (:mod:`qla_runtime.tasks.results`).
        lengths: the name of the length config that each input ran with.
        tokens: of all inputs, special tokens included.
        kept_macs: multiply-accumulates that ran.
        full_macs: those of the same inputs with every token kept.
        tokenization_s: seconds of checking and tokenizing.
        queue_s: seconds of waiting, before tokenization and after it.
        inference_s: seconds of the batches that it was in.
        total_s: seconds from :meth:`ServedModel.run` to here.
    """

    results: list[Result]
    lengths: list[str]
    tokens: int
    kept_macs: int
    full_macs: int
    tokenization_s: float
    queue_s: float
    inference_s: float
    total_s: float


@dataclass(eq=False)
class Job(Generic[Result]):
    """One request.

    Attributes:
        lane: of its model.
        make: gives the checked call.
        length: as the engine takes it; None: the model's own choice.
        latency_ms: of the whole request, its time in the queue included.
        gone: whether the client has left.
        future: of the event loop ``loop``; gets the :class:`Outcome`.
    """

    lane: Lane
    make: Callable[[], Call[Result]]
    length: Length
    latency_ms: float | None
    gone: Callable[[], bool]
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Outcome[Result]]
    arrived: float = field(default_factory=perf_counter)
    tokenized_s: float = 0.0
    inference_s: float = 0.0
    tokens: int = 0
    parts: list[list[Result] | None] = field(default_factory=list)
    full_macs: int = 0

    @property
    def dropped(self) -> bool:
        """Whether nobody waits for it any more."""
        return self.future.done() or self.gone()

    def outcome(self) -> Outcome[Result]:
        """Once all parts have run."""
        results = [result for part in self.parts for result in part or ()]
        total = perf_counter() - self.arrived
        return Outcome(
            results,
            [fact(result, "length") for result in results],
            self.tokens,
            sum(fact(result, "macs") for result in results),
            self.full_macs,
            self.tokenized_s,
            max(0.0, total - self.tokenized_s - self.inference_s),
            self.inference_s,
            total,
        )


@dataclass(eq=False)
class Piece(Generic[Result]):
    """What runs in one batch of a job: all of it, unless that is more than a batch may hold."""

    job: Job[Result]
    number: int
    prepared: Prepared[Result]
    tokens: int


class Lane:
    """The queue of one model.

    Attributes:
        engine: its engine.
        ready: pieces that may run.
        used: seconds of batches that it has had, for fairness among models.
    """

    def __init__(self, engine: Engine, max_batch_tokens: int, max_request_tokens: int | None) -> None:
        self.engine = engine
        self.ready: deque[Piece[Any]] = deque()
        self.used = 0.0
        self._most, self._most_of_request = max_batch_tokens, max_request_tokens
        self._full: dict[int, int] = {}

    def pieces(self, job: Job[Result], call: Call[Result]) -> list[Piece[Result]]:
        """Tokenizes a job.

        Raises:
            QlaError: what the task or the engine refuses, or more tokens than a request may have.
        """
        prepared = self._prepare(job, call)
        lengths = np.diff(prepared.batch.offsets)
        job.tokens = int(lengths.sum())
        if self._most_of_request is not None and job.tokens > self._most_of_request:
            raise InputError(
                f"the request has {job.tokens} tokens, and this server takes {self._most_of_request} "
                "(--max-request-tokens); send fewer or shorter texts at once"
            )
        job.full_macs = sum(map(self._full_macs, lengths.tolist()))
        if job.tokens <= self._most or call.count == 1:
            made = [prepared]
        else:
            of_input = np.add.reduceat(lengths, prepared.inputs[:-1])
            made = [self._prepare(job, call.only(part)) for part in _cut(of_input.tolist(), self._most)]
        job.parts = [None] * len(made)
        return [Piece(job, i, each, len(each.batch.ids)) for i, each in enumerate(made)]

    def _prepare(self, job: Job[Result], call: Call[Result]) -> Prepared[Result]:
        if job.latency_ms is None:
            return self.engine.prepare(call, job.length)
        # The budget began when the request came.
        left = job.latency_ms - 1e3 * (perf_counter() - job.arrived)
        return self.engine.prepare(call, latency_ms=max(0.0, left))

    def _full_macs(self, tokens: int) -> int:
        found = self._full.get(tokens)
        if found is None:
            found = self._full[tokens] = self.engine.macs(tokens)
        return found


class Batcher:
    """The threads and queues of a process. All its models share the runners, in fair turns.

    Args:
        options: of the server.
    """

    def __init__(self, options: ServeOptions) -> None:
        self._options = options
        self._lanes: list[Lane] = []
        self._short: SimpleQueue[Job[Any] | None] = SimpleQueue()
        self._long: SimpleQueue[tuple[Job[Any], Call[Any]] | None] = SimpleQueue()
        self._changed = threading.Condition()
        self._closed = False
        self._tokens_per_s = 0.0
        self._threads = [threading.Thread(target=self._tokenize, name="qla-tokenize", daemon=True)]
        self._threads += [threading.Thread(target=self._tokenize_long, name="qla-tokenize-long", daemon=True)]
        self._runners = [
            threading.Thread(target=self._run, name=f"qla-run-{i}", daemon=True) for i in range(options.streams)
        ]
        for thread in (*self._threads, *self._runners):
            thread.start()

    def lane(self, engine: Engine) -> Lane:
        """A queue for a model."""
        lane = Lane(engine, self._options.max_batch_tokens, self._options.max_request_tokens)
        with self._changed:
            self._lanes.append(lane)
        return lane

    def submit(self, job: Job[Any]) -> None:
        """Takes a job; called on the event loop.

        Raises:
            Stopping: the batcher is closed.
        """
        if self._closed:
            raise Stopping("the server is shutting down; send the request to another one")
        self._short.put(job)

    @property
    def queued_tokens(self) -> int:
        """Tokens that wait for a runner."""
        with self._changed:
            return sum(piece.tokens for lane in self._lanes for piece in lane.ready)

    def retry_after(self) -> int:
        """Whole seconds in which what waits now will have run, at least 1."""
        rate = self._tokens_per_s
        return max(1, math.ceil(self.queued_tokens / rate)) if rate else 1

    def close(self) -> None:
        """Runs what has been accepted, and ends the threads."""
        self._closed = True
        self._short.put(None)
        for thread in self._threads:
            thread.join()
        with self._changed:
            self._changed.notify_all()
        for runner in self._runners:
            runner.join()

    # ------------------------------------------------------------------------------- tokenizing threads

    def _tokenize(self) -> None:
        while (job := self._short.get()) is not None:
            if job.dropped:
                continue
            began = perf_counter()
            try:
                call = job.make()
                if sum(map(_characters, call.inputs)) > LONG_CHARACTERS:
                    self._long.put((job, call))
                    continue
                self._enqueue(job, call, began)
            except BaseException as error:
                _deliver([(job, error)])
        self._long.put(None)

    def _tokenize_long(self) -> None:
        while (found := self._long.get()) is not None:
            job, call = found
            if job.dropped:
                continue
            try:
                self._enqueue(job, call, perf_counter())
            except BaseException as error:
                _deliver([(job, error)])

    def _enqueue(self, job: Job[Any], call: Call[Any], began: float) -> None:
        pieces = job.lane.pieces(job, call)
        job.tokenized_s = perf_counter() - began
        with self._changed:
            if not job.lane.ready:  # it has no claim to the time in which it had nothing to run
                busy = [lane.used for lane in self._lanes if lane.ready]
                job.lane.used = max(job.lane.used, min(busy, default=0.0))
            job.lane.ready.extend(pieces)
            self._changed.notify()

    # ----------------------------------------------------------------------------------------- runners

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (waiting := [lane for lane in self._lanes if lane.ready]):
                    if self._closed and not any(thread.is_alive() for thread in self._threads):
                        return
                    self._changed.wait()
                lane = min(waiting, key=lambda each: each.used)
                batch, late = self._take(lane)
            if late:
                _deliver([(job, self._timeout(job)) for job in late])
            if batch:
                self._run_batch(lane, batch)

    def _take(self, lane: Lane) -> tuple[list[Piece[Any]], list[Job[Any]]]:
        """What runs next of a lane, and jobs that have waited too long. At most one piece of a job: its others go
        behind those who wait."""
        batch: list[Piece[Any]] = []
        again: list[Piece[Any]] = []
        late: list[Job[Any]] = []
        taken: set[Job[Any]] = set()
        tokens = 0
        most_wait = self._options.max_queue_ms
        now = perf_counter()
        while lane.ready:
            piece = lane.ready[0]
            job = piece.job
            if job in taken:
                again.append(lane.ready.popleft())
            elif job.dropped:
                lane.ready.popleft()
            elif most_wait is not None and piece.number == 0 and 1e3 * (now - job.arrived) > most_wait:
                lane.ready.popleft()
                late.append(job)
            elif batch and tokens + piece.tokens > self._options.max_batch_tokens:
                break
            else:
                batch.append(lane.ready.popleft())
                taken.add(job)
                tokens += piece.tokens
        lane.ready.extend(again)
        return batch, late

    def _run_batch(self, lane: Lane, batch: Sequence[Piece[Any]]) -> None:
        began = perf_counter()
        found = list(self._results(lane.engine, batch))
        took = perf_counter() - began
        lane.used += took
        rate = sum(piece.tokens for piece in batch) / took
        self._tokens_per_s += (RATE_SHARE if self._tokens_per_s else 1.0) * (rate - self._tokens_per_s)
        done: list[tuple[Job[Any], Any]] = []
        for piece, results in zip(batch, found, strict=True):
            job = piece.job
            job.inference_s += took
            if isinstance(results, BaseException):
                done.append((job, results))
                continue
            job.parts[piece.number] = results
            if all(part is not None for part in job.parts):
                done.append((job, job.outcome()))
        _deliver(done)

    def _results(self, engine: Engine, batch: Sequence[Piece[Any]]) -> Iterator[Any]:
        """Per piece its results, or the error that it met."""
        try:
            yield from engine.run([piece.prepared for piece in batch])
        except BaseException as error:
            if len(batch) == 1:
                yield error
                return
            for piece in batch:  # none suffers from another's fault
                yield from self._results(engine, [piece])

    def _timeout(self, job: Job[Any]) -> QueueTimeout:
        waited = 1e3 * (perf_counter() - job.arrived)
        return QueueTimeout(
            f"the request has waited {waited:.0f} ms, and this server lets it wait {self._options.max_queue_ms:g} "
            "ms (--max-queue-ms); try again later",
            self.retry_after(),
        )


def overloaded(options: ServeOptions, retry_after: int) -> Overloaded:
    """The error where ``max_concurrent_requests`` are in work."""
    return Overloaded(
        f"{options.max_concurrent_requests} requests are in work, as many as this server takes at once "
        "(--max-concurrent-requests); try again later",
        retry_after,
    )


def _deliver(done: Sequence[tuple[Job[Any], Any]]) -> None:
    """Hands outcomes and errors to the event loops that wait for them."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[Any], Any]]] = {}
    for job, outcome in done:
        by_loop.setdefault(job.loop, []).append((job.future, outcome))
    for loop, outcomes in by_loop.items():
        try:
            loop.call_soon_threadsafe(_settle, outcomes)
        except RuntimeError:  # the loop is closed: nobody waits
            continue


def _settle(outcomes: Sequence[tuple[asyncio.Future[Any], Any]]) -> None:
    for future, outcome in outcomes:
        if future.done():
            continue
        if isinstance(outcome, BaseException):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)


def _characters(text_or_pair: Any) -> int:
    return len(text_or_pair) if isinstance(text_or_pair, str) else sum(map(len, text_or_pair))


def _cut(tokens: Sequence[int], most: int) -> Iterator[list[int]]:
    """Numbers of inputs, in runs of at most ``most`` tokens, and of one input where that has more."""
    ends = list(accumulate(tokens))
    first = 0
    for i in range(1, len(ends)):
        if ends[i] - (ends[first - 1] if first else 0) > most:
            yield list(range(first, i))
            first = i
    yield list(range(first, len(ends)))
