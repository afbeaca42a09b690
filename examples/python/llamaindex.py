"""LlamaIndex on the engine, without torch: python examples/python/llamaindex.py [RANKER]

An embedding for an index, and a reranker if the package of a cross-encoder is given. Needs: pip install
llama-index-core
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from llama_index.core import VectorStoreIndex
from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.embeddings import BaseEmbedding
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle, TextNode

from qla_runtime import Engine


class QlaEmbedding(BaseEmbedding):
    """A model for embeddings: a package folder or the name of a packaged model."""

    length: str | None = None
    _engine: Engine = PrivateAttr()

    def __init__(self, model: str, **options: Any) -> None:
        super().__init__(model_name=model, **options)
        self._engine = Engine.from_pretrained(model)

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._engine.encode_query(query, self.length).tolist()

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return await asyncio.to_thread(self._get_query_embedding, query)

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._engine.encode_document(text, self.length).tolist()

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return self._engine.encode_document(texts, self.length).tolist()


class QlaRerank(BaseNodePostprocessor):
    """Keeps the ``top_n`` nodes that answer a query best, with the cross-encoder's scores."""

    top_n: int = 3
    length: str | None = None
    _engine: Engine = PrivateAttr()

    def __init__(self, model: str, **options: Any) -> None:
        super().__init__(**options)
        self._engine = Engine.from_pretrained(model)

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        if query_bundle is None:
            raise ValueError("a reranker needs the query: postprocess_nodes(nodes, query_str=...)")
        if not nodes:
            return []
        texts = [node.node.get_content(MetadataMode.EMBED) for node in nodes]
        ranked = self._engine.rank(query_bundle.query_str, texts, self.length, top_k=self.top_n)
        return [NodeWithScore(node=nodes[each["index"]].node, score=each["score"]) for each in ranked]


def main(ranker: str | None = None) -> None:
    texts = [
        "Click 'Forgot password' on the login page to choose a new one.",
        "The office is closed on public holidays.",
        "Invoices are sent by e-mail on the first of each month.",
    ]
    embedding = QlaEmbedding("all-minilm-l6-v2", length="balanced")
    index = VectorStoreIndex([TextNode(text=text) for text in texts], embed_model=embedding)
    query = "I cannot sign in any more"
    nodes = index.as_retriever(similarity_top_k=2).retrieve(query)
    if ranker is not None:
        nodes = QlaRerank(ranker, top_n=2).postprocess_nodes(nodes, query_str=query)
    for node in nodes:
        print(f"{node.score:.3f}  {node.node.get_content()}")


if __name__ == "__main__":
    main(*sys.argv[1:])
