"""Settings: frozen dataclasses whose fields say, once, what the command line offers and what is allowed.

    @dataclass(frozen=True)
    class Options:
        sample: int | None = setting(1000, "items that decide (default: %(default)s)", metavar="N", limit=whole(2))

        def __post_init__(self) -> None:
            check_limits(self)

:func:`add_arguments` makes ``--sample N`` of it, :func:`from_arguments` makes ``Options`` of what argparse read.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import typing
from collections.abc import Callable, Collection
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, TypeVar

from qla_runtime.errors import InputError

T = TypeVar("T")


@dataclass(frozen=True)
class Limit:
    """Which values a setting may have.

    Attributes:
        rule: in words, behind "it must be".
        fits: whether a value, which is not None, keeps to it.
    """

    rule: str
    fits: Callable[[Any], bool]


def between(least: float, most: float) -> Limit:
    """A number from ``least`` to ``most``, both included."""
    return Limit(f"between {least:g} and {most:g}", lambda value: _is_number(value) and least <= value <= most)


def whole(least: int, most: int = 2**31 - 1) -> Limit:
    """A whole number from ``least`` to ``most``, both included."""
    return Limit(
        f"a whole number from {least} to {most}",
        lambda value: isinstance(value, Integral) and _is_number(value) and least <= int(value) <= most,
    )


def share() -> Limit:
    """A number between 0 and 1, both excluded."""
    return Limit("a share above 0 and below 1", lambda value: _is_number(value) and 0 < value < 1)


def points() -> Limit:
    """Points of a metric: finite, and 0 or more."""
    return Limit("points of the metric, 0 or more", lambda value: _is_number(value) and 0 <= value < math.inf)


def one_of(choices: Collection[str]) -> Limit:
    """One of several names."""
    return Limit(f"one of {', '.join(choices)}", lambda value: value in choices)


def setting(
    default: Any,
    help: str,
    *,
    limit: Limit | None = None,
    flag: str | None = None,
    metavar: str | None = None,
    choices: Collection[str] | None = None,
    read: Callable[[str], Any] | None = None,
    convert: Callable[[str, str], Any] | None = None,
    repeatable: bool = False,
) -> Any:
    """A field of a settings class.

    Args:
        default: its value where none is given.
        help: what ``--help`` says, in argparse's notation.
        limit: what :func:`check_limits` holds it to. None is allowed where the field's type allows None.
        flag: its name on the command line; None is ``--`` and the field's name.
        metavar: how ``--help`` calls its value.
        choices: the values that the command line accepts.
        read: turns one argument into a value; argparse words its ValueError. None is the field's type.
        convert: turns flag and text into a value after the parsing, with errors of its own.
        repeatable: the flag may be given several times, and each gives an element of a tuple.
    """
    metadata = {
        "help": help, "limit": limit, "flag": flag, "metavar": metavar, "choices": choices, "read": read,
        "convert": convert, "repeatable": repeatable,
    }  # fmt: skip
    return dataclasses.field(default=default, metadata=metadata)


def check_limits(settings: Any, *, in_flags: bool = False) -> None:
    """Holds every field to its limit.

    Args:
        settings: an instance of a settings class.
        in_flags: errors call a field by its flag, and not by its name.

    Raises:
        InputError: a value out of its limit; the message names field, value and limit.
    """
    for field in dataclasses.fields(settings):
        limit, value = field.metadata["limit"], getattr(settings, field.name)
        if limit is None or (value is None and _optional(type(settings), field)):
            continue
        if not limit.fits(value):
            called = _flag(field) if in_flags else field.name
            raise InputError(f"{called} is {value!r}; it must be {limit.rule}")


def add_arguments(parser: argparse._ActionsContainer, settings: type[Any], *names: str) -> None:
    """Adds the fields of a settings class as options, in their order.

    Args:
        parser: a parser, or a group of one.
        settings: the class.
        names: fields to add, in this order; none adds all.
    """
    fields = {field.name: field for field in dataclasses.fields(settings)}
    for name in names or fields:
        field = fields[name]
        meta, kind = field.metadata, _kind(settings, field)
        if kind is bool:
            parser.add_argument(_flag(field), dest=name, action="store_true", help=meta["help"])
            continue
        options: dict[str, Any] = {"default": field.default, "choices": meta["choices"]}
        if meta["repeatable"]:
            options = {"default": [], "action": "append"}
        read = str if meta["convert"] else meta["read"] or kind
        parser.add_argument(
            _flag(field), dest=name, type=read, metavar=meta["metavar"], help=meta["help"], **options
        )


def from_arguments(settings: type[T], arguments: argparse.Namespace) -> T:
    """The settings that the options of :func:`add_arguments` say; every field has been added.

    Raises:
        InputError: a value out of its limit, or one that cannot be converted.
    """
    values = {}
    for field in dataclasses.fields(settings):  # type: ignore[arg-type]
        value, convert = getattr(arguments, field.name), field.metadata["convert"]
        if field.metadata["repeatable"]:
            value = tuple(value)
        elif convert is not None and value is not field.default:
            value = convert(_flag(field), value)
        values[field.name] = value
    return settings(**values)


def _flag(field: dataclasses.Field[Any]) -> str:
    return field.metadata["flag"] or "--" + field.name.replace("_", "-")


def _kind(settings: type[Any], field: dataclasses.Field[Any]) -> Any:
    """The field's type, without None."""
    hint = typing.get_type_hints(settings)[field.name]
    kinds = [kind for kind in typing.get_args(hint) if kind is not type(None)]
    return kinds[0] if _optional(settings, field) else hint


def _optional(settings: type[Any], field: dataclasses.Field[Any]) -> bool:
    return type(None) in typing.get_args(typing.get_type_hints(settings)[field.name])


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)
