"""Where the scales of the linear layers come from.

A source is a function of a :class:`ScaleRequest`; :data:`SOURCES` names them. A checkpoint of ``qla train qat``
brings its own, :func:`trained`, and takes no other.
Importing this module imports no torch.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from qla_runtime.checkpoints.reader import Checkpoint
from qla_runtime.convert.calibration import Sample
from qla_runtime.convert.scales import LinearScales, Scales
from qla_runtime.errors import InputError, UnsupportedError
from qla_runtime.lengths.configs import LengthConfig
from qla_runtime.model.formats import LINEARS, ModelFormat

if TYPE_CHECKING:
    from qla_runtime.model.float_model import Model


@dataclass(frozen=True)
class Calibration:
    """What static activation ranges are found on."""

    samples: Sequence[Sample]
    lengths: Sequence[LengthConfig]
    """The length configs to serve: a layer that sees only kept tokens has other ranges."""
    algorithm: str
    """One of :data:`qla_runtime.convert.scales.ALGORITHMS`."""
    progress: bool


@dataclass(frozen=True)
class ScaleRequest:
    """What a source may look at."""

    source: Checkpoint
    state: Mapping[str, NDArray[np.float32]]
    """The checkpoint's parameters by our names; see :meth:`Checkpoint.load_state`."""
    model: Model | None
    """The same as a PyTorch module; None where torch is not installed."""
    calibration: Calibration | None
    """None where no activation is static."""


def max_abs(request: ScaleRequest) -> Scales:
    """The largest weight of each output channel over 127.5 steps: neural-compressor's rule, by numpy alone."""
    return _by_weights(request.state, ModelFormat.of(request.source.encoder.layers, "w8a8"))


def trained(request: ScaleRequest) -> Scales:
    """Those that the checkpoint's weights had while they were trained."""
    assert request.source.format is not None  # trained_source() has seen to it
    return _by_weights(request.state, request.source.format)


def _by_weights(state: Mapping[str, NDArray[np.float32]], format: ModelFormat) -> Scales:
    scales = {}
    for i, layer in enumerate(format.linears):
        for linear in LINEARS:
            _, scale = layer[linear].quantize(state[f"encoder.layers.{i}.{linear}.weight"])
            scales[i, linear] = LinearScales(np.ascontiguousarray(scale[:, 0]), format=layer[linear])
    return scales


def neural_compressor(request: ScaleRequest) -> Scales:
    """neural-compressor's scales of the weights, and of static activations where they are asked for."""
    from qla_runtime.convert.neural_compressor import calibrate, weight_scales

    assert request.model is not None  # chosen_source() has seen to it
    wanted = request.calibration
    if wanted is None:
        return weight_scales(request.model.encoder)
    return calibrate(
        request.model.encoder,
        wanted.samples,
        wanted.lengths,
        algorithm=wanted.algorithm,
        progress=wanted.progress,
    )


DEFAULT = "neural-compressor"
SOURCES: dict[str, Callable[[ScaleRequest], Scales]] = {DEFAULT: neural_compressor, "max-abs": max_abs}

TRAINED = "trained"

PIP_LINE = "pip install 'qla_runtime[convert]'"
_NEEDED = ("torch", "transformers", "neural_compressor")


def chosen_source(asked: str | None, static: bool) -> str:
    """The name of the source to use.

    Args:
        asked: what the caller says; None takes neural-compressor where it is installed. Where it is not, per-token
            packages get max-abs, which gives the same weights.
        static: whether activation ranges are wanted, too.

    Raises:
        InputError: an unknown name, or one that finds no ranges where they are wanted.
        UnsupportedError: neural-compressor is needed and cannot run here.
    """
    if asked is not None and asked not in SOURCES:
        raise InputError(f"scales is {asked!r}; it must be one of {', '.join(SOURCES)}")
    if asked == "max-abs" and static:
        raise InputError(
            "scales is 'max-abs', which looks at weights alone, and static activations need ranges that are found "
            f"on texts. Use the scales of {DEFAULT} (scales=, --scales), or per_token activations"
        )
    missing = _missing()
    if missing is None:
        return asked or DEFAULT
    if asked == DEFAULT or static:
        raise UnsupportedError(missing)
    return "max-abs"


def trained_source(source: Checkpoint, asked: str | None, static: bool) -> None:
    """Sees that nothing is asked for which would calibrate away what a checkpoint was trained for.

    Args:
        source: a checkpoint with a format of its own.
        asked, static: as in :func:`chosen_source`.

    Raises:
        InputError: scales of another source, or static activations.
    """
    what = "static activations" if static else f"scales of {asked}" if asked is not None else None
    if what is None:
        return
    raise InputError(
        f"{source.source} was trained with its own quantizers (qla train qat), and {what} would replace them. "
        "Convert it with per_token activations and without scales (--scales), or convert the float checkpoint "
        "that it was trained from"
    )


def _missing() -> str | None:
    """Why neural-compressor cannot run here, and what helps; None where it can."""
    if sys.version_info < (3, 11):
        version = ".".join(map(str, sys.version_info[:2]))
        return (
            f"neural-compressor needs Python 3.11 or newer; this is {version}. In a newer one: {PIP_LINE}. "
            "Without it, --scales max-abs makes packages with per_token activations"
        )
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if not missing:
        return None
    return (
        f"scales by neural-compressor need {', '.join(missing)}, not installed here. Run: {PIP_LINE}. Without it, "
        "--scales max-abs makes packages with per_token activations"
    )
