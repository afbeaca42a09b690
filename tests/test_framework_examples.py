"""The examples for frameworks give what the engine gives. Those for deployment call `qla serve` with its flags."""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import package_tools as tools
import pytest
from package_tools import tiny_package

from qla_runtime import Engine

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
EXAMPLES = ROOT / "examples" / "python"
TEXTS = ["a b c", "the office is closed", "click on it"]
FOUND = "Click 'Forgot password' on the login page to choose a new one."
"""What the examples' search finds first."""


def example(name: str, *needs: str) -> ModuleType:
    """The script as a module, without running it."""
    for library in needs:
        pytest.importorskip(library, reason=f"examples/python/{name}.py needs it")
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where pydantic looks up the names of annotations
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Path:
    """A package whose vectors show which prompt was used."""
    path = tiny_package("embedding").save(tmp_path_factory.mktemp("encoder") / "package")
    prompts = {"query": "q: ", "document": "d: "}
    tools.edit_json(path, "config.json", lambda config: config.update(prompts=prompts))
    return path


@pytest.fixture(scope="module")
def engine(encoder) -> Engine:
    return Engine(encoder)


@pytest.fixture(scope="module")
def ranker(tmp_path_factory) -> Path:
    package = tiny_package("sequence-classification", problem="regression", labels=["r"], activation="per_token")
    return package.save(tmp_path_factory.mktemp("ranker") / "package")


def vectors(rows: list) -> np.ndarray:
    return np.array(rows, np.float32)


# ---- LangChain ---------------------------------------------------------------------------------------


def test_langchain_embeddings(encoder, engine, capsys):
    module = example("langchain_embeddings", "langchain_core")
    embeddings = module.QlaEmbeddings(str(encoder), length="fast")
    assert (vectors(embeddings.embed_documents(TEXTS)) == engine.encode_document(TEXTS, "fast")).all()
    assert (vectors(embeddings.embed_query(TEXTS[0])) == engine.encode_query(TEXTS[0], "fast")).all()
    assert embeddings.embed_documents([]) == []
    module.main()
    assert FOUND in capsys.readouterr().out.splitlines()[0]


def test_langchains_own_embeddings_open_a_package():
    library = pytest.importorskip("langchain_huggingface", reason="LangChain's sentence-transformers package")
    pytest.importorskip("sentence_transformers", "6.2", reason="the [sentence-transformers] extra")
    engine = Engine.from_pretrained("all-minilm-l6-v2")
    embeddings = library.HuggingFaceEmbeddings(
        model_name=str(engine.path),
        model_kwargs={"trust_remote_code": True, "model_kwargs": {"num_threads": 1}},
        encode_kwargs={"length": "fast"},
    )
    assert (vectors(embeddings.embed_documents(TEXTS)) == engine.encode(TEXTS, "fast")).all()
    assert (vectors(embeddings.embed_query(TEXTS[0])) == engine.encode(TEXTS[0], "fast")).all()


def test_langchain_reranker(ranker, capsys):
    module = example("langchain_reranker", "langchain_core")
    from langchain_core.documents import Document

    engine = Engine(ranker)
    reranker = module.QlaReranker(engine=engine, top_n=2, length="fast")
    documents = [Document(page_content=text, metadata={"id": i}) for i, text in enumerate(TEXTS)]
    found = reranker.compress_documents(documents, "what is closed")
    expected = engine.rank("what is closed", TEXTS, "fast", top_k=2)
    assert [each.metadata for each in found] == [
        {"id": each["index"], "relevance_score": each["score"]} for each in expected
    ]
    assert [each.page_content for each in found] == [TEXTS[each["index"]] for each in expected]
    assert reranker.compress_documents([], "what") == []
    module.main(str(ranker))
    assert len(capsys.readouterr().out.splitlines()) == 2


# ---- LlamaIndex --------------------------------------------------------------------------------------


def test_llamaindex(encoder, engine, ranker, capsys):
    module = example("llamaindex", "llama_index.core")
    from llama_index.core.schema import NodeWithScore, TextNode

    embedding = module.QlaEmbedding(str(encoder), length="fast")
    assert (vectors(embedding.get_text_embedding_batch(TEXTS)) == engine.encode_document(TEXTS, "fast")).all()
    assert (vectors(embedding.get_text_embedding(TEXTS[0])) == engine.encode_document(TEXTS[0], "fast")).all()
    assert (vectors(embedding.get_query_embedding(TEXTS[0])) == engine.encode_query(TEXTS[0], "fast")).all()

    rerank = module.QlaRerank(str(ranker), top_n=2)
    nodes = [NodeWithScore(node=TextNode(text=text), score=0.0) for text in TEXTS]
    found = rerank.postprocess_nodes(nodes, query_str="what is closed")
    expected = Engine(ranker).rank("what is closed", TEXTS, top_k=2)
    assert [(each.text, each.score) for each in found] == [(TEXTS[e["index"]], e["score"]) for e in expected]
    assert rerank.postprocess_nodes([], query_str="what") == []
    with pytest.raises(ValueError, match="needs the query"):
        rerank.postprocess_nodes(nodes)
    module.main()
    assert FOUND in capsys.readouterr().out.splitlines()[0]
    module.main(str(ranker))
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_llamaindexs_own_embedding_opens_a_package(tmp_path):
    library = pytest.importorskip("llama_index.embeddings.huggingface", reason="its sentence-transformers package")
    pytest.importorskip("sentence_transformers", "6.2", reason="the [sentence-transformers] extra")
    engine = Engine.from_pretrained("all-minilm-l6-v2")
    embedding = library.HuggingFaceEmbedding(
        str(engine.path), trust_remote_code=True, normalize=False, max_length=64, cache_folder=str(tmp_path)
    )
    assert (vectors(embedding.get_text_embedding_batch(TEXTS)) == engine.encode(TEXTS)).all()
    assert (vectors(embedding.get_query_embedding(TEXTS[0])) == engine.encode(TEXTS[0])).all()
    assert embedding._model.max_seq_length == 64


# ---- Haystack ----------------------------------------------------------------------------------------


def test_haystack(encoder, engine, ranker, capsys):
    module = example("haystack_components", "haystack")
    from haystack import Document

    documents = [Document(content=text) for text in TEXTS]
    found = module.QlaDocumentEmbedder(str(encoder), length="fast").run(documents)["documents"]
    assert (vectors([each.embedding for each in found]) == engine.encode_document(TEXTS, "fast")).all()
    assert [each.id for each in found] == [each.id for each in documents]
    embedder = module.QlaTextEmbedder(str(encoder))
    assert (vectors(embedder.run(TEXTS[0])["embedding"]) == engine.encode_query(TEXTS[0])).all()
    ranked = module.QlaRanker(str(ranker)).run("what is closed", documents, top_k=2)["documents"]
    expected = Engine(ranker).rank("what is closed", TEXTS, top_k=2)
    assert [(each.content, each.score) for each in ranked] == [(TEXTS[e["index"]], e["score"]) for e in expected]
    assert module.QlaRanker(str(ranker)).run("what", [])["documents"] == []
    module.main()
    assert FOUND in capsys.readouterr().out.splitlines()[0]
    module.main(str(ranker))
    assert len(capsys.readouterr().out.splitlines()) == 2


# ---- mteb --------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("length", ["full", "fast"])
def test_mteb_prints_what_eval_prints(length):
    data = Path(os.environ.get("QLA_DATA", SHARED / "data")) / "stsbenchmark" / "sts-test.csv"
    if not data.is_file():
        pytest.skip(f"needs {data} (QLA_DATA says where)")
    module = example("mteb_sts", "mteb", "sentence_transformers")
    from qla_runtime.evaluation.sts import sts

    expected = sts(Engine.from_pretrained("all-minilm-l6-v2"), data, length).spearman
    assert round(module.evaluate(data, length), 3) == round(expected, 3)


# ---- FastAPI -----------------------------------------------------------------------------------------


def test_fastapi():
    pytest.importorskip("httpx", reason="FastAPI's test client needs it")
    module = example("fastapi_app", "fastapi")
    from fastapi.testclient import TestClient

    engine = Engine.from_pretrained("all-minilm-l6-v2")
    with TestClient(module.app) as client:
        answer = client.post("/embed", json={"texts": TEXTS, "length": "fast"})
        assert answer.status_code == 200
        assert (vectors(answer.json()["vectors"]) == engine.encode(TEXTS, "fast")).all()
        bad = client.post("/embed", json={"texts": TEXTS, "length": "quick"})
        assert bad.status_code == 422 and "'quick' is not one of" in bad.json()["detail"]
        assert client.post("/embed", json={"texts": []}).status_code == 422
        assert client.post("/embed", json={"texts": TEXTS, "latency_ms": 10_000}).status_code == 200


# ---- deployment --------------------------------------------------------------------------------------


def dockerfile() -> list[str]:
    text = (ROOT / "examples" / "deploy" / "Dockerfile").read_text(encoding="utf-8")
    lines = [line.partition(" ") for line in text.splitlines()]
    entry, command = (json.loads(line[2]) for word in ("ENTRYPOINT", "CMD") for line in lines if line[0] == word)
    return entry + command


def kserve() -> list[str]:
    yaml = pytest.importorskip("yaml", reason="kserve.yaml is YAML")
    service = yaml.safe_load((ROOT / "examples" / "deploy" / "kserve.yaml").read_text(encoding="utf-8"))
    (container,) = service["spec"]["predictor"]["containers"]
    assert container["readinessProbe"]["httpGet"]["port"] == container["ports"][0]["containerPort"] == 8080
    return dockerfile()[:-1] + container["args"]


def unit() -> list[str]:
    text = (ROOT / "examples" / "deploy" / "qla-serve.service").read_text(encoding="utf-8")
    (line,) = [line for line in text.splitlines() if line.startswith("ExecStart=")]
    return shlex.split(line.removeprefix("ExecStart="))


@pytest.mark.parametrize(
    ("read", "packages", "host"),
    [
        (dockerfile, ["all-minilm-l6-v2"], "0.0.0.0"),
        (kserve, ["minilm=/mnt/models"], "0.0.0.0"),
        (unit, ["minilm=/srv/qla/minilm"], "127.0.0.1"),
    ],
)
def test_deployments_call_qla_serve_as_it_is(read, packages, host):
    pytest.importorskip("qla_runtime.cli.commands.serve", reason="there is no qla serve")
    from qla_runtime.cli import program

    words = read()
    assert Path(words[0]).name == "qla" and words[1] == "serve"
    found = program.parser().parse_args(words[1:])
    assert (found.packages, found.host, found.port) == (packages, host, 8080)
