"""LangChain's Embeddings on the engine, without torch: python examples/python/langchain_embeddings.py

Needs: pip install langchain-core
"""

from __future__ import annotations

from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import InMemoryVectorStore

from qla_runtime import Engine


class QlaEmbeddings(Embeddings):
    """A model for embeddings: a package folder or the name of a packaged model."""

    def __init__(self, model: str, length: str | None = None) -> None:
        self.engine = Engine.from_pretrained(model)
        self.length = length

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return self.engine.encode_document(texts, self.length).tolist() if texts else []

    def embed_query(self, text: str) -> list[float]:
        return self.engine.encode_query(text, self.length).tolist()


def main() -> None:
    store = InMemoryVectorStore(QlaEmbeddings("all-minilm-l6-v2", length="balanced"))
    store.add_texts(
        [
            "Click 'Forgot password' on the login page to choose a new one.",
            "The office is closed on public holidays.",
            "Invoices are sent by e-mail on the first of each month.",
        ]
    )
    for document, score in store.similarity_search_with_score("I cannot sign in any more", k=2):
        print(f"{score:.3f}  {document.page_content}")


if __name__ == "__main__":
    main()
