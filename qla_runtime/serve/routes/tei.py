"""text-embeddings-inference's routes (its 1.9, ``router/src/http``), and ours beside its fields.

Where it takes token ids, texts are asked for. Where it compares vectors by their cosine, the model's own
similarity is used, which is the cosine unless the model's config says otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from starlette.concurrency import run_in_threadpool

from qla_runtime.arrays import Arrays
from qla_runtime.lengths.configs import LengthPlan
from qla_runtime.pipelines.text_classification import FUNCTIONS
from qla_runtime.serve.batcher import Outcome
from qla_runtime.serve.bodies import Either, Field, Flag, Kind, ListOf, Number, Record, Text, Whole
from qla_runtime.serve.errors import INVALID, ServeError
from qla_runtime.serve.inputs import LIMIT, PROMPT_NAME, TRUNCATE, check_direction, texts
from qla_runtime.serve.label_logits import Logits, best_first, label_logits, own_function
from qla_runtime.serve.operations import CLASSIFIES, EMBEDS, Asked, Operation, Reply, characters, work
from qla_runtime.serve.options import ServeOptions
from qla_runtime.serve.tokenizing import decode_ids, tokenize_texts
from qla_runtime.tasks.embed import EmbedTask
from qla_runtime.tasks.labels import LabelTask
from qla_runtime.tasks.prepared import Call, Prepared, one_each, tokenized
from qla_runtime.tasks.results import Embedding, Run

TAG = "Text Embeddings Inference"
MAX_IDS = 1_000_000
"""Token ids that one list of ``/decode`` may have."""


class States(Run):
    """The last hidden ``states`` of one text, float32 (tokens, H), and whether it was ``truncated``."""

    states: NDArray[np.float32]
    truncated: bool


# ------------------------------------------------------------------------------------------ embeddings


def embed_body(options: ServeOptions) -> Record:
    """The body of ``/embed``."""
    return work(
        {
            "inputs": Field(texts(options), help="A text, or a list of texts.", example="What is Deep Learning?"),
            **TRUNCATE,
            "prompt_name": PROMPT_NAME,
            "normalize": Field(Flag(), True, "Bring each vector to length 1."),
            "dimensions": Field(Whole(1, 65536), None, "Give the first so many numbers of each vector."),
        },
        told_by="inputs",
    )


async def embed(asked: Asked) -> Reply:
    outcome, inputs = await vectors(asked, asked.body["inputs"])
    return Reply([result["vector"] for result in outcome.results], outcome, characters(inputs))


async def vectors(
    asked: Asked, inputs: str | list[str], what: str = "inputs"
) -> tuple[Outcome[Embedding], list[str]]:
    """The vectors of texts, as the body's fields say, and the texts as a list.

    Args:
        asked: the request.
        inputs: the texts.
        what: how error messages call them.
    """
    body, engine = asked.body, asked.model.engine

    def make() -> Call[Embedding]:
        check_direction(engine, body.get("truncation_direction"))
        call = engine.as_task(EmbedTask).encode(
            inputs,
            truncate=asked.truncate,
            prompt_name=body.get("prompt_name"),
            truncate_dim=body.get("dimensions"),
            normalize_embeddings=body.get("normalize", False),
        )
        return replace(call, what=what)

    outcome = await asked.run(make)
    return outcome, [inputs] if isinstance(inputs, str) else inputs


def embed_all_body(options: ServeOptions) -> Record:
    """The body of ``/embed_all``."""
    inputs = Field(texts(options), help="A text, or a list of texts.", example="What is Deep Learning?")
    return work({"inputs": inputs, **TRUNCATE, "prompt_name": PROMPT_NAME})


async def embed_all(asked: Asked) -> Reply:
    body, engine = asked.body, asked.model.engine
    single = isinstance(body["inputs"], str)
    inputs = [body["inputs"]] if single else body["inputs"]

    def make() -> Call[States]:
        check_direction(engine, body["truncation_direction"])
        before = engine.as_task(EmbedTask).model.prompts.choose(None, body["prompt_name"])
        prepare = partial(_prepare_states, engine.text_encoder, asked.truncate)
        return Call(
            [before + text for text in inputs], "inputs", single, prepare, runs_once="states have no score"
        )

    outcome = await asked.run(make)
    return Reply([result["states"] for result in outcome.results], outcome, characters(inputs))


def _prepare_states(encoder: Any, truncate: bool, inputs: Sequence[str], names: Sequence[str]) -> Prepared[States]:
    encoded = tokenized(encoder, inputs, names, truncate)
    offsets = encoded.batch.offsets

    def read(arrays: Arrays, plan: LengthPlan) -> list[States]:
        return [
            {
                "states": arrays["last_hidden"][offsets[i] : offsets[i + 1]],
                **plan.report(i),
                "macs": int(arrays["macs"][i]),
                "truncated": bool(encoded.cut[i]),
                "budget_met": None,
            }
            for i in range(encoded.batch.count)
        ]

    return Prepared(encoded.batch, one_each(encoded.batch), frozenset({"last_hidden", "macs"}), read)


def similarity_body(options: ServeOptions) -> Record:
    """The body of ``/similarity``."""
    compared = Record(
        {
            "source_sentence": Field(Text(), help="What the others are compared with."),
            "sentences": Field(
                ListOf(Text(), most=options.max_client_batch_size - 1 or 1, limit=LIMIT),
                help="Texts to compare with it.",
            ),
        },
        told_by="source_sentence",
    )
    parameters = Record({**TRUNCATE, "prompt_name": PROMPT_NAME})
    example = {"source_sentence": "What is Deep Learning?", "sentences": ["What is Machine Learning?"]}
    return work({"inputs": Field(compared, example=example), "parameters": Field(parameters, None)})


async def similarity(asked: Asked) -> Reply:
    given = asked.body["inputs"]
    inner = replace(asked, body=asked.body["parameters"] or {})
    outcome, inputs = await vectors(inner, [given["source_sentence"], *given["sentences"]])
    found = np.stack([result["vector"] for result in outcome.results])
    scores = asked.model.engine.similarity(found[0], found[1:])[0]
    return Reply(scores, outcome, characters(inputs))


# -------------------------------------------------------------------------------------- classification


def predict_body(options: ServeOptions) -> Record:
    """The body of ``/predict``."""
    one = ListOf(Text(), least=1, most=2)
    batch = ListOf(one, most=options.max_client_batch_size, limit=LIMIT)
    inputs = Field(
        _PredictInput(batch),
        help="A text; a pair [a, b]; or a list of [a] and [a, b].",
        example="I like you.",
    )
    return work({"inputs": inputs, **TRUNCATE, "raw_scores": Field(Flag(), False, "Give logits.")})


class _PredictInput(Either):
    """A text, a pair of texts, or a list of either as lists. It reads into those, and whether it is one."""

    def __init__(self, batch: ListOf) -> None:
        super().__init__((Text(), ListOf(Text(), least=1, most=2), batch))

    def read(self, value: Any, where: str) -> tuple[list[str | tuple[str, str]], bool]:
        text, pair, batch = self.kinds
        if isinstance(value, list) and value and isinstance(value[0], list):
            return [_text_or_pair(entry) for entry in batch.read(value, where)], False
        if isinstance(value, list):
            if len(value) > 2 and isinstance(value[0], str):
                message = (
                    f"{where} is a list of {len(value)} texts, and a list of texts is a pair of two; send several"
                )
                raise ServeError(INVALID, f'{message} as [["first"], ["second"]]', field=where)
            return [_text_or_pair(pair.read(value, where))], True
        return [super().read(value, where)], True


def _text_or_pair(entry: list[str]) -> str | tuple[str, str]:
    return entry[0] if len(entry) == 1 else (entry[0], entry[1])


async def predict(asked: Asked) -> Reply:
    inputs, single = asked.body["inputs"]
    outcome = await logits(asked, inputs, single)
    engine = asked.model.engine
    function = FUNCTIONS["none"] if asked.body["raw_scores"] else own_function(engine.task_settings)
    found = [best_first(engine.labels, result["logits"], function) for result in outcome.results]
    return Reply(found[0] if single else found, outcome, characters(inputs))


async def logits(asked: Asked, inputs: Sequence[str | tuple[str, str]], single: bool) -> Outcome[Logits]:
    """The logits of texts and pairs, as the body's fields say."""
    body, engine = asked.body, asked.model.engine

    def make() -> Call[Logits]:
        check_direction(engine, body.get("truncation_direction"))
        task = engine.as_task(LabelTask)
        return label_logits(task, inputs, "inputs", single=single, truncate=asked.truncate)

    return await asked.run(make)


# ----------------------------------------------------------------------------------------- token ids


def _tokenize_body(options: ServeOptions) -> Record:
    model = Field(Text(), None, "The name of a served model. Default: the first.")
    inputs = Field(texts(options), help="A text, or a list of texts.", example="What is Deep Learning?")
    special = Field(Flag(), True, "Add the model's special tokens.")
    return Record({"inputs": inputs, "add_special_tokens": special, "prompt_name": PROMPT_NAME, "model": model})


async def tokenize(asked: Asked) -> Reply:
    body = asked.body
    inputs = [body["inputs"]] if isinstance(body["inputs"], str) else body["inputs"]
    tokens = await run_in_threadpool(
        tokenize_texts, asked.model.engine, inputs, body["add_special_tokens"], body["prompt_name"]
    )
    return Reply(tokens)


def _decode_body(options: ServeOptions) -> Record:
    model = Field(Text(), None, "The name of a served model. Default: the first.")
    ids = ListOf(Whole(0), most=MAX_IDS)
    batch = ListOf(ids, most=options.max_client_batch_size, limit=LIMIT)
    return Record(
        {
            "ids": Field(_Ids((ids, batch)), help="Token ids, or a list of such lists.", example=[101, 102]),
            "skip_special_tokens": Field(Flag(), True, "Leave the model's special tokens out."),
            "model": model,
        }
    )


class _Ids(Either):
    """Token ids, or a list of such lists; it reads into the latter."""

    def read(self, value: Any, where: str) -> list[list[int]]:
        one, batch = self.kinds
        if isinstance(value, list) and (not value or isinstance(value[0], list)):
            found: list[list[int]] = batch.read(value, where)
            return found
        return [one.read(value, where)]


async def decode(asked: Asked) -> Reply:
    ids, skip = asked.body["ids"], asked.body["skip_special_tokens"]
    return Reply(await run_in_threadpool(decode_ids, asked.model.engine, ids, skip))


# --------------------------------------------------------------------------------------------- table

VECTORS = ListOf(ListOf(Number())).schema()
LABELS = ListOf(Record({"label": Field(Text()), "score": Field(Number())}))
PREDICTIONS: dict[str, Any] = {"anyOf": [LABELS.schema(), ListOf(LABELS).schema()]}
_TOKEN = {
    "type": "object",
    "properties": {
        "id": {"type": "integer"},
        "text": {"type": "string"},
        "special": {"type": "boolean"},
        "start": {"type": ["integer", "null"]},
        "stop": {"type": ["integer", "null"]},
    },
    "required": ["id", "text", "special", "start", "stop"],
}


def operations(options: ServeOptions) -> list[Operation]:
    """The routes, those first that are asked most."""
    make = partial(Operation, tag=TAG)
    body: Kind = embed_body(options)
    tokens = {"type": "array", "items": {"type": "array", "items": _TOKEN}}
    states = ListOf(ListOf(ListOf(Number()))).schema()
    strings = {"type": "array", "items": {"type": "string"}}
    return [
        make("/embed", embed, "Vectors of texts.", VECTORS, body=body, ability=EMBEDS),
        make(
            "/predict", predict, "Labels of texts or pairs, best first.", PREDICTIONS, body=predict_body(options),
            ability=CLASSIFIES,
        ),
        make(
            "/similarity", similarity, "How near texts are to one text.", ListOf(Number(), least=0).schema(),
            body=similarity_body(options), ability=EMBEDS,
        ),
        make(
            "/embed_all", embed_all, "The last hidden states of every token.", states,
            body=embed_all_body(options), ability=EMBEDS,
        ),
        make("/tokenize", tokenize, "Tokens of texts, not cut.", tokens, body=_tokenize_body(options)),
        make("/decode", decode, "The text of token ids.", strings, body=_decode_body(options)),
    ]  # fmt: skip
