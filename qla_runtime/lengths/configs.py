"""Length configs, which say how many tokens each layer keeps; the policies that choose one; and their cost."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any, TypedDict

from qla_runtime import task_kinds
from qla_runtime.errors import InputError, UnsupportedError, shown
from qla_runtime.real_numbers import as_float

RULES = ("ratio", "tokens")
"""The names of the rules. Their positions here are their numbers in the C interface."""

MIN_KEPT = 2
"""The fewest tokens that a layer keeps, unless the sequence has fewer."""


@dataclass(frozen=True)
class LengthConfig:
    """How many tokens each layer keeps for its feed-forward part and for all layers after it.

    Make one with :meth:`ratio` or :meth:`tokens`. Entry ``i`` belongs to layer ``i``. Entries may not rise,
    because a dropped token does not come back before the end. The engine that the config is used with checks that
    there is one entry per layer.

    Attributes:
        rule: ``"ratio"`` (shares of the sequence's real length) or ``"tokens"`` (absolute counts).
        values: one number per layer.
        keep_cls: whether every layer keeps position 0; None is what the package says.

    Raises:
        InputError: no entries, or an entry that is NaN, zero, negative, rising, above 1.0 as a ratio, or not
            a whole number as a count.
        UnsupportedError: a rule that this version does not know.
    """

    rule: str
    values: tuple[float, ...]
    keep_cls: bool | None = None

    @classmethod
    def ratio(cls, values: Iterable[float], *, keep_cls: bool | None = None) -> LengthConfig:
        """Layer ``i`` keeps ``ceil(values[i] * n)`` of a sequence of ``n`` real tokens (at least 2)."""
        return cls("ratio", _entries(values), keep_cls)

    @classmethod
    def tokens(cls, values: Iterable[int], *, keep_cls: bool | None = None) -> LengthConfig:
        """Layer ``i`` keeps ``values[i]`` tokens (at least 2), or all tokens where there are fewer."""
        return cls("tokens", _entries(values), keep_cls)

    def __post_init__(self) -> None:
        if not isinstance(self.rule, str) or self.rule not in RULES:
            raise UnsupportedError(
                f"length rule {shown(self.rule)} is unknown to this version; use {' or '.join(map(repr, RULES))}"
            )
        if self.keep_cls is not None and not isinstance(self.keep_cls, bool):
            raise InputError(
                f"keep_cls is {shown(self.keep_cls)}; it must be True, False or None (as the package says)"
            )
        values = tuple(_entry(self.rule, i, value) for i, value in enumerate(_entries(self.values)))
        if not values:
            raise InputError("a length config has no entries; give one per layer of the model")
        for i in range(1, len(values)):
            if values[i] > values[i - 1]:
                raise InputError(
                    f"length config entry {i} is {values[i]:g}, above entry {i - 1} ({values[i - 1]:g}); "
                    "entries may not rise, because a dropped token does not come back. Use "
                    f"{values[i - 1]:g} or less"
                )
        object.__setattr__(self, "values", values)

    def __str__(self) -> str:
        """``"ratio(1, 0.5)"`` or ``"tokens(40, 20, keep_cls=True)"``. :meth:`parse` reads it back exactly."""
        entries = [_spelled(value) for value in self.values]
        if self.keep_cls is not None:
            entries.append(f"keep_cls={self.keep_cls}")
        return f"{self.rule}({', '.join(entries)})"

    @classmethod
    def parse(cls, text: str) -> LengthConfig:
        """The config whose ``str`` is this text.

        Raises:
            InputError: the text has another form, or spells no config.
            UnsupportedError: a rule that this version does not know.
        """
        rule, bracket, inside = text.partition("(")
        entries = [entry.strip() for entry in inside.removesuffix(")").split(",")]
        keep_cls = _KEEP_CLS.get(entries[-1])
        try:
            values = [float(entry) for entry in entries[: len(entries) - (keep_cls is not None)]]
        except ValueError:
            values = []
        if not bracket or not text.endswith(")") or not values:
            raise InputError(
                f"length {shown(text)} spells no length config; write it as in 'ratio(1, 0.5)' or "
                "'tokens(40, 20, keep_cls=True)', with one entry per layer"
            )
        return cls(rule, tuple(values), keep_cls)

    def to_json(self) -> dict[str, Any]:
        """The config in plain JSON types. ``LengthConfig(**config.to_json())`` is equal to the config."""
        return {"rule": self.rule, "values": list(self.values), "keep_cls": self.keep_cls}

    def kept(self, length: int) -> list[int]:
        """Tokens that each layer keeps of a sequence of ``length`` real tokens, special tokens included.

        Raises:
            InputError: ``length`` is below 1.
        """
        if isinstance(length, bool) or not isinstance(length, Integral) or length < 1:
            raise InputError(f"a sequence of {shown(length)} tokens; it must have a whole number of at least 1")
        counts = []
        current = length
        for value in self.values:
            # 0.56 * 25 is a little above 14 in binary floating point; the allowance makes it 14.
            wanted = math.ceil(value * length - 1e-6) if self.rule == "ratio" else int(value)
            current = min(current, max(MIN_KEPT, wanted))
            counts.append(current)
        return counts

    def check_layers(self, layers: int) -> None:
        """Raises InputError unless the config has one entry for each of a model's ``layers``."""
        if len(self.values) != layers:
            raise InputError(
                f"the length config {self} has {len(self.values)} entries, but this model has {layers} "
                f"layers; give {layers} entries, one per layer"
            )

    def to_native(self) -> tuple[int, tuple[float, ...], int]:
        """For ``_core.Engine.run``: the rule's number, the values, and keep_cls (-1 is what the package says)."""
        return RULES.index(self.rule), self.values, -1 if self.keep_cls is None else int(self.keep_cls)


@dataclass(frozen=True)
class Accuracy:
    """A measured accuracy: the ``value`` of a ``metric`` on ``data``."""

    metric: str
    value: float
    data: str

    def to_json(self) -> AccuracyReport:
        """The figure in plain JSON types."""
        return {"metric": self.metric, "value": self.value, "data": self.data}


class AccuracyReport(TypedDict):
    """An :class:`Accuracy` in plain JSON types."""

    metric: str
    value: float
    data: str


class LengthReport(TypedDict):
    """What a result says of its length config, in plain JSON types.

    Attributes:
        length: the config's name, or the config spelled out; ``length=`` takes it again.
        length_config: a dict of ``rule``, ``values`` and ``keep_cls``: ``LengthConfig(**length_config)`` is the
            config itself.
        accuracy: what the package measured with the config; None where nothing was.
    """

    length: str
    length_config: dict[str, Any]
    accuracy: AccuracyReport | None


@dataclass(frozen=True)
class NamedLength:
    """A length config with a name in a package. ``length=`` takes it like a LengthConfig.

    Attributes:
        name: its name, which ``length=`` takes too.
        config: the length config.
        macs: multiply-accumulates of one sequence of the package's ``max_length`` tokens.
        macs_share: ``macs`` as a share of those of ``full``, which keeps every token.
        accuracy: the measured accuracy; None where nothing was measured.
    """

    name: str
    config: LengthConfig
    macs: int
    macs_share: float
    accuracy: Accuracy | None = None

    def plan(self, count: int) -> LengthPlan:
        """This config for a call over ``count`` sequences."""
        return LengthPlan((self.config,), (0,) * count, (self.name,), (self.accuracy,))


@dataclass(frozen=True)
class LatencyBudget:
    """Policy: the most accurate config of the package predicted to answer within ``ms`` milliseconds.

    A budget is the wall time of the whole call on an idle engine, tokenization included. If no config fits, the
    fastest one runs. ``budget_met`` of a result says whether the call stayed within the budget.

    Raises:
        InputError: ``ms`` is negative or not a finite number.
    """

    ms: float

    def __post_init__(self) -> None:
        _settle_amount(self, "ms", "a latency budget", "milliseconds")

    def deadline(self, began: float) -> float:
        """When a call ends that began at ``began``, both in seconds of one clock."""
        return began + 1e-3 * self.ms


@dataclass(frozen=True)
class MaxLoss:
    """Policy: the cheapest config that loses at most ``points`` of the package's metric against ``full``.

    It needs a package with measured accuracies of its configs. ``qla search`` writes such packages.

    Raises:
        InputError: ``points`` is negative or not a finite number.
    """

    points: float

    def __post_init__(self) -> None:
        _settle_amount(self, "points", "a largest loss", "points of the model's metric")


@dataclass(frozen=True)
class Escalate:
    """Policy: run every input with ``cheap``, and again with ``dear`` where the confidence is below ``threshold``.

    The confidence is the ``score`` of an answer or a label, or the ``confidence`` of ``tag``'s spans.
    ``evaluation.escalation.calibrate_escalation`` finds a threshold. None is the one that the package holds for
    these two names, or 0.5 where it holds none.

    Raises:
        InputError: ``cheap`` or ``dear`` is neither a name nor a LengthConfig, or ``threshold`` is no number
            from 0 to 1.
    """

    cheap: str | LengthConfig
    dear: str | LengthConfig
    threshold: float | None = None

    def __post_init__(self) -> None:
        if self.threshold is not None:
            _settle_amount(self, "threshold", "Escalate's threshold", "confidence, at most 1")
            if self.threshold > 1:
                raise InputError(
                    f"Escalate's threshold is {shown(self.threshold)}; a confidence lies between 0 and 1"
                )
        for field, value in (("cheap", self.cheap), ("dear", self.dear)):
            if not isinstance(value, (str, LengthConfig, NamedLength)):
                raise InputError(
                    f"Escalate's {field} is {shown(value)}; it must be a config's name or a LengthConfig"
                )


Policy = LatencyBudget | MaxLoss | Escalate
Length = str | LengthConfig | NamedLength | Policy | Sequence[str | LengthConfig | NamedLength] | None


@dataclass(frozen=True)
class LengthPlan:
    """The ``length=`` of one call, resolved against an engine.

    Attributes:
        configs: the different configs of the call.
        index: for each sequence of the call, the position in ``configs`` of the config it runs with.
        labels: for each of ``configs``, its name in results: the package's name for it, or the config spelled out.
        accuracies: for each of ``configs``, its accuracy in the package; empty where it was not looked up.
    """

    configs: tuple[LengthConfig, ...]
    index: tuple[int, ...]
    labels: tuple[str, ...]
    accuracies: tuple[Accuracy | None, ...] = ()

    def label(self, sequence: int) -> str:
        """How results report the length of one sequence; ``length=`` takes it again."""
        return self.labels[self.index[sequence]]

    def over(self, count: int) -> LengthPlan:
        """A plan for one input, for so many of them."""
        return self if count == 1 else replace(self, index=self.index * count)

    def part(self, inputs: slice) -> LengthPlan:
        """The plan for some of the inputs."""
        index = self.index[inputs]
        return self if len(index) == len(self.index) else replace(self, index=index)

    def report(self, sequence: int) -> LengthReport:
        """What a result says of its length config."""
        which = self.index[sequence]
        accuracy = self.accuracies[which] if self.accuracies else None
        return {
            "length": self.labels[which],
            "length_config": self.configs[which].to_json(),
            "accuracy": accuracy.to_json() if accuracy else None,
        }


def resolve(
    length: Length, latency_ms: float | None, count: int, named: Mapping[str, LengthConfig], layers: int
) -> LengthPlan | Policy:
    """Turns ``length=`` and ``latency_ms=`` of a call over ``count`` sequences into the configs to run.

    A policy is returned as it is. To choose a config for it takes more than is known here.

    Args:
        length: a name, a config, a config spelled out, a policy, or a list with one of the first three per
            sequence; None means ``full``.
        latency_ms: short for ``LatencyBudget(latency_ms)``.
        count: the number of sequences of the call; for ``answer`` the number of questions.
        named: the package's configs by name.
        layers: the number of the model's layers.

    Raises:
        InputError: an unknown name, both arguments, a wrong number of entries, or anything else that is no
            length.
    """
    if latency_ms is not None:
        budget = LatencyBudget(latency_ms)
        if length is not None:
            raise InputError(
                f"both length={shown(length)} and latency_ms={shown(latency_ms)} are given, and each chooses the "
                "length config; pass one of them"
            )
        length = budget
    if isinstance(length, Policy):
        for config in (length.cheap, length.dear) if isinstance(length, Escalate) else ():
            _one(config, named, layers, f" (in {length!r})")
        return length
    if isinstance(length, (list, tuple)):
        if len(length) != count:
            raise InputError(
                f"length= is a list of {len(length)} entries for {count} inputs; give one per input, or a "
                "single name or LengthConfig for all of them"
            )
        items = [_one(item, named, layers, f" (entry {i} of the list)") for i, item in enumerate(length)]
    else:
        items = [_one(length, named, layers, "")]

    order: dict[tuple[str, LengthConfig], int] = {}
    index = [order.setdefault(item, len(order)) for item in items]
    return LengthPlan(
        configs=tuple(config for _, config in order),
        index=tuple(index if len(index) == count else index * count),
        labels=tuple(label for label, _ in order),
    )


def count_macs(info: Mapping[str, Any], task: Mapping[str, Any], length: int, config: LengthConfig) -> int:
    """Multiply-accumulates of one sequence of ``length`` tokens, counted as in the engine's reports.

    Args:
        info: the model's shape, as ``_core.Engine.info`` gives it.
        task: the ``task`` object of the package's ``config.json``.
        length: the number of the sequence's tokens, special tokens included.
        config: the length config.

    Raises:
        InputError: ``length`` is below 1.
    """
    kept = config.kept(length)
    hidden, intermediate, outputs = info["hidden"], info["intermediate"], info["outputs"]
    macs = hidden * length  # the embedding's LayerNorm; a LayerNorm counts one MAC per element
    before = length
    for after in kept:
        macs += 4 * before * hidden * hidden + 2 * before * before * hidden + 2 * after * hidden * intermediate
        macs += hidden * (before + after)
        before = after
    kind = task["kind"]
    if task_kinds.per_token(kind):
        return macs + outputs * hidden * (length + 1)
    if kind == "sequence-classification":
        return macs + outputs * hidden + (hidden * hidden if task["pooler"] == "dense_tanh" else 0)
    return macs + (length * hidden if task["pooling"] == "mean" else 0)


def one_config(
    length: str | LengthConfig | NamedLength | None, named: Mapping[str, LengthConfig], layers: int
) -> LengthConfig:
    """What ``length=`` means for one sequence; as :func:`resolve`, without policies and lists."""
    return _one(length, named, layers, "")[1]


def _one(length: Any, named: Mapping[str, LengthConfig], layers: int, where: str) -> tuple[str, LengthConfig]:
    """The label of one name or config in results, and the config itself."""
    if length is None:
        length = "full"
    if isinstance(length, str):
        if length in named:
            return length, named[length]
        if not length.startswith(tuple(f"{rule}(" for rule in RULES)):
            raise InputError(
                f"length {shown(length)} is not one of this package's configs{where}; it names "
                f"{', '.join(named)}. Use one of these or a LengthConfig"
            )
        length = LengthConfig.parse(length)
    if isinstance(length, NamedLength):
        # The name may come from another package, where it means another config.
        if named.get(length.name) == length.config:
            return length.name, length.config
        length = length.config
    if isinstance(length, LengthConfig):
        length.check_layers(layers)
        return str(length), length
    if isinstance(length, Policy):
        raise InputError(
            f"length= holds a {type(length).__name__}{where}, but a policy rules a whole call; pass it "
            "alone, or list names and LengthConfigs"
        )
    raise InputError(
        f"length is {shown(length)}{where}; it must be a name ({', '.join(named)}), a LengthConfig, or a list "
        "with one of these per input"
    )


_KEEP_CLS = {"keep_cls=True": True, "keep_cls=False": False}


def _spelled(value: float) -> str:
    """The shorter of two usual spellings, where it reads back as the same number."""
    return f"{value:g}" if float(f"{value:g}") == value else repr(value)


def _entries(values: Any) -> tuple[Any, ...]:
    if isinstance(values, (str, bytes, bytearray)):
        raise InputError(
            f"a length config's entries are {shown(values)}; give a sequence of numbers, one per layer"
        )
    try:
        return tuple(values)
    except TypeError:
        raise InputError(
            f"a length config's entries are {shown(values)}; give a sequence of numbers, one per layer"
        ) from None


def _entry(rule: str, i: int, value: Any) -> float:
    """Entry ``i`` as a plain float (ratio) or int (tokens)."""
    kind = "a share above 0 and up to 1.0" if rule == "ratio" else "a whole number of tokens, from 1 to 2^31 - 1"
    number = as_float(value)
    if rule == "ratio":
        if 0.0 < number <= 1.0:
            return number
        remedy = ". For absolute counts use LengthConfig.tokens" if number > 1.0 else ""
    else:
        if number >= 1.0 and number.is_integer() and number < 2**31:
            return int(number)
        remedy = ". For shares of the length use LengthConfig.ratio" if 0.0 < number < 1.0 else ""
    raise InputError(f"length config entry {i} is {shown(value)}; it must be {kind}{remedy}")


def check_amount(what: str, value: Any, unit: str) -> float:
    """The value as a finite number of at least 0. An int stays an int; everything else becomes a float.

    Raises:
        InputError: the value is no such number.
    """
    number = as_float(value)
    if not math.isfinite(number) or number < 0:
        raise InputError(f"{what} is {shown(value)}; it must be a finite number of {unit}, 0 or more")
    return value if type(value) is int else number


def _settle_amount(policy: Any, field: str, what: str, unit: str) -> None:
    """Checks a field of a frozen dataclass, and stores it as a plain number."""
    object.__setattr__(policy, field, check_amount(what, getattr(policy, field), unit))
