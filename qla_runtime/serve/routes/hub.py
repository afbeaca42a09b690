"""POST / and POST /models/NAME: the model's own task, as huggingface_hub's ``InferenceClient`` sends it.

Its bodies are ``{"inputs", "parameters"}``, its results those of transformers' pipelines.
text-embeddings-inference answers POST / as ``/embed``, ``/predict`` or ``/rerank``, and its clients send no
``parameters``; so for a classifier their presence tells which of the two is wanted.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from qla_runtime.activations import softmax
from qla_runtime.engine import Engine
from qla_runtime.serve.bodies import Either, Field, Flag, Kind, ListOf, Record, Text, Whole
from qla_runtime.serve.errors import BACKEND, INVALID, ServeError
from qla_runtime.serve.inputs import LIMIT, TRUNCATE, many, texts
from qla_runtime.serve.label_logits import FUNCTIONS, best_first, own_function
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
from qla_runtime.serve.routes import rerank, tei
from qla_runtime.tasks.answer import MAX_TOP_K, AnswerTask
from qla_runtime.tasks.prepared import Call
from qla_runtime.tasks.results import Answer, Spans, TaggedToken
from qla_runtime.tasks.tag import TagTask

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
    return [
        Own(EMBEDS, _embedding_body(options), _embed, _LIST, "Vectors of texts, or how near they are to one."),
        Own(ANSWERS, _answer_body(options), _answer, _ANSWERS, "Answers to a question in a context."),
        Own(TAGS, _tag_body(options), _tag, _SPANS, "Labelled spans of texts."),
        Own(
            RANKS,
            Either((rerank.rerank_body(options).kinds[0], labels)),
            _rank,
            _LIST,
            "Texts by how well they answer a query, or labels of texts.",
        ),
        Own(CLASSIFIES, labels, _label, _LIST, "Labels of texts."),
    ]


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
    parameters = {name: value for name, value in (asked.body["parameters"] or {}).items() if value is not None}
    body = {**asked.body, **parameters}
    if isinstance(body["inputs"], dict):
        return await tei.similarity(replace(asked, body={"inputs": body["inputs"], "parameters": body}))
    return await tei.embed(replace(asked, body=body))


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
            "top_k": Field(Whole(1, MAX_TOP_K), None, "Give so many answers, as a list."),
            "max_answer_len": Field(Whole(1), None, "Tokens of an answer at most."),
            "doc_stride": Field(Whole(0), None, "Context tokens that neighbouring windows share."),
            "handle_impossible_answer": Field(Flag(), None, "Let 'no answer' win."),
            "align_to_words": Field(Flag(only=False), None, "Answers begin and end where tokens do."),
        }
    )
    example = {"question": "Who wrote it?", "context": "It was written by Ada."}
    inputs = Field(Either((pair, pairs)), help="A question with its context, or a list of these.", example=example)
    return work({"inputs": inputs, "parameters": Field(parameters, None)})


async def _answer(asked: Asked) -> Reply:
    given, parameters = asked.body["inputs"], asked.body["parameters"] or {}
    single = isinstance(given, dict)
    pairs = [given] if single else given
    top_k = parameters.get("top_k") or 1

    def make() -> Call[Answer]:
        questions, contexts = ([pair[name] for pair in pairs] for name in ("question", "context"))
        call = asked.model.engine.as_task(AnswerTask).answer(
            questions,
            contexts,
            top_k=top_k,
            max_answer_tokens=parameters.get("max_answer_len"),
            doc_stride=parameters.get("doc_stride"),
            handle_impossible_answer=parameters.get("handle_impossible_answer"),
        )
        return replace(call, what="inputs.question" if single else "inputs", single=single)

    outcome = await asked.run(make)
    found = [_answers(result, top_k) for result in outcome.results]
    read = characters((pair["question"], pair["context"]) for pair in pairs)
    return Reply(found[0] if single else found, outcome, read)


def _answers(result: Answer, top_k: int) -> dict[str, Any] | list[dict[str, Any]]:
    spans = result["answers"] if top_k > 1 else [result]
    found = [{name: span[name] for name in ("answer", "score", "start", "end")} for span in spans]
    return found if top_k > 1 else found[0]


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
                Text(choices=("none", "simple", "first", "average", "max")), "simple", "As in transformers."
            ),
            "ignore_labels": Field(ListOf(Text(), least=0), None, "Labels that are left out. Default: `O`."),
        }
    )
    inputs = Field(texts(options), help="A text, or a list of texts.", example="Ada lives in London.")
    return work({"inputs": inputs, "parameters": Field(parameters, None), "truncate": TRUNCATE["truncate"]})


async def _tag(asked: Asked) -> Reply:
    given, parameters = asked.body["inputs"], asked.body["parameters"] or {}
    strategy = parameters.get("aggregation_strategy") or "simple"

    def make() -> Call[Spans]:
        task = asked.model.engine.as_task(TagTask)
        call = task.tag(
            given,
            truncate=asked.truncate,
            aggregation_strategy=strategy,
            ignore_labels=parameters.get("ignore_labels"),
        )
        return replace(call, what="inputs")

    outcome = await asked.run(make)
    found = [[_span(span, strategy) for span in spans] for spans in outcome.results]
    single = isinstance(given, str)
    return Reply(found[0] if single else found, outcome, characters([given] if single else given))


def _span(span: TaggedToken, strategy: str) -> dict[str, Any]:
    place = {"score": span["score"], "start": span["start"], "end": span["end"]}
    if strategy == "none":
        return {"entity": span["label"], "index": span["index"], "word": span["word"], **place}
    return {"entity_group": span["label"], "word": span["text"], **place}


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


def _labels_body(options: ServeOptions) -> Record:
    """A pipeline's body with ``parameters``; without them that of ``/predict``."""
    pair = Record({"text": Field(Text()), "text_pair": Field(Text(), None)}, told_by="text")
    parameters = Record(
        {
            "top_k": Field(Whole(1), None, "Give the best so many labels. Default: all."),
            "function_to_apply": Field(
                Text(choices=tuple(FUNCTIONS)), None, "From logits to scores. Default: as the model's config says."
            ),
            "candidate_labels": Field(many(options), None, "Classes of zero-shot classification."),
            "hypothesis_template": Field(Text(), None, "Default: `This example is {}.`"),
            "multi_label": Field(Flag(), None, "Whether several classes may be true."),
        }
    )
    inputs = tei.predict_body(options).fields["inputs"]
    kinds = Either((pair, inputs.kind))
    return tei.predict_body(options).with_fields(
        {"inputs": replace(inputs, kind=kinds), "parameters": Field(parameters, None)}
    )


async def _rank(asked: Asked) -> Reply:
    return await (rerank.rerank(asked) if "texts" in asked.body else _label(asked))


async def _label(asked: Asked) -> Reply:
    given, parameters = asked.body["inputs"], asked.body["parameters"]
    pair = isinstance(given, dict)
    if pair:
        text, other = given["text"], given["text_pair"]
        given = ([text if other is None else (text, other)], True)
    if parameters is None and not pair:
        return await tei.predict(asked)
    parameters = parameters or {}
    inputs, single = given
    if parameters.get("candidate_labels"):
        return await _zero_shot(asked, inputs, parameters)
    engine = asked.model.engine
    outcome = await tei.logits(asked, inputs, single)
    name = parameters.get("function_to_apply") or ("none" if asked.body["raw_scores"] else None)
    function = own_function(engine.task_settings) if name is None else FUNCTIONS[name]
    found = [
        best_first(engine.labels, result["logits"], function)[: parameters.get("top_k")]
        for result in outcome.results
    ]
    # As the hub's own servers do: a list per input, also for a single one. The client takes the first.
    return Reply(found, outcome, characters(inputs))


async def _zero_shot(asked: Asked, inputs: list[Any], parameters: Mapping[str, Any]) -> Reply:
    """Scores of classes that the model was not trained on: how much a text entails that it is of each.

    transformers' ZeroShotClassificationPipeline defines the arithmetic.
    """
    engine, classes = asked.model.engine, parameters["candidate_labels"]
    if len(inputs) != 1 or not isinstance(inputs[0], str):
        raise ServeError(INVALID, "inputs is a list; zero-shot classification takes one text", field="inputs")
    entails = _entailment(engine)
    template = parameters.get("hypothesis_template") or "This example is {}."
    if "{}" not in template:
        raise ServeError(
            INVALID,
            "parameters.hypothesis_template has no {} where a class goes; add it",
            field="parameters.hypothesis_template",
        )
    pairs = [(inputs[0], template.replace("{}", name)) for name in classes]
    outcome = await tei.logits(asked, pairs, False)
    logits = np.stack([result["logits"] for result in outcome.results])
    if parameters.get("multi_label") or len(classes) == 1:
        against = -1 if entails == 0 else 0
        scores = softmax(logits[:, [against, entails]])[:, 1]
    else:
        scores = softmax(logits[:, entails])
    order = np.argsort(-scores, kind="stable").tolist()
    found = [{"label": classes[i], "score": float(scores[i])} for i in order]
    return Reply(found, outcome, characters(pairs))


def _entailment(engine: Engine) -> int:
    for i, name in enumerate(engine.labels):
        if name.lower().startswith("entail"):
            return i
    raise ServeError(
        BACKEND,
        "zero-shot classification needs a model with a label 'entailment'; this one has "
        f"{', '.join(engine.labels)}",
        field="parameters.candidate_labels",
    )
