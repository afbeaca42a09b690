"""What all pipelines share: options with defaults, inputs of every form, and texts that are too long.

A pipeline is called as that of transformers is called, and gives what that gives. A text gives a result, a list
gives a list, and whatever else can be iterated gives an iterator.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import islice
from typing import Any, ClassVar

import numpy as np

from qla_runtime.engine import Engine
from qla_runtime.errors import InputError, UnsupportedError, a_model, shown, warn
from qla_runtime.lengths.configs import Length, LengthPlan
from qla_runtime.model.limits import MIN_LENGTH
from qla_runtime.options import check_count
from qla_runtime.tasks.prepared import Call, Prepared
from qla_runtime.texts.inputs import check_texts
from qla_runtime.texts.text_encoder import Encoded, TextEncoder

READ_AHEAD = 64
"""Inputs of a data set that run as one batch, unless ``batch_size`` says how many."""

MOST_TOKENIZERS = 8
"""Tokenizers that a pipeline keeps: one for each ``max_length`` that calls ask for, of megabytes each."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What every pipeline takes, when it is made and again with each call.

    Attributes:
        length: how many tokens each layer keeps: a name, a length config, a policy, or for a list of inputs a list
            with a name or config per input; None keeps every token.
        latency_ms: short for ``length=LatencyBudget(latency_ms)``: the time of one call, or of one batch where the
            inputs come from an iterator.
        batch_size: inputs that are taken from an iterator at once. None: one from a generator, which may wait for
            the result; 64 from a data set of known size. A list is one call in any case.
        num_workers: accepted as in transformers, without an effect: the engine has threads.
    """

    length: Length = None
    latency_ms: float | None = None
    batch_size: int | None = None
    num_workers: int | None = None

    def __post_init__(self) -> None:
        if self.batch_size is not None:
            check_count("batch_size", self.batch_size, "None takes as many as fits")


@dataclass(frozen=True, kw_only=True)
class Cut(Options):
    """What pipelines take that read one sequence per text.

    Attributes:
        truncation: cut texts that are too long. None does so with a warning; False raises InputError.
        max_length: tokens of a text at most, special tokens included; None takes the package's own limit.
        padding: accepted as in transformers, without an effect: the engine does not pad.
    """

    truncation: bool | str | None = None
    max_length: int | None = None
    padding: bool | str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.truncation not in (None, True, False, "longest_first", "only_first", "do_not_truncate"):
            raise InputError(
                f"truncation is {shown(self.truncation)}; use True or False, or None for a warning where a text "
                "is cut"
            )

    @property
    def refuses(self) -> bool:
        """Whether a text that is too long is an error."""
        return self.truncation in (False, "do_not_truncate")


@dataclass
class Found:
    """What a pipeline found for one input, and what the engine notes about the run.

    Attributes:
        value: what the caller gets.
        confidence: 0 to 1, what ``Escalate`` compares.
        length: the length config's name.
        macs: multiply-accumulates that the input cost.
        cut: whether the text was too long.
        ran: with ``Escalate`` the lengths that ran.
        budget_met: whether the call kept within its latency budget.
    """

    value: Any
    confidence: float
    length: str
    macs: int
    cut: bool = False
    ran: list[str] = field(default_factory=list)
    budget_met: bool | None = None

    @classmethod
    def of(cls, value: Any, confidence: float, plan: LengthPlan, i: int, macs: Any, cut: Any = False) -> Found:
        """The result of input ``i`` of a plan."""
        return cls(value, min(confidence, 1.0), plan.report(i)["length"], int(macs), bool(cut))


@dataclass(frozen=True)
class Given:
    """Inputs as the caller gave them.

    Attributes:
        inputs: one per result.
        what: the argument that they came as.
        single: whether the caller gave one, and not a list of one.
        first: the number of the first one among the caller's.
    """

    inputs: Sequence[Any]
    what: str = "inputs"
    single: bool = False
    first: int = 0

    def named(self) -> Iterator[tuple[str, Any]]:
        """Each input with what error messages call it."""
        for i, each in enumerate(self.inputs):
            yield self.what if self.single else f"{self.what}[{self.first + i}]", each

    def call(
        self,
        checked: Sequence[Any],
        prepare: Callable[[Sequence[Any], Sequence[str]], Prepared[Found]],
        runs_once: str | None = None,
    ) -> Call[Found]:
        """A call over the checked inputs. ``prepare`` and ``runs_once`` are as in :class:`Call`."""
        return Call(checked, self.what, self.single, prepare, runs_once, self.first)


class Pipeline:
    """A model opened for one of transformers' tasks.

    Args:
        engine: the model.
        options: defaults of the options that calls take.

    Attributes:
        engine: the model; its methods tell more about a result than the pipeline does, such as the length config
            that ran.
        task: the name of the task, as transformers calls it.
        kinds: the packages that it is for, as ``Engine.task`` calls them.
        takes: the type of its options.

    Raises:
        InputError: an unknown option, or a value out of range.
        UnsupportedError: the model is for another task.
    """

    task: ClassVar[str]
    kinds: ClassVar[tuple[str, ...]]
    takes: ClassVar[type[Options]] = Options

    def __init__(self, engine: Engine, **options: Any) -> None:
        if engine.task not in self.kinds:
            raise UnsupportedError(
                f"pipeline({self.task!r}) needs {a_model(*self.kinds)}; {engine.name!r} is "
                f"{a_model(engine.task)}. Leave the task out to get the pipeline that fits this model"
            )
        self.engine = engine
        self._encoders: dict[tuple[int, int], TextEncoder] = {}
        self._defaults = self._with(self.takes(), options)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the model. Each pipeline says what it takes and gives."""
        raise NotImplementedError

    def __getstate__(self) -> dict[str, Any]:
        """A pickle holds the engine's path and the options; tokenizers are read again."""
        return {**vars(self), "_encoders": {}}

    def __repr__(self) -> str:
        return f"<pipeline {self.task!r} of {self.engine!r}>"

    def make_call(self, given: Given, options: Any) -> Call[Found]:
        """Checks some inputs.

        Args:
            given: the inputs.
            options: of the call.

        Raises:
            InputError: an input that is none.
        """
        raise NotImplementedError

    # ------------------------------------------------------------------------------------- options

    def _options(self, given: dict[str, Any]) -> Any:
        return self._with(self._defaults, given)

    def _with(self, defaults: Options, given: dict[str, Any]) -> Options:
        """The defaults with what a call gives instead. A length and a budget replace each other."""
        known = [each.name for each in fields(self.takes)]
        for name in given:
            if name not in known:
                raise InputError(
                    f"{name} is no option of pipeline({self.task!r}), which takes {', '.join(sorted(known))}; "
                    "leave it out"
                )
        if "length" in given and "latency_ms" not in given:
            defaults = replace(defaults, latency_ms=None)
        if "latency_ms" in given and "length" not in given:
            defaults = replace(defaults, length=None)
        return replace(defaults, **given)

    # -------------------------------------------------------------------------------------- inputs

    def _results(self, inputs: Any, options: Any) -> Any:
        """A result for one input, a list for a list, an iterator for anything else that can be iterated."""
        if hasattr(inputs, "tolist") and getattr(inputs, "ndim", None):  # an array, a pandas Series
            inputs = inputs.tolist()
        if isinstance(inputs, (list, tuple)):
            return self._run(Given(inputs), options)
        if _is_stream(inputs):
            return self._stream(_each(inputs), options, options.batch_size or _read_ahead(inputs))
        (found,) = self._run(Given([inputs], single=True), options)
        return found

    def _stream(self, inputs: Iterator[Any], options: Any, size: int) -> Iterator[Any]:
        first = 0
        while part := list(islice(inputs, size)):
            yield from self._run(Given(part, first=first), options)
            first += len(part)

    def _run(self, given: Given, options: Any) -> list[Any]:
        if not given.inputs:
            raise InputError(f"{given.what} is an empty list; give at least one text")
        call = self.make_call(given, options)
        found = self.engine.results(call, options.length, latency_ms=options.latency_ms)
        cut = sum(each.cut for each in found)
        if cut and getattr(options, "truncation", None) is None:
            warn(
                f"{cut} of {len(found)} texts were longer than the model reads and were cut; split them, or pass "
                "truncation=True to cut them without this warning, or truncation=False to be refused"
            )
        return [each.value for each in found]

    # ------------------------------------------------------------------------------------ tokenizer

    def encoder(self, max_length: int | None, stride: int = 0, *, name: str = "max_length") -> TextEncoder:
        """The package's tokenizer, cutting texts at ``max_length`` tokens; None takes the package's own limit.

        Args:
            max_length: tokens of a sequence, special tokens included.
            stride: tokens that neighbouring parts of a text share.
            name: how error messages call ``max_length``.

        Raises:
            InputError: a length that the model does not have.
        """
        own = self.engine.text_encoder
        if max_length is None:
            max_length = own.max_length
        positions = self.engine.info["max_positions"]
        remedy = f"this model reads {positions} tokens at most"
        # Below the special tokens' number, tokenizers do not cut at all.
        check_count(name, max_length, remedy, least=MIN_LENGTH, most=positions)
        if (max_length, stride) == (own.max_length, own.stride):
            return own
        found = self._encoders.get((max_length, stride))
        if found is None:
            if len(self._encoders) >= MOST_TOKENIZERS:
                self._encoders = {}
            found = self._encoders[max_length, stride] = own.cutting_at(max_length, stride)
        return found


def check_cut(encoded: Encoded, names: Sequence[str], encoder: TextEncoder, options: Cut) -> None:
    """Raises InputError for a text that is too long, where ``truncation`` refuses that."""
    if options.refuses and encoded.cut.any():
        raise InputError(
            f"{names[int(np.argmax(encoded.cut))]} has more than {encoder.max_length} tokens, the most that are "
            "read; shorten or split it, or pass truncation=True"
        )


def check_text(value: Any, name: str) -> str:
    """The text. It may be empty."""
    if not isinstance(value, str):
        raise InputError(f"{name} is {shown(value)}; it must be a text")
    return check_texts(value, name, blank=True)[0][0]


def _is_stream(inputs: Any) -> bool:
    single = isinstance(inputs, (str, bytes, bytearray, dict, set, frozenset, type))
    single |= getattr(inputs, "ndim", None) == 0  # an array without axes says that it is iterable, and is not
    return not single and (isinstance(inputs, Iterable) or _is_data_set(inputs))


def _is_data_set(inputs: Any) -> bool:
    """What torch calls a map-style data set."""
    return hasattr(inputs, "__getitem__") and hasattr(inputs, "__len__")


def _each(inputs: Any) -> Iterator[Any]:
    return (inputs[i] for i in range(len(inputs))) if not isinstance(inputs, Iterable) else iter(inputs)


def _read_ahead(inputs: Any) -> int:
    return READ_AHEAD if hasattr(inputs, "__len__") else 1
