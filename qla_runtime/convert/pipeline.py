"""The way of a conversion: read, calibrate, pack, compare with the original, publish."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qla_runtime.convert.calibration import Samples, pick_samples, read_texts
from qla_runtime.convert.card import Provenance, write_card
from qla_runtime.convert.checkpoint import Checkpoint, open_checkpoint
from qla_runtime.convert.lengths import default_configs, to_json, with_full
from qla_runtime.convert.no_answer import with_no_answer
from qla_runtime.convert.pack import embedding_scale, pack, pad16, quantize_rows
from qla_runtime.convert.package_writer import (
    FORMAT_VERSION,
    check_target,
    publish,
    staging,
    write_file,
    write_package,
)
from qla_runtime.convert.quantize import ALGORITHMS, LINEARS, LinearScales
from qla_runtime.convert.quantize import calibrate as calibrate_scales
from qla_runtime.convert.report import compare, engine_run, table, torch_run
from qla_runtime.errors import InputError
from qla_runtime.length import LengthConfig
from qla_runtime.modeling import Model

ACTIVATIONS = ("per_token", "static")
Scales = Mapping[tuple[int, str], LinearScales]


def convert(
    checkpoint: str | Path,
    out: str | Path,
    calibrate: str | Path,
    *,
    activations: str = "per_token",
    task: str | None = None,
    max_length: int | None = None,
    name: str | None = None,
    length_configs: Mapping[str, LengthConfig] | None = None,
    calibration_algo: str = "kl",
    calibration_samples: int = 96,
    articles: str = "all",
    no_answer: bool | None = None,
    provenance: Provenance | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Converts a checkpoint into an INT8 package, and measures it against the original.

    Args:
        checkpoint: Hugging Face folder or hub id; also the sentence-transformers layout.
        out: the package's folder; an older package there is replaced atomically.
        calibrate: a file of texts as the model will meet them: SQuAD ``.json``, ``.txt``, ``.tsv``/``.csv``.
        activations: ``per_token`` or ``static``, for every linear layer.
        task: a task kind of ``docs/file-format.md``; None reads it from the checkpoint.
        max_length: tokens a text is cut at; None takes the checkpoint's limit (span QA: 384).
        name: the package's name; None takes the output folder's.
        length_configs: name -> config; None gives ``full``, ``balanced`` and ``fast``.
        calibration_algo: ``kl`` or ``minmax``.
        calibration_samples: how many texts neural-compressor sees.
        articles: of a SQuAD file, ``all`` or the ``odd`` positions only.
        no_answer: of span QA, whether the model may say that there is no answer (SQuAD 2.0); None takes it from
            the checkpoint's name and card.
        provenance: licence, base model and data for the card; gaps are filled from the checkpoint's own card.
        progress: bars and the closing table on standard error.

    Returns:
        The report: ``name``, ``task``, ``activations``, ``samples``, ``tokens``, ``held_out``,
        ``calibration_samples``, ``agreement_means``, ``modes`` and ``bytes``; see :func:`report.compare`.

    Raises:
        InputError: an argument or a file is wrong.
        UnsupportedError: the runtime cannot run this architecture, or a package of the extra is missing.
    """
    _choice("activations", activations, ACTIVATIONS)
    _choice("calibration_algo", calibration_algo, ALGORITHMS)
    if calibration_samples < 1:
        raise InputError(f"calibration_samples is {calibration_samples}; it must be at least 1")
    target = check_target(out)
    source = with_no_answer(open_checkpoint(checkpoint, task=task, max_length=max_length), no_answer)
    layers = source.encoder.layers
    configs = default_configs(layers) if length_configs is None else with_full(length_configs, layers)
    samples = pick_samples(
        read_texts(calibrate, articles=articles),
        source.tokenizer_json,
        max_length=source.task.max_length,
        type_vocab_size=source.encoder.type_vocab_size,
        calibrate=calibration_samples,
    )
    provenance = (provenance or Provenance()).completed(source.card)
    if provenance.calibration_data is None:
        provenance = Provenance(**{**vars(provenance), "calibration_data": Path(calibrate).name})
    name = name or target.name

    model = source.load_model()
    scales = calibrate_scales(
        model.encoder, samples.calibrate, configs.values(), algorithm=calibration_algo, progress=progress
    )
    tensors = packed_tensors(model, scales)
    with staging(target) as stage:
        # Both kinds of activation are measured, so that the choice can be judged; they share every weight.
        for kind in ACTIVATIONS:
            (stage / kind).mkdir()
            write_package(
                stage / kind,
                config=package_config(name, source, scales, kind),
                tensors=tensors,
                tokenizer_json=source.tokenizer_json,
                length_configs=to_json(configs, source.encoder, source.task),
            )
        report = _report(name, activations, model, samples, stage, progress)
        card = write_card(
            name=name,
            source=source.source,
            encoder=source.encoder,
            task=source.task,
            activations=activations,
            algorithm=calibration_algo,
            configs=configs,
            provenance=provenance,
            report=report,
        )
        write_file(stage / activations / "README.md", card.encode())
        publish(stage / activations, target)
    if progress:
        print(table(report), file=sys.stderr)
    return report


def packed_tensors(model: Model, scales: Scales) -> dict[str, np.ndarray]:
    """Every tensor of ``model.safetensors``, in the order of docs/file-format.md."""
    encoder = model.encoder
    state = {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}
    word = state["encoder.embeddings.word.weight"]
    word_scale = embedding_scale(word)
    tensors = {
        "embeddings.word.weight": quantize_rows(word, word_scale),
        "embeddings.word.scale": pad16(word_scale),
    }
    for name in ("position.weight", "token_type.weight", "norm.weight", "norm.bias"):
        tensors[f"embeddings.{name}"] = state[f"encoder.embeddings.{name}"]
    for i in range(encoder.spec.layers):
        prefix = f"layers.{i}"
        for linear in LINEARS:
            scale = scales[i, linear].weight_scale
            weight = quantize_rows(state[f"encoder.{prefix}.{linear}.weight"], scale)
            tensors[f"{prefix}.{linear}.weight"] = pack(weight)
            tensors[f"{prefix}.{linear}.scale"] = scale
            tensors[f"{prefix}.{linear}.bias"] = state[f"encoder.{prefix}.{linear}.bias"]
            tensors[f"{prefix}.{linear}.column_sum"] = weight.sum(axis=1, dtype=np.int32)
        for norm in ("attention_norm", "ffn_norm"):
            for part in ("weight", "bias"):
                tensors[f"{prefix}.{norm}.{part}"] = state[f"encoder.{prefix}.{norm}.{part}"]
    if model.pooler is not None:
        tensors["pooler.weight"], tensors["pooler.bias"] = state["pooler.weight"], state["pooler.bias"]
    if model.head is not None:
        tensors["head.weight"], tensors["head.bias"] = state["head.weight"], pad16(state["head.bias"])
    return tensors


def package_config(name: str, source: Checkpoint, scales: Scales, activations: str) -> dict[str, Any]:
    """``config.json`` of the package."""

    def linear(key: tuple[int, str]) -> dict[str, Any]:
        entry: dict[str, Any] = {"type": "w8a8", "activation": activations}
        if activations == "static":
            entry["scale"], entry["zero_point"] = scales[key].input_scale, scales[key].input_zero_point
        return entry

    return {
        "format_version": FORMAT_VERSION,
        "name": name,
        "encoder": source.encoder.to_json(),
        "linears": [{name: linear((i, name)) for name in LINEARS} for i in range(source.encoder.layers)],
        "task": source.task.to_json(),
    }


def _report(
    name: str, activations: str, model: Model, samples: Samples, stage: Path, progress: bool
) -> dict[str, Any]:
    task = model.task
    report = compare(
        task,
        samples.check,
        torch_run(model),
        {kind: engine_run(stage / kind, task) for kind in ACTIVATIONS},
        progress=progress,
    )
    return {
        "name": name,
        "task": task.kind,
        "activations": activations,
        "calibration_samples": len(samples.calibrate),
        "held_out": samples.held_out,
        **report,
        "bytes": {
            "float32": sum(4 * parameter.numel() for parameter in model.parameters()),
            "int8": (stage / activations / "model.safetensors").stat().st_size,
        },
    }


def _choice(what: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise InputError(f"{what} is {value!r}; it must be one of {', '.join(allowed)}")
