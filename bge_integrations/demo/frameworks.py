"""The same passages in LangChain's and in LlamaIndex's own in-memory store, each behind its retriever."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bge_integrations._extras import require

require("langchain_core", extra="langchain")
require("llama_index.core", extra="llama-index")

# ruff: noqa: E402 - the imports below stand after the check that gives their absence a name
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.runnables import RunnableLambda
from langchain_core.vectorstores import InMemoryVectorStore
from llama_index.core import VectorStoreIndex
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.schema import TextNode

from bge_integrations.demo.corpus import Entry

__all__ = ["TOP_K", "Hit", "Retrieve", "index_with_langchain", "index_with_llama_index"]

TOP_K = 5
"""Answers asked of a retriever."""


@dataclass(frozen=True)
class Hit:
    """One answer of a retriever: the name of an entry and its cosine similarity to the question."""

    name: str
    score: float


Retrieve = Callable[[str], list[Hit]]
"""Takes a question, returns its `TOP_K` hits, best first."""


def index_with_langchain(entries: Sequence[Entry], embeddings: Embeddings) -> Retrieve:
    """Embed the entries into an `InMemoryVectorStore`."""
    store = InMemoryVectorStore(embeddings)
    store.add_documents([Document(entry.text, metadata={"name": entry.name}) for entry in entries])

    def with_scores(question: str) -> list[Document]:
        found = store.similarity_search_with_score(question, k=TOP_K)
        return [
            Document(document.page_content, metadata={**document.metadata, "score": score}) for document, score in found
        ]

    # `store.as_retriever()` drops the scores; wrapping the search that has them is LangChain's documented way.
    retriever = RunnableLambda(with_scores)
    return lambda question: [
        Hit(document.metadata["name"], float(document.metadata["score"])) for document in retriever.invoke(question)
    ]


def index_with_llama_index(
    entries: Sequence[Entry], embedding: BaseEmbedding, *, show_progress: bool = False
) -> Retrieve:
    """Embed the entries into a `VectorStoreIndex`."""
    nodes = [TextNode(id_=entry.name, text=entry.text) for entry in entries]
    index = VectorStoreIndex(nodes, embed_model=embedding, show_progress=show_progress)
    retriever = index.as_retriever(similarity_top_k=TOP_K)
    return lambda question: [Hit(found.node_id, float(found.score or 0.0)) for found in retriever.retrieve(question)]
