"""Real indexes in a folder, for tests that reopen them in new processes: `python -m tests.llama_index.stores`."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from llama_index.core import StorageContext, VectorStoreIndex, load_index_from_storage
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.schema import TextNode

from bge_integrations.llama_index import HuggingFaceBgeEmbedding, guard
from tests.adapters import CORPUS
from tests.index_processes import outcome_of, run

NODES = [TextNode(text=text, metadata={"number": number}) for number, text in enumerate(CORPUS)]
"""The metadata are embedded with the text."""

Opened = Iterator[tuple[Any, dict[str, Any]]]
"""An index, and the arguments of `guard` for it."""


@contextmanager
def simple(folder: Path, embed_model: BaseEmbedding) -> Opened:
    place = folder / "simple"
    if place.exists():
        context = StorageContext.from_defaults(persist_dir=str(place))
        index = load_index_from_storage(context, embed_model=embed_model)
    else:
        index = VectorStoreIndex(NODES, embed_model=embed_model)
        index.storage_context.persist(str(place))
    yield index, {"persist_dir": place}


@contextmanager
def faiss(folder: Path, embed_model: BaseEmbedding) -> Opened:
    import faiss as library
    from llama_index.vector_stores.faiss import FaissVectorStore

    place = folder / "faiss"
    if place.exists():
        store = FaissVectorStore.from_persist_dir(str(place))
        context = StorageContext.from_defaults(vector_store=store, persist_dir=str(place))
        index = load_index_from_storage(context, embed_model=embed_model)
    else:
        store = FaissVectorStore(library.IndexFlatIP(len(embed_model.get_text_embedding("size"))))
        context = StorageContext.from_defaults(vector_store=store)
        index = VectorStoreIndex(NODES, storage_context=context, embed_model=embed_model)
        index.storage_context.persist(str(place))
    yield index, {"persist_dir": place}


@contextmanager
def qdrant(folder: Path, embed_model: BaseEmbedding) -> Opened:
    from llama_index.vector_stores.qdrant import QdrantVectorStore
    from qdrant_client import QdrantClient

    client = QdrantClient(path=str(folder / "qdrant"))
    try:
        yield _of_store(QdrantVectorStore("docs", client=client), embed_model), {}
    finally:
        client.close()


@contextmanager
def chroma(folder: Path, embed_model: BaseEmbedding) -> Opened:
    import chromadb
    from llama_index.vector_stores.chroma import ChromaVectorStore

    collection = chromadb.PersistentClient(str(folder / "chroma")).get_or_create_collection("docs")
    yield _of_store(ChromaVectorStore(chroma_collection=collection), embed_model), {}


def _of_store(store: Any, embed_model: BaseEmbedding) -> VectorStoreIndex:  # noqa: ANN401
    return VectorStoreIndex.from_vector_store(store, embed_model=embed_model)


OPENERS: dict[str, Callable[[Path, BaseEmbedding], Any]] = {
    one.__name__: one for one in (simple, faiss, qdrant, chroma)
}
IN_STORE = ("qdrant", "chroma")
"""Stores that keep documents and fingerprint themselves, and are filled after they are opened."""
MISSING = tuple(
    name for name in OPENERS if name != "simple" and not importlib.util.find_spec(f"llama_index.vector_stores.{name}")
)
"""Stores whose package is not installed."""


def fill(folder: Path, name: str, embed_model: BaseEmbedding, *, guarded: bool = True) -> None:
    """Fills an index, and guards it before and afterwards."""
    with OPENERS[name](folder, embed_model) as (index, options):
        if guarded:
            guard(index, **options)
        if name in IN_STORE:
            index.insert_nodes(NODES)
            if guarded:  # Qdrant's collection is made with the first nodes
                guard(index, **options)


def check(folder: Path, name: str, embed_model: BaseEmbedding) -> None:
    """Guards an index that is there."""
    with ExitStack() as stack:
        index, options = stack.enter_context(OPENERS[name](folder, embed_model))
        assert guard(index, **options) is index


def outcome(folder: Path, name: str, embed_model: BaseEmbedding) -> str:
    """Returns what `guard` says of an index: "fits", or the error."""
    return outcome_of(lambda: check(folder, name, embed_model))


if __name__ == "__main__":
    run(
        [name for name in OPENERS if name not in MISSING],
        lambda folder, name, options: fill(folder, name, HuggingFaceBgeEmbedding(**options)),
        lambda folder, name, options: check(folder, name, HuggingFaceBgeEmbedding(**options)),
    )
