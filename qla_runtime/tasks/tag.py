"""Token classification: from the logits of word pieces to labelled spans of the text.

Two rules are this project's: ``words`` gives each word the label of its first piece, which is the piece that
models are trained on, and ``pieces`` lets every piece have a label of its own. The others are transformers'
(:mod:`qla_runtime.tasks.aggregation`).
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from qla_runtime.activations import softmax
from qla_runtime.arrays import Arrays
from qla_runtime.errors import InputError, shown
from qla_runtime.lengths.configs import LengthPlan
from qla_runtime.options import check_choice, check_switch
from qla_runtime.tasks import aggregation
from qla_runtime.tasks.label_schemes import LabelScheme, chunks, read_labels
from qla_runtime.tasks.prepared import Call, Prepared, Task, one_each, tokenized
from qla_runtime.tasks.results import Run, Spans, TaggedToken
from qla_runtime.texts.inputs import check_texts
from qla_runtime.texts.ranges import trim

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

STRATEGIES = ("words", "pieces", *aggregation.STRATEGIES)

# Han, kana, Thai, Lao, Burmese and Khmer are written without white space between words.
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)


class TagTask(Task):
    """What a model that labels tokens does."""

    kind = "token-classification"
    method = "tag"
    usage = "engine.tag(texts)"

    def tag(
        self,
        texts: str | Iterable[str],
        *,
        truncate: bool = True,
        aggregation_strategy: str = "words",
        label_scheme: str | None = None,
        ignore_labels: Collection[str] | None = None,
    ) -> Call[Spans]:
        """Checks the arguments of :meth:`qla_runtime.Engine.tag`.

        Raises:
            InputError: a missing text, an option that is no switch, or what :func:`tag_rules` refuses.
        """
        checked, single = check_texts(texts, "texts", blank=True)
        check_switch("truncate", truncate)
        rules = tag_rules(self.model.labels, aggregation_strategy, label_scheme, ignore_labels)
        return Call(checked, "texts", single, partial(self.prepare, rules=rules, truncate=truncate))

    def prepare(
        self, texts: Sequence[str], names: Sequence[str], rules: TagRules, truncate: bool = True
    ) -> Prepared[Spans]:
        """Texts whose tokens are to be labelled.

        Raises:
            InputError: one is too long, and ``truncate`` is False.
            PackageError: the tokenizer fails.
        """
        encoded = tokenized(self.model.encoder, texts, names, truncate, with_offsets=True)
        tokenizer = self.model.encoder.load()

        def read(arrays: Arrays, plan: LengthPlan) -> list[Spans]:
            results = []
            for i, (text, encoding) in enumerate(zip(texts, encoded.encodings, strict=True)):
                logits = arrays["logits"][slice(*encoded.batch.offsets[i : i + 2])]
                spans, confidence = find_spans(rules, tokenizer, text, encoding, logits)
                run: Run = {**plan.report(i), "macs": int(arrays["macs"][i]), "budget_met": None}
                results.append(Spans(spans, run, truncated=bool(encoded.cut[i]), confidence=confidence))
            return results

        return Prepared(encoded.batch, one_each(encoded.batch), frozenset({"logits", "macs"}), read)


@dataclass(frozen=True)
class TagRules:
    """How one call of ``tag`` turns labels of pieces into spans.

    Attributes:
        strategy: one of :data:`STRATEGIES`.
        labels: the model's.
        scheme: the labels, read.
        ignored: labels, without their letters, whose spans are left out.
    """

    strategy: str
    labels: tuple[str, ...]
    scheme: LabelScheme
    ignored: frozenset[str]


def tag_rules(
    labels: tuple[str, ...], strategy: Any, label_scheme: Any, ignore_labels: Collection[str] | None
) -> TagRules:
    """Checks the arguments of ``tag``.

    Raises:
        InputError: an unknown strategy or scheme, a scheme for a strategy that reads none, or ``ignore_labels``
            that is no list of texts.
    """
    check_choice("aggregation_strategy", strategy, STRATEGIES)
    if label_scheme is not None and strategy in aggregation.STRATEGIES:
        raise InputError(
            f"label_scheme is {shown(label_scheme)}, but aggregation_strategy={strategy!r} is transformers' own "
            "and reads B- and I- alone; leave label_scheme out, or use 'words' or 'pieces'"
        )
    scheme = read_labels(labels, label_scheme)
    if ignore_labels is None:
        ignored = frozenset({"O"} if strategy in aggregation.STRATEGIES else scheme.outside)
    else:
        listed = isinstance(ignore_labels, (list, tuple, set, frozenset))
        if not listed or not all(isinstance(label, str) for label in ignore_labels):
            raise InputError(
                f"ignore_labels is {shown(ignore_labels)}; it must be a list of labels, such as ['O']"
            )
        ignored = frozenset(ignore_labels)
    return TagRules(strategy, labels, scheme, ignored)


def find_spans(
    rules: TagRules, tokenizer: Tokenizer, text: str, encoding: Encoding, logits: NDArray[np.float32]
) -> tuple[list[TaggedToken], float]:
    """The spans of one text.

    Args:
        rules: what to make of labels.
        tokenizer: that made ``encoding``.
        text: the text.
        encoding: of the text, with offsets.
        logits: float32 (tokens, labels).

    Returns:
        dicts of label, score, start, end (characters) and text; and the lowest score of a word (with ``words``,
        ``first``, ``average`` and ``max``) or piece, 1.0 where there is none.
    """
    if rules.strategy in aggregation.STRATEGIES:
        found, scores = aggregation.entities(rules.strategy, rules.labels, tokenizer, text, encoding, logits)
        spans: list[TaggedToken] = [span for span in found if span["label"] not in rules.ignored]
        if rules.strategy != "none":
            spans = [span for span in (_trimmed(text, span) for span in spans) if span["text"]]
        return spans, min(scores, default=1.0)
    units = _word_units(text, encoding) if rules.strategy == "words" else _piece_units(text, encoding)
    probabilities = softmax(logits)
    best = logits.argmax(axis=1)
    tags = [rules.scheme.tags[best[unit.piece]] for unit in units]
    scores = [float(probabilities[unit.piece].max()) for unit in units]
    spans = [
        {
            "label": entity,
            "score": float(np.mean(scores[first : last + 1])),
            "start": units[first].start,
            "end": units[last].end,
            "text": text[units[first].start : units[last].end],
        }
        for entity, first, last in chunks(tags, [unit.continues for unit in units])
        if entity not in rules.ignored
    ]
    return spans, min(scores, default=1.0)


@dataclass(frozen=True)
class _Unit:
    """What has one label: a word or a piece. Its text has no white space at the ends.

    Attributes:
        piece: the token that its label and score come from.
        start: first character.
        end: one past the last character.
        continues: whether the unit before it belongs to the same word.
    """

    piece: int
    start: int
    end: int
    continues: bool = False


def _piece_units(text: str, encoding: Encoding) -> list[_Unit]:
    units: list[_Unit] = []
    before: int | None = None
    words = encoding.word_ids
    for i in _text_pieces(encoding):
        start, end = trim(text, *encoding.offsets[i])
        if start < end:
            units.append(_Unit(i, start, end, continues=before is not None and words[i] == before))
            before = words[i]
    return units


def _word_units(text: str, encoding: Encoding) -> list[_Unit]:
    offsets = encoding.offsets
    units = []
    for word in _words(text, encoding):
        start, end = trim(text, offsets[word[0]][0], offsets[word[-1]][1])
        if start < end:
            units.append(_Unit(word[0], start, end))
    return units


def _words(text: str, encoding: Encoding) -> list[list[int]]:
    """The pieces of each word.

    A word ends where the tokenizer's does, at white space, and around each piece of a script without white space.
    Punctuation at either end of a word is no part of it, as in the corpora that models are trained on.
    """
    offsets, ids = encoding.offsets, encoding.word_ids
    words: list[list[int]] = []
    for i in _text_pieces(encoding):
        start = offsets[i][0]
        before = words[-1][-1] if words else i
        end = offsets[before][1]
        divided = (
            before == i
            or ids[i] != ids[before]
            or any(map(str.isspace, text[end : start + 1]))
            or bool(_UNSPACED.match(text, start))
            or bool(_UNSPACED.match(text, max(0, end - 1)))
        )
        # Bytes of one character are pieces of the same range.
        if divided and (before == i or offsets[i] != offsets[before]):
            words.append([i])
        else:
            words[-1].append(i)
    return [part for word in words for part in _without_punctuation(text, offsets, word)]


def _without_punctuation(text: str, offsets: Sequence[tuple[int, int]], word: list[int]) -> list[list[int]]:
    """A word's pieces, with those of punctuation at its ends as words of their own."""
    kinds = [_kind(text, *offsets[piece]) for piece in word]
    letters = [i for i, kind in enumerate(kinds) if kind == "letters"]
    first, last = (letters[0], letters[-1]) if letters else (len(word), len(word))
    # White space that is a piece of its own goes with what follows it, whose label it was trained to have.
    parts: list[list[int]] = [[]]
    for piece, kind in zip(word[:first], kinds[:first], strict=True):
        parts[-1].append(piece)
        if kind == "punctuation":
            parts.append([])
    parts[-1] += word[first : last + 1]
    return [part for part in parts if part] + [[piece] for piece in word[last + 1 :]]


def _kind(text: str, start: int, end: int) -> str:
    characters = text[start:end].strip()
    if not characters:
        return "blank"
    punctuation = all(c in string.punctuation or unicodedata.category(c).startswith("P") for c in characters)
    return "punctuation" if punctuation else "letters"


def _text_pieces(encoding: Encoding) -> list[int]:
    """The tokens that come from the text: all but [CLS], [SEP] and their like."""
    return [i for i, special in enumerate(encoding.special_tokens_mask) if not special]


def _trimmed(text: str, span: TaggedToken) -> TaggedToken:
    start, end = trim(text, span["start"], span["end"])
    return {**span, "start": start, "end": end, "text": text[start:end]}
