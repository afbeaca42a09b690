"""Haystack components on the engine, without torch: python examples/python/haystack_components.py [RANKER]

Embedders for documents and queries, and a ranker if the package of a cross-encoder is given. Needs: pip install
haystack-ai
"""

from __future__ import annotations

import sys
from dataclasses import replace

from haystack import Document, Pipeline, component
from haystack.components.retrievers.in_memory import InMemoryEmbeddingRetriever
from haystack.document_stores.in_memory import InMemoryDocumentStore

from qla_runtime import Engine


class _Component:
    """Opens the model at ``warm_up``, which a Pipeline calls before its first run."""

    def __init__(self, model: str, length: str | None = None) -> None:
        self.model = model
        self.length = length
        self.engine: Engine | None = None

    def warm_up(self) -> None:
        self.opened()

    def opened(self) -> Engine:
        if self.engine is None:
            self.engine = Engine.from_pretrained(self.model)
        return self.engine


@component
class QlaTextEmbedder(_Component):
    """The embedding of a query."""

    @component.output_types(embedding=list[float])
    def run(self, text: str) -> dict[str, list[float]]:
        return {"embedding": self.opened().encode_query(text, self.length).tolist()}


@component
class QlaDocumentEmbedder(_Component):
    """Documents with their embeddings."""

    @component.output_types(documents=list[Document])
    def run(self, documents: list[Document]) -> dict[str, list[Document]]:
        if not documents:
            return {"documents": []}
        texts = [document.content or "" for document in documents]
        vectors = self.opened().encode_document(texts, self.length)
        embedded = [
            replace(document, embedding=vector.tolist())
            for document, vector in zip(documents, vectors, strict=True)
        ]
        return {"documents": embedded}


@component
class QlaRanker(_Component):
    """The ``top_k`` documents that answer a query best, with the cross-encoder's scores."""

    @component.output_types(documents=list[Document])
    def run(self, query: str, documents: list[Document], top_k: int = 10) -> dict[str, list[Document]]:
        if not documents:
            return {"documents": []}
        texts = [document.content or "" for document in documents]
        ranked = self.opened().rank(query, texts, self.length, top_k=top_k)
        return {"documents": [replace(documents[each["index"]], score=each["score"]) for each in ranked]}


def main(ranker: str | None = None) -> None:
    store = InMemoryDocumentStore(embedding_similarity_function="cosine")
    documents = [
        Document(content="Click 'Forgot password' on the login page to choose a new one."),
        Document(content="The office is closed on public holidays."),
        Document(content="Invoices are sent by e-mail on the first of each month."),
    ]
    store.write_documents(QlaDocumentEmbedder("all-minilm-l6-v2").run(documents)["documents"])

    query = "I cannot sign in any more"
    search = Pipeline()
    search.add_component("embedder", QlaTextEmbedder("all-minilm-l6-v2"))
    search.add_component("retriever", InMemoryEmbeddingRetriever(store, top_k=2))
    search.connect("embedder.embedding", "retriever.query_embedding")
    inputs: dict[str, dict[str, str]] = {"embedder": {"text": query}}
    last = "retriever"
    if ranker is not None:
        search.add_component("ranker", QlaRanker(ranker))
        search.connect("retriever.documents", "ranker.documents")
        inputs["ranker"] = {"query": query}
        last = "ranker"
    for document in search.run(inputs)[last]["documents"]:
        print(f"{document.score:.3f}  {document.content}")


if __name__ == "__main__":
    main(*sys.argv[1:])
