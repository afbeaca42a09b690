"""The routes, one file per protocol. Each has ``operations(models, options)``."""

from __future__ import annotations
