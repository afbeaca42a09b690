"""LangChain's document compressor on the engine: python examples/python/langchain_reranker.py RANKER

RANKER is the package of a cross-encoder, for example of
`qla convert cross-encoder/ms-marco-MiniLM-L6-v2 RANKER`. Needs: pip install langchain-core
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from langchain_core.callbacks import Callbacks
from langchain_core.documents import BaseDocumentCompressor, Document
from pydantic import ConfigDict

from qla_runtime import Engine


class QlaReranker(BaseDocumentCompressor):
    """Keeps the ``top_n`` documents that answer a query best, with their scores in ``relevance_score``."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    engine: Engine
    top_n: int = 3
    length: str | None = None

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> list[Document]:
        if not documents:
            return []
        texts = [document.page_content for document in documents]
        kept = []
        for ranked in self.engine.rank(query, texts, self.length, top_k=self.top_n):
            document = documents[ranked["index"]]
            metadata = {**document.metadata, "relevance_score": ranked["score"]}
            kept.append(Document(page_content=document.page_content, metadata=metadata))
        return kept


def main(package: str) -> None:
    reranker = QlaReranker(engine=Engine(package), top_n=2)
    documents = [
        Document(page_content="The office is closed on public holidays.", metadata={"id": 1}),
        Document(page_content="Click 'Forgot password' on the login page.", metadata={"id": 2}),
        Document(page_content="Invoices are sent by e-mail.", metadata={"id": 3}),
    ]
    for document in reranker.compress_documents(documents, "How do I get a new password?"):
        print(f"{document.metadata['relevance_score']:.3f}  {document.page_content}")


if __name__ == "__main__":
    main(sys.argv[1])
