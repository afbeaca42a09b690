"""The correction of a classifier's bias: rounding errs to one side in every model, and the bias takes it back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qla_runtime.checkpoints.reader import Checkpoint
from qla_runtime.convert.calibration import Sample, Samples
from qla_runtime.convert.report import Reference, engine_run
from qla_runtime.model.spec import TaskSpec

HEAD_TEXTS = 32
"""How many texts a classifier's bias is corrected on at most."""


def corrects_head(source: Checkpoint) -> bool:
    """Whether a bias added to every output changes what the model says: no answer span depends on it, and vectors
    have no head. A model that was trained with the roundings has no error to take back."""
    return source.task.kind == "sequence-classification" and source.format is None


def head_samples(source: Checkpoint, samples: Samples) -> list[Sample]:
    """What a classifier's bias is corrected on; nothing where the report would see the same texts."""
    found = samples.calibrate
    if not corrects_head(source) or not found or not samples.held_out:
        return []
    return found[:: -(-len(found) // HEAD_TEXTS)]


def corrected_bias(
    bias: NDArray[np.float32], task: TaskSpec, reference: Reference, package: Path, samples: Sequence[Sample]
) -> NDArray[np.float32]:
    """The head's bias, less what INT8 adds to each output on average.

    Args:
        bias: (outputs,), the model's own.
        task: what the model is for.
        reference: whose outputs are right.
        package: the INT8 package, with the model's own bias.
        samples: texts as the model will meet them.

    Returns:
        (outputs,).
    """
    right = np.array([output for _, output in reference.run(samples)], np.float64)
    found = np.array([output for _, output in engine_run(package, task)(samples)], np.float64)
    return (bias + (right - found).mean(axis=0)).astype(np.float32)
