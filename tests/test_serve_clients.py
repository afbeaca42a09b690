"""Real clients, unchanged, against a running server: openai, cohere, huggingface_hub, langchain-openai."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from qla_runtime import Engine, pipeline

pytest.importorskip("starlette", reason="needs the extra [serve]")
if TYPE_CHECKING:
    from route_tools import Running

SENTENCES = ["A man is eating food.", "A woman plays the violin."]
QUESTION = "Who wrote the first program?"
CONTEXT = "In 1843 Ada Lovelace wrote the first program, for an engine that was never built."
DOCUMENTS = ["a fish", "it is a dog", "nothing at all"]


def client(module: str) -> Any:
    return pytest.importorskip(module, reason="needs the extra [clients]")


def unit(server: Running, sentences: Any, **options: Any) -> np.ndarray:
    return server.engines["minilm"].encode(sentences, normalize_embeddings=True, **options)


# ---- openai


@pytest.fixture
def openai(server: Running) -> Any:
    return client("openai").OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


@pytest.mark.parametrize("more", [{}, {"encoding_format": "float"}, {"encoding_format": "base64"}])
def test_openai_embeddings(server: Running, openai: Any, more: dict):
    found = openai.embeddings.create(model="minilm", input=SENTENCES, **more)
    if more.get("encoding_format") == "base64":
        import base64

        rows = [np.frombuffer(base64.b64decode(entry.embedding), "<f4") for entry in found.data]
    else:
        rows = [entry.embedding for entry in found.data]
    assert np.array_equal(np.array(rows, np.float32), unit(server, SENTENCES))
    assert found.usage.prompt_tokens == found.usage.total_tokens > 0


def test_openai_alias_extra_body_and_dimensions(server: Running, openai: Any):
    by_alias = openai.embeddings.create(model="minilm:fast", input=SENTENCES[0], dimensions=32)
    expected = unit(server, SENTENCES[0], length="fast", truncate_dim=32)
    assert np.array_equal(np.array(by_alias.data[0].embedding, np.float32), expected)
    raw = openai.embeddings.with_raw_response.create(
        model="minilm", input=SENTENCES[0], dimensions=32, extra_body={"length": "fast"}
    )
    assert raw.headers["x-qla-length"] == "fast"
    assert raw.parse().data[0].embedding == by_alias.data[0].embedding


def test_openai_models_and_errors(server: Running, openai: Any):
    module = client("openai")
    assert [model.id for model in openai.models.list()] == list(server.engines)
    assert openai.models.retrieve("minilm").owned_by == "qla_runtime"
    with pytest.raises(module.NotFoundError, match="use one of squad, minilm") as unknown:
        openai.embeddings.create(model="text-embedding-3-small", input="a")
    assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")
    with pytest.raises(module.UnprocessableEntityError, match="dimensions is 500"):
        openai.embeddings.create(model="minilm", input="a", dimensions=500)
    with pytest.raises(module.BadRequestError, match="input is an empty list"):
        openai.embeddings.create(model="minilm", input=[])
    with pytest.raises(module.UnprocessableEntityError, match="token ids"):
        openai.embeddings.create(model="minilm", input=[1, 2, 3])


# ---- langchain-openai


def langchain(server: Running, **options: Any) -> Any:
    embeddings = client("langchain_openai").OpenAIEmbeddings
    return embeddings(model="minilm", base_url=f"{server.url}/v1", api_key="none", max_retries=0, **options)


def test_langchain_openai(server: Running):
    embeddings = langchain(server, check_embedding_ctx_length=False)
    found = embeddings.embed_documents(SENTENCES)
    assert np.array_equal(np.array(found, np.float32), unit(server, SENTENCES))
    assert np.array_equal(np.array(embeddings.embed_query("a"), np.float32), unit(server, "a"))


def test_langchain_openai_as_it_comes_names_the_option(server: Running, monkeypatch: pytest.MonkeyPatch):
    """It sends token ids. tiktoken would fetch the vocabulary of an OpenAI model; a local one stands in for it."""
    tiktoken = client("tiktoken")
    tokens = {bytes([i]): i for i in range(256)}
    local = tiktoken.Encoding("local", pat_str=".", mergeable_ranks=tokens, special_tokens={})
    monkeypatch.setattr(tiktoken, "encoding_for_model", lambda name: local)
    monkeypatch.setattr(tiktoken, "get_encoding", lambda name: local)
    with pytest.raises(client("openai").UnprocessableEntityError, match="check_embedding_ctx_length=False"):
        langchain(server).embed_documents(SENTENCES)


# ---- cohere


def test_cohere(server: Running):
    cohere = client("cohere")
    expected = [(e["index"], e["score"]) for e in server.engines["ranker"].rank("what is it?", DOCUMENTS)]
    asked = {"model": "ranker", "query": "what is it?", "documents": DOCUMENTS}
    for made in (cohere.Client, cohere.ClientV2):
        ranker = made(api_key="none", base_url=server.url)
        found = ranker.rerank(**asked, top_n=2)
        assert [(e.index, e.relevance_score) for e in found.results] == expected[:2]
    first = cohere.Client(api_key="none", base_url=server.url)
    shaped = first.rerank(**{**asked, "documents": [{"text": text} for text in DOCUMENTS]}, return_documents=True)
    assert [(e.index, e.document.text) for e in shaped.results] == [(i, DOCUMENTS[i]) for i, _ in expected]


def test_cohere_errors(server: Running):
    cohere = client("cohere")
    ranker = cohere.ClientV2(api_key="none", base_url=server.url)
    with pytest.raises(cohere.NotFoundError) as unknown:
        ranker.rerank(model="rerank-v3.5", query="a", documents=["b"])
    assert "use one of squad" in unknown.value.body["message"]
    with pytest.raises(cohere.BadRequestError) as empty:
        ranker.rerank(model="ranker", query="a", documents=[])
    assert "documents is an empty list" in empty.value.body["message"]


# ---- huggingface_hub


@pytest.fixture
def hub(server: Running) -> Callable[[str], Any]:
    inference = client("huggingface_hub").InferenceClient
    return lambda name: inference(model=f"{server.url}/models/{name}")


def test_hub_feature_extraction_and_similarity(server: Running, hub: Callable[[str], Any]):
    found = hub("minilm").feature_extraction(SENTENCES)
    assert np.array_equal(found, unit(server, SENTENCES))
    cut = hub("minilm").feature_extraction(SENTENCES[0], truncate=True, truncation_direction="right", dimensions=8)
    assert np.array_equal(cut, unit(server, SENTENCES[:1], truncate_dim=8))
    first, second = unit(server, SENTENCES)
    (score,) = hub("minilm").sentence_similarity(SENTENCES[0], SENTENCES[1:])
    assert score == pytest.approx(float(first @ second), abs=16 * 2.0**-24)  # 384 products, added in another order


def test_hub_question_answering(server: Running, hub: Callable[[str], Any]):
    best = pipeline("question-answering", server.engines["squad"])(question=QUESTION, context=CONTEXT)
    root = client("huggingface_hub").InferenceClient(model=server.url)  # the first model of the server
    for asked in (root, hub("squad")):
        found = asked.question_answering(question=QUESTION, context=CONTEXT)
        assert (found.answer, found.score, found.start, found.end) == ("Ada Lovelace", best["score"], 8, 20)
    several = hub("squad:fast").question_answering(question=QUESTION, context=CONTEXT, top_k=3, max_answer_len=10)
    assert len(several) == 3


def test_hub_classification(server: Running, hub: Callable[[str], Any]):
    scores = server.engines["labels"].classify("abc", top_k=None)["scores"]
    found = hub("labels").text_classification("abc")
    assert [(e.label, e.score) for e in found] == [(e["label"], e["score"]) for e in scores]
    assert len(hub("labels").text_classification("abc", top_k=2, function_to_apply="sigmoid")) == 2
    text = "ada lives in london"
    spans = pipeline("token-classification", server.engines["tags"], aggregation_strategy="simple")(text)
    tagged = hub("tags").token_classification(text, aggregation_strategy="simple")
    assert [(e.entity_group, e.word, e.score, e.start, e.end) for e in tagged] == [
        (e["entity_group"], e["word"], e["score"], e["start"], e["end"]) for e in spans
    ]


def test_hub_info_and_health(server: Running):
    inference = client("huggingface_hub").InferenceClient
    minilm = inference(model=f"{server.url}/models/minilm", provider="hf-inference")
    assert minilm.health_check()
    assert minilm.get_endpoint_info()["model_type"] == {"embedding": {"pooling": "mean"}}


def test_hub_errors(server: Running, hub: Callable[[str], Any]):
    errors = client("huggingface_hub.errors")
    with pytest.raises(errors.HfHubHTTPError, match="inputs.question is ' '") as blank:
        hub("squad").question_answering(question=" ", context=CONTEXT)
    assert blank.value.response.status_code == 422
    with pytest.raises(errors.HfHubHTTPError):
        hub("squad").text_classification("a text")


# ---- the API key, as each sends it


def test_the_key(packages: dict[str, str]):
    from route_tools import running

    openai, cohere, hub = client("openai"), client("cohere"), client("huggingface_hub")
    engines = {name: Engine(packages[name], num_threads=1) for name in ("embedding", "ranker")}
    with running(engines, api_key="secret") as server:

        def embed(key: str) -> Any:
            asked = openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0)
            return asked.embeddings.create(model="embedding", input="abc")

        def rank(key: str) -> Any:
            return cohere.ClientV2(api_key=key, base_url=server.url).rerank(
                model="ranker", query="abc", documents=["de"]
            )

        def similar(key: str) -> Any:
            return hub.InferenceClient(model=server.url, token=key).sentence_similarity("abc", ["de"])

        assert embed("secret").data and rank("secret").results and similar("secret")
        with pytest.raises(openai.AuthenticationError, match="Authorization: Bearer KEY"):
            embed("wrong")
        with pytest.raises(cohere.UnauthorizedError):
            rank("wrong")
        with pytest.raises(hub.errors.HfHubHTTPError) as refused:
            similar("wrong")
    assert refused.value.response.status_code == 401
