"""A peer of `qla serve`: sentence-transformers with its OpenVINO backend behind uvicorn.

    python bench/worker/sentence_server.py CHECKPOINT --threads 2

It answers POST /embed as text-embeddings-inference does. To be fair, it batches as well as `qla serve`: one thread
encodes whatever is waiting, up to 64 texts. Needs sentence-transformers[openvino], uvicorn, starlette, orjson.
"""

from __future__ import annotations

import argparse
import asyncio
import queue
import socket
import sys
import threading
from typing import Any

import orjson
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

MOST_TEXTS = 64


def load(checkpoint: str, backend: str, threads: int) -> Any:
    """The model: mean pooling, vectors of length 1."""
    import torch
    from sentence_transformers import SentenceTransformer, models

    torch.set_num_threads(threads)
    options = {"model_args": {"ov_config": {"INFERENCE_NUM_THREADS": threads}}} if backend == "openvino" else {}
    encoder = models.Transformer(checkpoint, backend=backend, **options)
    return SentenceTransformer(modules=[encoder, models.Pooling(384, "mean"), models.Normalize()], device="cpu")


class Batches:
    """Encodes what is waiting, on one thread."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._waiting: queue.SimpleQueue[tuple[str, Any, Any]] = queue.SimpleQueue()
        threading.Thread(target=self._work, daemon=True).start()

    async def encode(self, text: str) -> Any:
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        self._waiting.put((text, loop, future))
        return await future

    def _work(self) -> None:
        while True:
            batch = [self._waiting.get()]
            while len(batch) < MOST_TEXTS and not self._waiting.empty():
                batch.append(self._waiting.get())
            vectors = self._model.encode([text for text, _, _ in batch], batch_size=MOST_TEXTS)
            pairs = [(future, vector) for (_, _, future), vector in zip(batch, vectors, strict=True)]
            batch[0][1].call_soon_threadsafe(_settle, pairs)


def _settle(pairs: list[tuple[Any, Any]]) -> None:
    for future, vector in pairs:
        if not future.done():
            future.set_result(vector)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoint")
    parser.add_argument("--backend", default="openvino")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    batches = Batches(load(arguments.checkpoint, arguments.backend, arguments.threads))

    async def embed(request: Request) -> Response:
        body = orjson.loads(await request.body())
        vector = await batches.encode(body["inputs"])
        content = orjson.dumps([vector], option=orjson.OPT_SERIALIZE_NUMPY)
        return Response(content, media_type="application/json")

    app = Starlette(routes=[Route("/embed", embed, methods=["POST"])])
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(f"serving http://127.0.0.1:{listener.getsockname()[1]}", file=sys.stderr, flush=True)
        config = uvicorn.Config(app, loop="uvloop", http="httptools", lifespan="off", ws="none", access_log=False)
        uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
