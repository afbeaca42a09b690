"""The page at ``/``, where a person tries a model and sees which words survive each layer.

page.html is the page; ``POST /page/run`` is what its script asks.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import html
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from starlette.responses import HTMLResponse

from qla_runtime.engine import Engine
from qla_runtime.errors import a_model
from qla_runtime.serve.bodies import Either, Field, Kind, Text
from qla_runtime.serve.errors import BACKEND, ServeError
from qla_runtime.serve.inputs import TRUNCATE, many
from qla_runtime.serve.jobs import Outcome
from qla_runtime.serve.operations import (
    ANSWERS,
    CLASSIFIES,
    EMBEDS,
    RANKS,
    TAGS,
    Ability,
    Asked,
    Operation,
    Reply,
    characters,
    work,
)
from qla_runtime.serve.options import ServeOptions
from qla_runtime.serve.served import Models, ServedModel
from qla_runtime.tasks.answer import AnswerTask
from qla_runtime.tasks.embed import EmbedTask
from qla_runtime.tasks.labels import LabelTask
from qla_runtime.tasks.prepared import Call
from qla_runtime.tasks.tag import TagTask
from qla_runtime.trace.followed import Followed, following

Answers = Mapping[str, Sequence[tuple[int, int]]]
"""Per part of an input, the characters that answer the call."""
Shown = tuple[list[dict[str, Any]], list[tuple[int, Answers]]]
"""What was found, best first; and which inputs are drawn, in this order."""


# --------------------------------------------------------------------------------------------- the page


def response(models: Models, options: ServeOptions) -> HTMLResponse:
    """The page, an ASGI application. It loads nothing, and no script or style but its own runs in it."""
    template = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    content = Template(template).substitute(
        name=html.escape(", ".join(model.name for model in models)),
        config=_as_data({"models": [_about(model) for model in models], "key": options.api_key is not None}),
    )
    policy = (
        f"default-src 'none'; style-src {_hash('style', content)}; script-src {_hash('script', content)}; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    headers = {"content-security-policy": policy, "referrer-policy": "no-referrer", "cache-control": "no-store"}
    return HTMLResponse(content, headers=headers)


def _about(model: ServedModel) -> dict[str, Any]:
    engine = model.engine
    return {
        "name": model.name,
        "form": form_of(engine).name,
        "lengths": [
            {
                "name": entry.name,
                "share": entry.macs_share,
                "accuracy": f"{entry.accuracy.metric} {entry.accuracy.value:g}" if entry.accuracy else None,
            }
            for entry in engine.lengths.values()
        ],
    }


def _as_data(value: Any) -> str:
    """JSON for a script element that is not run, which ``</script>`` and ``<!--`` must not end or open."""
    return json.dumps(value).replace("<", "\\u003c")


def _hash(element: str, content: str) -> str:
    """The CSP source of the page's own script or style."""
    found = re.search(rf"<{element}>(.*?)</{element}>", content, re.DOTALL)
    assert found, f"page.html has a <{element}>"
    digest = base64.b64encode(hashlib.sha256(found[1].encode()).digest()).decode()
    return f"'sha256-{digest}'"


# -------------------------------------------------------------------------------------------- its forms


@dataclass(frozen=True)
class Form:
    """What a person fills in for one kind of model.

    Attributes:
        name: as the page's script knows it.
        ability: the kind of model.
        told_by: the field of the body that no other form has.
        call: the call that a body asks for.
        found: what the page shows.
    """

    name: str
    ability: Ability
    told_by: str
    call: Callable[[Asked], Call[Followed[Any]]]
    found: Callable[[Asked, Sequence[Followed[Any]]], Shown]


def _answer(asked: Asked) -> Call[Followed[Any]]:
    engine, body = asked.model.engine, asked.body
    call = engine.as_task(AnswerTask).answer(body["question"], body["context"])
    return following(engine, call, ("question", "context"))


def _answer_found(asked: Asked, runs: Sequence[Followed[Any]]) -> Shown:
    answer = runs[0].result
    found = [{"label": answer["answer"] or "(no answer)", "score": answer["score"]}]
    return found, [(0, {"context": [(answer["start"], answer["end"])]})]


def _labels(asked: Asked) -> Call[Followed[Any]]:
    engine, body = asked.model.engine, asked.body
    task = engine.as_task(LabelTask)
    call = task.classify(body["text"], body["text_pair"], top_k=None, truncate=asked.truncate)
    return following(engine, call, ("text", "second text"))


def _labels_found(asked: Asked, runs: Sequence[Followed[Any]]) -> Shown:
    result = runs[0].result
    return result.get("scores") or [{"label": result["label"], "score": result["score"]}], [(0, {})]


def _tags(asked: Asked) -> Call[Followed[Any]]:
    engine = asked.model.engine
    call = engine.as_task(TagTask).tag(asked.body["text"], truncate=asked.truncate)
    return following(engine, call, ("text",))


def _tags_found(asked: Asked, runs: Sequence[Followed[Any]]) -> Shown:
    spans = runs[0].result
    found = [{"label": span["text"], "kind": span["label"], "score": span["score"]} for span in spans]
    return found, [(0, {"text": [(span["start"], span["end"]) for span in spans]})]


def _rank(asked: Asked) -> Call[Followed[Any]]:
    engine, body = asked.model.engine, asked.body
    call = engine.as_task(LabelTask, "rank").rank(body["query"], body["documents"], truncate=asked.truncate)
    return following(engine, call, ("query", "document"))


def _rank_found(asked: Asked, runs: Sequence[Followed[Any]]) -> Shown:
    return _best_first(asked, np.array([run.result["score"] for run in runs]), range(len(runs)))


def _embed(asked: Asked) -> Call[Followed[Any]]:
    engine, body = asked.model.engine, asked.body
    task = engine.as_task(EmbedTask)
    prompts = task.model.prompts
    texts = [prompts.query(None, None) + body["query"]]
    texts += [prompts.document(None, None) + document for document in body["documents"]]
    return following(engine, task.encode(texts, prompt="", truncate=asked.truncate), ("text",))


def _embed_found(asked: Asked, runs: Sequence[Followed[Any]]) -> Shown:
    vectors = np.stack([run.result["vector"] for run in runs])
    scores = asked.model.engine.similarity(vectors[0], vectors[1:])[0]
    found, order = _best_first(asked, scores, range(1, len(runs)))
    return found, [(0, {}), *order]


def _best_first(asked: Asked, scores: Any, of_runs: Sequence[int]) -> Shown:
    order = np.argsort(-scores, kind="stable").tolist()
    found = [{"label": asked.body["documents"][i], "score": float(scores[i])} for i in order]
    return found, [(of_runs[i], {}) for i in order]


FORMS = (
    Form("answer", ANSWERS, "question", _answer, _answer_found),
    Form("tags", TAGS, "text", _tags, _tags_found),
    Form("rank", RANKS, "query", _rank, _rank_found),
    Form("labels", CLASSIFIES, "text", _labels, _labels_found),
    Form("compare", EMBEDS, "query", _embed, _embed_found),
)
"""Every kind of model, the more special first."""


def form_of(engine: Engine) -> Form:
    """The form of a model."""
    return next(form for form in FORMS if form.ability.fits(engine))


# ----------------------------------------------------------------------------------------- POST /page/run


def operations(options: ServeOptions) -> list[Operation]:
    """What the page asks. It changes with the page, so the OpenAPI document leaves it out."""
    summary = "What the page at / asks for."
    return [Operation("/page/run", page_run, summary, None, body=_body(options), per_model=False, listed=False)]


async def page_run(asked: Asked) -> Reply:
    """Runs what a person filled in, and follows its tokens."""
    form = form_of(asked.model.engine)
    if form.told_by not in asked.body:
        raise ServeError(
            BACKEND,
            f"{asked.model.name} is {a_model(asked.model.engine.task)}; send {form.told_by!r}",
            field=form.told_by,
        )
    outcome = await asked.run(lambda: form.call(asked))
    content = await asyncio.to_thread(_content, asked, form, outcome)  # a long text takes a second to draw
    texts = (text for run in outcome.results for text in run.texts.values())
    return Reply(content, outcome, characters(texts))


def _content(asked: Asked, form: Form, outcome: Outcome[Followed[Any]]) -> dict[str, Any]:
    found, shown = form.found(asked, outcome.results)
    return {
        "model": asked.model.name,
        "form": form.name,
        "length": ", ".join(dict.fromkeys(outcome.lengths)),
        "layers": asked.model.engine.layers,
        "macs": outcome.kept_macs,
        "share": outcome.kept_macs / outcome.full_macs,
        "milliseconds": 1e3 * outcome.total_s,
        "budget_met": outcome.results[0].budget_met,
        "found": found,
        "inputs": [_drawn(outcome.results[i], answers) for i, answers in shown],
    }


def _drawn(run: Followed[Any], answers: Answers) -> dict[str, Any]:
    return {
        "tokens": run.tokens_read,
        "windows": run.windows,
        "truncated": run.truncated,
        "kept": run.kept,
        "parts": [
            {
                "kind": part.kind,
                "pieces": [
                    {"text": piece.text, "depth": piece.depth, "answer": piece.is_answer} for piece in part.pieces
                ],
            }
            for part in run.parts(answers)
        ],
    }


def _body(options: ServeOptions) -> Kind:
    cut = {"truncate": TRUNCATE["truncate"]}
    answer = {"question": Field(Text(blank=False)), "context": Field(Text(blank=False))}
    text = {"text": Field(Text()), "text_pair": Field(Text(), None), **cut}
    query = {"query": Field(Text(blank=False)), "documents": Field(many(options)), **cut}
    return Either(
        (work(answer, told_by="question"), work(text, told_by="text"), work(query, told_by="query")),
    )
