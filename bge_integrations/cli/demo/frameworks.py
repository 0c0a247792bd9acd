"""The same passages in LangChain's and in LlamaIndex's own in-memory store."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bge_integrations._optional import require

require("langchain_core", extra="langchain")
require("llama_index.core", extra="llama-index")

# ruff: noqa: E402 - the imports below stand after the check that gives their absence a name
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import InMemoryVectorStore
from llama_index.core import VectorStoreIndex
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.schema import TextNode

from bge_integrations.cli.demo.corpus import Entry

__all__ = ["Hit", "Index", "index_with_langchain", "index_with_llama_index"]

_TOP_K = 5


@dataclass(frozen=True)
class Hit:
    """One answer: the name of an entry and its score for the question, a cosine similarity here."""

    name: str
    score: float


@dataclass(frozen=True)
class Index:
    """A filled store.

    Attributes:
        retrieve: Takes a question, returns five hits, best first.
        embedding_seconds: How long the model took for the passages.
        storing_seconds: How long everything else took, which is the framework's own work.
    """

    retrieve: Callable[[str], list[Hit]]
    embedding_seconds: float
    storing_seconds: float


def index_with_langchain(entries: Sequence[Entry], embeddings: Embeddings) -> Index:
    """Embeds the entries into an `InMemoryVectorStore`."""
    timed = _Timed(embeddings)
    start = time.perf_counter()
    store = InMemoryVectorStore(timed)
    store.add_documents([Document(entry.text, metadata={"name": entry.name}) for entry in entries])
    seconds = time.perf_counter() - start

    def retrieve(question: str) -> list[Hit]:
        found = store.similarity_search_with_score(question, k=_TOP_K)
        return [Hit(document.metadata["name"], float(score)) for document, score in found]

    return Index(retrieve, timed.seconds, seconds - timed.seconds)


def index_with_llama_index(entries: Sequence[Entry], embedding: BaseEmbedding, *, show_progress: bool) -> Index:
    """Embeds the entries into a `VectorStoreIndex`, in two steps as an ingestion pipeline does."""
    nodes = [TextNode(id_=entry.name, text=entry.text) for entry in entries]
    start = time.perf_counter()
    embedded = embedding(nodes, show_progress=show_progress)
    middle = time.perf_counter()
    index = VectorStoreIndex(list(embedded), embed_model=embedding)
    end = time.perf_counter()
    retriever = index.as_retriever(similarity_top_k=_TOP_K)

    def retrieve(question: str) -> list[Hit]:
        return [Hit(found.node_id, float(found.score or 0.0)) for found in retriever.retrieve(question)]

    return Index(retrieve, middle - start, end - middle)


class _Timed(Embeddings):
    """Hands everything on to other embeddings, and adds up the seconds that documents take."""

    def __init__(self, embeddings: Embeddings) -> None:
        self._embeddings = embeddings
        self.seconds = 0.0

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        start = time.perf_counter()
        vectors = self._embeddings.embed_documents(texts)
        self.seconds += time.perf_counter() - start
        return vectors

    def embed_query(self, text: str) -> list[float]:
        return self._embeddings.embed_query(text)
