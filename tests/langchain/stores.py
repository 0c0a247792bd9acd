"""Real vector stores in a folder, for tests that reopen them in new processes: `python -m tests.langchain.stores`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import InMemoryVectorStore, VectorStore

from bge_integrations.langchain import HuggingFaceBgeEmbeddings, guard
from tests.adapters import CORPUS
from tests.index_processes import outcome_of, run

Opened = Iterator[tuple[VectorStore, dict[str, Any]]]
"""A store, and the arguments of `guard` for it."""


@contextmanager
def chroma(folder: Path, embeddings: Embeddings) -> Opened:
    from langchain_chroma import Chroma

    metadata = {"hnsw:space": "cosine", "owner": "tests"}
    yield Chroma("docs", embeddings, persist_directory=str(folder / "chroma"), collection_metadata=metadata), {}


@contextmanager
def qdrant(folder: Path, embeddings: Embeddings) -> Opened:
    from langchain_qdrant import QdrantVectorStore
    from qdrant_client import QdrantClient
    from qdrant_client.models import Distance, VectorParams

    client = QdrantClient(path=str(folder / "qdrant"))
    if not client.collection_exists("docs"):
        size = len(embeddings.embed_query("size"))
        client.create_collection("docs", vectors_config=VectorParams(size=size, distance=Distance.COSINE))
    try:
        yield QdrantVectorStore(client, "docs", embeddings, validate_collection_config=False), {}
    finally:
        client.close()


@contextmanager
def milvus(folder: Path, embeddings: Embeddings) -> Opened:
    from langchain_milvus import Milvus

    index = {"index_type": "FLAT", "metric_type": "COSINE"}
    connection = {"uri": str(folder / "milvus.db")}
    store = Milvus(embeddings, connection_args=connection, auto_id=True, index_params=index)
    try:
        yield store, {}
    finally:
        store.client.close()


@contextmanager
def lancedb(folder: Path, embeddings: Embeddings) -> Opened:
    from langchain_community.vectorstores import LanceDB

    yield LanceDB(uri=str(folder / "lance"), embedding=embeddings, mode="append"), {}


@contextmanager
def faiss(folder: Path, embeddings: Embeddings) -> Opened:
    from langchain_community.vectorstores import FAISS

    place = folder / "faiss"
    if place.exists():
        store = FAISS.load_local(str(place), embeddings, allow_dangerous_deserialization=True)
    else:
        store = FAISS.from_texts(CORPUS, embeddings)
        store.save_local(str(place))
    yield store, {"fingerprint_file": place}


@contextmanager
def in_memory(folder: Path, embeddings: Embeddings) -> Opened:
    file = folder / "memory.json"
    if file.exists():
        yield InMemoryVectorStore.load(str(file), embeddings), {}
        return
    store = InMemoryVectorStore.from_texts(CORPUS, embeddings)
    store.dump(str(file))
    yield store, {}


OPENERS: dict[str, Callable[[Path, Embeddings], Any]] = {
    one.__name__: one for one in (chroma, qdrant, milvus, lancedb, faiss, in_memory)
}


def fill(folder: Path, name: str, embeddings: Embeddings, *, guarded: bool = True) -> None:
    """Guards an empty store, unless it is made with its documents, then fills it."""
    with OPENERS[name](folder, embeddings) as (store, options):
        if guarded:
            guard(store, **options)
        if name not in ("faiss", "in_memory"):
            store.add_texts(CORPUS)
        if guarded and name == "lancedb":  # the table is made with the first documents
            guard(store, **options)


def check(folder: Path, name: str, embeddings: Embeddings) -> None:
    """Guards a store that is there."""
    with ExitStack() as stack:
        store, options = stack.enter_context(OPENERS[name](folder, embeddings))
        assert guard(store, **options) is store


def outcome(folder: Path, name: str, embeddings: Embeddings) -> str:
    """Returns what `guard` says of a store: "fits", or the error."""
    return outcome_of(lambda: check(folder, name, embeddings))


if __name__ == "__main__":
    run(
        [*OPENERS],
        lambda folder, name, options: fill(folder, name, HuggingFaceBgeEmbeddings(**options)),
        lambda folder, name, options: check(folder, name, HuggingFaceBgeEmbeddings(**options)),
    )
