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
    from starlette.routing import Route

    from qla_runtime.serve import app
    from qla_runtime.serve.limits import Limits

    routes = app.routes(models, options)
    # Most requests go to a fixed path. To look it up here spares a tenth of what the event loop does for them.
    direct = {
        route.path: route.endpoint
        for route in routes
        if isinstance(route, Route)
        and isinstance(route.endpoint, app.Endpoint)
        and "POST" in (route.methods or ())
    }
    whole = Starlette(routes=routes, exception_handlers=app.FAILURES)
    # It would send clients of a proxy that speaks TLS to http://, and their key with them.
    whole.router.redirect_slashes = False
    return Limits(whole, direct, models, options)
