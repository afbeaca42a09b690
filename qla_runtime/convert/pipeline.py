"""The way of a conversion: check, read, find scales, pack, compare with the original, publish."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from qla_runtime.checkpoints.reader import Checkpoint, open_checkpoint
from qla_runtime.checkpoints.tokenizer_files import first_token
from qla_runtime.convert.calibration import Samples, pick_samples
from qla_runtime.convert.card import write_card
from qla_runtime.convert.contents import package_bytes, package_config, packed_tensors
from qla_runtime.convert.head_bias import HEAD_TEXTS, corrected_bias, corrects_head, head_samples
from qla_runtime.convert.lengths import default_configs, with_full
from qla_runtime.convert.no_answer import with_no_answer
from qla_runtime.convert.report import Reference, compare, engine_run, reference_of, sentence, table
from qla_runtime.convert.sample_texts import NAME as SAMPLE_NAME
from qla_runtime.convert.sample_texts import sample_texts
from qla_runtime.convert.scale_sources import (
    SOURCES,
    TRAINED,
    Calibration,
    ScaleRequest,
    chosen_source,
    trained,
    trained_source,
)
from qla_runtime.convert.scales import ALGORITHMS
from qla_runtime.convert.sentence_files import sentence_files
from qla_runtime.errors import InputError
from qla_runtime.lengths.configs import LengthConfig
from qla_runtime.lengths.table import LengthTable
from qla_runtime.model.card import IN_SHORT, Provenance, weights_in_words
from qla_runtime.model.formats import INT8_WORDS
from qla_runtime.model.limits import check_name, check_sizes
from qla_runtime.model.pack import pad16
from qla_runtime.model.package import CARD, WEIGHTS, check_target, json_bytes, write_package
from qla_runtime.model.spec import TaskSpec, shape
from qla_runtime.model.staging import check_room, publish, staging, write_file
from qla_runtime.texts.data_sets import read_texts
from qla_runtime.texts.files import shown

ACTIVATIONS = ("per_token", "static")

REPORT_TEXTS, REPORT_TOKENS = 100, 16_384
"""What the accuracy report runs at most: float32 BERT-base takes half a minute for it on two cores."""


def convert(
    checkpoint: str | Path,
    out: str | Path,
    calibrate: str | Path | None = None,
    *,
    activations: str = "per_token",
    scales: str | None = None,
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
    """Converts a checkpoint into a package, and measures it against the original where torch is installed.

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
        scales: where the scales come from, one of :data:`qla_runtime.convert.scale_sources.SOURCES`. ``max-abs``
            needs numpy alone; of per-token activations both give the same weights. None takes neural-compressor
            where it is installed.
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
        The report: ``name``, ``task``, ``weights`` (``int8``, ``ternary``, or how many linear layers are which),
        ``activations``, ``scales`` (where they are from), ``samples``, ``tokens``, ``texts`` (where they come
        from), ``reference`` (what the package is compared with; None without torch, and then ``modes`` is empty),
        ``held_out``, ``calibration_samples``, ``correction_samples`` (texts that a classifier's bias was corrected
        on), ``agreement_means``, ``modes``, ``bytes`` (of the ``float32`` checkpoint and of the ``package``) and
        ``notes`` (what of the checkpoint the package leaves out, a sentence each); see :func:`report.compare`.

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
    scale_source = chosen_source(scales, "static" in kinds)
    target = check_target(out)
    name = check_name(name or target.name)
    source = open_checkpoint(checkpoint, task=task, max_length=max_length, pooling=pooling, activation=activation)
    source = with_no_answer(source, no_answer)
    find_scales = SOURCES[scale_source]
    if source.format is not None:
        trained_source(source, scales, "static" in kinds)
        scale_source, find_scales = TRAINED, trained
    has_torch = importlib.util.find_spec("torch") is not None
    if not has_torch:
        source = replace(source, notes=(*source.notes, _without_torch(source, calibrate)))
    if progress:
        for note in source.notes:
            print(f"note: {note}", file=sys.stderr)
    layers = source.encoder.layers
    configs = default_configs(layers) if length_configs is None else with_full(length_configs, layers)
    lengths = LengthTable.of(configs, shape(source.encoder, source.task), source.task.to_json()).to_json()
    check_sizes(json_bytes(package_config(name, source, None)), json_bytes(lengths), source.tokenizer_json)
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
        calibrate=_set_aside(source, calibrate, kinds, calibration_samples),
        check=REPORT_TEXTS,
        check_tokens=REPORT_TOKENS,
    )
    provenance = (provenance or Provenance()).completed(source.card)
    if provenance.calibration_data is None and calibrate is not None:
        provenance = replace(provenance, calibration_data=origin)

    with staging(target) as stage:
        check_room(stage, len(kinds) * package_bytes(source))
        state = source.load_state()
        model = source.as_model(state) if has_torch else None
        calibration = None
        if "static" in kinds:
            calibration = Calibration(samples.calibrate, list(configs.values()), calibration_algo, progress)
        found = find_scales(ScaleRequest(source, state, model, calibration))
        first = first_token(source.tokenizer_json, source.text)
        words = INT8_WORDS if source.format is None else source.format.words
        tensors = packed_tensors(state, source.encoder, found, first, words)
        packages = {kind: stage / kind for kind in kinds}

        def write(kind: str, tensors: Mapping[str, NDArray[Any]]) -> None:
            shutil.rmtree(packages[kind], ignore_errors=True)
            packages[kind].mkdir()
            write_package(
                packages[kind],
                config=package_config(name, source, found if kind == "static" else None),
                tensors=tensors,
                tokenizer_json=source.tokenizer_json,
                length_configs=lengths,
            )

        for kind in kinds:
            write(kind, tensors)
        reference = None if model is None else reference_of(source, model, first)
        corrections = []
        if reference is not None and calibrate is not None:
            corrections = head_samples(source, samples)
        if reference is not None and corrections:
            for kind in kinds:
                bias = corrected_bias(state["head.bias"], source.task, reference, packages[kind], corrections)
                write(kind, tensors | {"head.bias": pad16(bias)})
        del tensors
        config = package_config(name, source, found if activations == "static" else None)
        report = {
            "name": name,
            "task": source.task.kind,
            "weights": weights_in_words(config, IN_SHORT),
            "activations": activations,
            "scales": scale_source,
            "calibration_samples": len(samples.calibrate) if "static" in kinds else 0,
            "held_out": samples.held_out,
            "texts": origin,
            **_compared(source.task, reference, samples, packages, progress),
            "bytes": {
                "float32": sum(parameter.nbytes for parameter in state.values()),
                "package": (packages[activations] / WEIGHTS).stat().st_size,
            },
            "correction_samples": len(corrections),
            "notes": list(source.notes),
        }
        card = write_card(
            config=config,
            source=source,
            activations=activations,
            scales=scale_source,
            algorithm=calibration_algo,
            configs=configs,
            provenance=provenance,
            report=report,
        )
        for file, data in {**sentence_files(config), CARD: card.encode()}.items():
            write_file(stage / activations / file, data)
        publish(stage / activations, target)
    if progress and reference is not None:
        print(f"{sentence(report)}:\n{table(report)}", file=sys.stderr)
    return report


def _without_torch(source: Checkpoint, calibrate: object) -> str:
    head = ", nor is the head's bias corrected" if calibrate is not None and corrects_head(source) else ""
    return (
        f"torch is not installed, so the package is not compared with the float32 model{head}; measure it with "
        "`qla eval`"
    )


def _set_aside(source: Checkpoint, calibrate: object, kinds: Sequence[str], samples: int) -> int:
    """How many samples the report leaves to calibration and to the correction of the head."""
    if "static" in kinds:
        return samples
    return HEAD_TEXTS if calibrate is not None and corrects_head(source) else 0


def _compared(
    task: TaskSpec,
    reference: Reference | None,
    samples: Samples,
    packages: Mapping[str, Path],
    progress: bool,
) -> dict[str, Any]:
    """The report's figures; without a reference there are none."""
    if reference is None:
        return {"reference": None, "samples": 0, "tokens": 0, "modes": {}}
    runs = {kind: engine_run(package, task) for kind, package in packages.items()}
    figures = compare(task, samples.check, reference.run, runs, progress=progress)
    return {"reference": reference.name, **figures}


def _choice(what: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise InputError(f"{what} is {value!r}; it must be one of {', '.join(allowed)}")
