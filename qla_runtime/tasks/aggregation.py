"""transformers' aggregation strategies, as TokenClassificationPipeline of transformers 5 defines them.

Its arithmetic is kept, too: probabilities are float32, so that pieces whose probabilities round to the same number
are told apart by their order, as there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from qla_runtime.tasks.results import TaggedToken

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

STRATEGIES = ("none", "simple", "first", "average", "max")


@dataclass(frozen=True)
class Pieces:
    """The tokens of one text.

    Attributes:
        ids: their ids.
        tokens: as the tokenizer spells them.
        offsets: their characters in the text.
        special: 1 for those that come from no text.
    """

    ids: list[int]
    tokens: list[str]
    offsets: list[tuple[int, int]]
    special: list[int]

    @classmethod
    def of(cls, encoding: Encoding) -> Pieces:
        """The tokens of an encoding with offsets."""
        return cls(encoding.ids, encoding.tokens, encoding.offsets, encoding.special_tokens_mask)


@dataclass(frozen=True)
class Entity:
    """A piece or a word with its label, the score of that, and its characters.

    Attributes:
        pieces: its tokens, as positions.
    """

    label: str
    score: np.float32
    start: int
    end: int
    pieces: list[int]


@dataclass(frozen=True)
class Group:
    """Neighbouring entities of one label, without its ``B-`` or ``I-``: their mean score, and their characters."""

    label: str
    score: np.floating
    start: int
    end: int
    members: list[Entity]


def entities(
    strategy: str,
    labels: tuple[str, ...],
    tokenizer: Tokenizer,
    text: str,
    encoding: Encoding,
    logits: NDArray[np.float32],
) -> tuple[list[TaggedToken], list[float]]:
    """What the pipeline gives for one text before it leaves out ``ignore_labels``.

    Returns:
        dicts of label, score, start, end and text, with ``none`` one per token that is no special one, also with
        its ``index`` among the tokens and its ``word``, the token; and the score of every piece or word.
    """
    pieces = Pieces.of(encoding)
    found = labelled(strategy, labels, tokenizer, text, pieces, logits)
    scores = [float(entity.score) for entity in found]
    if strategy == "none":
        unknown = unknown_id(tokenizer)
        return [
            {
                **_as_dict(text, entity.label, entity.score, entity.start, entity.end),
                "index": entity.pieces[0],
                "word": spelled(text, pieces, entity.pieces[0], unknown),
            }
            for entity in found
        ], scores
    return [_as_dict(text, group.label, group.score, group.start, group.end) for group in grouped(found)], scores


def labelled(
    strategy: str,
    labels: tuple[str, ...],
    tokenizer: Tokenizer,
    text: str,
    pieces: Pieces,
    logits: NDArray[np.float32],
) -> list[Entity]:
    """The tokens that are not special, or with ``first``, ``average`` and ``max`` the words, with their labels.

    Args:
        strategy: one of :data:`STRATEGIES`.
        labels: the model's.
        tokenizer: that made ``pieces``.
        text: the text.
        pieces: its tokens.
        logits: float32 (tokens, labels).
    """
    probabilities = _softmax(logits)
    of_text = [i for i, special in enumerate(pieces.special) if not special]
    if strategy in ("none", "simple"):
        return [_entity(labels, probabilities[i], pieces, [i]) for i in of_text]
    subword = _subword_test(tokenizer, text, pieces)
    return [_word(strategy, labels, probabilities[word], pieces, word) for word in _words(of_text, subword)]


def grouped(found: list[Entity]) -> list[Group]:
    """Entities -> groups of neighbours of the same tag, of which no later one has ``B-``."""
    return [
        Group(
            group[0].label.split("-", 1)[-1],
            np.mean([entity.score for entity in group]),
            group[0].start,
            group[-1].end,
            group,
        )
        for group in _groups(found)
    ]


def spelled(text: str, pieces: Pieces, i: int, unknown: int | None) -> str:
    """The ``word`` of a token: as the tokenizer spells it; for the ``unknown`` token the text itself."""
    return text[slice(*pieces.offsets[i])] if pieces.ids[i] == unknown else pieces.tokens[i]


def _softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    powers: NDArray[np.float32] = np.exp(logits - logits.max(axis=-1, keepdims=True))
    probabilities: NDArray[np.float32] = powers / powers.sum(axis=-1, keepdims=True)
    return probabilities


def _entity(
    labels: tuple[str, ...], probabilities: NDArray[np.float32], pieces: Pieces, members: list[int]
) -> Entity:
    best = int(probabilities.argmax())
    start, end = pieces.offsets[members[0]][0], pieces.offsets[members[-1]][1]
    return Entity(labels[best], probabilities[best], start, end, members)


def _word(
    strategy: str,
    labels: tuple[str, ...],
    probabilities: NDArray[np.float32],
    pieces: Pieces,
    members: list[int],
) -> Entity:
    """A word from its pieces: the first one's label, that of the surest piece, or that of the mean."""
    if strategy == "first":
        chosen = probabilities[0]
    elif strategy == "max":
        chosen = probabilities[probabilities.max(axis=1).argmax()]
    else:
        chosen = probabilities.mean(axis=0)
    return _entity(labels, chosen, pieces, members)


def _words(of_text: list[int], subword: Callable[[int], bool]) -> list[list[int]]:
    words: list[list[int]] = []
    for i in of_text:
        if words and subword(i):
            words[-1].append(i)
        else:
            words.append([i])
    return words


def _subword_test(tokenizer: Tokenizer, text: str, pieces: Pieces) -> Callable[[int], bool]:
    """Whether a token continues a word: by its prefix (##) where the model has one, else by the blank before."""
    has_prefix = bool(getattr(tokenizer.model, "continuing_subword_prefix", None))
    unknown = unknown_id(tokenizer)
    offsets, tokens, ids = pieces.offsets, pieces.tokens, pieces.ids

    def continues(i: int) -> bool:
        start, end = offsets[i]
        if ids[i] == unknown:
            return False
        if has_prefix:
            return len(tokens[i]) != len(text[start:end])
        return start > 0 and " " not in text[start - 1 : start + 1]

    return continues


def unknown_id(tokenizer: Tokenizer) -> int | None:
    """The id of the unknown token, by the tokenizer's model or by the names that it usually has."""
    names = (getattr(tokenizer.model, "unk_token", None), "[UNK]", "<unk>")
    found = (tokenizer.token_to_id(name) for name in names if name)
    return next((token for token in found if token is not None), None)


def _groups(found: list[Entity]) -> list[list[Entity]]:
    groups: list[list[Entity]] = []
    for entity in found:
        begins, tag = _tag(entity.label)
        if groups and not begins and _tag(groups[-1][-1].label)[1] == tag:
            groups[-1].append(entity)
        else:
            groups.append([entity])
    return groups


def _tag(label: str) -> tuple[bool, str]:
    return label.startswith("B-"), label[2:] if label.startswith(("B-", "I-")) else label


def _as_dict(text: str, label: str, score: np.floating, start: int, end: int) -> TaggedToken:
    return {"label": label, "score": float(score), "start": start, "end": end, "text": text[start:end]}
