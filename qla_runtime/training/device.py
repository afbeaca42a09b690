"""Where training computes, and in which precision."""

from __future__ import annotations

import contextlib
import importlib.util
import warnings
from collections.abc import Collection
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch

from qla_runtime.errors import UnsupportedError
from qla_runtime.lengths.configs import LengthConfig
from qla_runtime.model.float_model import ForwardRecord, Model
from qla_runtime.training.data import Batch

PRECISIONS = ("auto", "bf16", "fp32")


@dataclass(frozen=True)
class Device:
    """A device, and whether matrix products run in bf16 there; weights and optimizer stay float32."""

    device: torch.device
    bf16: bool

    @classmethod
    def choose(cls, precision: str = "auto") -> Device:
        """CUDA where there is one, else the CPU; ``auto`` is bf16 where the hardware multiplies it.

        Raises:
            UnsupportedError: a precision of another name.
        """
        if precision not in PRECISIONS:
            raise UnsupportedError(f"precision is {precision!r}; it must be one of {', '.join(PRECISIONS)}")
        cuda = torch.cuda.is_available()
        able = torch.cuda.is_bf16_supported() if cuda else _cpu_multiplies_bf16()
        bf16 = able if precision == "auto" else precision == "bf16"
        return cls(torch.device("cuda" if cuda else "cpu"), bf16)

    def autocast(self) -> AbstractContextManager:
        """Matrix products in this device's precision."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    def run(
        self,
        model: Model,
        batch: Batch,
        length: LengthConfig | None = None,
        skip: Collection[int] = (),
        want: Collection[str] = (),
    ) -> ForwardRecord:
        """What the model makes of a batch that lies on this device; arguments as in
        :meth:`qla_runtime.model.float_model.Encoder.forward`."""
        # A context per pass: autocast keeps bf16 copies of the weights until it ends.
        with self.autocast():
            return model(batch.input_ids, batch.token_type_ids, batch.mask, length, skip, want)

    def prepare(self, model: Model, optimizer: torch.optim.Optimizer) -> tuple[Model, torch.optim.Optimizer]:
        """Model and optimizer on the device, with Intel's extension where it is installed.

        The extension's own weight layouts and bf16 master weights are left off: a checkpoint must hold plain
        float32 tensors that any environment continues from.
        """
        extension = _intel_extension() if self.device.type == "cpu" else None
        if extension is None:
            return model, optimizer
        return extension.optimize(
            model.train(),
            optimizer=optimizer,
            dtype=torch.float32,
            inplace=True,
            weights_prepack=False,
            split_master_weight_for_bf16=False,
            fuse_update_step=False,
        )


def _cpu_multiplies_bf16() -> bool:
    with contextlib.suppress(OSError):
        flags = set(Path("/proc/cpuinfo").read_text().split("flags", 1)[-1].split("\n", 1)[0].split())
        return bool(flags & {"amx_bf16", "avx512_bf16"})
    return False


def _intel_extension() -> ModuleType | None:
    """The module, where it is installed and made for this torch; importing it registers its kernels."""
    name = "intel_extension_for_pytorch"
    if not torch.__version__.startswith("2.8.") or importlib.util.find_spec(name) is None:
        return None
    try:
        return importlib.import_module(name)
    except (ImportError, OSError, RuntimeError) as error:
        warnings.warn(f"{name} does not load ({error}); going on without it", stacklevel=2)
        return None
