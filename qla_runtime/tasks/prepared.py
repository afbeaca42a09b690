"""What stands between a task and the engine: a call's checked inputs, and inputs that are ready to run.

A task turns the arguments of a call into a :class:`Call`. The call tokenizes its inputs, or a slice of them, into
a :class:`Prepared`. The engine runs several of these as one batch, also of different calls. Each then reads its
own results.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from qla_runtime.arrays import Arrays
from qla_runtime.errors import InputError
from qla_runtime.lengths.configs import LatencyBudget, LengthPlan
from qla_runtime.ragged import Ragged
from qla_runtime.tasks.prompts import Prompts
from qla_runtime.texts.text_encoder import Encoded, TextEncoder, batches

Result = TypeVar("Result")


@dataclass(frozen=True)
class OpenedModel:
    """What a task knows of the opened package.

    Attributes:
        name: the package's own name.
        settings: the ``task`` object of its ``config.json``.
        encoder: its tokenizer.
        prompts: its prompts.
        hidden: channels of the model.
    """

    name: str
    settings: Mapping[str, Any]
    encoder: TextEncoder
    prompts: Prompts
    hidden: int

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels that the model tells apart; empty for question answering and embeddings."""
        return tuple(self.settings.get("labels", ()))


class Task:
    """What a kind of model can do. Each method of a task checks the arguments of the engine's method of that name.

    Attributes:
        kind: ``task.kind`` of the packages that it is for.
        method: the engine's method that fits.
        usage: how error messages spell a call of it.
    """

    kind: str
    method: str
    usage: str

    def __init__(self, model: OpenedModel) -> None:
        self.model = model


@dataclass(frozen=True)
class Prepared(Generic[Result]):
    """Inputs that are tokenized and ready to run, with whatever else is in the batch.

    Attributes:
        batch: their sequences.
        inputs: int64 (inputs + 1,): input ``i`` owns the sequences ``[inputs[i], inputs[i + 1])``.
        want: names of the arrays that ``read`` needs (:mod:`qla_runtime.arrays`).
        read: makes the results, one per input, from the arrays of these sequences and the plan that ran.
        plan: the length config of each input; None leaves it to the engine to choose one that meets the deadline.
        deadline: ``time.perf_counter()`` at which the call's latency budget ends; None: there is no budget.
        model: whose tokenizer made ``batch``; None: token ids, which are of no model.
    """

    batch: Ragged
    inputs: NDArray[np.int64]
    want: frozenset[str]
    read: Callable[[Arrays, LengthPlan], list[Result]]
    plan: LengthPlan | None = None
    deadline: float | None = None
    model: OpenedModel | None = None

    @property
    def count(self) -> int:
        """The number of inputs."""
        return len(self.inputs) - 1

    def planned(self, plan: LengthPlan | LatencyBudget, began: float) -> Prepared[Result]:
        """The same with its plan; for a budget that began at ``perf_counter`` = ``began``, with its deadline."""
        settled, deadline = (plan, None) if isinstance(plan, LengthPlan) else (None, plan.deadline(began))
        return Prepared(self.batch, self.inputs, self.want, self.read, settled, deadline, self.model)


@dataclass(frozen=True)
class Call(Generic[Result]):
    """The arguments of a call, checked.

    Attributes:
        inputs: one per result: a text, or a pair of texts.
        what: the argument that error messages name.
        single: whether the caller passed one input and not a list.
        tokenize: prepares some of the inputs, given with the names that error messages call them.
        runs_once: why ``Escalate`` cannot repeat inputs, in the words that its error ends with; None: it can.
        first: the number of the first input, as error messages count.
    """

    inputs: Sequence[Any]
    what: str
    single: bool
    tokenize: Callable[[Sequence[Any], Sequence[str]], Prepared[Result]]
    runs_once: str | None = None
    first: int = 0

    @property
    def count(self) -> int:
        """The number of inputs."""
        return len(self.inputs)

    def parts(self) -> Iterator[slice]:
        """Slices of the inputs that are small enough to be tokenized at once."""
        return batches(self.inputs)

    def prepare(self, part: slice | None = None) -> Prepared[Result]:
        """The inputs of a slice, or all of them, tokenized.

        Raises:
            InputError: an input that the model cannot read.
            PackageError: the tokenizer fails.
        """
        numbers = range(self.count)[part or slice(None)]
        names = [self.what if self.single else f"{self.what}[{self.first + i}]" for i in numbers]
        return self.tokenize(self.inputs[part or slice(None)], names)

    def only(self, numbers: Sequence[int]) -> Call[Result]:
        """The same call over some of its inputs."""
        return replace(self, inputs=[self.inputs[i] for i in numbers])


def tokenized(
    encoder: TextEncoder,
    inputs: Sequence[str] | Sequence[tuple[str, str]],
    names: Sequence[str],
    truncate: bool,
    *,
    with_offsets: bool = False,
) -> Encoded:
    """Texts or pairs of texts as one sequence each.

    Args:
        encoder: the package's tokenizer.
        inputs: the texts.
        names: how error messages call each.
        truncate: cut those that are longer than the model reads.
        with_offsets: whether the encodings need character offsets.

    Raises:
        InputError: one is too long, and ``truncate`` is False.
        PackageError: the tokenizer fails.
    """
    encoded = encoder.encode(inputs, with_offsets=with_offsets)
    if not truncate and encoded.cut.any():
        raise InputError(
            f"{names[int(np.argmax(encoded.cut))]} has more than {encoder.max_length} tokens, the most that this "
            "model reads; shorten or split it, or pass truncate=True"
        )
    return encoded


def one_each(batch: Ragged) -> NDArray[np.int64]:
    """``Prepared.inputs`` where every input is one sequence."""
    return np.arange(batch.count + 1)


def amount(texts: Sequence[str], single: bool) -> str:
    """How error messages count the texts of a call."""
    return "a single text" if single else f"a list of {len(texts)}"
