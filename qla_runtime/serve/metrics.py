"""What a server counts, for Prometheus: text-embeddings-inference's names, and ours behind ``qla_``.

With several workers, each keeps its figures in a file of the folder ``PROMETHEUS_MULTIPROC_DIR``, and any of them
gives the sums. prometheus-client reads that variable when it is imported.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector

from qla_runtime.serve.outcome import Outcome
from qla_runtime.tasks.results import fact

FOLDER = "PROMETHEUS_MULTIPROC_DIR"

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
TOKENS = (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 65536)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)

ERRORS: Mapping[int, str] = {
    400: "validation",
    401: "unauthorized",
    404: "not_found",
    405: "not_allowed",
    413: "validation",
    422: "validation",
    424: "backend",
    429: "overloaded",
    503: "unhealthy",
}
"""``err`` of ``te_request_failure`` by status; any other is ``internal``."""

disable_created_metrics()

_COUNT = Counter("te_request_count", "requests", ["method"])
_SUCCESS = Counter("te_request_success", "requests that were answered with a result", ["method"])
_FAILURE = Counter("te_request_failure", "requests that were answered with an error", ["err"])
_DURATION = Histogram("te_request_duration", "seconds of a request", buckets=SECONDS)
_TOKENIZATION = Histogram("te_request_tokenization_duration", "seconds of tokenizing", buckets=SECONDS)
_QUEUE = Histogram("te_request_queue_duration", "seconds of waiting for a batch", buckets=SECONDS)
_INFERENCE = Histogram("te_request_inference_duration", "seconds of the batch", buckets=SECONDS)
_INPUT_LENGTH = Histogram("te_request_input_length", "tokens of a request", buckets=TOKENS)
_BATCH_SIZE = Histogram("te_batch_next_size", "requests of a batch", buckets=SIZES)
_BATCH_TOKENS = Histogram("te_batch_next_tokens", "tokens of a batch", buckets=TOKENS)
_QUEUE_SIZE = Gauge("te_queue_size", "requests that wait for a batch", multiprocess_mode="livesum")

_TOKENS = Counter("qla_tokens", "tokens of all inputs, special tokens included", ["model"])
_KEPT_TOKENS = Counter("qla_kept_tokens", "of these, tokens that the last layer kept", ["model"])
_FULL_MACS = Counter("qla_full_macs", "multiply-accumulates, had every layer kept every token", ["model"])
_KEPT_MACS = Counter("qla_kept_macs", "multiply-accumulates that ran", ["model"])
_LENGTH = Counter("qla_length", "inputs that ran with a length config", ["model", "length"])
_BUDGET = Counter("qla_budget", "inputs with a latency budget, and whether it was met", ["model", "met"])
_TRUNCATED = Counter("qla_truncated", "inputs that were cut at the model's longest", ["model"])

_OWN_ENDING = (b"te_request_count", b"te_request_success", b"te_request_failure")

OTHER = "other"
"""``length`` of configs that requests spell out: there is no end of them."""


class Recorder:
    """Counts what a model gave. One per model, because finding a counter by its labels costs as much as counting.

    Args:
        model: as clients name it.
        lengths: names of its length configs.
    """

    def __init__(self, model: str, lengths: tuple[str, ...]) -> None:
        self._methods = [(_COUNT.labels(method), _SUCCESS.labels(method)) for method in ("batch", "single")]
        self._lengths = {length: _LENGTH.labels(model, length) for length in (*lengths, OTHER)}
        self._budgets = {met: _BUDGET.labels(model, str(met).lower()) for met in (True, False)}
        self._sums = [each.labels(model) for each in (_TOKENS, _KEPT_TOKENS, _KEPT_MACS, _FULL_MACS)]
        self._truncated = _TRUNCATED.labels(model)

    def answered(self, outcome: Outcome[object], single: bool) -> None:
        """Counts a request that got its results."""
        for each in self._methods[single]:
            each.inc()
        _TOKENIZATION.observe(outcome.tokenization_s)
        _QUEUE.observe(outcome.queue_s)
        _INFERENCE.observe(outcome.inference_s)
        _INPUT_LENGTH.observe(outcome.tokens)
        sums = (outcome.tokens, outcome.kept_tokens, outcome.kept_macs, outcome.full_macs)
        for counter, amount in zip(self._sums, sums, strict=True):
            counter.inc(amount)
        for result, length in zip(outcome.results, outcome.lengths, strict=True):
            (self._lengths.get(length) or self._lengths[OTHER]).inc()
            met = fact(result, "budget_met")
            if met is not None:
                self._budgets[met].inc()
            if _truncated(result):
                self._truncated.inc()


def request_done(status: int, seconds: float) -> None:
    """Counts a request's time, and its error where it had one."""
    if status < 400:
        _DURATION.observe(seconds)
    else:
        _COUNT.labels("single").inc()
        _FAILURE.labels(ERRORS.get(status, "internal")).inc()


def batch_begins(requests: int, tokens: int, waiting: int) -> None:
    """Counts a batch, and how many requests wait behind it."""
    _BATCH_SIZE.observe(requests)
    _BATCH_TOKENS.observe(tokens)
    _QUEUE_SIZE.set(waiting)


def render() -> tuple[bytes, str]:
    """The text that Prometheus reads, of all workers, and its content type."""
    registry = REGISTRY
    if FOLDER in os.environ:
        registry = CollectorRegistry()
        MultiProcessCollector(registry)
    text = generate_latest(registry)
    for name in _OWN_ENDING:  # text-embeddings-inference's counters do not end in _total
        text = text.replace(name + b"_total", name)
    return text, CONTENT_TYPE_LATEST


def _truncated(result: object) -> bool:
    """Question answering cuts nothing, and says nothing of it."""
    if isinstance(result, dict):
        return bool(result.get("truncated"))
    return bool(getattr(result, "truncated", False) or getattr(result, "cut", False))
