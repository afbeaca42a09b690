"""What a request that fails is answered with: a kind of error, and how each client's protocol spells it.

A route speaks one dialect: that of text-embeddings-inference (``{"error", "error_type"}``), OpenAI
(``{"error": {"message", "type", "param", "code"}}``) or Cohere (``{"message"}``). :func:`dialect_of` tells it from
the path, so that what refuses a request before any route has it speaks the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from qla_runtime.errors import QlaError


@dataclass(frozen=True)
class Kind:
    """A kind of error.

    Attributes:
        status: of the HTTP response.
        tei: ``error_type`` in the dialect of text-embeddings-inference (``router/src/http/server.rs``), or a name
            in its manner for what it has no name for.
        openai: ``error.type`` in OpenAI's.
    """

    status: int
    tei: str
    openai: str


MALFORMED = Kind(400, "Validation", "invalid_request_error")
"""The body is not JSON."""
EMPTY = Kind(400, "Empty", "invalid_request_error")
"""A list has no entries."""
UNAUTHORIZED = Kind(401, "Unauthorized", "authentication_error")
NOT_FOUND = Kind(404, "NotFound", "invalid_request_error")
"""No such model, or no such path."""
NOT_ALLOWED = Kind(405, "MethodNotAllowed", "invalid_request_error")
TOO_LARGE = Kind(413, "Validation", "invalid_request_error")
"""The body has more bytes than the server takes."""
ENCODED = Kind(415, "Validation", "invalid_request_error")
"""The body is compressed."""
INVALID = Kind(422, "Validation", "invalid_request_error")
"""The body is JSON, but not what the route or the model takes."""
BACKEND = Kind(424, "Backend", "server_error")
"""The model does something else, or its package fails."""
OVERLOADED = Kind(429, "Overloaded", "rate_limit_error")
UNHEALTHY = Kind(503, "Unhealthy", "server_error")
"""The server is stopping, or could not run the request in time."""
INTERNAL = Kind(500, "Internal", "server_error")

KINDS = (
    MALFORMED, EMPTY, UNAUTHORIZED, NOT_FOUND, NOT_ALLOWED, TOO_LARGE, ENCODED, INVALID, BACKEND, OVERLOADED,
    UNHEALTHY, INTERNAL,
)  # fmt: skip


class ServeError(QlaError):
    """A request that is not answered with a result.

    Args:
        kind: one of :data:`KINDS`.
        message: names the limit, the value met and the remedy, in the words of the request's body.
        field: the body's field at fault.
        retry_after: seconds after which the client may try again.
    """

    def __init__(
        self, kind: Kind, message: str, *, field: str | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.field = field
        self.retry_after = retry_after

    @property
    def headers(self) -> dict[str, str]:
        """Headers of the response, besides its content's."""
        if self.retry_after is None:
            return {}
        return {"retry-after": str(max(1, round(self.retry_after)))}


@dataclass(frozen=True)
class Dialect:
    """How a protocol spells an error.

    Attributes:
        body: the response's body.
        schema: the body's JSON schema.
    """

    body: Callable[[ServeError], dict[str, Any]]
    schema: Mapping[str, Any]


def _text(*names: str) -> dict[str, Any]:
    return {"type": "object", "properties": {name: {"type": "string"} for name in names}, "required": [*names]}


TEI = Dialect(
    lambda error: {"error": error.message, "error_type": error.kind.tei},
    _text("error", "error_type"),
)

_NULLABLE = {"type": ["string", "null"]}
OPENAI = Dialect(
    lambda error: {
        "error": {
            "message": error.message,
            "type": error.kind.openai,
            "param": error.field,
            "code": "model_not_found" if error.kind is NOT_FOUND and error.field == "model" else None,
        }
    },
    {
        "type": "object",
        "properties": {
            "error": {
                "type": "object",
                "properties": {
                    "message": {"type": "string"},
                    "type": {"type": "string"},
                    "param": _NULLABLE,
                    "code": _NULLABLE,
                },
                "required": ["message", "type", "param", "code"],
            }
        },
        "required": ["error"],
    },
)

COHERE = Dialect(lambda error: {"message": error.message}, _text("message"))

_DIALECTS = {
    "/v1/embeddings": OPENAI,
    "/embeddings": OPENAI,
    "/v1/models": OPENAI,
    "/v1/rerank": COHERE,
    "/v2/rerank": COHERE,
}


def dialect_of(path: str) -> Dialect:
    """The dialect of the route at a path; also where the path begins with ``/models/NAME``."""
    if path.startswith("/v1/models/"):
        return OPENAI
    return next((dialect for end, dialect in _DIALECTS.items() if path.endswith(end)), TEI)
