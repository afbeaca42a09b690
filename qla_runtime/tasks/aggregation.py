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
class _Entity:
    """A piece or a word with its label."""

    label: str
    score: np.float32
    start: int
    end: int


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
    probabilities = _softmax(logits)
    pieces = [i for i, special in enumerate(encoding.special_tokens_mask) if not special]
    if strategy in ("none", "simple"):
        found = [_entity(labels, probabilities[i], *encoding.offsets[i]) for i in pieces]
    else:
        subword = _subword_test(tokenizer, text, encoding)
        found = [
            _word(
                strategy, labels, probabilities[word], encoding.offsets[word[0]][0], encoding.offsets[word[-1]][1]
            )
            for word in _words(pieces, subword)
        ]
    scores = [float(entity.score) for entity in found]
    if strategy == "none":
        unknown = _unknown_id(tokenizer)
        return [
            {
                **_as_dict(text, entity.label, entity.score, entity.start, entity.end),
                "index": i,
                "word": text[entity.start : entity.end] if encoding.ids[i] == unknown else encoding.tokens[i],
            }
            for i, entity in zip(pieces, found, strict=True)
        ], scores
    return [
        _as_dict(
            text,
            group[0].label.split("-", 1)[-1],
            np.mean([entity.score for entity in group]),
            group[0].start,
            group[-1].end,
        )
        for group in _groups(found)
    ], scores


def _softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    powers: NDArray[np.float32] = np.exp(logits - logits.max(axis=-1, keepdims=True))
    probabilities: NDArray[np.float32] = powers / powers.sum(axis=-1, keepdims=True)
    return probabilities


def _entity(labels: tuple[str, ...], probabilities: NDArray[np.float32], start: int, end: int) -> _Entity:
    best = int(probabilities.argmax())
    return _Entity(labels[best], probabilities[best], start, end)


def _word(
    strategy: str, labels: tuple[str, ...], probabilities: NDArray[np.float32], start: int, end: int
) -> _Entity:
    """A word from its pieces: the first one's label, that of the surest piece, or that of the mean."""
    if strategy == "first":
        chosen = probabilities[0]
    elif strategy == "max":
        chosen = probabilities[probabilities.max(axis=1).argmax()]
    else:
        chosen = probabilities.mean(axis=0)
    return _entity(labels, chosen, start, end)


def _words(pieces: list[int], subword: Callable[[int], bool]) -> list[list[int]]:
    words: list[list[int]] = []
    for i in pieces:
        if words and subword(i):
            words[-1].append(i)
        else:
            words.append([i])
    return words


def _subword_test(tokenizer: Tokenizer, text: str, encoding: Encoding) -> Callable[[int], bool]:
    """Whether a token continues a word: by its prefix (##) where the model has one, else by the blank before."""
    has_prefix = bool(getattr(tokenizer.model, "continuing_subword_prefix", None))
    unknown = _unknown_id(tokenizer)
    offsets, tokens, ids = encoding.offsets, encoding.tokens, encoding.ids

    def continues(i: int) -> bool:
        start, end = offsets[i]
        if ids[i] == unknown:
            return False
        if has_prefix:
            return len(tokens[i]) != len(text[start:end])
        return start > 0 and " " not in text[start - 1 : start + 1]

    return continues


def _unknown_id(tokenizer: Tokenizer) -> int | None:
    """The id of the unknown token, by the tokenizer's model or by the names that it usually has."""
    names = (getattr(tokenizer.model, "unk_token", None), "[UNK]", "<unk>")
    found = (tokenizer.token_to_id(name) for name in names if name)
    return next((token for token in found if token is not None), None)


def _groups(found: list[_Entity]) -> list[list[_Entity]]:
    """Neighbours of the same tag, of which the later one has no B-."""
    groups: list[list[_Entity]] = []
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
