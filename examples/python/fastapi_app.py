"""Embeddings in a FastAPI app of your own: uvicorn --app-dir examples/python fastapi_app:app

FastAPI runs plain functions on threads. These can share the engine, whose calls release the GIL. For a server with
batching, limits and metrics, see `qla serve`. Needs: pip install fastapi uvicorn
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, HTTPException, Request
from pydantic import BaseModel, Field

from qla_runtime import Engine, InputError


class Texts(BaseModel):
    texts: list[str] = Field(min_length=1, max_length=256)
    length: str | None = None
    latency_ms: float | None = None


class Vectors(BaseModel):
    vectors: list[list[float]]


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    with Engine.from_pretrained("all-minilm-l6-v2") as engine:
        engine.warm_up()  # latency budgets count from the first request on
        app.state.engine = engine
        yield


app = FastAPI(lifespan=lifespan)


@app.post("/embed")
def embed(body: Texts, request: Request) -> Vectors:
    engine: Engine = request.app.state.engine
    try:
        vectors = engine.encode(body.texts, body.length, latency_ms=body.latency_ms)
    except InputError as error:
        raise HTTPException(422, str(error)) from error
    return Vectors(vectors=vectors.tolist())
