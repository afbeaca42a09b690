"""Label schemes of token classification: which labels begin, continue and end an entity, read from their names."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from qla_runtime.errors import InputError
from qla_runtime.options import check_choice

SCHEMES = {"bio": "BI", "iob1": "BI", "bioes": "BIES", "bilou": "BILU", "plain": ""}
"""Each scheme's letters. BIO and IOB1 differ in how a corpus is written, and are read alike."""

BEGIN, INSIDE, END, SINGLE = "BIES"
"""What a letter says of its token. A label without a letter continues a neighbour of the same label."""

_MEANING = {"B": BEGIN, "I": INSIDE, "M": INSIDE, "E": END, "L": END, "S": SINGLE, "U": SINGLE, "W": SINGLE}
_OUTSIDE = ("O", "OUT", "OUTSIDE")
_PREFIX = re.compile(r"(?P<letter>[BIMELSUW])[-_](?P<entity>.+)", re.DOTALL)
_SUFFIX = re.compile(r"(?P<entity>.+)[-_](?P<letter>[BIMELSUW])", re.DOTALL)


@dataclass(frozen=True)
class Tag:
    """A label, read: ``role`` is BEGIN, INSIDE, END or SINGLE; ``entity`` is its name without the letter."""

    role: str
    entity: str


@dataclass(frozen=True)
class LabelScheme:
    """The labels of a model, read by one scheme.

    Attributes:
        tags: one per label.
        outside: the labels that stand for "no entity".
    """

    tags: tuple[Tag, ...]
    outside: frozenset[str]


def read_labels(labels: Sequence[str], scheme: str | None = None) -> LabelScheme:
    """Reads the labels of a model.

    Without ``scheme`` the label set decides. Labels such as ``B-PER``, ``B_PER``, ``PER-B`` or ``PER_B`` hold
    letters where some entity has a label with B, or where every label but the outside ones has the letter I.
    Letters are then those of the entities that have B or I: B and I (BIO, IOB1), also E and S (BIOES), L and U
    (BILOU), M (as I) and W (as S). Any other label is a plain one. O, OUT and OUTSIDE stand for no entity.

    Args:
        labels: the model's labels.
        scheme: one of :data:`SCHEMES`, or None.

    Raises:
        InputError: an unknown scheme, or one that no label is written in.
    """
    if scheme is not None:
        check_choice("label_scheme", scheme, SCHEMES, ", or None to detect it")
    outside = frozenset(label for label in labels if label.upper() in _OUTSIDE)
    named = [label for label in labels if label not in outside]
    split = max(
        (_splitter(_PREFIX, named, scheme), _splitter(_SUFFIX, named, scheme)), key=lambda s: _count(s, named)
    )
    if scheme not in (None, "plain") and not _count(split, named):
        raise InputError(
            f"label_scheme is {scheme!r}, but none of this model's labels is written in it "
            f"({', '.join(labels[:5])}{', ...' if len(labels) > 5 else ''}); use 'plain', or None to detect it"
        )
    return LabelScheme(
        tuple(Tag(INSIDE, label) if label in outside else split(label) or Tag(INSIDE, label) for label in labels),
        outside,
    )


def chunks(tags: Sequence[Tag], same_word: Sequence[bool] | None = None) -> list[tuple[str, int, int]]:
    """Neighbouring tags of the same entity, joined as the conlleval script and seqeval join them.

    A tag begins a chunk where its entity differs from the one before it, where it says so (BEGIN, SINGLE), and
    where the one before it has ended (END, SINGLE).

    Args:
        tags: of the units of a text, in order.
        same_word: per unit, whether it belongs to the same word as the one before it, which no letter divides.

    Returns:
        Per chunk its entity and its first and last unit, in order. Together they hold every unit.
    """
    found: list[tuple[str, int, int]] = []
    for i, tag in enumerate(tags):
        before = tags[i - 1] if i else None
        divided = before is None or tag.role in (BEGIN, SINGLE) or before.role in (END, SINGLE)
        if before is not None and before.entity == tag.entity and (not divided or (same_word and same_word[i])):
            found[-1] = (tag.entity, found[-1][1], i)
        else:
            found.append((tag.entity, i, i))
    return found


def _splitter(pattern: re.Pattern[str], labels: Sequence[str], scheme: str | None) -> Callable[[str], Tag | None]:
    """A function that reads a label with letters at one end, and gives None for a plain label."""
    matches = [match for match in map(pattern.fullmatch, labels) if match]
    letters = _letters(matches, len(labels)) if scheme is None else set(SCHEMES[scheme])

    def split(label: str) -> Tag | None:
        match = pattern.fullmatch(label)
        if match is None or match["letter"] not in letters:
            return None
        return Tag(_MEANING[match["letter"]], match["entity"])

    return split


def _letters(matches: Iterable[re.Match[str]], labels: int) -> set[str]:
    """The letters that a label set uses; none where the matches look like chance."""
    of_entity: dict[str, set[str]] = {}
    for match in matches:
        of_entity.setdefault(match["entity"], set()).add(match["letter"])
    inside_only = len(of_entity) == labels and all(found == {"I"} for found in of_entity.values())
    if not inside_only and not any("B" in found for found in of_entity.values()):
        return set()
    return set().union(*(found for found in of_entity.values() if found & {"B", "I"}))


def _count(split: Callable[[str], Tag | None], labels: Sequence[str]) -> int:
    return sum(split(label) is not None for label in labels)
