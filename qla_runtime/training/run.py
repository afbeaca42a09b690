"""A training run, whatever its recipe: device, data, teacher, folder, loop, assessment, export."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qla_runtime.checkpoints.reader import Checkpoint
from qla_runtime.errors import InputError
from qla_runtime.lengths.configs import LengthConfig
from qla_runtime.training.assess import assessor
from qla_runtime.training.device import Device
from qla_runtime.training.export import export
from qla_runtime.training.loop import Loop
from qla_runtime.training.options import LoopOptions
from qla_runtime.training.recipe import Beginning, BringsData, RecipeOptions, Teacher
from qla_runtime.training.run_folder import TrainingFolder
from qla_runtime.training.start import Start, fingerprint, open_teacher
from qla_runtime.training.teacher import FixedTeacher, LiveTeacher


def train(
    checkpoint: str | Path,
    data: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    options: RecipeOptions,
    loop: LoopOptions,
    task: str | None = None,
    max_length: int | None = None,
    new_head: bool = False,
    skip_bad_rows: bool = False,
    teacher: str | Path | None = None,
    live_teacher: bool = False,
    precision: str = "auto",
    assess_file: str | Path | None = None,
    assess_lengths: Mapping[str, LengthConfig] | None = None,
    assess_sample: int | None = 1000,
    progress: bool = True,
) -> dict[str, Any]:
    """Trains a checkpoint by a recipe; the same call continues a run that was interrupted.

    Args:
        checkpoint: a fine-tuned Hugging Face checkpoint, or a pretrained encoder, which gets a new head.
        data: SQuAD json (span QA), a GLUE-like table (classification, regression), or sentences, one per line or
            in a table (embeddings). For a recipe that brings its own data, what it takes: one or several files.
        out: the run's folder; ``out/final`` will hold the trained checkpoint.
        options: the recipe and its settings, such as
            :class:`~qla_runtime.training.recipes.length_drop.LengthDropOptions`.
        loop: duration, learning rate and the like.
        task, max_length, new_head, skip_bad_rows: see :meth:`qla_runtime.training.start.Start.open`. Of these, a
            recipe that brings its own data takes ``max_length`` alone.
        teacher: a checkpoint to learn from; None leaves it to the recipe, which may take the starting model.
        live_teacher: run the teacher batch by batch instead of over all data beforehand; some recipes always do.
        precision: ``auto``, ``bf16`` or ``fp32``.
        assess_file: measure accuracy on this file at the start, at the end, and every ``loop.assess_steps``;
            see :func:`qla_runtime.training.assess.assessor`.
        assess_lengths: name -> config to measure at, besides ``full``.
        assess_sample: about how many items of the file.
        progress: bars and lines on standard error.

    Returns:
        ``checkpoint`` (the trained model's folder), ``steps``, ``features``, ``device``, ``precision``.

    Raises:
        InputError: a file, the checkpoint's head, or an argument does not fit; ``out`` is something else.
        UnsupportedError: the runtime cannot run this architecture.
        QlaError: training diverged, or a file could not be written; the last checkpoint is intact.
        KeyboardInterrupt: SIGINT or SIGTERM came; a checkpoint was written.
    """
    device = Device.choose(precision)
    start: Beginning
    if isinstance(options, BringsData):
        if task or new_head or skip_bad_rows or teacher is not None:
            raise InputError(f"{options.recipe} takes no task, new_head, skip_bad_rows or teacher; leave them out")
        start = options.start(checkpoint, data, max_length)
    elif isinstance(data, (str, Path)):
        start = Start.open(
            checkpoint, data, task=task, max_length=max_length, new_head=new_head, skip_bad_rows=skip_bad_rows
        )
    else:
        raise InputError(f"{options.recipe} takes one file of data; join them first")
    if start.new_words:
        loop = dataclasses.replace(loop, train_word_embeddings=True)
    live_teacher = live_teacher or options.live_teacher
    taught_by = _teacher(teacher, live_teacher, start, options)
    options.check(start.source, taught_by, live_teacher)
    settings = {
        "recipe": options.recipe,
        **start.settings(),
        **options.settings(),
        **loop.settings(),
        "teacher": None if taught_by is None else fingerprint(taught_by),
        "live_teacher": live_teacher,
        "device": device.device.type,
        "precision": "bf16" if device.bf16 else "fp32",
        **({"skip_bad_rows": True} if skip_bad_rows else {}),
    }
    with TrainingFolder(out, settings) as folder:
        encoder = start.tokenizer(folder.path)
        features = start.features(encoder, progress, folder.path)
        frozen: Teacher | None = None
        if taught_by is not None and live_teacher:
            frozen = LiveTeacher(taught_by, device)
        elif taught_by is not None:
            path = folder.path / "teacher.npy"
            frozen = FixedTeacher(path, taught_by, features, options.batch_tokens, device, progress)
        model = start.load_model(loop.seed).to(device.device)
        assess = None
        if assess_file is not None:
            lengths = {"full": None, **(assess_lengths or {})}
            assess = assessor(model, encoder, Path(assess_file), lengths, device, assess_sample, skip_bad_rows)
        recipe = options.make(model, features, device, frozen)
        steps = Loop(recipe, device, folder, loop, assess, progress).run()
        final = folder.path / "final"
        export(model, start.result, final)
    return {
        "checkpoint": str(final),
        "steps": steps,
        "features": len(features),
        "device": device.device.type,
        "precision": settings["precision"],
    }


def _teacher(given: str | Path | None, live: bool, start: Beginning, options: RecipeOptions) -> Checkpoint | None:
    """The checkpoint to learn from, if any."""
    if given is not None:
        return open_teacher(given, start)
    if options.start_teaches(start.source.task):
        return start.as_teacher()
    if live:
        raise InputError("live_teacher is set without a teacher; give a checkpoint to learn from")
    return None
