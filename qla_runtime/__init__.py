"""INT8 inference of transformer encoders on Intel CPUs; every call says how many tokens each layer keeps.

One loaded model serves any budget::

    from qla_runtime import Engine

    engine = Engine.from_pretrained()
    engine.answer("Who wrote it?", "It was written by Ada.", length="balanced")

Importing this package imports numpy and the standard library alone.
"""

from __future__ import annotations

from pathlib import Path as _Path
from typing import TYPE_CHECKING

# First of all: in a checkout that was not built in place, everything else comes from the installed package.
from qla_runtime import _checkout  # noqa: F401
from qla_runtime._core import version as _version
from qla_runtime.engine import Engine
from qla_runtime.errors import InputError, PackageError, QlaError, UnsupportedError
from qla_runtime.fork_safe import importing
from qla_runtime.lengths.configs import Escalate, LatencyBudget, LengthConfig, MaxLoss, NamedLength
from qla_runtime.output import EncoderOutput

if TYPE_CHECKING:
    from qla_runtime.pipelines import pipeline

__version__ = _version()


def __getattr__(name: str) -> object:
    """Pipelines are imported when they are asked for: an engine starts without them."""
    if name != "pipeline":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with importing():
        from qla_runtime.pipelines import pipeline
    return pipeline


def cmake_dir() -> str:
    """The folder of qlaConfig.cmake, for ``cmake -Dqla_DIR=...``: how a C++ program finds this installation.

    Raises:
        UnsupportedError: the installation holds none, as one that was built by an older version.
    """
    folder = _Path(__file__).parent / "cmake" / "qla"
    if not (folder / "qlaConfig.cmake").is_file():
        raise UnsupportedError(f"there is no qlaConfig.cmake in '{folder}'; install qla_runtime again")
    return str(folder)


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
    "cmake_dir",
    "pipeline",
]
