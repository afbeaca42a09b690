"""What a server is asked to do. One class gives the flags of ``qla serve`` and the limits."""

from __future__ import annotations

from dataclasses import dataclass

from qla_runtime.engine import MAX_THREADS
from qla_runtime.errors import InputError
from qla_runtime.settings import between, check_limits, setting, whole


@dataclass(frozen=True)
class ServeOptions:
    """The options of ``qla serve``, under the same names.

    Defaults of limits are those of text-embeddings-inference, but for ``max_batch_tokens``: the engine computes
    4,096 tokens at a time, so a larger batch is no faster, and its first answers wait for its last.

    Attributes:
        host: address to listen on.
        port: TCP port; 0 takes a free one.
        api_key: a key that requests must send as ``Authorization: Bearer KEY``; None: no key.
        threads: of all workers together; None takes what this process may use.
        workers: processes. They share the mapped weights and the port, and divide the threads.
        streams: batches that run at once in a worker. They divide its threads.
        max_concurrent_requests: requests in work or in the queue of a worker; more get status 429.
        max_batch_tokens: tokens of one batch; a larger request runs in several.
        max_client_batch_size: texts of one request.
        max_request_tokens: tokens of one request; None: no limit of its own.
        max_payload_bytes: bytes of a request's body.
        max_queue_ms: milliseconds that a request may wait for its turn; None: no limit.
        read_timeout_s: seconds in which a client must have sent its request.
        drain_s: seconds between SIGTERM and the end of listening. Meanwhile ``/ready`` is false.
        refuse_long_texts: refuse texts that are too long, where a request does not say; else they are cut.
        keep_latency: milliseconds that requests should take; the length config is lowered for it. None: it
            never is.
        keep_latency_floor: the name of the lowest config that ``keep_latency`` may choose; None: any.
        log_requests: print a line of JSON on standard output for every request.

    Raises:
        InputError: a value out of range.
    """

    host: str = setting("127.0.0.1", "address to listen on (default: %(default)s)", metavar="ADDRESS")
    port: int = setting(
        8080, "TCP port; 0 takes a free one (default: %(default)s)", limit=whole(0, 65535), metavar="N"
    )
    api_key: str | None = setting(
        None, "want this key as Authorization: Bearer KEY (default: $QLA_API_KEY, else none)", metavar="KEY"
    )
    threads: int | None = setting(
        None, "threads of all workers together (default: what this process may use)",
        limit=whole(1, MAX_THREADS), metavar="N",
    )  # fmt: skip
    workers: int = setting(
        1, "processes, which share weights and port (default: %(default)s)", limit=whole(1, MAX_THREADS),
        metavar="N",
    )  # fmt: skip
    streams: int = setting(
        1, "batches at once in a worker (default: %(default)s)", limit=whole(1, MAX_THREADS), metavar="N"
    )
    max_concurrent_requests: int = setting(
        512, "requests at once in a worker; more get status 429 (default: %(default)s)", limit=whole(1),
        metavar="N",
    )  # fmt: skip
    max_batch_tokens: int = setting(
        4096, "tokens of one batch (default: %(default)s)", limit=whole(1), metavar="N"
    )
    max_client_batch_size: int = setting(
        32, "texts of one request (default: %(default)s)", limit=whole(1), metavar="N"
    )
    max_request_tokens: int | None = setting(
        None, "tokens of one request (default: no limit)", limit=whole(1), metavar="N"
    )
    max_payload_bytes: int = setting(
        2_000_000, "bytes of a request's body (default: %(default)s)", limit=whole(1), metavar="N"
    )
    max_queue_ms: float | None = setting(
        None, "milliseconds that a request may wait; then it gets status 429 (default: no limit)",
        limit=between(0, 1e9), metavar="MS",
    )  # fmt: skip
    read_timeout_s: float = setting(
        20.0, "seconds in which a client must have sent its request (default: %(default)g)",
        limit=between(0.01, 1e6), metavar="S",
    )  # fmt: skip
    drain_s: float = setting(
        2.0, "seconds between SIGTERM and the end of listening (default: %(default)g)", limit=between(0, 1e6),
        metavar="S",
    )  # fmt: skip
    refuse_long_texts: bool = setting(False, "refuse texts that are too long, where a request does not say")
    keep_latency: float | None = setting(
        None, "lower the length config while requests would take longer than this (default: never)",
        limit=between(0, 1e9), metavar="MS",
    )  # fmt: skip
    keep_latency_floor: str | None = setting(
        None, "the lowest config that --keep-latency may choose (default: the cheapest)", metavar="NAME"
    )
    log_requests: bool = setting(False, "print a line of JSON for every request")

    def __post_init__(self) -> None:
        check_limits(self, in_flags=True)
        if self.keep_latency_floor is not None and self.keep_latency is None:
            raise InputError(
                f"--keep-latency-floor is {self.keep_latency_floor!r} without --keep-latency; give both, or none"
            )

    @property
    def auto_truncate(self) -> bool:
        """Whether texts that are too long are cut, where a request does not say."""
        return not self.refuse_long_texts
