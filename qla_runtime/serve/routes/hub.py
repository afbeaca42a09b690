"""POST / and POST /models/NAME: the model's own task, as huggingface_hub's ``InferenceClient`` sends it.

Its bodies are ``{"inputs", "parameters"}``, and what it gets is what transformers' pipelines gave, by
:mod:`qla_runtime.pipelines`. text-embeddings-inference answers POST / as ``/embed``, ``/predict`` or ``/rerank``,
and its clients send no ``parameters``. So for a classifier their presence tells which of the two is wanted.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from qla_runtime.engine import Engine
from qla_runtime.pipelines import PIPELINES
from qla_runtime.pipelines.base import Found, Given, Options, Pipeline
from qla_runtime.pipelines.question_answering import AnswerOptions
from qla_runtime.pipelines.text_classification import FUNCTIONS, ClassifyOptions
from qla_runtime.pipelines.token_classification import TagOptions
from qla_runtime.pipelines.zero_shot_classification import ZeroShotOptions
from qla_runtime.serve.batcher import check_characters
from qla_runtime.serve.bodies import Either, Field, Flag, Kind, ListOf, Record, Text, Whole
from qla_runtime.serve.inputs import LIMIT, TRUNCATE, texts
from qla_runtime.serve.operations import (
    ANSWERS,
    CLASSIFIES,
    EMBEDS,
    RANKS,
    TAGS,
    WANTS,
    Ability,
    Asked,
    Reply,
    characters,
    work,
)
from qla_runtime.serve.options import ServeOptions
from qla_runtime.serve.outcome import Outcome
from qla_runtime.serve.routes import rerank, tei
from qla_runtime.tasks.aggregation import STRATEGIES
from qla_runtime.tasks.answer import MAX_TOP_K
from qla_runtime.tasks.prepared import Call

TAG = "The model's own task"

_LIST = {"type": "array"}


@dataclass(frozen=True)
class Own:
    """What one kind of model does at POST /.

    Attributes:
        ability: the kind of model.
        body: what it takes.
        answer: the function.
        reply: JSON schema of the response.
        summary: for the OpenAPI document.
    """

    ability: Ability
    body: Kind
    answer: Callable[[Asked], Awaitable[Reply]]
    reply: Mapping[str, Any]
    summary: str


def own_tasks(options: ServeOptions) -> list[Own]:
    """Every kind of model, the more special first."""
    labels = _labels_body(options)
    ranker = Either((rerank.rerank_body(options).kinds[0], *_labels_body(options, one_label=True).kinds))
    ranks = "Texts by how well they answer a query, or labels of texts."
    return [
        Own(EMBEDS, _embedding_body(options), _embed, _LIST, "Vectors of texts, or how near they are to one."),
        Own(ANSWERS, _answer_body(options), _answer, _ANSWERS, "Answers to a question in a context."),
        Own(TAGS, _tag_body(options), _tag, _SPANS, "Labelled spans of texts."),
        Own(RANKS, ranker, _rank, _LIST, ranks),
        Own(CLASSIFIES, labels, _label, _LIST, "Labels of texts."),
    ]


@lru_cache(maxsize=64)
def _pipeline(task: str, engine: Engine, stride: int | None) -> Pipeline:
    """A pipeline, kept: for a stride it reads the tokenizer again, and clients may name many."""
    return PIPELINES[task](engine)


async def _piped(asked: Asked, task: str, options: Options) -> Outcome[Found]:
    """What a pipeline finds for the body's ``inputs``: one, or a list."""
    inputs, engine = asked.body["inputs"], asked.model.engine
    single = not isinstance(inputs, list)

    def make() -> Call[Found]:
        piped = _pipeline(task, engine, getattr(options, "stride", None))
        return piped.make_call(Given([inputs] if single else inputs, "inputs", single), options)

    return await asked.run(make)


def _reply(asked: Asked, outcome: Outcome[Found], values: list[Any] | None = None) -> Reply:
    """The pipeline's result for one input, a list of them for a list.

    Args:
        asked: the request.
        outcome: what ran.
        values: what is sent instead of the results' own values.
    """
    inputs = asked.body["inputs"]
    found = [result.value for result in outcome.results] if values is None else values
    read = inputs if isinstance(inputs, list) else [inputs]
    count = characters(each if isinstance(each, str) else [text or "" for text in each.values()] for each in read)
    return Reply(found if isinstance(inputs, list) else found[0], outcome, count)


# ------------------------------------------------------------------------------------------ embeddings


def _embedding_body(options: ServeOptions) -> Record:
    """Feature extraction sends its parameters beside ``inputs``, sentence similarity sends none."""
    alone = tei.embed_body(options)
    compared = tei.similarity_body(options).fields["inputs"].kind
    of_texts = texts(options)
    inputs = Either((compared, *of_texts.kinds), of_texts.refuse)
    own = {name: field for name, field in alone.fields.items() if name not in ("inputs", "model", *WANTS)}
    optional = {name: replace(field, default=None) for name, field in own.items()}
    return alone.with_fields(
        {
            "inputs": replace(alone.fields["inputs"], kind=inputs),
            "encoding_format": Field(Text(choices=("float",)), None, "Numbers; base64 is for /v1/embeddings."),
            "parameters": Field(Record(optional), None, "The same fields; they win over those beside `inputs`."),
        }
    )


async def _embed(asked: Asked) -> Reply:
    body = {**asked.body, **_parameters(asked)}
    if isinstance(body["inputs"], dict):
        return await tei.similarity(replace(asked, body={"inputs": body["inputs"], "parameters": body}))
    return await tei.embed(replace(asked, body=body))


def _parameters(asked: Asked) -> dict[str, Any]:
    """Those that are given."""
    return {name: value for name, value in (asked.body.get("parameters") or {}).items() if value is not None}


# ----------------------------------------------------------------------------------- question answering


def _answer_body(options: ServeOptions) -> Record:
    pair = Record(
        {
            "question": Field(Text(blank=False), help="The question."),
            "context": Field(Text(blank=False), help="The text that holds the answer."),
        },
        told_by="question",
    )
    pairs = ListOf(pair, most=options.max_client_batch_size, limit=LIMIT)
    parameters = Record(
        {
            "top_k": Field(Whole(1, (MAX_TOP_K - 10) // 2), None, "Give so many answers, as a list."),
            "max_answer_len": Field(Whole(1), None, "Tokens of an answer at most. Default: 15."),
            "max_seq_len": Field(Whole(1), None, "Tokens of a window at most. Default: 384."),
            "max_question_len": Field(Whole(1), None, "Not used: a question is never cut."),
            "doc_stride": Field(Whole(0), None, "Context tokens that neighbouring windows share. Default: 128."),
            "handle_impossible_answer": Field(Flag(), None, "Let 'no answer' win."),
            "align_to_words": Field(Flag(), None, "Extend answers to whole words. Default: true."),
        }
    )
    example = {"question": "Who wrote it?", "context": "It was written by Ada."}
    inputs = Field(Either((pair, pairs)), help="A question with its context, or a list of these.", example=example)
    return work({"inputs": inputs, "parameters": Field(parameters, None)})


async def _answer(asked: Asked) -> Reply:
    return _reply(asked, await _piped(asked, "question-answering", AnswerOptions(**_parameters(asked))))


_ANSWER = {
    "type": "object",
    "properties": {
        "answer": {"type": "string"},
        "score": {"type": "number"},
        "start": {"type": "integer"},
        "end": {"type": "integer"},
    },
    "required": ["answer", "score", "start", "end"],
}
_ANSWERS = {
    "anyOf": [_ANSWER, {"type": "array", "items": {"anyOf": [_ANSWER, {"type": "array", "items": _ANSWER}]}}]
}


# --------------------------------------------------------------------------------- token classification


def _tag_body(options: ServeOptions) -> Record:
    parameters = Record(
        {
            "aggregation_strategy": Field(
                Text(choices=STRATEGIES), None, "How tokens become entities. Default: simple."
            ),
            "ignore_labels": Field(ListOf(Text(), least=0), None, "Labels that are left out. Default: `O`."),
            "stride": Field(
                Whole(0), None, "Read long texts in windows that share so many tokens. Default: cut them."
            ),
        }
    )
    inputs = Field(texts(options), help="A text, or a list of texts.", example="Ada lives in London.")
    return work({"inputs": inputs, "parameters": Field(parameters, None), "truncate": TRUNCATE["truncate"]})


async def _tag(asked: Asked) -> Reply:
    chosen = {"aggregation_strategy": "simple", **_parameters(asked)}
    options = TagOptions(truncation=asked.truncate, **chosen)
    return _reply(asked, await _piped(asked, "token-classification", options))


_SPAN = {
    "type": "object",
    "properties": {
        "entity": {"type": "string"},
        "entity_group": {"type": "string"},
        "index": {"type": "integer"},
        "word": {"type": "string"},
        "score": {"type": "number"},
        "start": {"type": "integer"},
        "end": {"type": "integer"},
    },
    "required": ["word", "score", "start", "end"],
}
_SPANS = {"type": "array", "items": {"anyOf": [_SPAN, {"type": "array", "items": _SPAN}]}}


# ---------------------------------------------------------------------------------- text classification


def _labels_body(options: ServeOptions, *, one_label: bool = False) -> Either:
    """A pipeline's body with ``parameters``; without them that of ``/predict``.

    Args:
        options: of the server.
        one_label: leave out what needs a model of several.
    """
    pair = Record({"text": Field(Text()), "text_pair": Field(Text(), None)}, told_by="text")
    one = Either((Text(), pair))
    classes = ListOf(Text(blank=False), most=options.max_client_batch_size, limit=LIMIT)
    zero_shot = Record(
        {
            "candidate_labels": Field(classes, help="Classes that the model was not trained on."),
            "hypothesis_template": Field(Text(), None, "Default: `This example is {}.`"),
            "multi_label": Field(Flag(), None, "Whether several classes may be true."),
        },
        told_by="candidate_labels",
    )
    trained = Record(
        {
            "top_k": Field(Whole(1), None, "Give the best so many labels. Default: all."),
            "function_to_apply": Field(
                Text(choices=tuple(FUNCTIONS)), None, "From logits to scores. Default: as the model's config says."
            ),
        }
    )
    parameters: Kind = trained if one_label else Either((zero_shot, trained))
    inputs = Either((*one.kinds, ListOf(one, most=options.max_client_batch_size, limit=LIMIT)))
    pairs = Either((pair, ListOf(pair, most=options.max_client_batch_size, limit=LIMIT)))
    said = "A text, an object of two texts, or a list of these."
    truncate = {"truncate": TRUNCATE["truncate"]}
    of_pipeline = work(
        {
            "inputs": Field(inputs, help=said, example="I like you."),
            "parameters": Field(parameters, None, "Those of the pipeline."),
            **truncate,
        },
        told_by="parameters",
    )
    of_pairs = work({"inputs": Field(pairs, help="An object of two texts, or a list of these."), **truncate})
    return Either((of_pipeline, _Pairs(of_pairs.fields, one_of=of_pairs.one_of), tei.predict_body(options)))


class _Pairs(Record):
    """Told from the body of ``/predict`` by a pair as an object."""

    def takes(self, value: Any) -> bool:
        inputs = value.get("inputs") if isinstance(value, dict) else None
        return isinstance(inputs[0] if isinstance(inputs, list) and inputs else inputs, dict)


async def _rank(asked: Asked) -> Reply:
    return await (rerank.rerank(asked) if "texts" in asked.body else _label(asked))


async def _label(asked: Asked) -> Reply:
    if "raw_scores" in asked.body:
        return await tei.predict(asked)
    parameters = _parameters(asked)
    if "candidate_labels" in parameters:
        return await _zero_shot(asked, ZeroShotOptions(truncation=asked.truncate, **parameters))
    engine = asked.model.engine
    if len(engine.labels) == 1 and "function_to_apply" not in parameters:
        activation = engine.task_settings.get("activation")
        parameters["function_to_apply"] = "sigmoid" if activation == "sigmoid" else "none"
    options = ClassifyOptions(truncation=asked.truncate, **{"top_k": None, **parameters})
    outcome = await _piped(asked, "text-classification", options)
    if isinstance(asked.body["inputs"], list):
        return _reply(asked, outcome)
    # As the hub's own servers do: a list per input, also for a single one. The client takes the first.
    return _reply(asked, outcome, [[result.value] for result in outcome.results])


async def _zero_shot(asked: Asked, options: ZeroShotOptions) -> Reply:
    inputs = asked.body["inputs"]
    texts = [each for each in (inputs if isinstance(inputs, list) else [inputs]) if isinstance(each, str)]
    count = sum(map(len, texts)) + len(texts) * len(options.hypothesis_template)
    check_characters(count * len(options.labels), asked.options)
    outcome = await _piped(asked, "zero-shot-classification", options)
    pairs = [zip(each.value["labels"], each.value["scores"], strict=True) for each in outcome.results]
    return _reply(asked, outcome, [[{"label": label, "score": score} for label, score in of] for of in pairs])
