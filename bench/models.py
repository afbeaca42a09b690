"""Models with random weights, in the sizes that people run. A forward pass takes as long with any weights."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qla_runtime import InputError, hub
from qla_runtime.model.formats import KEY, LINEARS, LinearFormat, ModelFormat, WordFormat

VOCABULARY, POSITIONS = 30_522, 512
"""Of every BERT here; the tokenizer is the packaged model's."""


@dataclass(frozen=True)
class Size:
    """A BERT encoder."""

    layers: int
    hidden: int
    heads: int
    intermediate: int

    @property
    def linear_weights(self) -> int:
        """Weights of all linear layers: what a call reads at least once."""
        return self.layers * (4 * self.hidden**2 + 2 * self.hidden * self.intermediate)


SIZES = {
    "bert-base": Size(12, 768, 12, 3072),
    "bert-large": Size(24, 1024, 16, 4096),
    "minilm-l6": Size(6, 384, 12, 1536),
}


def size_named(name: str) -> Size:
    """The size of this name.

    Raises:
        InputError: there is none.
    """
    if name not in SIZES:
        raise InputError(f"there is no random model {name!r}; use one of {', '.join(SIZES)}")
    return SIZES[name]


def write_checkpoint(name: str, folder: Path) -> Path:
    """Writes a Hugging Face checkpoint of this size; a folder that has one is left as it is.

    Returns:
        The folder.

    Raises:
        InputError: there is no such size.
    """
    from safetensors.numpy import save_file

    size = size_named(name)
    if (folder / "config.json").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    save_file(_tensors(size), folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer = hub.find_package("minilm-l6-squad") / "tokenizer.json"
    shutil.copy(tokenizer, folder / "tokenizer.json")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "BertTokenizerFast", "model_max_length": POSITIONS})
    )
    # Last: a folder that has it is complete.
    (folder / "config.json").write_text(json.dumps(_config(size), indent=1))
    return folder


def write_package(name: str, folder: Path, bits: str = "w8a8") -> Path:
    """Writes the checkpoint of this size and its package below ``folder``; returns the package.

    Args:
        name: of :data:`SIZES`.
        folder: where to write; what is there is left as it is.
        bits: ``w8a8``, or ``w2a8`` for ternary weights with ternary word embeddings.
    """
    from qla_runtime.convert import convert

    checkpoint, package = write_checkpoint(name, folder / "checkpoint"), folder / "package"
    scales: str | None = "max-abs"
    if bits == "w2a8":
        # A checkpoint that says how it was trained is converted that way.
        config = checkpoint / "config.json"
        layers = ({linear: LinearFormat.ternary() for linear in LINEARS},) * SIZES[name].layers
        format = ModelFormat(layers, WordFormat("ternary"))
        config.write_text(json.dumps(json.loads(config.read_text()) | {KEY: format.to_json()}, indent=1))
        scales = None
    if not (package / "manifest.json").exists():
        convert(checkpoint, package, scales=scales, task="embedding", pooling="mean", name=name, progress=False)
    return package


def _config(size: Size) -> dict[str, object]:
    return {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "num_hidden_layers": size.layers,
        "hidden_size": size.hidden,
        "num_attention_heads": size.heads,
        "intermediate_size": size.intermediate,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": POSITIONS,
        "type_vocab_size": 2,
        "layer_norm_eps": 1e-12,
        "hidden_act": "gelu",
        "pad_token_id": 0,
    }


def _tensors(size: Size) -> dict[str, NDArray[np.float32]]:
    """Weights as BERT's own initialization draws them."""
    draw = np.random.default_rng(0)
    tensors: dict[str, NDArray[np.float32]] = {}

    def normal(name: str, *shape: int) -> None:
        tensors[name] = np.float32(0.02) * draw.standard_normal(shape, np.float32)

    def linear(name: str, outputs: int, inputs: int) -> None:
        normal(f"{name}.weight", outputs, inputs)
        tensors[f"{name}.bias"] = np.zeros(outputs, np.float32)

    def norm(name: str) -> None:
        tensors[f"{name}.weight"] = np.ones(size.hidden, np.float32)
        tensors[f"{name}.bias"] = np.zeros(size.hidden, np.float32)

    h = size.hidden
    for table, rows in (("word", VOCABULARY), ("position", POSITIONS), ("token_type", 2)):
        normal(f"embeddings.{table}_embeddings.weight", rows, h)
    norm("embeddings.LayerNorm")
    for i in range(size.layers):
        layer = f"encoder.layer.{i}"
        for part in ("query", "key", "value"):
            linear(f"{layer}.attention.self.{part}", h, h)
        linear(f"{layer}.attention.output.dense", h, h)
        norm(f"{layer}.attention.output.LayerNorm")
        linear(f"{layer}.intermediate.dense", size.intermediate, h)
        linear(f"{layer}.output.dense", h, size.intermediate)
        norm(f"{layer}.output.LayerNorm")
    return tensors
