"""Token classification, as ``TokenClassificationPipeline`` of transformers 5."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from qla_runtime.arrays import Arrays
from qla_runtime.errors import InputError, shown
from qla_runtime.lengths.configs import LengthPlan
from qla_runtime.options import check_choice, check_count, check_switch
from qla_runtime.pipelines.base import Found, Given, Options, Pipeline, check_text
from qla_runtime.tasks import aggregation
from qla_runtime.tasks.aggregation import STRATEGIES, Group, Pieces, grouped, labelled, spelled, unknown_id
from qla_runtime.tasks.prepared import Call, Prepared, one_each

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

Entity = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class TagOptions(Options):
    """What a call may ask for.

    Attributes:
        aggregation_strategy: how tokens become entities: ``"none"``, ``"simple"``, ``"first"``, ``"average"`` or
            ``"max"``; None is ``"none"``.
        ignore_labels: labels that are left out; None: ``["O"]``. With a strategy they are named without ``B-`` and
            ``I-``.
        stride: read all of a long text, in windows that share so many tokens; None cuts the text.
        is_split_into_words: the inputs are lists of words.
        delimiter: what stands between these words where characters are counted; None: a blank.
        truncation: None warns where a text is cut, True does not, False raises InputError.
    """

    aggregation_strategy: str | None = None
    ignore_labels: Collection[str] | None = None
    stride: int | None = None
    is_split_into_words: bool = False
    delimiter: str | None = None
    truncation: bool | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        strategy = self.strategy
        check_choice("aggregation_strategy", strategy, STRATEGIES)
        check_switch("is_split_into_words", self.is_split_into_words)
        if self.truncation is not None:
            check_switch("truncation", self.truncation)
        ignored = self.ignore_labels
        if isinstance(ignored, (str, bytes)) or not isinstance(ignored, (Collection, type(None))):
            raise InputError(f"ignore_labels is {shown(ignored)}; it must be a list of labels, such as ['O']")
        if not isinstance(self.delimiter, (str, type(None))):
            raise InputError(f"delimiter is {shown(self.delimiter)}; it must be a text, such as ' '")
        if self.stride is not None:
            check_count("stride", self.stride, "None cuts texts that are too long", least=0)
            if strategy == "none":
                raise InputError(
                    f"stride is {self.stride} without an aggregation_strategy; windows are joined by entities, so "
                    "pass 'simple', 'first', 'average' or 'max', too"
                )
            if self.is_split_into_words:
                raise InputError("stride is for texts; join the words, or leave stride out")

    @property
    def strategy(self) -> str:
        """The name of the strategy, in small letters."""
        # transformers takes members of its AggregationStrategy, too.
        return str(getattr(self.aggregation_strategy, "value", self.aggregation_strategy) or "none").lower()

    @property
    def ignored(self) -> frozenset[str]:
        """The labels that are left out."""
        return frozenset(["O"] if self.ignore_labels is None else self.ignore_labels)


class TokenClassificationPipeline(Pipeline):
    """Finds labelled tokens or spans, such as names, in texts.

    Example::

        >>> tagger = pipeline("token-classification", "my-package", aggregation_strategy="simple")
        >>> tagger("Ada lived in London")
        [{'entity_group': 'PER', 'score': 0.99..., 'word': 'ada', 'start': 0, 'end': 3}, ...]
    """

    task = "token-classification"
    kinds = ("token-classification",)
    takes = TagOptions

    def __call__(self, inputs: Any, **options: Any) -> Any:
        """Labels the tokens of texts.

        Args:
            inputs: a text, a list of texts, or an iterator over texts; with ``is_split_into_words`` each is a list
                of words.
            options: of :class:`TagOptions`.

        Returns:
            For a text a list of dicts, one per token that is not ignored: ``entity``, ``score``, ``index`` (among
            the tokens), ``word``, ``start`` and ``end`` (characters). With an aggregation strategy one per entity:
            ``entity_group``, ``score``, ``word``, ``start`` and ``end``. For a list a list of
            these, and for an iterator an iterator. Ranges and words are those of transformers, which may begin
            with white space.

        Raises:
            InputError: no text, or an option out of range.
        """
        asked = self._options(options)
        words = isinstance(inputs, (list, tuple)) and all(isinstance(each, str) for each in inputs)
        if asked.is_split_into_words and words and inputs:
            return self._run(Given([inputs]), asked)  # a list of one, as in transformers
        return self._results(inputs, asked)

    def make_call(self, given: Given, options: TagOptions) -> Call[Found]:
        """As :meth:`Pipeline.make_call`."""
        check = _words if options.is_split_into_words else check_text
        checked = [check(each, name) for name, each in given.named()]
        prepare = self._prepare_words if options.is_split_into_words else self._prepare
        return given.call(checked, partial(prepare, options=options))

    def _prepare(self, texts: Sequence[str], names: Sequence[str], options: TagOptions) -> Prepared[Found]:
        encoder = self.encoder(None)
        if options.stride is None:
            encoded, bounds = encoder.encode(texts, with_offsets=True), np.arange(len(texts) + 1)
        else:
            room = encoder.max_length - encoder.load().num_special_tokens_to_add(False)
            check_count("stride", options.stride, f"windows have {room} tokens of text", least=0, most=room - 1)
            encoded, bounds = self.encoder(None, options.stride).encode_whole(texts)
        pieces = [Pieces.of(encoding) for encoding in encoded.encodings]
        cut = encoded.cut if options.stride is None else np.zeros(len(texts), np.bool_)
        _check_cut(cut, names, encoder.max_length, options)
        return self._prepared(texts, encoded.batch, pieces, bounds, cut, options)

    def _prepare_words(
        self, texts: Sequence[Sequence[str]], names: Sequence[str], options: TagOptions
    ) -> Prepared[Found]:
        encoder = self.encoder(None)
        encoded = encoder.encode_words(texts)
        _check_cut(encoded.cut, names, encoder.max_length, options)
        delimiter = " " if options.delimiter is None else options.delimiter
        pieces = [
            _among_words(encoding, words, len(delimiter))
            for encoding, words in zip(encoded.encodings, texts, strict=True)
        ]
        joined = [delimiter.join(words) for words in texts]
        return self._prepared(joined, encoded.batch, pieces, one_each(encoded.batch), encoded.cut, options)

    def _prepared(
        self,
        texts: Sequence[str],
        batch: Any,
        pieces: Sequence[Pieces],
        bounds: NDArray[np.int64],
        cut: NDArray[np.bool_],
        options: TagOptions,
    ) -> Prepared[Found]:
        tokenizer = self.engine.text_encoder.load()

        def read(arrays: Arrays, plan: LengthPlan) -> list[Found]:
            logits = np.split(arrays["logits"], batch.offsets[1:-1])
            macs = np.add.reduceat(arrays["macs"], bounds[:-1])
            results = []
            for i, text in enumerate(texts):
                windows = range(bounds[i], bounds[i + 1])
                found = [self._entities(tokenizer, text, pieces[w], logits[w], options) for w in windows]
                entities = [entity for of_window, _ in found for entity in of_window]
                if len(windows) > 1:
                    entities = _without_overlaps(entities)
                sure = min(score for _, score in found)
                results.append(Found.of(entities, sure, plan, i, macs[i], cut[i]))
            return results

        return Prepared(batch, bounds, frozenset({"logits", "macs"}), read)

    def _entities(
        self, tokenizer: Tokenizer, text: str, pieces: Pieces, logits: NDArray[np.float32], options: TagOptions
    ) -> tuple[list[Entity], float]:
        """The entities of one window, and the lowest score of a token or word in it."""
        found = labelled(options.strategy, self.engine.labels, tokenizer, text, pieces, logits)
        sure = min((float(entity.score) for entity in found), default=1.0)
        unknown = unknown_id(tokenizer)
        if options.strategy == "none":
            return [
                {
                    "entity": entity.label,
                    "score": float(entity.score),
                    "index": entity.pieces[0],
                    "word": spelled(text, pieces, entity.pieces[0], unknown),
                    "start": entity.start,
                    "end": entity.end,
                }
                for entity in found
                if entity.label not in options.ignored
            ], sure
        return [
            {
                "entity_group": group.label,
                "score": float(group.score),
                "word": _word(tokenizer, text, pieces, group, unknown, options.strategy),
                "start": group.start,
                "end": group.end,
            }
            for group in grouped(found)
            if group.label not in options.ignored
        ], sure


def _word(
    tokenizer: Tokenizer, text: str, pieces: Pieces, group: Group, unknown: int | None, strategy: str
) -> str:
    """A group's tokens as one text: as the tokenizer's decoder joins words, which it has joined from tokens."""
    decoder = tokenizer.decoder
    join = " ".join if decoder is None else decoder.decode
    words = [[spelled(text, pieces, i, unknown) for i in member.pieces] for member in group.members]
    if strategy == "simple":
        return join([token for word in words for token in word])
    return join([join(word) for word in words])


def _without_overlaps(entities: Sequence[Entity]) -> list[Entity]:
    """Of entities of neighbouring windows that overlap the longer one, of equal lengths the one that is surer."""
    best: list[Entity] = []
    for entity in sorted(entities, key=lambda each: each["start"]):
        if not best or not best[-1]["start"] <= entity["start"] < best[-1]["end"]:
            best.append(entity)
        elif _rank(entity) > _rank(best[-1]):
            best[-1] = entity
    return best


def _rank(entity: Entity) -> tuple[int, float]:
    return entity["end"] - entity["start"], entity["score"]


def _words(value: Any, name: str) -> list[str]:
    if not isinstance(value, (list, tuple)) or not value:
        raise InputError(f"{name} is {shown(value)}; with is_split_into_words it must be a list of words")
    return [check_text(word, f"{name}[{i}]") for i, word in enumerate(value)]


def _among_words(encoding: Encoding, words: Sequence[str], gap: int) -> Pieces:
    """The tokens of a list of words, with offsets in the words joined by ``gap`` characters."""
    starts = np.cumsum([0, *(len(word) + gap for word in words)]).tolist()
    pieces = aggregation.Pieces.of(encoding)
    offsets = [
        (start, end) if word is None else (starts[word] + start, starts[word] + end)
        for word, (start, end) in zip(encoding.word_ids, pieces.offsets, strict=True)
    ]
    return replace(pieces, offsets=offsets)


def _check_cut(cut: NDArray[np.bool_], names: Sequence[str], limit: int, options: TagOptions) -> None:
    if options.truncation is False and cut.any():
        raise InputError(
            f"{names[int(np.argmax(cut))]} has more than {limit} tokens, the most that this model reads; pass "
            "stride= to read it in windows, or truncation=True to cut it"
        )
