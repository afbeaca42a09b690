"""A fixed teacher: a frozen model's outputs for every feature, computed once and mapped from disk.

In-place distillation needs none of this: there the full pass of the very model that trains is the teacher.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.lib.format import open_memmap
from torch import Tensor
from tqdm import tqdm

from qla_runtime.convert.package_writer import staging
from qla_runtime.errors import QlaError
from qla_runtime.modeling import Model
from qla_runtime.training.data import Batch, Features
from qla_runtime.training.device import Device


class FixedTeacher:
    """Precomputed outputs, float16: a row per token for span QA, a row per sequence otherwise.

    Args:
        path: the ``.npy`` file; written when it is missing, trusted when it is there.
        model: gives the outputs; used only to write the file.
        features: what to run it on.
        tokens: padded tokens of a batch.
        device: where it runs.
        progress: show a bar.

    Raises:
        QlaError: the file cannot be written.
    """

    def __init__(
        self, path: Path, model: Model, features: Features, tokens: int, device: Device, progress: bool
    ) -> None:
        self._offsets = features.ragged.offsets
        self._per_token = model.task.per_token
        if not path.is_file():
            try:
                with staging(path) as stage:
                    self._compute(stage / path.name, model, features, tokens, device, progress)
                    (stage / path.name).replace(path)
            except OSError as error:
                raise QlaError(f"{path}: cannot be written ({error.strerror}); make room and repeat") from error
        self._rows = np.load(path, mmap_mode="r")

    def outputs(self, batch: Batch) -> Tensor:
        """The teacher's outputs for a batch, float32 and shaped like the student's: padding is 0."""
        if not self._per_token:
            return torch.from_numpy(self._rows[batch.rows].astype(np.float32)).to(batch.mask.device)
        rows = np.concatenate([self._rows[self._offsets[i] : self._offsets[i + 1]] for i in batch.rows])
        rows = torch.from_numpy(rows.astype(np.float32)).to(batch.mask.device)
        outputs = rows.new_zeros((*batch.mask.shape, rows.shape[-1]))
        outputs[batch.mask] = rows
        return outputs

    @torch.no_grad()
    def _compute(
        self, path: Path, model: Model, features: Features, tokens: int, device: Device, progress: bool
    ) -> None:
        model.to(device.device)
        count = int(self._offsets[-1]) if self._per_token else len(features)
        width = model.task.outputs or model.encoder.spec.hidden
        rows = open_memmap(path, "w+", np.float16, (count, width))
        plan = features.plan(tokens, np.random.default_rng(0))
        for chosen in tqdm(plan, desc="teacher", delay=2, disable=not progress, mininterval=1):
            batch = features.batch(chosen).to(device.device)
            outputs = device.forward(model, batch).float()
            if self._per_token:
                where = np.concatenate([np.arange(self._offsets[i], self._offsets[i + 1]) for i in chosen])
                rows[where] = outputs[batch.mask].cpu().numpy()
            else:
                rows[chosen] = outputs.cpu().numpy()
        rows.flush()
