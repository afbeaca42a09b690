"""What a request's body may hold: one description, from which the check and the OpenAPI schema come.

    QUERY = Record({"query": Field(Text(blank=False)), "top_n": Field(Whole(1), default=None)})
    QUERY.read(parsed)     # {"query": "...", "top_n": None}, or a ServeError that names the field
    QUERY.schema()         # JSON schema

A kind of value reads a parsed JSON value into what the route works with. An optional field may be null, which is
the same as leaving it out: clients send both. A field that is not described is refused by name, because an option
that a server ignores is a wrong result.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, Protocol

from qla_runtime.errors import shown
from qla_runtime.serve.errors import EMPTY, INVALID, ServeError

Schema = dict[str, Any]


# --------------------------------------------------------------------------------------- kinds of value


class Kind(Protocol):
    """A kind of JSON value.

    Attributes:
        said: what it is in words, for messages: "a text".
    """

    @property
    def said(self) -> str: ...

    def takes(self, value: Any) -> bool:
        """Whether the value is meant to be of this kind, valid or not."""

    def read(self, value: Any, where: str) -> Any:
        """The value as the route works with it.

        Raises:
            ServeError: it is not valid; the message calls it ``where``.
        """

    def schema(self) -> Schema:
        """Its JSON schema."""


@dataclass(frozen=True)
class Text:
    """A text.

    Attributes:
        blank: whether it may be without a visible character.
        choices: the texts that are allowed; None allows all.
    """

    blank: bool = True
    choices: Collection[str] | None = None

    @property
    def said(self) -> str:
        return "a text" if self.choices is None else f"one of {', '.join(map(repr, self.choices))}"

    def takes(self, value: Any) -> bool:
        return isinstance(value, str)

    def read(self, value: Any, where: str) -> str:
        if not isinstance(value, str):
            raise _wrong(value, where, self.said)
        if self.choices is not None:
            if value not in self.choices:
                raise _wrong(value, where, self.said)
            return value
        if not self.blank and (not value or value.isspace()):
            raise ServeError(
                INVALID, f"{where} is {shown(value)}, without a visible character; give it words", field=where
            )
        if not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError as error:
                message = f"{where} holds half a surrogate pair at character {error.start}; send valid Unicode"
                raise ServeError(INVALID, message, field=where) from None
        return value

    def schema(self) -> Schema:
        if self.choices is not None:
            return {"type": "string", "enum": [*self.choices]}
        return {"type": "string"} if self.blank else {"type": "string", "pattern": r"\S"}


@dataclass(frozen=True)
class Flag:
    """true or false.

    Attributes:
        only: the one that is allowed; None allows both.
    """

    only: bool | None = None

    @property
    def said(self) -> str:
        return "true or false" if self.only is None else f"{json.dumps(self.only)}, or left out"

    def takes(self, value: Any) -> bool:
        return isinstance(value, bool)

    def read(self, value: Any, where: str) -> bool:
        if not isinstance(value, bool) or value is (not self.only if self.only is not None else None):
            raise _wrong(value, where, self.said)
        return value

    def schema(self) -> Schema:
        return {"type": "boolean"} if self.only is None else {"type": "boolean", "enum": [self.only]}


@dataclass(frozen=True)
class Whole:
    """A whole number from ``least`` to ``most``, both included."""

    least: int
    most: int = 2**31 - 1

    @property
    def said(self) -> str:
        return f"a whole number from {self.least} to {self.most}"

    def takes(self, value: Any) -> bool:
        return isinstance(value, (int, float)) and not isinstance(value, bool)

    def read(self, value: Any, where: str) -> int:
        whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
        if not whole or isinstance(value, bool) or not self.least <= value <= self.most:
            raise _wrong(value, where, self.said)
        return int(value)

    def schema(self) -> Schema:
        return {"type": "integer", "minimum": self.least, "maximum": self.most}


@dataclass(frozen=True)
class Number:
    """A finite number; from ``least`` on, or ``above`` it."""

    least: float | None = None
    above: float | None = None

    @property
    def said(self) -> str:
        if self.above is not None:
            return f"a number above {self.above:g}"
        return "a number" if self.least is None else f"a number of at least {self.least:g}"

    def takes(self, value: Any) -> bool:
        return isinstance(value, (int, float)) and not isinstance(value, bool)

    def read(self, value: Any, where: str) -> float:
        number = _finite(value)
        if (
            number is None
            or (self.least is not None and number < self.least)
            or (self.above is not None and number <= self.above)
        ):
            raise _wrong(value, where, self.said)
        return number

    def schema(self) -> Schema:
        limits: Schema = {} if self.least is None else {"minimum": self.least}
        return {"type": "number", **limits, **({} if self.above is None else {"exclusiveMinimum": self.above})}


@dataclass(frozen=True)
class ListOf:
    """A list of one kind of value, ``least`` to ``most`` entries long.

    Attributes:
        limit: the server's option that sets ``most``, for messages.
    """

    kind: Kind
    least: int = 1
    most: int | None = None
    limit: str | None = None

    @property
    def said(self) -> str:
        exactly = f"{self.least} " if self.least == self.most else ""
        return f"a list of {exactly}{_plural(self.kind.said)}"

    def takes(self, value: Any) -> bool:
        return isinstance(value, list)

    def read(self, value: Any, where: str) -> list[Any]:
        if not isinstance(value, list):
            raise _wrong(value, where, self.said)
        if not value and self.least:
            raise ServeError(EMPTY, f"{where} is an empty list; give at least one entry", field=where)
        if self.most is not None and len(value) > self.most:
            remedy = f"the server's {self.limit} is the most of one request" if self.limit else "send fewer"
            message = f"{where} has {len(value)} entries, more than {self.most}; {remedy}. Split the list"
            raise ServeError(INVALID, message, field=where)
        if len(value) < self.least:
            raise _wrong(value, where, self.said)
        read = self.kind.read
        return [read(entry, f"{where}[{i}]") for i, entry in enumerate(value)]

    def schema(self) -> Schema:
        sizes: Schema = {"minItems": self.least} if self.least else {}
        if self.most is not None:
            sizes["maxItems"] = self.most
        return {"type": "array", "items": self.kind.schema(), **sizes}


@dataclass(frozen=True)
class MapOf:
    """An object with any keys and one kind of value.

    Attributes:
        kind: of its values.
        needs: a key that it must have.
    """

    kind: Kind
    needs: str

    @property
    def said(self) -> str:
        return f"an object of {_plural(self.kind.said)} with {self.needs}"

    def takes(self, value: Any) -> bool:
        return isinstance(value, dict)

    def read(self, value: Any, where: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise _wrong(value, where, self.said)
        if self.needs not in value:
            raise _wrong(value, where, self.said)
        return {key: self.kind.read(entry, f"{where}.{_key(key)}") for key, entry in value.items()}

    def schema(self) -> Schema:
        kind = self.kind.schema()
        return {
            "type": "object",
            "properties": {self.needs: kind},
            "required": [self.needs],
            "additionalProperties": kind,
        }


@dataclass(frozen=True)
class Either:
    """A value of the first kind that takes it.

    Attributes:
        kinds: in order.
        refuse: words for a value that is meant otherwise, such as token ids; None: the usual message.
    """

    kinds: tuple[Kind, ...]
    refuse: Callable[[Any, str], str | None] | None = None

    @property
    def said(self) -> str:
        return " or ".join(kind.said for kind in self.kinds)

    def takes(self, value: Any) -> bool:
        return any(kind.takes(value) for kind in self.kinds)

    def read(self, value: Any, where: str) -> Any:
        words = self.refuse(value, where) if self.refuse is not None else None
        if words is not None:
            raise ServeError(INVALID, words, field=where)
        for kind in self.kinds:
            if kind.takes(value):
                return kind.read(value, where)
        raise _wrong(value, where or "the body", self.said)

    def schema(self) -> Schema:
        return {"anyOf": [kind.schema() for kind in self.kinds]}


# ------------------------------------------------------------------------------------------- objects

REQUIRED: Any = object()
"""The default of a field that must be given."""


@dataclass(frozen=True)
class Field:
    """A field of an object.

    Attributes:
        kind: of its value.
        default: what the route gets where the field is left out or null.
        help: for the OpenAPI document.
        example: for the OpenAPI document.
    """

    kind: Kind
    default: Any = REQUIRED
    help: str = ""
    example: Any = None

    def schema(self) -> Schema:
        """JSON schema of the value; null is one where the field is optional."""
        found = self.kind.schema()
        if self.default is not REQUIRED:
            found = _nullable(found)
            if self.default is not None:
                found["default"] = self.default
        if self.help:
            found["description"] = self.help
        if self.example is not None:
            found["examples"] = [self.example]
        return found


@dataclass(frozen=True)
class Record:
    """An object with named fields.

    Attributes:
        fields: by name.
        told_by: the field whose presence tells this record from others (:class:`Either`); None: any object.
        one_of: fields of which one at most may be given.
    """

    fields: Mapping[str, Field]
    told_by: str | None = None
    one_of: tuple[str, ...] = ()
    _required: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        required = tuple(name for name, entry in self.fields.items() if entry.default is REQUIRED)
        object.__setattr__(self, "_required", required)

    @property
    def said(self) -> str:
        return f"an object with {_listed(self._required or tuple(self.fields))}"

    def takes(self, value: Any) -> bool:
        return isinstance(value, dict) and (self.told_by is None or self.told_by in value)

    def read(self, value: Any, where: str = "") -> dict[str, Any]:
        if not isinstance(value, dict):
            raise _wrong(value, where or "the body", self.said)
        at = f"{where}." if where else ""
        for name in value:
            if name not in self.fields:
                known = ", ".join(self.fields)
                message = f"{at}{_key(name)} is no field of this route; it takes {known}"
                raise ServeError(INVALID, message, field=f"{at}{_key(name)}")
        found = {}
        for name, entry in self.fields.items():
            given = value.get(name)
            if given is not None:
                found[name] = entry.kind.read(given, at + name)
            elif entry.default is not REQUIRED:
                found[name] = entry.default
            elif name in value:
                raise _wrong(None, at + name, entry.kind.said)
            else:
                message = f"{at}{name} is missing; it must be {entry.kind.said}"
                raise ServeError(INVALID, message, field=at + name)
        given = [name for name in self.one_of if found[name] is not None]
        if len(given) > 1:
            message = f"{_listed(given)} are given, and each chooses the length config; send one of them"
            raise ServeError(INVALID, message, field=at + given[1])
        return found

    def schema(self) -> Schema:
        told_by = [] if self.told_by in (None, *self._required) else [self.told_by]
        found: Schema = {
            "type": "object",
            "properties": {name: entry.schema() for name, entry in self.fields.items()},
            "required": [*self._required, *told_by],
            "additionalProperties": False,
        }
        if self.one_of:
            given: Schema = {"not": {"type": "null"}}
            found["allOf"] = [
                {"not": {"required": [*pair], "properties": dict.fromkeys(pair, given)}}
                for pair in combinations(self.one_of, 2)
            ]
        return found

    def with_fields(self, fields: Mapping[str, Field]) -> Record:
        """The record with more fields."""
        return Record({**self.fields, **fields}, self.told_by, self.one_of)


# ------------------------------------------------------------------------------------------- in words


def _wrong(value: Any, where: str, said: str) -> ServeError:
    return ServeError(INVALID, f"{where} is {_what(value)}; it must be {said}", field=where)


def _what(value: Any) -> str:
    """A JSON value in words: texts and lists can be long, so only their kind is said."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, (int, float)):
        return shown(value)
    if isinstance(value, str):
        return f"the text {shown(value, 40)}"
    return f"a list of {len(value)} entries" if isinstance(value, list) else "an object"


def _key(name: str) -> str:
    """A key of a body as messages spell it."""
    return name if name.isidentifier() and len(name) <= 40 else shown(name)


def _listed(names: Collection[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last


def _plural(said: str) -> str:
    for one, several in (("a text", "texts"), ("a whole number", "whole numbers"), ("a number", "numbers")):
        if said == one or said.startswith(f"{one} "):
            return several + said[len(one) :]
    return f"entries, each {said}"


def _finite(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _nullable(schema: Schema) -> Schema:
    if "anyOf" in schema:
        return {**schema, "anyOf": [*schema["anyOf"], {"type": "null"}]}
    if "enum" in schema:
        return {**schema, "type": [schema["type"], "null"], "enum": [*schema["enum"], None]}
    return {**schema, "type": [schema["type"], "null"]}
