"""The engine in Ray Serve: a deployment that makes batches by their tokens. Needs ``ray[serve]``.

    from ray import serve
    from qla_runtime.integrations.ray_serve import application

    serve.run(application("all-minilm-l6-v2"))

    $ curl http://localhost:8000/ -d '{"inputs": ["a bird sings"], "length": "fast"}'
    [[0.0123, ...]]

A replica runs whatever waits, up to a number of tokens, and waits for no timer. A result does not depend on its
batch, so batching changes no bit.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Sequence
from typing import Any

from ray import serve
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from qla_runtime.errors import InputError, QlaError, shown
from qla_runtime.integrations.ray import open_engine
from qla_runtime.options import check_count
from qla_runtime.tasks.embed import EmbedTask
from qla_runtime.tasks.labels import LabelTask
from qla_runtime.tasks.prepared import Call, Prepared
from qla_runtime.texts.inputs import check_texts

BATCH_TOKENS = 16_384
"""Tokens of a batch, as many as text-embeddings-inference takes: some 100 ms of work for a model like MiniLM."""

ONGOING_REQUESTS = 256
"""Requests that a replica holds at once. Serve's own limit of 5 would leave little to make a batch of."""


def _tokens(prepared: Sequence[Prepared[Any]]) -> int:
    return sum(len(each.batch.ids) for each in prepared)


@serve.deployment(max_ongoing_requests=ONGOING_REQUESTS)
class TextModel:
    """An embedding model or a classifier. :func:`application` makes it; handles call :meth:`run`.

    Args:
        model: a package folder that every node has at this path, a packaged model, or a hub id.
        length: the length config of requests that name none.
        batch_tokens: tokens of a batch at most.
        num_threads: of the engine and of the tokenizer; None: the replica's CPUs (``ray_actor_options``).
        weights: as for :class:`qla_runtime.Engine`. The default is mapped, which the replicas of a node share.

    Raises:
        InputError: an option out of range, or no such length.
        PackageError: no package is there, or it is damaged.
        UnsupportedError: the model neither embeds nor classifies.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        length: str | None = None,
        batch_tokens: int = BATCH_TOKENS,
        num_threads: int | None = None,
        weights: str | None = "mapped",
    ) -> None:
        self._engine = open_engine(model, num_threads, weights)
        longest = self._engine.max_length
        remedy = f"a batch needs room for one text, which has up to {longest} tokens"
        check_count("batch_tokens", batch_tokens, remedy, least=longest)
        # Serve fails on an item that is larger than a batch, so requests are cut into items that fit.
        self._texts_of_item = batch_tokens // longest
        self._length = length
        self._run_batch.set_max_batch_size(batch_tokens)
        self._embeds = self._engine.task == EmbedTask.kind
        self._prepared(["a text that shows whether the options fit the model"], length)
        self._engine.warm_up()

    async def run(self, texts: Sequence[str], length: str | None = None) -> list[Any]:
        """Results of texts: vectors of an embedding model, else the dicts of ``Engine.classify``.

        Args:
            texts: the texts.
            length: a length config's name, or the config spelled out; None: that of the deployment.

        Raises:
            InputError: a missing text, or no such length.
        """
        known, _ = check_texts(texts, "inputs", blank=True)
        parts = [known[i : i + self._texts_of_item] for i in range(0, len(known), self._texts_of_item)]
        prepared = [await asyncio.to_thread(self._prepared, part, length or self._length) for part in parts]
        found = await asyncio.gather(*(self._run_batch(each) for each in prepared))
        return [result["vector"] if self._embeds else result for part in found for result in part]

    async def __call__(self, request: Request) -> Response:
        """``{"inputs": TEXT or [TEXT, ...], "length": NAME}`` -> a list with a result per text."""
        try:
            inputs, length = _asked(await request.body())
            found = await self.run(inputs, length)
        except QlaError as error:
            return JSONResponse({"error": str(error), "error_type": "Validation"}, 422)
        return JSONResponse([vector.tolist() for vector in found] if self._embeds else found)

    @serve.batch(max_batch_size=BATCH_TOKENS, batch_wait_timeout_s=0, batch_size_fn=_tokens)
    async def _run_batch(self, prepared: list[Prepared[Any]]) -> list[list[Any]]:
        return await asyncio.to_thread(self._engine.run, prepared)

    def _prepared(self, texts: list[str], length: str | None) -> Prepared[Any]:
        task: type[EmbedTask | LabelTask] = EmbedTask if self._embeds else LabelTask
        made = self._engine.as_task(task)
        call: Call[Any] = made.encode(texts) if isinstance(made, EmbedTask) else made.classify(texts)
        return self._engine.prepare(call, length)


def application(model: str | os.PathLike[str], **options: Any) -> serve.Application:
    """The deployment as an application for ``serve.run``.

    Args:
        model: as for :class:`TextModel`.
        options: the other arguments of :class:`TextModel`. ``TextModel.options(num_replicas=4)`` sets Serve's own.
    """
    return TextModel.bind(model, **options)  # type: ignore[attr-defined]  # what the decorator adds


def _asked(body: bytes) -> tuple[list[str], str | None]:
    """The texts and the length of a request.

    Raises:
        InputError: the body is something else.
    """
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise InputError(f"the body is no JSON ({error}); send an object with the key 'inputs'") from None
    if not isinstance(asked, dict) or "inputs" not in asked:
        raise InputError("the body has no key 'inputs'; send an object with a text or a list of texts there")
    unknown = sorted(asked.keys() - {"inputs", "length"})
    if unknown:
        raise InputError(f"the body has the key {shown(unknown[0])}; only 'inputs' and 'length' are known")
    inputs, length = asked["inputs"], asked.get("length")
    if length is not None and not isinstance(length, str):
        raise InputError(f"length is {shown(length)}; it must be a config's name, or one spelled out")
    return [inputs] if isinstance(inputs, str) else inputs, length
