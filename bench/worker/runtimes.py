"""The runtimes that the worker can serve: one encoder, the same weights, each by its fastest documented way.

Nothing is imported before it is needed: a worker runs in the interpreter of its runtime, which may lack all the
others. `prepare` runs in a process of its own and leaves on disk what a server would open, so that load time and
memory are those of serving, not of converting.
"""

from __future__ import annotations

import importlib.metadata
import os
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

VOCABULARY = range(1000, 30000)
"""Word pieces of every BERT vocabulary, for the calibration samples."""


@dataclass(frozen=True)
class Batch:
    """One batch, ragged for runtimes that take it so and padded to its longest row for the others."""

    rows: list[np.ndarray]
    """int32 token ids, one array per sequence."""
    ids: np.ndarray
    """int64 (sequences, longest row), zeros on the right."""
    mask: np.ndarray
    """int64, the same shape: 1 on tokens."""

    @classmethod
    def of(cls, rows: list[np.ndarray]) -> Batch:
        shape = len(rows), max(len(row) for row in rows)
        ids, mask = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = row
            mask[i, : len(row)] = 1
        return cls(rows, ids, mask)


class Runtime(ABC):
    """What the worker asks of a runtime.

    Args:
        model: the checkpoint folder (for qla the package); None for models with random weights.
        artifacts: a folder of this runtime's own, where ``prepare`` leaves what ``load`` opens.
        threads: per call.
    """

    packages: tuple[str, ...] = ("torch",)
    """Distributions whose versions belong beside the figures."""
    no_ragged = ""
    """Why it does not run batches of many different shapes; empty where it does."""

    def __init__(self, model: str | None, artifacts: Path, threads: int) -> None:
        self.model = model
        self.artifacts = artifacts
        self.threads = threads

    def versions(self) -> dict[str, str]:
        return {name: importlib.metadata.version(name) for name in self.packages}

    def facts(self) -> dict[str, Any]:
        """What else the report should hold."""
        return {}

    def prepare(self) -> None:  # noqa: B027 (most have something to convert, torch has not)
        """Converts the checkpoint, once."""

    @abstractmethod
    def load(self) -> None:
        """Opens the model."""

    @abstractmethod
    def inputs(self, batch: Batch, length: str) -> Any:
        """What ``run`` takes, made before the clock starts; compiles for the shape where a runtime wants that.

        Raises:
            ValueError: the runtime has no such length config, or does not run such a batch.
        """

    @abstractmethod
    def run(self, inputs: Any) -> object:
        """One batch, from token ids to the last hidden states."""


class Padded(Runtime):
    """A runtime of rectangles, which keeps every token."""

    def inputs(self, batch: Batch, length: str) -> Any:
        if length != "full":
            raise ValueError("keeps every token of every sequence")
        return self.padded(batch)

    @abstractmethod
    def padded(self, batch: Batch) -> Any:
        """``inputs``, at full length."""


class Qla(Runtime):
    packages = ("numpy",)

    def load(self) -> None:
        from qla_runtime import Engine

        self.engine = Engine.from_pretrained(self.model, num_threads=self.threads)

    def versions(self) -> dict[str, str]:
        import qla_runtime

        return {"qla_runtime": qla_runtime.__version__} | super().versions()

    def facts(self) -> dict[str, Any]:
        return {"explain": self.engine.explain(), "accuracy": named_accuracy(self.engine)}

    def inputs(self, batch: Batch, length: str) -> Any:
        return batch.rows, parse_length(length)

    def run(self, inputs: Any) -> object:
        rows, length = inputs
        return self.engine.forward(rows, length=length)


def named_accuracy(engine: Any) -> dict[str, dict[str, Any]]:
    """Per named length config: metric, value and data, as the package tells them."""
    return {
        name: {"metric": entry.accuracy.metric, "value": entry.accuracy.value, "data": entry.accuracy.data}
        for name, entry in engine.lengths.items()
        if entry.accuracy
    }


def parse_length(text: str) -> Any:
    """A length config as shapes.txt spells it: a name, or token counts with commas between."""
    from qla_runtime import LengthConfig

    if "," not in text:
        return text
    return LengthConfig.tokens([int(count) for count in text.split(",")])


# ------------------------------------------------------------------------------------------- torch


def load_encoder(checkpoint: str, attention: str) -> Any:
    """The checkpoint's encoder in float32 as a module of (ids, mask) -> last hidden states."""
    from transformers import AutoModel

    return encoder_module(
        AutoModel.from_pretrained(checkpoint, attn_implementation=attention, add_pooling_layer=False).float()
    )


def encoder_module(model: Any) -> Any:
    import torch

    class Encoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            return self.model(input_ids=input_ids, attention_mask=attention_mask)[0]

    return Encoder().eval()


def tensors(batch: Batch) -> tuple[Any, Any]:
    import torch

    return torch.from_numpy(batch.ids), torch.from_numpy(batch.mask)


def random_batch(sequences: int, tokens: int) -> Batch:
    draw = np.random.default_rng(tokens)
    return Batch.of(list(draw.integers(VOCABULARY.start, VOCABULARY.stop, (sequences, tokens), np.int32)))


def calibration_batches() -> list[Batch]:
    """Random token ids of many lengths: scales decide accuracy, which is not measured here, and not time."""
    return [random_batch(1, tokens) for tokens in range(32, 384, 11)]


class Torch(Padded):
    packages = ("torch", "transformers")
    precision = "float32"

    def load(self) -> None:
        import torch

        torch.set_num_threads(self.threads)
        self.torch = torch
        self.encoder = self.build().to(getattr(torch, self.precision))

    def build(self) -> Any:
        return load_encoder(self.model, "sdpa")

    def padded(self, batch: Batch) -> Any:
        return tensors(batch)

    def run(self, inputs: Any) -> object:
        with self.torch.inference_mode():
            return self.encoder(*inputs)


class TorchBf16(Torch):
    precision = "bfloat16"


class BertBase(Torch):
    """The papers' baseline. Weights are random: time does not depend on them."""

    no_ragged = "a baseline, for fixed shapes only"

    def build(self) -> Any:
        from transformers import BertConfig, BertModel

        return encoder_module(BertModel(BertConfig(attn_implementation="sdpa"), add_pooling_layer=False))


class Inductor(Torch):
    """neural-compressor's static INT8 graph through torch.compile, compiled for every shape.

    There is no file to open: loading exports, calibrates and converts; what was compiled is found again.
    """

    packages = ("torch", "neural_compressor_pt", "transformers")
    no_ragged = "compiles for every shape, about a minute each"

    def build(self) -> Any:
        os.environ.setdefault("LOGLEVEL", "ERROR")  # neural-compressor's
        import torch
        import torch._inductor.config
        from neural_compressor.torch.export import export
        from neural_compressor.torch.quantization import convert, get_default_static_config, prepare

        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(self.artifacts)  # a second start finds its code there
        torch._inductor.config.freezing = True
        torch._dynamo.config.recompile_limit = 64
        encoder = load_encoder(self.model, "eager")
        auto = torch.export.Dim.AUTO
        with torch.no_grad():
            graph = export(encoder, tensors(random_batch(2, 64)), dynamic_shapes=({0: auto, 1: auto},) * 2)
            graph = prepare(graph, get_default_static_config())
            for batch in calibration_batches():
                graph(*tensors(batch))
            return torch.compile(convert(graph), dynamic=False)

    def run(self, inputs: Any) -> object:
        with self.torch.no_grad():  # freezing wants no_grad; inference tensors it refuses
            return self.encoder(*inputs)


# ------------------------------------------------------------------------------------------- peers


class OpenVino(Padded):
    """Static shapes: one compiled model for each."""

    packages = ("openvino",)
    precision = "f32"  # of what is not quantized

    def prepare(self) -> None:
        import openvino as ov

        encoder = load_encoder(self.model, "eager")
        model = self.converted(ov.convert_model(encoder, example_input=tensors(random_batch(1, 64))))
        ov.save_model(model, self.artifacts / "model.xml", compress_to_fp16=False)

    def converted(self, model: Any) -> Any:
        return model

    def load(self) -> None:
        import openvino as ov

        self.core = ov.Core()
        self.model_read = self.core.read_model(self.artifacts / "model.xml")
        self.requests: dict[tuple[int, ...], Any] = {}

    def padded(self, batch: Batch) -> Any:
        shape = batch.ids.shape
        if shape not in self.requests:
            config = {
                "INFERENCE_NUM_THREADS": self.threads,
                "NUM_STREAMS": 1,
                "PERFORMANCE_HINT": "LATENCY",
                "INFERENCE_PRECISION_HINT": self.precision,
            }
            model = self.model_read.clone()
            model.reshape({port: list(shape) for port in model.inputs})
            self.requests[shape] = self.core.compile_model(model, "CPU", config).create_infer_request()
        return self.requests[shape], [batch.ids, batch.mask]

    def run(self, inputs: Any) -> object:
        request, arrays = inputs
        request.infer(arrays)
        return request.get_output_tensor(0).data


class OpenVinoInt8(OpenVino):
    packages = ("openvino", "nncf")

    def converted(self, model: Any) -> Any:
        import nncf

        samples = calibration_batches()
        return nncf.quantize(
            model,
            nncf.Dataset(samples, lambda batch: [batch.ids, batch.mask]),
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(samples),
        )


class OpenVinoBf16(OpenVino):
    precision = "bf16"


class OnnxRuntime(Padded):
    """Dynamic quantization of the graph that ONNX Runtime's own optimizer has fused."""

    packages = ("onnxruntime", "onnx")

    def prepare(self) -> None:
        import onnx
        import torch
        from onnxruntime.quantization import QuantType, quantize_dynamic
        from onnxruntime.transformers.optimizer import optimize_model
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(self.model)
        exported, fused = (str(self.artifacts / name) for name in ("exported.onnx", "fused.onnx"))
        names = ["input_ids", "attention_mask"]
        axes = {0: "batch", 1: "tokens"}
        torch.onnx.export(
            load_encoder(self.model, "eager"),
            tensors(random_batch(2, 64)),
            exported,
            input_names=names,
            output_names=["last_hidden_state"],
            dynamic_axes={name: axes for name in [*names, "last_hidden_state"]},
            dynamo=False,
        )
        optimized = optimize_model(
            exported, "bert", num_heads=config.num_attention_heads, hidden_size=config.hidden_size
        )
        if not optimized.get_fused_operator_statistics().get("Attention"):
            raise RuntimeError("onnxruntime.transformers fused no attention: its figures would say little")
        optimized.save_model_to_file(fused)
        quantize_dynamic(
            fused,
            str(self.artifacts / "model.onnx"),
            weight_type=QuantType.QInt8,
            per_channel=True,
            # Shape inference knows nothing about what fusion has put in.
            extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
        )

    def load(self) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(
            str(self.artifacts / "model.onnx"), options, providers=["CPUExecutionProvider"]
        )
        self.types = {
            port.name: np.int32 if "int32" in port.type else np.int64 for port in self.session.get_inputs()
        }

    def padded(self, batch: Batch) -> Any:
        arrays = {"input_ids": batch.ids, "attention_mask": batch.mask}
        return {name: arrays[name].astype(dtype) for name, dtype in self.types.items()}

    def run(self, inputs: Any) -> object:
        return self.session.run(None, inputs)


class CTranslate2(Padded):
    """Removes padding around its linear layers by itself, given the lengths."""

    packages = ("ctranslate2",)

    def prepare(self) -> None:
        from ctranslate2.converters import TransformersConverter

        TransformersConverter(self.model).convert(str(self.artifacts / "model"), quantization="int8", force=True)

    def load(self) -> None:
        import ctranslate2

        self.view = ctranslate2.StorageView.from_array
        self.encoder = ctranslate2.Encoder(
            str(self.artifacts / "model"), device="cpu", compute_type="int8", intra_threads=self.threads
        )

    def padded(self, batch: Batch) -> Any:
        lengths = batch.mask.sum(1).astype(np.int32)
        # The views share memory with the arrays: keep both.
        ids = np.ascontiguousarray(batch.ids, np.int32)
        return self.view(ids), self.view(lengths), ids, lengths

    def run(self, inputs: Any) -> object:
        return self.encoder.forward_batch(inputs[0], inputs[1])


class Ipex(Padded):
    """Static INT8 by Intel Extension for PyTorch, its last release, as TorchScript."""

    packages = ("intel_extension_for_pytorch", "torch", "transformers")

    def prepare(self) -> None:
        import intel_extension_for_pytorch as ipex
        import torch

        example = tensors(random_batch(2, 64))
        encoder = load_encoder(self.model, "eager")
        with torch.no_grad():
            prepared = ipex.quantization.prepare(
                encoder, ipex.quantization.default_static_qconfig_mapping, example_inputs=example, inplace=False
            )
            for batch in calibration_batches():
                prepared(*tensors(batch))
            converted = ipex.quantization.convert(prepared)
            torch.jit.freeze(torch.jit.trace(converted, example)).save(str(self.artifacts / "model.pt"))

    def load(self) -> None:
        import intel_extension_for_pytorch  # noqa: F401  registers the operators that the saved graph uses
        import torch

        torch.set_num_threads(self.threads)
        self.torch = torch
        self.encoder = torch.jit.freeze(torch.jit.load(str(self.artifacts / "model.pt")).eval())

    def padded(self, batch: Batch) -> Any:
        return tensors(batch)

    def run(self, inputs: Any) -> object:
        with self.torch.no_grad():
            return self.encoder(*inputs)


RUNTIMES: dict[str, type[Runtime]] = {
    "qla": Qla,
    "openvino-int8": OpenVinoInt8,
    "openvino-bf16": OpenVinoBf16,
    "onnxruntime-int8": OnnxRuntime,
    "ctranslate2-int8": CTranslate2,
    "ipex-int8": Ipex,
    "inductor-int8": Inductor,
    "torch-bf16": TorchBf16,
    "torch-fp32": Torch,
    "bert-base-fp32": BertBase,
}
