"""Quantization-aware training: the model learns with the engine's roundings in it, from its float self.

The float checkpoint is the teacher, and the same checkpoint with roundings
(:mod:`qla_runtime.model.fake_quantized`) is the student: 8-bit weights, or ternary ones (Ternary Weight Networks,
arXiv 1605.04711). What it learns is a weighted sum of losses by name, all layers included
(:mod:`qla_runtime.training.distillation`); see there for the papers.

With LengthDrop (:mod:`qla_runtime.training.recipes.length_drop`), sub-models run as well. Their layers have fewer
tokens than the teacher's, so there the outputs alone are learned.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from qla_runtime.errors import InputError
from qla_runtime.lengths.configs import LengthConfig
from qla_runtime.model.formats import BITS, GRANULARITIES, QUANTIZERS, ModelFormat
from qla_runtime.settings import add_arguments, between, check_limits, one_of, setting
from qla_runtime.training.recipe import OverFeatures, Pass, Teacher
from qla_runtime.training.recipes import length_drop as sub_models
from qla_runtime.training.recipes.length_drop import LengthDropOptions

if TYPE_CHECKING:
    from torch import Tensor

    from qla_runtime.checkpoints.reader import Checkpoint
    from qla_runtime.model.float_model import Model
    from qla_runtime.model.spec import TaskSpec
    from qla_runtime.training.data import Batch, Features
    from qla_runtime.training.device import Device

LOSSES = ("labels", "prediction", "hidden", "score", "map", "output")
"""``labels`` is the task's own loss; the others are distances to the teacher."""


def _weights(flag: str, text: str) -> tuple[tuple[str, float], ...]:
    """``prediction,map=0.3``: losses and their weights."""
    found = []
    for part in text.split(","):
        name, _, weight = part.strip().partition("=")
        try:
            found.append((name, float(weight or 1)))
        except ValueError:
            raise InputError(f"{flag} {text!r}: {weight!r} is no number; write such as {name}=0.5") from None
    return tuple(found)


def _layers(flag: str, text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(","))


@dataclass(frozen=True)
class QatOptions:
    """Which roundings, and which losses.

    Attributes:
        bits: of weights and activations: ``w8a8``, or ``w2a8`` for ternary weights.
        granularity: one ternary scale per output ``channel``, or the papers' one per ``matrix``.
        keep_w8a8: layers whose weights stay int8: ``first``, ``last``, or numbers from 1.
        ternary_embeddings: ternary word embeddings, one scale per row; else int8. Pays with
            ``train_word_embeddings`` of the loop only.
        quantizers: ``engine`` rounds as the engine does. ``paper`` is an ablation: activations, Q, K, V and the
            probabilities with one scale per tensor, clipped to +- 2.5.
        losses: (name, weight) of :data:`LOSSES`.
        gamma: the unified loss: sets the weight of ``map`` to gamma and that of ``output`` to 1 - gamma.
        length_drop: sub-models that drop tokens are trained, too.
        ratio_bound, smallest, random_passes: as in
            :class:`~qla_runtime.training.recipes.length_drop.LengthDropOptions`.
        batch_tokens: tokens of a batch, padding included.

    Raises:
        InputError: a value out of range, or a loss of another name.
    """

    recipe: ClassVar[str] = "qat"
    title: ClassVar[str] = "quantization-aware training"
    summary: ClassVar[str] = "make a model good with the engine's roundings, down to ternary weights"
    example: ClassVar[str] = "qla train qat my-checkpoint train.tsv my-run --bits w2a8 --epochs 3"

    bits: str = setting(
        "w8a8", "of weights and activations; w2a8 is ternary weights (default: %(default)s)",
        limit=one_of(BITS), choices=BITS,
    )  # fmt: skip
    granularity: str = setting(
        "channel", "one ternary scale per output channel, or the papers' one per matrix (default: %(default)s)",
        limit=one_of(GRANULARITIES), choices=GRANULARITIES,
    )  # fmt: skip
    keep_w8a8: tuple[str, ...] = setting(
        (), "layers whose weights stay int8, such as first,last or 1,6", metavar="LAYERS", convert=_layers
    )
    ternary_embeddings: bool = setting(False, "ternary word embeddings, too; best with --train-word-embeddings")
    quantizers: str = setting(
        "engine", "paper: round activations where the papers do, as an ablation (default: %(default)s)",
        limit=one_of(QUANTIZERS), choices=QUANTIZERS,
    )  # fmt: skip
    losses: tuple[tuple[str, float], ...] = setting(
        (("prediction", 1.0), ("hidden", 1.0), ("map", 1.0), ("output", 1.0)),
        f"of {', '.join(LOSSES)}, such as prediction,hidden,map=0.5 (default: prediction,hidden,map,output)",
        metavar="NAMES", convert=_weights,
    )  # fmt: skip
    gamma: float | None = setting(
        None, "unified loss: X times map and 1 - X times output, beside the other losses",
        limit=between(0.0, 1.0), metavar="X",
    )  # fmt: skip
    length_drop: bool = setting(False, "train sub-models that drop tokens, too")
    ratio_bound: float = setting(
        0.2, "with --length-drop, as in qla train length-drop (default: %(default)s)",
        limit=between(0.0, 0.9), flag="--length-drop-ratio-bound", metavar="P",
    )  # fmt: skip
    smallest: tuple[float, ...] | None = setting(None, "likewise", metavar="VALUES", convert=sub_models.shares)
    random_passes: int = setting(1, "likewise (default: %(default)s)", limit=between(0, 64), metavar="N")
    batch_tokens: int = setting(4096, "per batch (default: %(default)s)", limit=between(16, math.inf), metavar="N")

    def __post_init__(self) -> None:
        check_limits(self)
        names = [name for name, _ in self.losses]
        for name, weight in self.losses:
            if name not in LOSSES:
                raise InputError(f"losses holds {name!r}; it may hold {', '.join(LOSSES)}")
            if names.count(name) > 1:
                raise InputError(f"losses holds {name} twice")
            if not 0 <= weight < math.inf:
                raise InputError(f"losses gives {name} the weight {weight:g}; it must be 0 or more")
        if not self.weights:
            raise InputError("losses has no weight above 0, so nothing would be learned")
        self._sandwich()

    @classmethod
    def add_arguments(cls, group: argparse._ActionsContainer) -> None:
        """See :class:`~qla_runtime.training.recipe.RecipeOptions`."""
        add_arguments(group, cls, "bits", "granularity", "keep_w8a8", "ternary_embeddings", "quantizers")
        group.add_argument(
            "--teacher", metavar="CHECKPOINT", help="the float checkpoint to learn from (default: the start)"
        )
        group.set_defaults(live_teacher=False)  # unless the settings say so
        add_arguments(group, cls, "losses", "gamma", "length_drop")
        shape = group.add_mutually_exclusive_group()
        add_arguments(shape, cls, "ratio_bound", "smallest")
        add_arguments(group, cls, "random_passes")

    @property
    def weights(self) -> dict[str, float]:
        """Of the losses, those above 0."""
        unified = {} if self.gamma is None else {"map": self.gamma, "output": 1 - self.gamma}
        return {name: weight for name, weight in (dict(self.losses) | unified).items() if weight > 0}

    @property
    def live_teacher(self) -> bool:
        """Layers are compared, which nobody could write down beforehand."""
        return self.start_teaches()

    def settings(self) -> dict[str, Any]:
        """All of them."""
        return {**dataclasses.asdict(self), "losses": self.weights}

    def check(self, source: Checkpoint, teacher: Checkpoint | None, live_teacher: bool) -> None:
        """Raises InputError for a layer that isn't there, labels that a task has not, a teacher that is no float
        model, or one whose layers cannot be compared."""
        self.format(source.encoder.layers)
        if self.length_drop:
            self._sandwich().bounds(source.encoder.layers)
        if "labels" in self.weights and source.task.kind == "embedding":
            raise InputError("losses holds labels, and embeddings have none; leave it out")
        if teacher is None:
            return
        if not self.start_teaches():
            raise InputError(
                f"losses holds labels alone, so teacher {teacher.source} would teach nothing; leave it out"
            )
        names = [name for name in ("hidden", "score", "map", "output") if name in self.weights]
        ours, theirs = source.encoder, teacher.encoder
        if names and (ours.layers, ours.hidden, ours.heads) != (theirs.layers, theirs.hidden, theirs.heads):
            raise InputError(
                f"losses holds {', '.join(names)}, which compare layer by layer, and teacher {teacher.source} has "
                f"{theirs.layers} layers of {theirs.hidden} in {theirs.heads} heads, the student {ours.layers} of "
                f"{ours.hidden} in {ours.heads}. Give the float checkpoint of the student, or losses prediction "
                "alone"
            )

    def start_teaches(self, task: TaskSpec | None = None) -> bool:
        """Wherever a loss asks for a teacher."""
        return set(self.weights) != {"labels"}

    def make(self, model: Model, features: Features, device: Device, teacher: Teacher | None) -> Qat:
        """The recipe; ``model`` rounds from now on."""
        return Qat(model, features, device, self, teacher)

    def format(self, layers: int) -> ModelFormat:
        """Of a model with so many layers.

        Raises:
            InputError: ``keep_w8a8`` names a layer that it has not.
        """
        kept = []
        for name in self.keep_w8a8:
            number = {"first": "1", "last": str(layers)}.get(name, name)
            if not number.isascii() or not number.isdigit() or not 1 <= int(number) <= layers:
                raise InputError(
                    f"keep_w8a8 holds {name!r}; it may hold first, last and numbers from 1 to {layers}"
                )
            kept.append(int(number) - 1)
        return ModelFormat.of(
            layers,
            self.bits,
            granularity=self.granularity,
            keep_w8a8=kept,
            ternary_words=self.ternary_embeddings,
            quantizers=self.quantizers,
        )

    def dropping(
        self, layers: int, keep_cls: bool, draw: np.random.Generator
    ) -> Iterator[tuple[str, LengthConfig]]:
        """Names and configs of a batch's sub-models."""
        if not self.length_drop:
            return
        sandwich = self._sandwich()
        yield "smallest", sub_models.smallest(layers, sandwich, keep_cls, draw).length
        for _ in range(self.random_passes):
            yield "random", sub_models.random(layers, sandwich, keep_cls, draw).length

    def _sandwich(self) -> LengthDropOptions:
        return LengthDropOptions(
            ratio_bound=self.ratio_bound, smallest=self.smallest, random_passes=self.random_passes
        )


class Qat(OverFeatures):
    """The recipe.

    Args:
        model: what to train, in float, on the device; it rounds from now on.
        features: what to train it on.
        device: runs the passes.
        options: roundings and losses.
        teacher: a float model that is run batch by batch; None where no loss asks for one.
    """

    def __init__(
        self, model: Model, features: Features, device: Device, options: QatOptions, teacher: Teacher | None
    ) -> None:
        from qla_runtime.model.fake_quantized import fake_quantize

        rounded = fake_quantize(model, options.format(model.encoder.spec.layers), features.first_token)
        super().__init__(rounded, features, device, options.batch_tokens)
        self._options, self._teacher = options, teacher

    def losses(self, batch: Batch, draw: np.random.Generator) -> Iterator[Pass]:
        """The pass with every token, by all losses; then sub-models, by their outputs' distance alone."""
        from qla_runtime.training.distillation import LAYER_LOSSES, prediction_loss
        from qla_runtime.training.losses import divergence, task_loss

        task, weights = self.model.task, self._options.weights
        layered = {name: how for name, how in LAYER_LOSSES.items() if name in weights}
        want = {what for what, _ in layered.values()}
        drawn = list(self._options.dropping(self.model.encoder.spec.layers, task.keep_cls, draw))
        passes = 1 + len(drawn)

        full = self._device.run(self.model, batch, want=want)
        target: Any = full.outputs.detach()
        terms: dict[str, Tensor] = {}
        if "labels" in weights:
            terms["labels"] = task_loss(task, full.outputs, batch)
        if set(weights) != {"labels"}:
            assert self._teacher is not None  # run.py gives one where start_teaches() asks for it
            taught = self._teacher(batch, want)
            target = taught.outputs
            if "prediction" in weights:
                terms["prediction"] = prediction_loss(task, full.outputs, target, batch)
            for name, (what, loss) in layered.items():
                terms[name] = loss(getattr(full, what), getattr(taught, what), batch.mask)
            del taught
        del full
        total: Any = sum(weights[name] * loss for name, loss in terms.items())
        yield Pass(terms, total / passes)

        for name, length in drawn:
            outputs = self._device.run(self.model, batch, length).outputs
            distance = divergence(task, outputs, target, batch)
            yield Pass({name: distance}, distance / passes)
