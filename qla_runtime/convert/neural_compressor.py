"""neural-compressor's static INT8 on the encoder, read back as scales and zero points.

Weight scales are functions of the weights alone: :func:`weight_scales` reads them from a graph of the linear
layers that saw one row of zeros. Static activation ranges need texts: :func:`calibrate` exports and runs the
encoder once dense and once per length config, as a layer that sees only the tokens that were kept has other
ranges, and the engine must serve both. The ranges of the runs are united.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from qla_runtime.bars import bar
from qla_runtime.convert.calibration import Sample
from qla_runtime.convert.noise import quiet
from qla_runtime.convert.scales import ALGORITHMS, LinearScales
from qla_runtime.errors import InputError, QlaError
from qla_runtime.lengths.configs import LengthConfig
from qla_runtime.model.float_model import Encoder
from qla_runtime.model.formats import LINEARS

_WEIGHT_NAME = re.compile(rf"layers[._](\d+)[._]({'|'.join(LINEARS)})[._]weight$")


class _Exportable(nn.Module):
    """The encoder with its length config fixed and one tensor out, as torch.export wants it."""

    def __init__(self, encoder: Encoder, length: LengthConfig | None):
        super().__init__()
        self.encoder = encoder
        self.length = length

    def forward(self, input_ids: Tensor, token_type_ids: Tensor) -> Tensor:
        return self.encoder(input_ids, token_type_ids, None, self.length).last_hidden


class _Linears(nn.Module):
    """The linear layers alone, each on an input of its width."""

    def __init__(self, encoder: Encoder):
        super().__init__()
        self.layers = encoder.layers

    def forward(self, hidden: Tensor, intermediate: Tensor) -> tuple[Tensor, ...]:
        outputs = []
        for layer in self.layers:
            outputs += [layer.qkv(hidden), layer.output(hidden), layer.ffn_in(hidden), layer.ffn_out(intermediate)]  # type: ignore[operator]
        return tuple(outputs)


def weight_scales(encoder: Encoder) -> dict[tuple[int, str], LinearScales]:
    """neural-compressor's scales of the weights, without any text: all that per-token activations need.

    Args:
        encoder: float32, in evaluation mode.

    Returns:
        (layer, linear) -> scales without an activation range, for every layer and every name in :data:`LINEARS`.

    Raises:
        QlaError: neural-compressor left a layer unquantized.
    """
    spec = encoder.spec
    with quiet(), torch.no_grad():
        from neural_compressor.torch.export import export
        from neural_compressor.torch.quantization import StaticQuantConfig, convert, prepare

        zeros = torch.zeros(1, 1, spec.hidden), torch.zeros(1, 1, spec.intermediate)
        graph = prepare(export(_Linears(encoder), zeros), StaticQuantConfig(act_algo="minmax"))
        graph(*zeros)
        found = _read_scales(convert(graph), spec.layers)
    return {key: LinearScales(scales.weight_scale) for key, scales in found.items()}


def calibrate(
    encoder: Encoder,
    samples: Sequence[Sample],
    lengths: Iterable[LengthConfig],
    *,
    algorithm: str = "kl",
    progress: bool = True,
) -> dict[tuple[int, str], LinearScales]:
    """Runs the samples through neural-compressor's observers, dense and under every dropping config.

    Args:
        encoder: float32, in evaluation mode.
        samples: at least one, each of three tokens or more.
        lengths: length configs to serve; those that drop nothing or repeat another cost nothing.
        algorithm: one of :data:`ALGORITHMS`.
        progress: a bar on standard error.

    Returns:
        (layer, linear) -> scales, for every layer and every name in :data:`LINEARS`.

    Raises:
        InputError: unknown algorithm.
        QlaError: neural-compressor left a layer unquantized.
    """
    if algorithm not in ALGORITHMS:
        raise InputError(f"calibration_algo is {algorithm!r}; it must be one of {', '.join(ALGORITHMS)}")
    dropping = dict.fromkeys(c for c in lengths if c.rule != "ratio" or min(c.values) < 1)
    runs: list[LengthConfig | None] = [None, *dropping]
    united: dict[tuple[int, str], LinearScales] = {}
    with bar(len(runs) * len(samples), "calibrating", progress, unit="text", delay=0) as shown:
        for length in runs:
            for key, scales in _calibrate_one(encoder, samples, length, algorithm, shown).items():
                united[key] = united[key].united(scales) if key in united else scales
    return united


def _calibrate_one(
    encoder: Encoder, samples: Sequence[Sample], length: LengthConfig | None, algorithm: str, shown: tqdm
) -> dict[tuple[int, str], LinearScales]:
    with quiet(), torch.no_grad():
        from neural_compressor.torch.export import export
        from neural_compressor.torch.quantization import StaticQuantConfig, convert, prepare

        # The example must be longer than every absolute count and every sample-independent bound, or the
        # trace specializes on "nothing is dropped".
        example = torch.zeros(1, encoder.spec.max_positions, dtype=torch.int64)
        dynamic = {1: torch.export.Dim.AUTO}
        graph = export(_Exportable(encoder, length), (example, example.clone()), dynamic_shapes=(dynamic, dynamic))
        graph = prepare(graph, StaticQuantConfig(act_algo=algorithm))
        for sample in samples:
            ids = torch.from_numpy(sample.ids.astype(np.int64))[None]
            type_ids = torch.from_numpy(sample.type_ids.astype(np.int64))[None]
            graph(ids, type_ids)
            shown.update()
        return _read_scales(convert(graph), encoder.spec.layers)


def _read_scales(graph: torch.fx.GraphModule, layers: int) -> dict[tuple[int, str], LinearScales]:
    """Walks from every linear node to its two quantize nodes.

    activation > quantize_per_tensor(scale, zero point) > dequantize > linear
    weight parameter > quantize_per_channel(scale buffer) > dequantize > linear

    The parameter's name says which layer it is.
    """
    found = {}
    node: Any  # torch types a node's arguments as anything that a graph may hold
    for node in graph.graph.nodes:
        if node.target is not torch.ops.aten.linear.default:
            continue
        activation, weight = (_quantizer(argument) for argument in node.args[:2])
        match = _WEIGHT_NAME.search(str(weight.args[0].target)) if weight is not None else None
        if activation is None or match is None:
            continue
        scale, zero_point = float(activation.args[1]), int(activation.args[2])
        weight_scale = _attribute(graph, weight.args[1].target).detach().numpy().astype(np.float32)
        found[int(match[1]), match[2]] = LinearScales(
            weight_scale, -zero_point * scale, (255 - zero_point) * scale
        )
    missing = [f"layers.{i}.{name}" for i in range(layers) for name in LINEARS if (i, name) not in found]
    if missing:
        raise QlaError(
            f"neural-compressor left {', '.join(missing)} unquantized; this version is not known to work"
        )
    return found


def _quantizer(node: Any) -> Any:
    """The quantize node behind a dequantize node."""
    if "dequantize_per" not in str(node.target):
        return None
    source = node.args[0]
    return source if "quantize_per" in str(source.target) else None


def _attribute(module: nn.Module, path: str) -> Tensor:
    found: Any = module
    for name in path.split("."):
        found = getattr(found, name)
    return found
