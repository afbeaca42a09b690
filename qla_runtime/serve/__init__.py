"""HTTP: engines behind the interfaces that clients already speak (extra ``[serve]``)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from qla_runtime.serve.options import ServeOptions
    from qla_runtime.serve.served import Models


def create_app(models: Models, options: ServeOptions) -> ASGIApp:
    """The ASGI application of a server: the routes of :mod:`qla_runtime.serve.app` behind its limits.

    Args:
        models: what it serves.
        options: its limits.
    """
    from starlette.applications import Starlette

    from qla_runtime.serve import app
    from qla_runtime.serve.limits import Limits

    return Limits(Starlette(routes=app.routes(models, options), exception_handlers=app.FAILURES), models, options)
