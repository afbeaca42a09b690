"""What a recipe is: the interface between :mod:`~qla_runtime.training.run`, the loop and what is trained.

A recipe is one file in :mod:`qla_runtime.training.recipes`. It holds two classes:

- :class:`RecipeOptions`, the settings. They exist before there is a model: the command line is made of them, and
  they refuse a run that cannot work before anything is read at length.
- :class:`Recipe`, which the settings make of a model, features, a device and perhaps a teacher. It says which
  parameters are trained, on which batches, by which losses.

Importing a recipe imports no torch, so its losses stand in :mod:`~qla_runtime.training.losses`, and are imported
where they are computed.
"""

from __future__ import annotations

import argparse
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor, nn

    from qla_runtime.checkpoints.reader import Checkpoint
    from qla_runtime.model.float_model import ForwardRecord, Model
    from qla_runtime.model.spec import TaskSpec
    from qla_runtime.texts.text_encoder import TextEncoder
    from qla_runtime.training.corpus import Corpus
    from qla_runtime.training.data import Batch, Features
    from qla_runtime.training.device import Device


@dataclass(frozen=True)
class Pass:
    """One forward pass of a batch, about to be differentiated.

    Attributes:
        terms: scalar losses by the name they have in the log.
        total: their weighted sum, scaled so that a batch's passes add up to its loss.
    """

    terms: Mapping[str, Tensor]
    total: Tensor


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that learn alike.

    Attributes:
        parameters: those of the model.
        learning_rate: theirs, as a multiple of the run's, warmup and decay included.
        weight_decay: theirs, as a multiple of the run's.
    """

    parameters: Sequence[nn.Parameter]
    learning_rate: float = 1.0
    weight_decay: float = 1.0


class Teacher(Protocol):
    """A frozen model."""

    def __call__(self, batch: Batch, want: Collection[str] = ()) -> ForwardRecord:
        """What it makes of a batch, shaped like the student's: ``outputs`` in float32, and what is wanted."""


class Beginning(Protocol):
    """What a run starts from: :class:`~qla_runtime.training.start.Start`, or what a :class:`BringsData` opens."""

    @property
    def source(self) -> Checkpoint:
        """What the settings are checked against, and the teacher where no other is given."""

    @property
    def result(self) -> Checkpoint:
        """Whose family, config and companions the trained checkpoint has."""

    @property
    def new_words(self) -> bool:
        """Whether the word embeddings are random numbers, which are trained whatever the loop's options say."""

    def as_teacher(self) -> Checkpoint:
        """The checkpoint as it is, to be learned from where no other teacher is given.

        Raises:
            InputError: it has nothing to teach.
        """

    def load_model(self, seed: int) -> Model:
        """The model to train; ``seed`` decides what is random in it."""

    def tokenizer(self, folder: Path) -> TextEncoder:
        """The tokenizer, of which ``folder`` gets a copy."""

    def features(self, encoder: TextEncoder, progress: bool, folder: Path) -> Any:
        """The data, tokenized, for :meth:`RecipeOptions.make`; ``folder`` keeps what is too large for memory."""

    def settings(self) -> dict[str, Any]:
        """What a run's result depends on here."""


class Recipe(Protocol):
    """What the loop trains.

    Attributes:
        model: on the device.
    """

    model: Model

    def parameter_groups(self) -> list[ParameterGroup]:
        """All of the model's parameters that require a gradient, each in one group."""

    def plan(self, draw: np.random.Generator) -> Sequence[NDArray[np.int64]]:
        """The batches of an epoch, in order: feature numbers, for :meth:`batch`. ``draw`` alone decides it."""

    def batch(self, rows: NDArray[np.int64]) -> Batch:
        """A batch on the device."""

    def losses(self, batch: Batch, draw: np.random.Generator) -> Iterator[Pass]:
        """The passes of a batch. Each is differentiated before the next is asked for, so only one pass's
        activations are in memory. ``draw`` alone decides what is random in them."""


class RecipeOptions(Protocol):
    """The settings of a recipe: a frozen dataclass whose fields are made by :func:`qla_runtime.settings.setting`.

    Attributes:
        recipe: its name in ``run.json`` and on the command line.
        title: over its options in ``--help``.
        summary: what it does, in a line of ``--help``.
        example: a command line that runs it.
    """

    recipe: ClassVar[str]
    title: ClassVar[str]
    summary: ClassVar[str]
    example: ClassVar[str]

    @property
    def batch_tokens(self) -> int:
        """Tokens of a batch, padding included."""

    @property
    def live_teacher(self) -> bool:
        """Whether a teacher must run batch by batch, because more than its outputs is learned from."""

    @classmethod
    def add_arguments(cls, group: argparse._ActionsContainer) -> None:
        """Adds all its fields but ``batch_tokens`` to a parser; and ``--teacher`` and ``--live-teacher``, where it
        learns from a teacher."""

    def settings(self) -> dict[str, Any]:
        """What the result depends on, by name, in JSON's types: a run continues only where it is the same."""

    def check(self, source: Checkpoint, teacher: Checkpoint | None, live_teacher: bool) -> None:
        """Raises InputError where a checkpoint, its teacher, or how that runs does not fit these settings."""

    def start_teaches(self, task: TaskSpec) -> bool:
        """Whether the model as it is at the start, frozen, teaches where no other teacher is given."""

    def make(self, model: Model, features: Features, device: Device, teacher: Teacher | None) -> Recipe:
        """The recipe.

        Args:
            model: what to train, on the device.
            features: what to train it on.
            device: runs the passes.
            teacher: a frozen model to learn from, if there is one.
        """


@runtime_checkable
class BringsData(Protocol):
    """Settings of a recipe that trains another model than the checkpoint, on other data than its task's.

    Its teacher is the checkpoint itself, and runs live.
    """

    def start(
        self, checkpoint: str | Path, data: str | Path | Sequence[str | Path], max_length: int | None
    ) -> Beginning:
        """Reads all but weights and texts; arguments as of :func:`qla_runtime.training.run.train`."""


def matrices_decay(model: Model) -> list[ParameterGroup]:
    """The usual groups: weight decay on matrices, none on norms and biases."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        ParameterGroup([parameter for parameter in trained if parameter.ndim > 1]),
        ParameterGroup([parameter for parameter in trained if parameter.ndim <= 1], weight_decay=0.0),
    ]


class OverFeatures:
    """What recipes over tokenized features share: the usual groups, and batches of about so many tokens.

    Args:
        model: what is trained, on the device.
        features: what it is trained on.
        device: runs the passes.
        batch_tokens: tokens of a batch, padding included.
    """

    def __init__(self, model: Model, features: Features | Corpus, device: Device, batch_tokens: int) -> None:
        self.model = model
        self._features, self._device, self._batch_tokens = features, device, batch_tokens

    def parameter_groups(self) -> list[ParameterGroup]:
        """Everything, as usual."""
        return matrices_decay(self.model)

    def plan(self, draw: np.random.Generator) -> list[NDArray[np.int64]]:
        """The batches of an epoch."""
        return self._features.plan(self._batch_tokens, draw)

    def batch(self, rows: NDArray[np.int64]) -> Batch:
        """A batch on the device."""
        return self._features.batch(rows).to(self._device.device)
