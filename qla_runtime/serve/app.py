"""The routes. A placeholder until they land."""

from __future__ import annotations

from starlette.routing import BaseRoute

from qla_runtime.serve.options import ServeOptions
from qla_runtime.serve.served import Models


def routes(models: Models, options: ServeOptions) -> list[BaseRoute]:
    """Every route of the server."""
    return []
