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
from collections.abc import Iterator, Sequence
from queue import SimpleQueue
from time import perf_counter
from typing import Any

import numpy as np

from qla_runtime.engine import Engine
from qla_runtime.serve import metrics
from qla_runtime.serve.errors import TOO_LARGE, ServeError
from qla_runtime.serve.jobs import Job, Lane, Piece
from qla_runtime.serve.options import ServeOptions
from qla_runtime.serve.outcome import Outcome
from qla_runtime.serve.refusals import ClientGone, Overloaded, QueueTimeout, Stopping
from qla_runtime.tasks.prepared import Call

LONG_CHARACTERS = 50_000
"""A request of more characters is tokenized on a thread of its own, so that it holds up none but its like."""

RATE_SHARE = 0.2
"""The weight of the latest batch in the measured tokens per second."""

BUDGET_SHARE = 0.5
"""A batch with a latency budget grows while it is predicted, with every token kept, to end within this share of
the time that is left. The other half is for surprises, and so that company seldom costs a request tokens."""


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
        self._tokenizers = [
            threading.Thread(target=self._tokenize, name="qla-tokenize", daemon=True),
            threading.Thread(target=self._tokenize_long, name="qla-tokenize-long", daemon=True),
        ]
        self._runners = [
            threading.Thread(target=self._run, name=f"qla-run-{i}", daemon=True) for i in range(options.streams)
        ]
        for thread in (*self._tokenizers, *self._runners):
            thread.start()

    def lane(self, name: str, engine: Engine) -> Lane:
        """A queue for a model.

        Raises:
            InputError: ``keep_latency`` has nothing to choose from.
        """
        recorder = metrics.Recorder(name, (*engine.lengths, *engine.frontier))
        lane = Lane(engine, self._options, recorder)
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
        for thread in self._tokenizers:
            thread.join()
        with self._changed:
            self._changed.notify_all()
        for runner in self._runners:
            runner.join()

    # ------------------------------------------------------------------------------ tokenizing threads

    def _tokenize(self) -> None:
        while (job := self._short.get()) is not None:
            try:
                _check_there(job)
                began = perf_counter()
                call = job.make()
                characters = sum(map(_characters, call.inputs))
                check_characters(characters, self._options)
                if characters > LONG_CHARACTERS:
                    self._long.put((job, call))
                else:
                    self._enqueue(job, call, began)
            except BaseException as error:
                _deliver([(job, error)])
        self._long.put(None)

    def _tokenize_long(self) -> None:
        while (found := self._long.get()) is not None:
            job, call = found
            try:
                _check_there(job)
                self._enqueue(job, call, perf_counter())
            except BaseException as error:
                _deliver([(job, error)])

    def _enqueue(self, job: Job[Any], call: Call[Any], began: float) -> None:
        lane = job.lane
        pieces = lane.pieces(job, call)
        if lane.pressure is not None:
            for piece in pieces:
                piece.cost = lane.pressure.costs.of(piece.lengths())
        job.tokenization_s = perf_counter() - began
        with self._changed:
            if not lane.ready:  # it has no claim to the time in which it had nothing to run
                busy = [each.used for each in self._lanes if each.ready]
                lane.used = max(lane.used, min(busy, default=0.0))
            lane.ready.extend(pieces)
            self._changed.notify()

    # ---------------------------------------------------------------------------------------- runners

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (waiting := [lane for lane in self._lanes if lane.ready]):
                    if self._closed and not any(thread.is_alive() for thread in self._tokenizers):
                        return
                    self._changed.wait()
                lane = min(waiting, key=lambda each: each.used)
                before = list(lane.ready) if lane.pressure else []
                batch, refused = self._take(lane)
                left = len(lane.ready)
            if refused:
                _deliver(refused)
            if batch:
                metrics.batch_begins(len(batch), sum(piece.tokens for piece in batch), left)
                try:
                    self._run_batch(lane, batch, before)
                except BaseException as error:  # a fault of ours; the runner goes on
                    _deliver([(piece.job, error) for piece in batch])

    def _take(self, lane: Lane) -> tuple[list[Piece[Any]], list[tuple[Job[Any], Exception]]]:
        """What runs next of a lane, in the order of arrival, and jobs that do not run, with the reason.

        A batch holds one piece of a job at most. The job's other pieces go behind those who wait.
        """
        batch: list[Piece[Any]] = []
        again: list[Piece[Any]] = []
        refused: list[tuple[Job[Any], Exception]] = []
        taken: set[Job[Any]] = set()
        room = Room(lane, self._options.max_batch_tokens)
        while lane.ready:
            piece = lane.ready[0]
            job = piece.job
            if job in taken:
                again.append(lane.ready.popleft())
            elif (reason := self._reason_against(piece)) is not None:
                refused.append((job, reason))
                lane.ready.popleft()
            elif room.takes(piece):
                batch.append(lane.ready.popleft())
                taken.add(job)
            else:
                break
        lane.ready.extend(again)
        return batch, refused

    def _reason_against(self, piece: Piece[Any]) -> Exception | None:
        """Why a piece should not run; None: it should."""
        job, most = piece.job, self._options.max_queue_ms
        if job.dropped:
            return ClientGone("the client has left")
        if most is None or piece.number or job.pieces_left < len(job.parts):
            return None
        waited = 1e3 * (perf_counter() - job.arrived)
        if waited <= most:
            return None
        return QueueTimeout(
            f"the request has waited {waited:.0f} ms, and this server lets it wait {most:g} ms (--max-queue-ms); "
            "try again later",
            self.retry_after(),
        )

    def _run_batch(self, lane: Lane, batch: list[Piece[Any]], waiting: Sequence[Piece[Any]]) -> None:
        expected = _adapt(lane, batch, waiting) if lane.pressure else 0.0
        began = perf_counter()
        found = list(self._results(lane.engine, batch))
        took = perf_counter() - began
        if lane.pressure:
            lane.pressure.ran(expected, took)
        rate = sum(piece.tokens for piece in batch) / took
        done: list[tuple[Job[Any], Any]] = []
        complete: list[Job[Any]] = []
        with self._changed:
            lane.used += took
            self._tokens_per_s += (RATE_SHARE if self._tokens_per_s else 1.0) * (rate - self._tokens_per_s)
            for piece, results in zip(batch, found, strict=True):
                piece.job.inference_s += took
                piece.job.pieces_left -= 1
                if isinstance(results, BaseException):
                    done.append((piece.job, results))
                    continue
                lane.ran(piece, results)
                if not piece.job.pieces_left:
                    complete.append(piece.job)
        done += [(job, job.outcome()) for job in complete]
        _deliver(done)
        for job, outcome in done:
            if lane.recorder and isinstance(outcome, Outcome):
                lane.recorder.answered(outcome, job.single)

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


class Room:
    """How much a batch may still take.

    Args:
        lane: whose batch it is.
        most: tokens.
    """

    def __init__(self, lane: Lane, most: int) -> None:
        self._lane, self._most = lane, most
        self._pieces: list[Piece[Any]] = []
        self._tokens = 0
        self._deadline = math.inf

    def takes(self, piece: Piece[Any]) -> bool:
        """Whether the piece is in the batch now. An empty batch takes any."""
        tokens = self._tokens + piece.tokens
        deadline = min(self._deadline, piece.prepared.deadline or math.inf)
        if self._pieces:
            if tokens > self._most:
                return False
            if deadline < math.inf:
                lengths = [n for each in (*self._pieces, piece) for n in each.lengths()]
                if self._lane.costs.of(lengths)[0] > BUDGET_SHARE * (deadline - perf_counter()):
                    return False
        self._pieces.append(piece)
        self._tokens, self._deadline = tokens, deadline
        return True


def overloaded(options: ServeOptions, retry_after: int) -> Overloaded:
    """The error where ``max_concurrent_requests`` are in work."""
    return Overloaded(
        f"{options.max_concurrent_requests} requests are in work, as many as this server takes at once "
        "(--max-concurrent-requests); try again later",
        retry_after,
    )


def _adapt(lane: Lane, batch: list[Piece[Any]], waiting: Sequence[Piece[Any]]) -> float:
    """Gives the pieces of a batch that leave it to the server their length config.

    Returns:
        Seconds that the batch is expected to take.
    """
    pressure = lane.pressure
    assert pressure is not None
    all_costs = np.sum([piece.cost for piece in waiting], axis=0)
    costs = np.sum([piece.cost for piece in batch], axis=0)
    oldest = perf_counter() - min(piece.job.arrived for piece in batch)
    chosen = pressure.choose(all_costs, costs, oldest)
    for piece in batch:
        if piece.job.adapts:
            piece.prepared = piece.prepared.planned(chosen.plan(piece.prepared.count), 0.0)
    return float(costs[pressure.candidates.index(chosen)])


def _check_there(job: Job[Any]) -> None:
    if job.dropped:
        raise ClientGone("the client has left")


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


def check_characters(count: int, options: ServeOptions) -> None:
    """Refuses a request that has more characters to tokenize than a body of plain texts could hold.

    A query is tokenized with each text that it is compared with. So a body of the largest size could keep the
    tokenizer at work for minutes.

    Raises:
        ServeError: it has.
    """
    if count > options.max_payload_bytes:
        raise ServeError(
            TOO_LARGE,
            f"the request's pairs of texts have {count} characters together, and this server takes "
            f"{options.max_payload_bytes} (--max-payload-bytes); send a shorter text to compare with, or fewer "
            "texts at once",
        )


def _characters(text_or_pair: Any) -> int:
    return len(text_or_pair) if isinstance(text_or_pair, str) else sum(map(len, text_or_pair))
