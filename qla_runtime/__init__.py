"""INT8 inference of transformer encoders on Intel CPUs; every call says how many tokens each layer keeps.

One loaded model serves any budget::

    from qla_runtime import Engine

    engine = Engine.from_pretrained()
    engine.answer("Who wrote it?", "It was written by Ada.", length="balanced")

Importing this package imports numpy and the standard library alone.
"""

from __future__ import annotations

from qla_runtime._core import version as _version
from qla_runtime.engine import Engine
from qla_runtime.errors import InputError, PackageError, QlaError, UnsupportedError
from qla_runtime.length import Escalate, LatencyBudget, LengthConfig, MaxLoss, NamedLength
from qla_runtime.output import EncoderOutput

__version__ = _version()

__all__ = [
    "EncoderOutput",
    "Engine",
    "Escalate",
    "InputError",
    "LatencyBudget",
    "LengthConfig",
    "MaxLoss",
    "NamedLength",
    "PackageError",
    "QlaError",
    "UnsupportedError",
]
