"""The server's batches: same bits in any company, order, fairness, budgets, and requests that fail or leave."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("prometheus_client", reason="the server needs the extra [serve]")

from qla_runtime import Engine, InputError
from qla_runtime.serve.options import ServeOptions
from qla_runtime.serve.refusals import ClientGone, QueueTimeout, Stopping
from qla_runtime.serve.served import Models, ServedModel, Wants
from qla_runtime.tasks.answer import AnswerTask
from qla_runtime.tasks.embed import EmbedTask
from qla_runtime.tasks.prepared import Call

PLAIN = Wants()
SENTENCES = [f"sentence {i} of many, and it has {'very ' * (i % 40)}many words" for i in range(60)]
CONTEXT = "Ada Lovelace wrote the first program in 1843. " + "It was for a machine that was never built. " * 20


@pytest.fixture(scope="module")
def embedder() -> Engine:
    return Engine.from_pretrained("all-minilm-l6-v2", num_threads=1)


@pytest.fixture(scope="module")
def reader() -> Engine:
    return Engine.from_pretrained("minilm-l6-squad", num_threads=1)


@pytest.fixture
def serving() -> Iterator[Callable[..., Models]]:
    """Makes the models of a server, and closes them in the end."""
    made: list[Models] = []

    def make(*engines: Engine, **options: Any) -> Models:
        made.append(Models({engine.name: engine for engine in engines}, ServeOptions(**options)))
        return made[-1]

    yield make
    for models in made:
        models.close()


def embedding(model: ServedModel, texts: Any) -> Callable[[], Call[Any]]:
    return lambda: model.engine.as_task(EmbedTask).encode(texts)


def answering(model: ServedModel, questions: Any, contexts: Any) -> Callable[[], Call[Any]]:
    return lambda: model.engine.as_task(AnswerTask).answer(questions, contexts)


def vectors(outcome: Any) -> np.ndarray:
    return np.stack([result["vector"] for result in outcome.results])


async def settled(*requests: Any) -> list[Any]:
    """What each gave: an outcome or an error."""
    return await asyncio.gather(*requests, return_exceptions=True)


# ------------------------------------------------------------------------------------------------ same bits


def test_embeddings_have_the_same_bits_as_from_the_engine(embedder, serving):
    model = serving(embedder, max_batch_tokens=600).get(None)
    lengths = [None, "fast", "balanced", "ratio(1, 1, 0.5, 0.5, 0.25, 0.25)"]

    async def all_at_once() -> list[Any]:
        one_each = [
            model.run(embedding(model, text), Wants(length=lengths[i % 4])) for i, text in enumerate(SENTENCES)
        ]
        return await settled(*one_each, model.run(embedding(model, SENTENCES), PLAIN))

    *alone, together = asyncio.run(all_at_once())
    for i, outcome in enumerate(alone):
        assert np.array_equal(vectors(outcome)[0], embedder.encode(SENTENCES[i], lengths[i % 4]))
        assert outcome.lengths == [lengths[i % 4] or "full"]
    assert np.array_equal(vectors(together), embedder.encode(SENTENCES))


def test_answers_are_those_of_the_engine(reader, serving):
    model = serving(reader).get(None)
    questions = [f"Who wrote the {word} program?" for word in ("first", "second", "last", "longest")] * 4

    async def all_at_once() -> list[Any]:
        return await settled(*(model.run(answering(model, q, CONTEXT), PLAIN) for q in questions))

    found = asyncio.run(all_at_once())
    assert [outcome.results[0] for outcome in found] == reader.answer(questions, [CONTEXT] * len(questions))


def test_two_models_at_once(embedder, reader, serving):
    models = serving(embedder, reader, streams=2)
    first, second = models.get("all-minilm-l6-v2"), models.get("minilm-l6-squad")

    async def both() -> list[Any]:
        return await settled(
            *(model_run for text in SENTENCES[:20] for model_run in (
                first.run(embedding(first, text), PLAIN),
                second.run(answering(second, text, CONTEXT), PLAIN),
            ))
        )  # fmt: skip

    found = asyncio.run(both())
    assert np.array_equal(np.concatenate([vectors(each) for each in found[::2]]), embedder.encode(SENTENCES[:20]))
    expected = reader.answer(SENTENCES[:20], [CONTEXT] * 20)
    assert [each.results[0] for each in found[1::2]] == expected


# ----------------------------------------------------------------------------------------- what an outcome says


def test_an_outcome_adds_up(embedder, serving):
    model = serving(embedder, max_batch_tokens=100).get(None)
    outcome = asyncio.run(run_one(model, SENTENCES, Wants(length="fast")))
    tokens = [len(ids) for ids in tokenized(embedder, SENTENCES)]
    config = embedder.lengths["fast"].config
    assert outcome.tokens == sum(tokens)
    assert outcome.full_macs == sum(embedder.macs(n) for n in tokens)
    assert outcome.kept_macs == sum(embedder.macs(n, "fast") for n in tokens)
    assert outcome.kept_tokens == sum(config.kept(n)[-1] for n in tokens)
    assert set(outcome.lengths) == {"fast"} and len(outcome.lengths) == len(SENTENCES)
    parts = outcome.tokenization_s + outcome.queue_s + outcome.inference_s
    assert outcome.total_s == pytest.approx(parts)


def tokenized(engine: Engine, texts: list[str]) -> list[list[int]]:
    return [encoding.ids for encoding in engine.text_encoder.encode(texts).encodings]


async def run_one(model: ServedModel, texts: Any, wants: Wants = PLAIN, **more: Any) -> Any:
    return await model.run(embedding(model, texts), wants, **more)


# --------------------------------------------------------------------------------------------------- fairness


def test_a_huge_request_does_not_hold_up_others(embedder, serving):
    model = serving(embedder, max_batch_tokens=500).get(None)
    done: list[str] = []

    async def named(name: str, texts: Any) -> None:
        await run_one(model, texts)
        done.append(name)

    async def huge_first() -> None:
        huge = asyncio.create_task(named("huge", SENTENCES * 3))
        await asyncio.sleep(0.05)
        await asyncio.gather(huge, *(named("small", text) for text in SENTENCES[:5]))

    asyncio.run(huge_first())
    assert done == ["small"] * 5 + ["huge"]


def test_a_long_text_does_not_hold_up_others(embedder, serving):
    model = serving(embedder).get(None)
    done: list[str] = []

    async def named(name: str, text: str) -> None:
        await run_one(model, text)
        done.append(name)

    async def long_first() -> None:
        await asyncio.gather(named("long", "many words " * 100_000), named("short", "a few words"))

    asyncio.run(long_first())
    assert done == ["short", "long"]


def test_a_flood_for_one_model_leaves_room_for_another(embedder, reader, serving):
    models = serving(embedder, reader, max_batch_tokens=400)
    flooded, other = models.get("minilm-l6-squad"), models.get("all-minilm-l6-v2")

    async def flood() -> int:
        waiting = [asyncio.create_task(flooded.run(answering(flooded, "Who?", CONTEXT), PLAIN)) for _ in range(60)]
        await asyncio.sleep(0.05)
        await run_one(other, "a sentence")
        left = sum(not task.done() for task in waiting)
        await asyncio.gather(*waiting)
        return left

    assert asyncio.run(flood()) > 0


# ---------------------------------------------------------------------------------------------------- budgets


def test_waiting_counts_against_the_budget(reader, serving):
    model = serving(reader).get(None)
    reader.warm_up()

    async def behind_much_work() -> list[Any]:
        work = model.run(answering(model, ["Who?"] * 40, [CONTEXT] * 40), PLAIN)
        return await settled(work, late_request())

    async def late_request() -> Any:
        await asyncio.sleep(0.05)
        return await model.run(answering(model, "Who?", CONTEXT), Wants(latency_ms=40))

    work, late = asyncio.run(behind_much_work())
    alone = asyncio.run(model.run(answering(model, "Who?", CONTEXT), Wants(latency_ms=2000)))
    assert work.inference_s > 0.1
    assert late.results[0]["budget_met"] is False and late.lengths != ["full"]
    assert alone.results[0]["budget_met"] is True and alone.lengths == ["full"]


def test_a_batch_with_a_budget_takes_less_company(embedder, serving):
    """What is predicted to cost the budget half of its time waits for the next batch."""
    model = serving(embedder).get(None)
    seconds = embedder.cost_model.seconds([20] * 40, embedder.lengths["full"].config)

    async def together(budget: float) -> list[Any]:
        ahead = asyncio.create_task(run_one(model, "first words " * 200))
        await asyncio.sleep(0.002)
        hurried = run_one(model, "hurried words", Wants(latency_ms=1e3 * budget))
        company = (run_one(model, text) for text in SENTENCES)
        return (await asyncio.gather(ahead, hurried, *company))[1:]

    hurried, *company = asyncio.run(together(seconds))
    assert hurried.inference_s < sum({round(each.inference_s, 9) for each in company})


# --------------------------------------------------------------------------------------- what does not run


def test_a_client_that_left_costs_nothing(embedder, serving):
    models = serving(embedder)
    model = models.get(None)
    gone, here = asyncio.run(both_with(model))
    assert isinstance(gone, ClientGone)
    assert len(here.results) == 1
    assert models.batcher.queued_tokens == 0


async def both_with(model: ServedModel) -> list[Any]:
    return await settled(run_one(model, ["a text"] * 30, gone=lambda: True), run_one(model, "another"))


def test_a_client_that_leaves_while_it_waits(embedder, serving):
    """The tokenizer has had its turn; the engine has not."""
    model = serving(embedder, max_batch_tokens=300).get(None)
    left: list[bool] = []

    async def leaves() -> list[Any]:
        work = asyncio.create_task(run_one(model, SENTENCES * 2))
        await asyncio.sleep(0.05)
        waiting = asyncio.create_task(run_one(model, "a text", gone=lambda: bool(left)))
        left.append(True)
        return await settled(work, waiting)

    work, gone = asyncio.run(leaves())
    assert isinstance(gone, ClientGone) and len(work.results) == 2 * len(SENTENCES)


def test_a_request_that_waits_too_long(embedder, serving):
    """Any wait is longer than none; the next server has time."""
    hasty, patient = serving(embedder, max_queue_ms=0.0), serving(embedder, max_queue_ms=60_000.0)

    async def both() -> list[Any]:
        return await settled(run_one(hasty.get(None), SENTENCES), run_one(patient.get(None), SENTENCES))

    late, answered = asyncio.run(both())
    assert isinstance(late, QueueTimeout) and late.retry_after >= 1
    assert "and this server lets it wait 0 ms (--max-queue-ms)" in str(late)
    assert np.array_equal(vectors(answered), embedder.encode(SENTENCES))


def test_one_request_s_error_is_its_own(embedder, serving):
    model = serving(embedder, max_request_tokens=400).get(None)

    def fails(*_: Any) -> Any:
        raise ZeroDivisionError

    def reading(read: Callable[..., Any]) -> Callable[[], Call[Any]]:
        call = embedding(model, "a text")()
        return lambda: replace(call, tokenize=lambda *given: replace(call.tokenize(*given), read=read))

    async def together() -> list[Any]:
        return await settled(
            run_one(model, "good"),
            model.run(reading(fails), PLAIN),
            run_one(model, []),
            run_one(model, "good", Wants(length="unknown")),
            run_one(model, SENTENCES),
            run_one(model, "good"),
        )

    first, broke, empty, unknown, many, last = asyncio.run(together())
    assert np.array_equal(vectors(first), vectors(last))
    assert isinstance(broke, ZeroDivisionError)
    with pytest.raises(AttributeError):  # in the batcher itself
        asyncio.run(model.run(reading(lambda *_: [object()]), PLAIN))
    assert np.array_equal(vectors(asyncio.run(run_one(model, "good"))), vectors(first))
    assert isinstance(empty, InputError) and "sentences is an empty list" in str(empty)
    assert isinstance(unknown, InputError) and "'unknown'" in str(unknown)
    assert isinstance(many, InputError) and "--max-request-tokens" in str(many)


def test_what_was_accepted_is_answered_at_the_end(embedder, serving):
    models = serving(embedder, max_batch_tokens=200)
    model = models.get(None)

    async def closes() -> list[Any]:
        waiting = [asyncio.create_task(run_one(model, text)) for text in SENTENCES]
        await asyncio.sleep(0)
        await asyncio.get_running_loop().run_in_executor(None, models.close)
        return await settled(*waiting, run_one(model, "too late"))

    *accepted, late = asyncio.run(closes())
    assert np.array_equal(np.concatenate([vectors(each) for each in accepted]), embedder.encode(SENTENCES))
    assert isinstance(late, Stopping)


# ------------------------------------------------------------------------------------------ names and wishes


@pytest.mark.parametrize(
    ("name", "said"),
    [("gpt-4", "'gpt-4' is not served here; use one of all-minilm-l6-v2"),
     ("all-minilm-l6-v2:quick", "no length config 'quick'; use one of full, balanced, fast"),
     ("", "'' is not served here"), (":", "':' is not served here")],
)  # fmt: skip
def test_unknown_models(embedder, serving, name, said):
    with pytest.raises(InputError, match=said):
        serving(embedder).get(name)


def test_an_alias_names_a_length(embedder, serving):
    models = serving(embedder)
    fast = models.get("all-minilm-l6-v2:fast")
    assert models.get("all-minilm-l6-v2:fast") is fast and fast.alias_length == "fast"
    assert asyncio.run(run_one(fast, "a text of some words")).lengths == ["fast"]
    with pytest.raises(InputError, match="names a length config, and the request asks for another"):
        asyncio.run(run_one(fast, "a text", Wants(latency_ms=5)))


@pytest.mark.parametrize(
    "given", [{"length": "fast", "latency_ms": 5.0}, {"latency_ms": 5.0, "max_loss": 1.0}, {"latency_ms": -1.0},
              {"max_loss": float("nan")}],
)  # fmt: skip
def test_wishes_that_do_not_fit(given):
    with pytest.raises(InputError):
        Wants(**given)


def test_a_loss(embedder, serving):
    model = serving(embedder).get(None)
    lengths = asyncio.run(run_one(model, "a text of some words", Wants(max_loss=100.0))).lengths
    assert lengths != ["full"]


@pytest.mark.slow
def test_memory_stays_flat(embedder, serving):
    """A hundred thousand requests, and nothing is left of them."""
    model = serving(embedder).get(None)

    async def some() -> None:
        for _ in range(100):
            await asyncio.gather(*(run_one(model, text) for text in SENTENCES[:100]))

    asyncio.run(some())
    before = resident()
    for _ in range(9):
        asyncio.run(some())
    assert resident() - before < 8e6


def resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


def test_an_idle_server_uses_no_cpu(embedder, serving):
    serving(embedder)
    began = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - began < 0.05
