"""The way of a conversion: check, read, find scales, pack, compare with the original, publish."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qla_runtime.checkpoints.reader import Checkpoint, open_checkpoint
from qla_runtime.checkpoints.tokenizer_files import first_token
from qla_runtime.convert.calibration import Sample, Samples, pick_samples
from qla_runtime.convert.card import Provenance, write_card
from qla_runtime.convert.lengths import default_configs, to_json, with_full
from qla_runtime.convert.no_answer import with_no_answer
from qla_runtime.convert.report import Reference, compare, engine_run, reference_of, sentence, table
from qla_runtime.convert.sample_texts import NAME as SAMPLE_NAME
from qla_runtime.convert.sample_texts import sample_texts
from qla_runtime.convert.scales import ALGORITHMS, LINEARS, LinearScales
from qla_runtime.errors import InputError
from qla_runtime.lengths.configs import LengthConfig
from qla_runtime.model.limits import check_name
from qla_runtime.model.pack import embedding_scale, exact_first_token, pack, pad16, quantize_rows
from qla_runtime.model.package_writer import (
    FORMAT_VERSION,
    check_room,
    check_target,
    publish,
    staging,
    write_file,
    write_package,
)
from qla_runtime.model.spec import TaskSpec
from qla_runtime.texts.data_sets import read_texts
from qla_runtime.texts.files import shown

if TYPE_CHECKING:
    from qla_runtime.model.float_model import Model

ACTIVATIONS = ("per_token", "static")

REPORT_TEXTS, REPORT_TOKENS = 100, 16_384
"""What the accuracy report runs at most: float32 BERT-base takes half a minute for it on two cores."""
HEAD_TEXTS = 32
"""How many texts a classifier's bias is corrected on at most."""


Scales = Mapping[tuple[int, str], LinearScales]


def convert(
    checkpoint: str | Path,
    out: str | Path,
    calibrate: str | Path | None = None,
    *,
    activations: str = "per_token",
    task: str | None = None,
    max_length: int | None = None,
    pooling: str | None = None,
    activation: str | None = None,
    name: str | None = None,
    length_configs: Mapping[str, LengthConfig] | None = None,
    calibration_algo: str = "kl",
    calibration_samples: int = 96,
    articles: str = "all",
    skip_bad_rows: bool = False,
    compare_activations: bool = False,
    no_answer: bool | None = None,
    provenance: Provenance | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Converts a checkpoint into an INT8 package, and measures it against the original.

    Everything that can be checked is checked before the first weight is read. SIGTERM, SIGHUP and Ctrl-C leave
    nothing behind, and an older package as it was.

    Args:
        checkpoint: Hugging Face folder or hub id; also the sentence-transformers layout.
        out: the package's folder; an older package there is replaced atomically. It may be a mount point, whose
            files are then replaced one by one, the manifest last.
        calibrate: a file of texts as the model will meet them; see
            :data:`qla_runtime.texts.data_sets.FORMATS`. Static activations are calibrated on some of them, and the
            report runs on others. None: the report runs on a small built-in sample; static ones need a file.
        activations: ``per_token`` or ``static``, for every linear layer.
        task: a task kind of ``docs/file-format.md``; None reads it from the checkpoint.
        max_length: tokens a text is cut at; None takes the checkpoint's limit (span QA: 384).
        pooling: ``mean`` or ``cls``, for a sentence encoder without ``modules.json``; None takes the mean there.
        activation: what makes a cross-encoder's score of its logit, in place of what the checkpoint says; one of
            :data:`qla_runtime.activations.ACTIVATIONS`.
        name: the package's name; None takes the output folder's.
        length_configs: name -> config; None gives ``full``, ``balanced`` and ``fast``.
        calibration_algo: ``kl`` or ``minmax``; for static activations.
        calibration_samples: how many texts static activations are calibrated on.
        articles: of a SQuAD file, ``all`` or the ``odd`` positions only.
        skip_bad_rows: leave out rows of ``calibrate`` that cannot be used, with a warning, in place of an error.
        compare_activations: report both kinds of activations; the static one costs a calibration.
        no_answer: of span QA, whether the model may say that there is no answer (SQuAD 2.0); None takes it from
            the checkpoint's name and card.
        provenance: licence, base model and data for the card; gaps are filled from the checkpoint's own card.
        progress: bars and the closing table on standard error.

    Returns:
        The report: ``name``, ``task``, ``activations``, ``samples``, ``tokens``, ``texts`` (where they come from),
        ``reference`` (what INT8 is compared with), ``held_out``, ``calibration_samples``, ``correction_samples``
        (texts that a classifier's bias was corrected on), ``agreement_means``,
        ``modes``, ``bytes`` and ``notes`` (what of the checkpoint the package leaves out, a sentence each); see
        :func:`report.compare`.

    Raises:
        InputError: an argument or a file is wrong, or ``out`` cannot be written or has no room.
        UnsupportedError: the runtime cannot run this architecture, or a package of the extra is missing.
    """
    _choice("activations", activations, ACTIVATIONS)
    _choice("calibration_algo", calibration_algo, ALGORITHMS)
    if calibration_samples < 1:
        raise InputError(f"calibration_samples is {calibration_samples}; it must be at least 1")
    kinds = ACTIVATIONS if compare_activations else (activations,)
    if calibrate is None and "static" in kinds:
        raise InputError("static activations are calibrated on texts; pass a file of them (--calibrate)")
    target = check_target(out)
    name = check_name(name or target.name)
    source = open_checkpoint(checkpoint, task=task, max_length=max_length, pooling=pooling, activation=activation)
    source = with_no_answer(source, no_answer)
    if progress:
        for note in source.notes:
            print(f"note: {note}", file=sys.stderr)
    layers = source.encoder.layers
    configs = default_configs(layers) if length_configs is None else with_full(length_configs, layers)
    if calibrate is None:
        texts, origin = sample_texts(pairs=source.task.kind == "span-qa"), SAMPLE_NAME
    else:
        texts = read_texts(calibrate, articles=articles, skip_bad_rows=skip_bad_rows)
        origin = os.path.basename(shown(calibrate))
    samples = pick_samples(
        texts,
        source.tokenizer_json,
        source.text,
        max_length=source.task.max_length,
        type_vocab_size=source.encoder.type_vocab_size,
        calibrate=_set_aside(source.task, calibrate, kinds, calibration_samples),
        check=REPORT_TEXTS,
        check_tokens=REPORT_TOKENS,
    )
    provenance = (provenance or Provenance()).completed(source.card)
    if provenance.calibration_data is None and calibrate is not None:
        provenance = replace(provenance, calibration_data=origin)

    with staging(target) as stage:
        check_room(stage, len(kinds) * package_bytes(source))
        model = source.load_model()
        scales = _scales(model, samples, configs, kinds, calibration_algo, progress)
        tensors = packed_tensors(model, scales, first_token(source.tokenizer_json, source.text))
        packages = {kind: stage / kind for kind in kinds}

        def write(kind: str, tensors: Mapping[str, np.ndarray]) -> None:
            shutil.rmtree(packages[kind], ignore_errors=True)
            packages[kind].mkdir()
            write_package(
                packages[kind],
                config=package_config(name, source, scales, kind),
                tensors=tensors,
                tokenizer_json=source.tokenizer_json,
                length_configs=to_json(configs, source.encoder, source.task),
            )

        for kind in kinds:
            write(kind, tensors)
        reference = reference_of(source, model)
        corrections = _head_samples(source.task, samples) if calibrate is not None else []
        for kind in kinds if corrections else ():
            bias = pad16(corrected_bias(model, reference, packages[kind], corrections))
            write(kind, tensors | {"head.bias": bias})
        del tensors
        calibrated = len(samples.calibrate) if "static" in kinds else 0
        report = _report(
            name, activations, source, model, reference, samples, calibrated, origin, packages, progress
        )
        report["correction_samples"] = len(corrections)
        report["notes"] = list(source.notes)
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
        print(f"{sentence(report)}:\n{table(report)}", file=sys.stderr)
    return report


def _corrects_head(task: TaskSpec) -> bool:
    """Whether a bias added to every output changes what the model says: no answer span depends on it, and
    vectors have no head."""
    return task.kind == "sequence-classification"


def _set_aside(task: TaskSpec, calibrate: Any, kinds: Sequence[str], samples: int) -> int:
    """How many samples the report leaves to calibration and to the correction of the head."""
    if "static" in kinds:
        return samples
    return HEAD_TEXTS if calibrate is not None and _corrects_head(task) else 0


def _head_samples(task: TaskSpec, samples: Samples) -> list[Sample]:
    """What a classifier's bias is corrected on; nothing where the report would see the same texts."""
    found = samples.calibrate
    if not _corrects_head(task) or not found or not samples.held_out:
        return []
    return found[:: -(-len(found) // HEAD_TEXTS)]


def corrected_bias(model: Model, reference: Reference, package: Path, samples: Sequence[Sample]) -> np.ndarray:
    """The head's bias, less what INT8 adds to each output on average: rounding errs to one side in every model.

    Args:
        model: float32.
        reference: whose outputs are right.
        package: the INT8 package, with the model's own bias.
        samples: texts as the model will meet them.

    Returns:
        (outputs,) float32.
    """
    right = np.array([output for _, output in reference.run(samples)], np.float64)
    found = np.array([output for _, output in engine_run(package, model.task)(samples)], np.float64)
    bias = model.state_dict()["head.bias"].numpy()
    return (bias + (right - found).mean(axis=0)).astype(np.float32)


def _scales(
    model: Model,
    samples: Samples,
    configs: Mapping[str, LengthConfig],
    kinds: Sequence[str],
    algorithm: str,
    progress: bool,
) -> Scales:
    """The scales that packages of these kinds of activations need. Only here is said where they come from."""
    from qla_runtime.convert.quantize import calibrate, weight_scales

    if "static" not in kinds:
        return weight_scales(model.encoder)
    return calibrate(model.encoder, samples.calibrate, configs.values(), algorithm=algorithm, progress=progress)


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


def packed_tensors(model: Model, scales: Scales, first: int | None = None) -> dict[str, np.ndarray]:
    """Every tensor of ``model.safetensors``, in the order of docs/file-format.md.

    Args:
        model: float32.
        scales: of its linear layers.
        first: the token that stands before every text, whose embedding then loses nothing at the first position.
    """
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
    if first is not None:
        tensors["embeddings.position.weight"] = exact_first_token(
            tensors["embeddings.position.weight"],
            encoder.spec.position_offset,
            word[first],
            tensors["embeddings.word.weight"][first],
            word_scale[first],
        )
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

    config = {
        "format_version": FORMAT_VERSION,
        "name": name,
        "encoder": source.encoder.to_json(),
        "linears": [{name: linear((i, name)) for name in LINEARS} for i in range(source.encoder.layers)],
        "task": source.task.to_json(),
        **source.settings.to_json(),
    }
    text = source.text.to_json()
    return {**config, "text": text} if text else config


def _report(
    name: str,
    activations: str,
    source: Checkpoint,
    model: Model,
    reference: Reference,
    samples: Samples,
    calibrated: int,
    origin: str,
    packages: Mapping[str, Path],
    progress: bool,
) -> dict[str, Any]:
    task = model.task
    runs = {kind: engine_run(package, task) for kind, package in packages.items()}
    return {
        "name": name,
        "task": task.kind,
        "activations": activations,
        "calibration_samples": calibrated,
        "held_out": samples.held_out,
        "texts": origin,
        "reference": reference.name,
        **compare(task, samples.check, reference.run, runs, progress=progress),
        "bytes": {
            "float32": sum(4 * parameter.numel() for parameter in model.parameters()),
            "int8": (packages[activations] / "model.safetensors").stat().st_size,
        },
    }


def _choice(what: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise InputError(f"{what} is {value!r}; it must be one of {', '.join(allowed)}")
