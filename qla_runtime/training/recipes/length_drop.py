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

import argparse
import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from qla_runtime.errors import InputError
from qla_runtime.lengths.configs import LengthConfig
from qla_runtime.settings import add_arguments, between, check_limits, setting
from qla_runtime.training.recipe import OverFeatures, Pass, Teacher

if TYPE_CHECKING:
    from torch import Tensor

    from qla_runtime.checkpoints.reader import Checkpoint
    from qla_runtime.model.float_model import Model
    from qla_runtime.model.spec import TaskSpec
    from qla_runtime.training.data import Batch, Features
    from qla_runtime.training.device import Device


def shares(flag: str, text: str) -> tuple[float, ...]:
    """``.97,.8,.6``: what a layer keeps of the sequence."""
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"{flag} {text!r} is no length config; give one value per layer") from None
    if not any(c in text for c in ".eE"):
        raise InputError(f"{flag} {text!r} holds counts; give shares of the sequence")
    return values


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
        distill_weight: of each distance to the teacher. A sub-model without a loss of any weight does not run:
            ``distill_weight`` 0, and ``vote_weight`` 0 for span QA, is plain fine-tuning.
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

    recipe: ClassVar[str] = "length-drop"
    title: ClassVar[str] = "LengthDrop"
    summary: ClassVar[str] = "make a model that works at any length config"
    example: ClassVar[str] = "qla train length-drop my-checkpoint train-v1.1.json my-run --minutes 60"

    ratio_bound: float = setting(
        0.2, "largest share of its tokens that a layer drops (default: %(default)s)",
        limit=between(0.0, 0.9), flag="--length-drop-ratio-bound", metavar="P",
    )  # fmt: skip
    smallest: tuple[float, ...] | None = setting(
        None, "the smallest sub-model in place of a constant rate, such as .97,.8,.6,.4,.2,.1",
        metavar="VALUES", convert=shares,
    )  # fmt: skip
    random_passes: int = setting(
        1, "sub-models per batch (default: %(default)s)", limit=between(0, 64), metavar="N"
    )
    layer_drop: float = setting(
        0.0, "share of layers that sub-models leave out", limit=between(0.0, 0.9), metavar="P"
    )
    task_weight: float = setting(
        1.0, "of the labels (default: %(default)g)", limit=between(0.0, math.inf), metavar="X"
    )
    distill_weight: float = setting(
        1.0, "of the teacher (default: %(default)g)", limit=between(0.0, math.inf), metavar="X"
    )
    hidden_weight: float = setting(
        0.0,
        "of what tokens become in sub-models, against a live teacher, layer by layer (default: %(default)g)",
        limit=between(0.0, math.inf), metavar="X",
    )  # fmt: skip
    vote_weight: float = setting(
        10.0,
        "span QA: of the votes that answers lack to survive; 0 is the papers' training (default: %(default)g)",
        limit=between(0.0, math.inf), metavar="X",
    )  # fmt: skip
    vote_margin: float = setting(
        0.5, "by how much they must lead, in log votes (default: %(default)g)",
        limit=between(0.0, 10.0), metavar="X",
    )  # fmt: skip
    take_turns: bool = setting(
        False, "one sub-model per batch, at random, in place of all: faster; with --teacher one pass in all"
    )
    batch_tokens: int = setting(8192, "per batch (default: %(default)s)", limit=between(16, math.inf), metavar="N")

    def __post_init__(self) -> None:
        check_limits(self)
        if self.smallest is not None:
            LengthConfig.ratio(self.smallest)

    @classmethod
    def add_arguments(cls, group: argparse._ActionsContainer) -> None:
        """See :class:`~qla_runtime.training.recipe.RecipeOptions`."""
        shape = group.add_mutually_exclusive_group()
        add_arguments(shape, cls, "ratio_bound", "smallest")
        add_arguments(group, cls, "random_passes", "layer_drop")
        group.add_argument(
            "--teacher", metavar="CHECKPOINT", help="distil from this fixed model instead of from the full pass"
        )
        group.add_argument(
            "--live-teacher", action="store_true",
            help="run it batch by batch instead of over all data beforehand: for an epoch or less",
        )  # fmt: skip
        add_arguments(group, cls, "task_weight", "distill_weight", "hidden_weight", "vote_weight", "vote_margin")
        add_arguments(group, cls, "take_turns")

    @property
    def live_teacher(self) -> bool:
        """Only where it is asked for: ``hidden_weight`` is refused without."""
        return False

    def settings(self) -> dict[str, Any]:
        """All of them."""
        return dataclasses.asdict(self)

    def check(self, source: Checkpoint, teacher: Checkpoint | None, live_teacher: bool) -> None:
        """Raises InputError for a config of another model, or a hidden loss without a live teacher."""
        self.bounds(source.encoder.layers)
        if self.hidden_weight > 0 and not live_teacher:
            raise InputError(
                f"hidden_weight is {self.hidden_weight:g}, and only a live teacher tells what tokens become; set "
                "live_teacher, with a teacher"
            )

    def start_teaches(self, task: TaskSpec) -> bool:
        """For embeddings, which have no labels: all passes learn the starting model's full-length vectors."""
        return task.kind == "embedding"

    def make(self, model: Model, features: Features, device: Device, teacher: Teacher | None) -> LengthDrop:
        """The recipe."""
        return LengthDrop(model, features, device, self, teacher)

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


class LengthDrop(OverFeatures):
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
        teacher: Teacher | None = None,
    ) -> None:
        super().__init__(model, features, device, options.batch_tokens)
        self._options, self._teacher = options, teacher

    def losses(self, batch: Batch, draw: np.random.Generator) -> Iterator[Pass]:
        """Full, smallest, random passes, or whose turn it is: [ L(full) + sum over sub-models of KL ] / passes.

        One draw of sub-models serves the whole batch. With a fixed teacher the full pass is distilled too.
        """
        from qla_runtime.training.losses import divergence, hidden_distance, importance, task_loss, vote_loss

        task, options, layers = self.model.task, self._options, self.model.encoder.spec.layers
        kinds = [("smallest", smallest)] + [("random", random)] * options.random_passes
        full_too = True
        votes = options.vote_weight > 0 and task.kind == "span-qa"
        hidden = options.hidden_weight > 0
        if not (options.distill_weight > 0 or votes or hidden):
            kinds = []
        elif options.take_turns:
            turn = draw.integers(len(kinds) + (self._teacher is not None))
            full_too = self._teacher is None or turn == len(kinds)
            kinds = kinds[turn : turn + 1]
        passes = full_too + len(kinds)

        want = {"scores", "kept"} if votes else set()
        if hidden:
            want |= {"hidden_states", "kept"}
        target: Any = None
        if self._teacher is not None:
            taught = self._teacher(batch, ["hidden_states"] if hidden else [])
            target = taught.outputs
        if full_too:
            full = self._device.run(self.model, batch).outputs
            terms: dict[str, Tensor] = {}
            total: Any = 0.0
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

        for name, choose in kinds:
            chosen = choose(layers, options, task.keep_cls, draw)
            found = self._device.run(self.model, batch, chosen.length, chosen.skip, want)
            distance = divergence(task, found.outputs, target, batch)
            terms, total = {name: distance}, options.distill_weight * distance
            if hidden:
                ran = [layer for layer in range(layers) if layer not in chosen.skip]
                reached, aims = ([r.hidden_states[1 + layer] for layer in ran] for r in (found, taught))
                terms[f"{name}_hidden"] = hidden_distance(reached, aims, found.kept, batch.mask)
                total = total + options.hidden_weight * terms[f"{name}_hidden"]
            if votes:
                weights = importance(task, target, batch, len(found.scores))
                lacking = vote_loss(found, weights, batch.mask, task.keep_cls, options.vote_margin)
                terms[f"{name}_votes"] = lacking
                total = total + options.vote_weight * lacking
            yield Pass(terms, total / passes)
