"""Whom a server lets in, and when it gives up on a client."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

GONE = "qla.gone"
"""The key of a request's scope under which :func:`gone` finds whether the client has left."""


def gone(scope: Mapping[str, Any]) -> Callable[[], bool]:
    """What :meth:`ServedModel.run` takes as ``gone``, from the scope of a request (``request.scope``)."""
    found: Callable[[], bool] = scope.get(GONE, _never)
    return found


def _never() -> bool:
    return False
