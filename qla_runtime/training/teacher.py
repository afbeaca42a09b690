"""A fixed teacher: a frozen model's outputs for every feature, computed once and mapped from disk, or as they are
needed.

In-place distillation needs none of this: there the full pass of the very model that trains is the teacher.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
import torch

from qla_runtime.bars import bar
from qla_runtime.checkpoints.reader import Checkpoint
from qla_runtime.errors import QlaError
from qla_runtime.model.float_model import ForwardRecord, Model
from qla_runtime.model.staging import staging
from qla_runtime.training.data import Batch, Features
from qla_runtime.training.device import Device


class FixedTeacher:
    """Precomputed outputs, float16: a row per token for span QA, a row per sequence otherwise.

    Args:
        path: the ``.npy`` file; written when it is missing, trusted when it is there.
        source: the teacher; loaded only where the file is missing.
        features: what to run it on.
        tokens: padded tokens of a batch.
        device: where it runs.
        progress: show a bar.

    Raises:
        QlaError: the file cannot be written.
    """

    def __init__(
        self,
        path: Path,
        source: Checkpoint,
        features: Features,
        tokens: int,
        device: Device,
        progress: bool,
    ) -> None:
        if not path.is_file():
            rows = _compute(source.load_model().to(device.device), features, tokens, device, progress)
            try:
                with staging(path) as stage:
                    np.save(stage / path.name, rows)
                    (stage / path.name).replace(path)
            except OSError as error:
                reason = error.strerror or error
                raise QlaError(f"{path}: cannot be written ({reason}); make room and repeat") from error
        self._rows = np.load(path, mmap_mode="r")
        self._offsets = features.ragged.offsets
        self._per_token = source.task.per_token

    def __call__(self, batch: Batch, want: Collection[str] = ()) -> ForwardRecord:
        """The teacher's outputs for a batch, float32 and shaped like the student's: padding is 0.

        Raises:
            ValueError: anything else is wanted, which nobody wrote down.
        """
        if want:
            raise ValueError(f"a fixed teacher has no {', '.join(want)}")
        record = ForwardRecord()
        if not self._per_token:
            record.outputs = self._on(batch.mask.device, self._rows[batch.rows])
            return record
        parts = [self._rows[self._offsets[i] : self._offsets[i + 1]] for i in batch.rows]
        rows = self._on(batch.mask.device, np.concatenate(parts))
        record.outputs = rows.new_zeros((*batch.mask.shape, rows.shape[-1]))
        record.outputs[batch.mask] = rows
        return record

    @staticmethod
    def _on(device: torch.device, rows: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(rows.astype(np.float32)).to(device)


class LiveTeacher:
    """A frozen model that answers batch by batch: for runs of about an epoch or less, where computing outputs
    that no later epoch reads again would only put off the first step.

    Args:
        source: the teacher.
        device: where it runs.

    Attributes:
        model: the frozen model, on the device.
    """

    def __init__(self, source: Checkpoint, device: Device) -> None:
        self.model, self._device = source.load_model().to(device.device), device

    @torch.no_grad()
    def __call__(self, batch: Batch, want: Collection[str] = ()) -> ForwardRecord:
        """What the model makes of a batch, padding included; ``outputs`` in float32."""
        record = self._device.run(self.model, batch, want=want)
        record.outputs = record.outputs.float()
        return record


@torch.no_grad()
def _compute(model: Model, features: Features, tokens: int, device: Device, progress: bool) -> np.ndarray:
    """(tokens, outputs) or (sequences, outputs) float16."""
    offsets, per_token = features.ragged.offsets, model.task.per_token
    count = int(offsets[-1]) if per_token else len(features)
    rows = np.empty((count, model.task.outputs or model.encoder.spec.hidden), np.float16)
    plan = features.plan(tokens, np.random.default_rng(0))
    with bar(len(plan), "teacher", progress, unit="batch") as shown:
        for chosen in plan:
            batch = features.batch(chosen).to(device.device)
            outputs = device.run(model, batch).outputs.float()
            if per_token:
                where = np.concatenate([np.arange(offsets[i], offsets[i + 1]) for i in chosen])
                rows[where] = outputs[batch.mask].cpu().numpy()
            else:
                rows[chosen] = outputs.cpu().numpy()
            shown.update()
    return rows
