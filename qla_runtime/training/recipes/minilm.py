"""MiniLM: a small encoder learns how a large one attends, from plain text without labels.

After MiniLM (arXiv 2002.10957, "v1") and MiniLMv2 (arXiv 2012.15828, "v2"). One layer of the teacher and the last
layer of the student are compared, by what tokens are to each other there
(:func:`qla_runtime.training.losses.relation_distance`):

- v1: queries with keys (the attention map), and values with values, per attention head of the last layers. Both
  models need the same number of heads.
- v2: queries with queries, keys with keys, values with values, of a layer of the teacher that is chosen. All heads
  are joined and cut anew into relation heads, so numbers of heads and widths may differ.

What differs from the papers: no dropout, and batches are of like lengths. As there, nothing after the student's
last queries, keys and values is trained: its last output projection and feed-forward stay what they were.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from qla_runtime.errors import InputError
from qla_runtime.model.spec import EncoderSpec, TaskSpec
from qla_runtime.settings import add_arguments, between, check_limits, one_of, setting, whole
from qla_runtime.training.recipe import OverFeatures, Pass, Teacher

if TYPE_CHECKING:
    from torch import Tensor

    from qla_runtime.checkpoints.reader import Checkpoint
    from qla_runtime.model.float_model import Model
    from qla_runtime.training.corpus import Corpus
    from qla_runtime.training.data import Batch, Features
    from qla_runtime.training.device import Device
    from qla_runtime.training.student import Distillation

VERSIONS = ("v1", "v2")


def _layers(flag: str, text: str) -> str | tuple[int, ...]:
    """``even``, or ``0,2,4``."""
    if text == "even":
        return text
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"{flag} {text!r} is no list of layers; give numbers such as 0,2,4, or even") from None


@dataclass(frozen=True)
class MiniLMOptions:
    """What is compared, and the student.

    Attributes:
        relations: ``v1`` or ``v2``.
        relation_heads: of v2; None makes the teacher's 16 wide, as the paper does.
        teacher_layer: of v2, from 0; None is the last. The paper takes layer 20 of BERT-large's 24.
        student_layers, student_hidden, student_heads, student_intermediate, copy_layers, student: see
            :class:`~qla_runtime.training.student.StudentShape`.
        batch_tokens: tokens of a batch, padding included.

    Raises:
        InputError: a value out of range, or settings of v2 with v1.
    """

    recipe: ClassVar[str] = "minilm"
    title: ClassVar[str] = "MiniLM"
    summary: ClassVar[str] = "distil a teacher into a smaller encoder, on plain text"
    example: ClassVar[str] = (
        "qla train minilm my-teacher corpus.txt.xz my-run --student-layers 3 --copy-layers even --minutes 60"
    )

    relations: str = setting(
        "v2", "v1: attention maps and values; v2: queries, keys and values (default: %(default)s)",
        choices=VERSIONS, limit=one_of(VERSIONS),
    )  # fmt: skip
    relation_heads: int | None = setting(
        None, "v2: parts that queries, keys and values are cut into (default: the teacher's width / 16)",
        limit=whole(1), metavar="N",
    )  # fmt: skip
    teacher_layer: int | None = setting(
        None, "v2: the teacher's layer to learn from, counted from 0 (default: the last)",
        limit=whole(0), metavar="N",
    )  # fmt: skip
    student_layers: int | None = setting(None, "(default: the teacher's)", limit=whole(1), metavar="N")
    student_hidden: int | None = setting(None, "width (default: the teacher's)", limit=whole(1), metavar="N")
    student_heads: int | None = setting(None, "(default: the teacher's)", limit=whole(1), metavar="N")
    student_intermediate: int | None = setting(
        None, "width of the feed-forward part (default: the teacher's, or 4 x another --student-hidden)",
        limit=whole(1), metavar="N",
    )  # fmt: skip
    copy_layers: str | tuple[int, ...] | None = setting(
        None, "start from these layers of the teacher, such as 0,2,4, or even (default: random weights)",
        metavar="LAYERS", convert=_layers,
    )  # fmt: skip
    student: str | None = setting(None, "start from this encoder, in place of a new one", metavar="CHECKPOINT")
    batch_tokens: int = setting(8192, "per batch (default: %(default)s)", limit=between(16, math.inf), metavar="N")

    def __post_init__(self) -> None:
        check_limits(self)
        if self.relations == "v1":
            for name in ("relation_heads", "teacher_layer"):
                if getattr(self, name) is not None:
                    raise InputError(f"{name} is of v2; v1 compares the heads of the last layers. Take v2")

    @classmethod
    def add_arguments(cls, group: argparse._ActionsContainer) -> None:
        """See :class:`~qla_runtime.training.recipe.RecipeOptions`."""
        names = [field.name for field in dataclasses.fields(cls) if field.name != "batch_tokens"]
        add_arguments(group, cls, *names)

    def settings(self) -> dict[str, Any]:
        """All but the student, of which :meth:`Distillation.settings` tells."""
        names = ("relations", "relation_heads", "teacher_layer", "batch_tokens")
        return {name: getattr(self, name) for name in names}

    def start(
        self, checkpoint: str | Path, data: str | Path | Sequence[str | Path], max_length: int | None
    ) -> Distillation:
        """The teacher, the student and the corpus.

        Raises:
            InputError, UnsupportedError: they do not fit each other, or these settings.
        """
        from qla_runtime.training.student import Distillation, StudentShape

        shape = StudentShape(
            self.student_layers, self.student_hidden, self.student_heads, self.student_intermediate,
            self.copy_layers, self.student,
        )  # fmt: skip
        start = Distillation.open(checkpoint, data, shape, max_length)
        self.heads(start.source.encoder, start.result.encoder)
        return start

    @property
    def live_teacher(self) -> bool:
        """Always: queries, keys and values of a corpus are too large to be kept."""
        return True

    def check(self, source: Checkpoint, teacher: Checkpoint | None, live_teacher: bool) -> None:
        """Raises InputError for a layer that the teacher does not have."""
        self.layer(source.encoder)

    def start_teaches(self, task: TaskSpec) -> bool:
        """Always."""
        return True

    def make(self, model: Model, features: Features | Corpus, device: Device, teacher: Teacher | None) -> MiniLM:
        """The recipe."""
        from qla_runtime.training.teacher import LiveTeacher

        assert isinstance(teacher, LiveTeacher)
        return MiniLM(model, features, device, self, teacher.model)

    def layer(self, teacher: EncoderSpec) -> int:
        """The teacher's layer, from 0.

        Raises:
            InputError: it has no such layer.
        """
        if self.teacher_layer is None:
            return teacher.layers - 1
        if self.teacher_layer >= teacher.layers:
            raise InputError(
                f"teacher_layer is {self.teacher_layer}; the teacher has the layers 0 to {teacher.layers - 1}"
            )
        return self.teacher_layer

    def heads(self, teacher: EncoderSpec, student: EncoderSpec) -> int:
        """Heads that the relations have.

        Raises:
            InputError: v1, and the models have other numbers of heads; or a width that cannot be cut so.
        """
        if self.relations == "v1":
            if teacher.heads != student.heads:
                raise InputError(
                    f"v1 compares head by head: the teacher has {teacher.heads} heads and the student "
                    f"{student.heads}. Give the student as many, or take v2, which has heads of its own"
                )
            return teacher.heads
        heads = self.relation_heads or teacher.hidden // 16
        for whose, width in (("teacher", teacher.hidden), ("student", student.hidden)):
            if width % heads:
                raise InputError(
                    f"relation_heads is {heads}, which does not divide the {whose}'s width of {width}; give a "
                    f"number that divides {teacher.hidden} and {student.hidden}"
                )
        return heads


class MiniLM(OverFeatures):
    """The recipe.

    Args:
        model: the student, on the device.
        features: what to train it on.
        device: runs the passes.
        options: what is compared.
        teacher: frozen, on the device, in evaluation mode.
    """

    def __init__(
        self, model: Model, features: Features | Corpus, device: Device, options: MiniLMOptions, teacher: Model
    ) -> None:
        super().__init__(model, features, device, options.batch_tokens)
        self._options, self._teacher = options, teacher
        self._layer = options.layer(teacher.encoder.spec)
        self._heads = options.heads(teacher.encoder.spec, model.encoder.spec)

    def losses(self, batch: Batch, draw: np.random.Generator) -> Iterator[Pass]:
        """One pass. v1: the sum over both relations, v2: the mean over three. Nothing is random."""
        import torch

        from qla_runtime.training.losses import relation_distance

        with torch.no_grad():
            theirs = self._projections(self._teacher, batch, self._layer)
        ours = self._projections(self.model, batch, len(self.model.encoder.layers) - 1)
        pairs = {"attention": ("query", "key"), "values": ("value", "value")}
        if self._options.relations == "v2":
            pairs = {"queries": ("query", "query"), "keys": ("key", "key"), "values": ("value", "value")}
        terms: dict[str, Tensor] = {
            name: relation_distance(
                (ours[one], ours[other]), (theirs[one], theirs[other]), self._heads, batch.mask
            )
            for name, (one, other) in pairs.items()
        }
        total = torch.stack([*terms.values()]).sum()
        yield Pass(terms, total if self._options.relations == "v1" else total / len(terms))

    def _projections(self, model: Model, batch: Batch, layer: int) -> dict[str, Tensor]:
        """What a layer makes of its input: ``query``, ``key`` and ``value``, (B, n, H) each.

        Nothing behind them is needed: that layer's attention is not computed, and no later layer runs.
        """
        record = self._device.run(model, batch, skip=range(layer, len(model.encoder.layers)))
        block: Any = model.encoder.layers[layer]
        with self._device.autocast():
            parts = block.qkv(record.last_hidden).chunk(3, -1)
        return dict(zip(("query", "key", "value"), parts, strict=True))
