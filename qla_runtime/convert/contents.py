"""What goes into a package's files: the tensors, the config, and how many bytes they take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qla_runtime.checkpoints.reader import Checkpoint
from qla_runtime.convert.scales import Scales
from qla_runtime.model.formats import INT8_WORDS, LINEARS, ModelFormat, WordFormat
from qla_runtime.model.limits import check_values
from qla_runtime.model.pack import exact_first_token, pack, pack_ternary, pack_ternary_rows, pad16
from qla_runtime.model.package import FORMAT_VERSION
from qla_runtime.model.spec import EncoderSpec

_WORDS = {"int8": "s8", "ternary": "ternary"}
"""``encoder.word_embeddings`` of config.json, by the type of a :class:`WordFormat`."""


def package_bytes(source: Checkpoint) -> int:
    """About how many bytes the package will have: its tensors and its tokenizer, and a little for the rest."""
    encoder, task = source.encoder, source.task
    h, wide = encoder.hidden, encoder.intermediate
    products = 4 * h * h + 2 * h * wide
    floats = 4 * h + wide + (3 * h + h + wide + h) * 2 + 4 * h  # biases, scales and column sums, norms
    embeddings = encoder.vocab_size * (h + 4) + 4 * h * (
        encoder.max_positions + encoder.position_offset + encoder.type_vocab_size + 2
    )
    head = 4 * h * (task.outputs + (h if task.has_pooler else 0))
    return encoder.layers * (products + 4 * floats) + embeddings + head + len(source.tokenizer_json) + (1 << 20)


def packed_tensors(
    state: Mapping[str, NDArray[np.float32]],
    encoder: EncoderSpec,
    scales: Scales,
    first: int | None = None,
    words: WordFormat = INT8_WORDS,
) -> dict[str, NDArray[Any]]:
    """Every tensor of ``model.safetensors``, in the order of docs/file-format.md.

    Args:
        state: the float32 parameters by our names; see :meth:`Checkpoint.load_state`.
        encoder: their shapes.
        scales: of its linear layers.
        first: the token that stands before every text, whose embedding then loses nothing at the first position.
        words: of the word embeddings.

    Raises:
        UnsupportedError: a value that a package cannot hold.
    """
    word = state["encoder.embeddings.word.weight"]
    codes, scale = words.quantize(word)
    word_scale = scale[:, 0]
    word_codes = codes.astype(np.int8)
    tensors = {
        "embeddings.word.weight": pack_ternary_rows(word_codes) if words.type == "ternary" else word_codes,
        "embeddings.word.scale": pad16(word_scale),
    }
    for name in ("position.weight", "token_type.weight", "norm.weight", "norm.bias"):
        tensors[f"embeddings.{name}"] = state[f"encoder.embeddings.{name}"]
    if first is not None:
        tensors["embeddings.position.weight"] = exact_first_token(
            tensors["embeddings.position.weight"],
            encoder.position_offset,
            word[first],
            word_codes[first],
            word_scale[first],
        )
    for i in range(encoder.layers):
        prefix = f"layers.{i}"
        for linear in LINEARS:
            weight = scales[i, linear].codes(state[f"encoder.{prefix}.{linear}.weight"])
            ternary = scales[i, linear].format.type == "w2a8"
            tensors[f"{prefix}.{linear}.weight"] = pack_ternary(weight) if ternary else pack(weight)
            tensors[f"{prefix}.{linear}.scale"] = scales[i, linear].weight_scale
            tensors[f"{prefix}.{linear}.bias"] = state[f"encoder.{prefix}.{linear}.bias"]
            tensors[f"{prefix}.{linear}.column_sum"] = weight.sum(axis=1, dtype=np.int32)
        for norm in ("attention_norm", "ffn_norm"):
            for part in ("weight", "bias"):
                tensors[f"{prefix}.{norm}.{part}"] = state[f"encoder.{prefix}.{norm}.{part}"]
    for name in ("pooler.weight", "pooler.bias", "head.weight"):
        if name in state:
            tensors[name] = state[name]
    if "head.bias" in state:
        tensors["head.bias"] = pad16(state["head.bias"])
    for name, tensor in tensors.items():
        if tensor.dtype == np.float32:
            check_values(name, tensor)
    return tensors


def package_config(name: str, source: Checkpoint, scales: Scales | None) -> dict[str, Any]:
    """``config.json`` of the package.

    Args:
        name: the package's.
        source: what it is made from.
        scales: with the ranges of static activations; None for per-token ones.
    """

    layers = source.encoder.layers
    format = source.format or ModelFormat.of(layers, "w8a8")

    def linear(layer: int, name: str) -> dict[str, Any]:
        if scales is None:
            return {"type": format.linears[layer][name].type, "activation": "per_token"}
        found = scales[layer, name]
        static = {"scale": found.input_scale, "zero_point": found.input_zero_point}
        return {"type": "w8a8", "activation": "static", **static}

    config = {
        "format_version": FORMAT_VERSION,
        "name": name,
        "encoder": replace(source.encoder, word_embeddings=_WORDS[format.words.type]).to_json(),
        "linears": [{name: linear(i, name) for name in LINEARS} for i in range(layers)],
        "task": source.task.to_json(),
        **source.settings.to_json(),
    }
    text = source.text.to_json()
    return {**config, "text": text} if text else config
