"""Checkpoint in, package out: the room of ``qla convert``.

===================== ========================================================================================
``pipeline``          the way through: check, read, find scales, pack, compare, publish
``scales``            how a linear layer is quantized
``scale_sources``     where its scales come from: neural-compressor, or max-abs in numpy
``neural_compressor`` neural-compressor's static INT8, read back as scales and zero points
``contents``          what goes into the package's files
``calibration``       which texts, cut into which token sequences
``sample_texts``      sentences for a report that was given none
``report``            the package against the model it was made from
``head_bias``         a classifier's bias takes back the mean error of INT8
``no_answer``         whether a question answering model may say that there is no answer
``lengths``           the length configs a package starts with
``card``              the package's README.md
``noise``             keeps what other libraries print out of our output
===================== ========================================================================================

Checkpoints are read by :mod:`qla_runtime.checkpoints`, packages are written by :mod:`qla_runtime.model`.
Importing this package imports neither torch nor anything else of the ``[convert]`` extra, and ``scales="max-abs"``
needs nothing of it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

__all__ = ["convert"]


def convert(
    checkpoint: str | Path, out: str | Path, calibrate: str | Path | None = None, **options: Any
) -> dict[str, Any]:
    """Converts a checkpoint into a package; see :func:`qla_runtime.convert.pipeline.convert`."""
    from qla_runtime.convert import pipeline

    return pipeline.convert(checkpoint, out, calibrate, **options)
