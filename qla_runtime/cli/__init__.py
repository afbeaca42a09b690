"""The command ``qla``."""

from __future__ import annotations

from qla_runtime.cli.program import main

__all__ = ["main"]
