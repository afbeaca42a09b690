"""Why a server does not run a request that is right in itself."""

from __future__ import annotations

from qla_runtime.errors import QlaError


class Overloaded(QlaError):
    """Too many requests are waiting. HTTP says 429.

    Attributes:
        retry_after: seconds after which the client may try again, a whole number of at least 1.
    """

    def __init__(self, message: str, retry_after: int = 1) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class QueueTimeout(Overloaded):
    """The request has waited longer than ``max_queue_ms``. HTTP says 429, as for :class:`Overloaded`."""


class Stopping(QlaError):
    """The server is shutting down. HTTP says 503."""


class ClientGone(QlaError):
    """The client has left before its request ran. There is nobody to answer."""
