"""LengthDrop: one training that makes a model work at any length config.

After QuaLA-MiniLM (arXiv 2210.17114) and the Length-Adaptive Transformer (arXiv 2010.07003, section 3). Each
batch takes a sandwich of passes: the full model, the smallest sub-model, and random ones between. The full
model learns the task; sub-models learn its outputs. What differs from the published code, and why:

- ratios of the sequence's real length instead of counts of a padded one, and votes from real queries only:
  exactly what the runtime does;
- span QA trains the votes as well, by which a layer chooses what it keeps
  (:func:`qla_runtime.training.losses.vote_loss`): no other loss tells a layer that it dropped the answer;
- KL(teacher || student), on both start and end logits (:func:`qla_runtime.training.losses.divergence`);
- LayerDrop never touches the full pass, whose outputs are the target;
- no dropout, so scores are sums of the probabilities that the runtime will see.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qla_runtime.errors import InputError
from qla_runtime.lengths.configs import LengthConfig
from qla_runtime.model.float_model import Model
from qla_runtime.training.assess import assessor
from qla_runtime.training.data import Batch, Features
from qla_runtime.training.device import Device
from qla_runtime.training.export import export
from qla_runtime.training.loop import Loop, LoopOptions, Pass
from qla_runtime.training.losses import divergence, hidden_distance, importance, task_loss, vote_loss
from qla_runtime.training.run_folder import RunFolder
from qla_runtime.training.start import Start, fingerprint, open_teacher
from qla_runtime.training.teacher import FixedTeacher, LiveTeacher


@dataclass(frozen=True)
class LengthDropOptions:
    """The sandwich. The papers take two random passes and LayerDrop 0.2.

    Attributes:
        ratio_bound: largest share of its tokens that a layer drops, p: the smallest sub-model keeps (1-p)^i
            of the sequence in layer i, a random one r_i uniform in [(1-p) r_(i-1), r_(i-1)].
        smallest: the smallest sub-model itself, a share of the sequence per layer, in place of ``ratio_bound``:
            layer i of a random one drops up to the share of its tokens that layer i of this one drops. Configs
            worth having are no constant rate, and sub-models far from them teach little about them.
        random_passes: random sub-models per batch.
        layer_drop: probability that a sub-model leaves a layer out; that layer drops no tokens either.
        task_weight: of the full model's loss against the labels.
        distill_weight: of each distance to the teacher.
        hidden_weight: of the distance between what tokens become in a sub-model and in a live teacher
            (:func:`qla_runtime.training.losses.hidden_distance`); 0 is the papers' training. In place of a teacher
            that stays as it is, the full pass would come to meet the sub-models, and forget its task.
        vote_weight: of the votes that the tokens which matter lack to survive, for span QA
            (:func:`qla_runtime.training.losses.vote_loss`); 0 is the papers' training.
        vote_margin: by how much, in log votes, they must lead the lowest vote that is kept.
        take_turns: each batch runs one of its sub-models, drawn at random, in place of all of them. With a fixed
            teacher the full model is no one's target, and takes its turn like the others.
        batch_tokens: tokens of a batch, padding included.

    Raises:
        InputError: a value out of range.
    """

    ratio_bound: float = 0.2
    smallest: tuple[float, ...] | None = None
    random_passes: int = 1
    layer_drop: float = 0.0
    task_weight: float = 1.0
    distill_weight: float = 1.0
    hidden_weight: float = 0.0
    vote_weight: float = 10.0
    vote_margin: float = 0.5
    take_turns: bool = False
    batch_tokens: int = 8192

    def __post_init__(self) -> None:
        limits = {
            "ratio_bound": (0.0, 0.9),
            "random_passes": (0, 64),
            "layer_drop": (0.0, 0.9),
            "task_weight": (0.0, math.inf),
            "distill_weight": (0.0, math.inf),
            "hidden_weight": (0.0, math.inf),
            "vote_weight": (0.0, math.inf),
            "vote_margin": (0.0, 10.0),
            "batch_tokens": (16, math.inf),
        }
        for name, (least, most) in limits.items():
            value = getattr(self, name)
            if not least <= value <= most:
                raise InputError(f"{name} is {value}; it must be between {least:g} and {most:g}")
        if self.smallest is not None:
            LengthConfig.ratio(self.smallest)

    def bounds(self, layers: int) -> NDArray[np.float64]:
        """The largest share of its tokens that each layer drops."""
        if self.smallest is None:
            return np.full(layers, self.ratio_bound)
        LengthConfig.ratio(self.smallest).check_layers(layers)
        return 1.0 - np.asarray(self.smallest) / np.asarray((1.0, *self.smallest[:-1]))


@dataclass(frozen=True)
class SubModel:
    """What a sub-model pass runs: a ratio config, and the layers that LayerDrop leaves out."""

    length: LengthConfig
    skip: frozenset[int]


def smallest(layers: int, options: LengthDropOptions, keep_cls: bool, draw: np.random.Generator) -> SubModel:
    """Every layer drops as much as it may. ``draw`` decides LayerDrop alone."""
    skip = _layer_drop(layers, options, draw)
    return _sub_model(options.bounds(layers), skip, keep_cls)


def random(layers: int, options: LengthDropOptions, keep_cls: bool, draw: np.random.Generator) -> SubModel:
    """Every layer drops a random share, up to the bound."""
    skip = _layer_drop(layers, options, draw)
    return _sub_model(options.bounds(layers) * draw.random(layers), skip, keep_cls)


def _layer_drop(layers: int, options: LengthDropOptions, draw: np.random.Generator) -> frozenset[int]:
    return frozenset(np.flatnonzero(draw.random(layers) < options.layer_drop).tolist())


def _sub_model(shares: NDArray[np.float64], skip: frozenset[int], keep_cls: bool) -> SubModel:
    kept = 1.0 - shares
    kept[list(skip)] = 1.0
    ratios = np.cumprod(kept)
    return SubModel(LengthConfig.ratio(ratios.tolist(), keep_cls=keep_cls), skip)


class LengthDrop:
    """The recipe.

    Args:
        model: what to train, on the device.
        features: what to train it on.
        device: runs the passes.
        options: the sandwich.
        teacher: outputs that every pass is distilled from; None distils sub-models from the full pass of the
            same step (in place).
    """

    def __init__(
        self,
        model: Model,
        features: Features,
        device: Device,
        options: LengthDropOptions,
        teacher: FixedTeacher | LiveTeacher | None = None,
    ) -> None:
        self.model = model
        self._features, self._device, self._options, self._teacher = features, device, options, teacher

    def plan(self, draw: np.random.Generator) -> list[NDArray[np.int64]]:
        """The batches of an epoch."""
        return self._features.plan(self._options.batch_tokens, draw)

    def batch(self, rows: NDArray[np.int64]) -> Batch:
        """A batch on the device."""
        return self._features.batch(rows).to(self._device.device)

    def losses(self, batch: Batch, draw: np.random.Generator) -> Iterator[Pass]:
        """Full, smallest, random passes, or whose turn it is: [ L(full) + sum over sub-models of KL ] / passes.

        One draw of sub-models serves the whole batch. With a fixed teacher the full pass is distilled too.
        """
        task, options, layers = self.model.task, self._options, self.model.encoder.spec.layers
        kinds = [("smallest", smallest)] + [("random", random)] * options.random_passes
        full_too = True
        if options.take_turns:
            turn = draw.integers(len(kinds) + (self._teacher is not None))
            full_too = self._teacher is None or turn == len(kinds)
            kinds = kinds[turn : turn + 1]
        passes = full_too + len(kinds)

        target = states = None
        if self._teacher is not None:
            target, states = self._teacher(batch)
        if full_too:
            full = self._device.forward(self.model, batch)
            terms, total = {}, 0.0
            if batch.labels is not None:
                terms["full"] = task_loss(task, full, batch)
                total += options.task_weight * terms["full"]
            if target is None:
                target = full.detach()
            else:
                terms["full_distance"] = divergence(task, full, target, batch)
                total += options.distill_weight * terms["full_distance"]
            del full
            yield Pass(terms, total / passes)

        votes = options.vote_weight > 0 and task.kind == "span-qa"
        for name, choose in kinds:
            chosen = choose(layers, options, task.keep_cls, draw)
            outputs, inside = self._device.run(self.model, batch, chosen.length, chosen.skip, votes)
            distance = divergence(task, outputs, target, batch)
            terms, total = {name: distance}, options.distill_weight * distance
            if options.hidden_weight > 0:
                ran = [layer for layer in range(layers) if layer not in chosen.skip]
                reached = [inside.hidden_states[1 + layer] for layer in ran]
                aims = [states[layer] for layer in ran]
                terms[f"{name}_hidden"] = hidden_distance(reached, aims, inside.kept, batch.mask)
                total = total + options.hidden_weight * terms[f"{name}_hidden"]
            if votes:
                weights = importance(task, target, batch, len(inside.scores))
                lacking = vote_loss(inside, weights, batch.mask, task.keep_cls, options.vote_margin)
                terms[f"{name}_votes"] = lacking
                total = total + options.vote_weight * lacking
            yield Pass(terms, total / passes)


def train_length_drop(
    checkpoint: str | Path,
    data: str | Path,
    out: str | Path,
    *,
    loop: LoopOptions,
    options: LengthDropOptions | None = None,
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
    """Fine-tunes a checkpoint with LengthDrop; the same call continues a run that was interrupted.

    Args:
        checkpoint: a fine-tuned Hugging Face checkpoint, or a pretrained encoder, which gets a new head.
        data: SQuAD json (span QA), a GLUE-like table (classification, regression), or sentences, one per line or
            in a table (embeddings).
        out: the run's folder; ``out/final`` will hold the trained checkpoint.
        loop: duration, learning rate and the like.
        options: the sandwich; None for the defaults.
        task, max_length, new_head, skip_bad_rows: see :meth:`qla_runtime.training.start.Start.open`.
        teacher: a checkpoint to distil every pass from; None distils in place. For embeddings the frozen
            starting model is the teacher, whose full-length vectors all passes learn: there are no labels.
        live_teacher: run the teacher batch by batch instead of over all data beforehand.
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
    options = options or LengthDropOptions()
    device = Device.choose(precision)
    chosen = {"task": task, "max_length": max_length, "new_head": new_head, "skip_bad_rows": skip_bad_rows}
    start = Start.open(checkpoint, data, **chosen)
    options.bounds(start.source.encoder.layers)  # refuse a config of another model now
    embedding = start.source.task.kind == "embedding"
    if teacher is not None:
        taught_by = open_teacher(teacher, start)
    else:
        taught_by = start.source if embedding else None
    if live_teacher and taught_by is None:
        raise InputError("live_teacher is set without a teacher; give a checkpoint to learn from")
    if options.hidden_weight > 0 and not live_teacher:
        raise InputError(
            f"hidden_weight is {options.hidden_weight:g}, and only a live teacher tells what tokens become; set "
            "live_teacher, with a teacher"
        )
    settings = {
        "recipe": "length-drop",
        **start.settings(),
        **dataclasses.asdict(options),
        **loop.settings(),
        "teacher": None if taught_by is None else fingerprint(taught_by),
        "live_teacher": live_teacher,
        "device": device.device.type,
        "precision": "bf16" if device.bf16 else "fp32",
        **({"skip_bad_rows": True} if skip_bad_rows else {}),
    }
    with RunFolder(out, settings) as folder:
        encoder = start.tokenizer(folder.path)
        features = start.features(encoder, progress)
        fixed = None
        if taught_by is not None and live_teacher:
            fixed = LiveTeacher(taught_by, device)
        elif taught_by is not None:
            path = folder.path / "teacher.npy"
            fixed = FixedTeacher(path, taught_by, features, options.batch_tokens, device, progress)
        model = start.load_model(loop.seed).to(device.device)
        assess = None
        if assess_file is not None:
            lengths = {"full": None, **(assess_lengths or {})}
            assess = assessor(model, encoder, Path(assess_file), lengths, device, assess_sample, skip_bad_rows)
        recipe = LengthDrop(model, features, device, options, fixed)
        steps = Loop(recipe, device, folder, loop, assess, progress).run()
        final = folder.path / "final"
        export(model, start.source, final)
    return {
        "checkpoint": str(final),
        "steps": steps,
        "features": len(features),
        "device": device.device.type,
        "precision": settings["precision"],
    }
