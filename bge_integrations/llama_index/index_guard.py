"""Guards a LlamaIndex index against vectors of another model."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from llama_index.core import Settings
from llama_index.core.indices.base import BaseIndex
from llama_index.core.schema import BaseNode, MetadataMode
from llama_index.core.storage.storage_context import StorageContext

from bge_integrations.errors import FingerprintError
from bge_integrations.fingerprint import LEAST_COSINE
from bge_integrations.indexes.check import Model, guarded
from bge_integrations.indexes.files import FileBeside, InMemory, record_file
from bge_integrations.indexes.index import Document, Index, documents_of, spread

__all__ = ["guard"]

Guarded = TypeVar("Guarded", bound="BaseIndex[Any] | StorageContext")


def guard(
    index: Guarded,
    *,
    embed_model: object | None = None,
    persist_dir: str | os.PathLike[str] | None = None,
    least_cosine: float = LEAST_COSINE,
    overwrite: bool = False,
) -> Guarded:
    """Returns an index or a storage context after a check that the model fits the vectors that it holds.

    At its first use, the model's fingerprint is recorded: in the metadata of a collection of Chroma, Qdrant or Milvus,
    in the schema of a LanceDB table, or in a file in `persist_dir`. Afterwards it is compared. If the index has
    documents but no fingerprint, 32 of them are embedded again and compared first. Stores in memory without
    `persist_dir` keep no record, so documents are compared each time. A collection that is made with its first
    documents gets its fingerprint when `guard` is called again.

    Example:
        ```python
        context = StorageContext.from_defaults(persist_dir="storage")
        index = guard(load_index_from_storage(context, embed_model=embed_model), persist_dir="storage")
        ```

    Args:
        index: The index or the storage context.
        embed_model: The embeddings; `None`: those of the index, and `Settings.embed_model` for a storage context.
        persist_dir: Folder of the persisted index, or file for the fingerprint, for stores that have no place for it.
        least_cosine: Least cosine of vectors that count as the same. int8 vectors need about 0.98.
        overwrite: Record the model without a check, as after all documents were embedded again.

    Raises:
        IndexMismatchError: The index was made by another model, or with other settings. The message says what differs.
        FingerprintError: The kind of store is unknown and there is no `persist_dir`; or a fingerprint is damaged; or
            the documents of an index without a fingerprint can't be read with their vectors.
        BgeError: As `bge_integrations.BgeEncoder.encode_documents`.
    """
    if embed_model is None:
        embed_model = getattr(index, "_embed_model", None) or Settings.embed_model
    context = index if isinstance(index, StorageContext) else index.storage_context
    guarded(_index_of(context, persist_dir), Model.of(embed_model), least_cosine=least_cosine, overwrite=overwrite)
    return index


def _index_of(context: StorageContext, persist_dir: str | os.PathLike[str] | None) -> Index:
    store = context.vector_store
    make = next((_KINDS[kind.__name__] for kind in type(store).__mro__ if kind.__name__ in _KINDS), None)
    index = make(store, context) if make else None
    if persist_dir is not None:
        return FileBeside(index, record_file(persist_dir))
    if index is None:
        raise FingerprintError(
            f"{type(store).__name__} is not a store whose metadata are known here ({', '.join(_KINDS)}); give "
            "persist_dir=…, a folder or a file to keep the fingerprint in."
        )
    return index


# Stores are recognised by the names of their classes, so that none of their packages is imported.
def _chroma(store: Any, _: StorageContext) -> Index:  # noqa: ANN401 - a class of another package
    from bge_integrations.indexes.chroma import ChromaIndex

    return ChromaIndex(store.client)


def _qdrant(store: Any, _: StorageContext) -> Index:  # noqa: ANN401 - as above
    from bge_integrations.indexes.qdrant import QdrantIndex

    if store.client is None:
        raise FingerprintError("this QdrantVectorStore has only an async client; guard one with a blocking client too.")
    return QdrantIndex(store.client, store.collection_name, store.dense_vector_name)


def _milvus(store: Any, _: StorageContext) -> Index:  # noqa: ANN401 - as above
    from bge_integrations.indexes.milvus import MilvusIndex

    return MilvusIndex(store.client, store.collection_name, store.embedding_field, store.text_key or "text")


def _lance(store: Any, _: StorageContext) -> Index:  # noqa: ANN401 - as above
    from bge_integrations.indexes.lance import LanceIndex

    if store._table is None:
        return InMemory(f"the LanceDB table {store._table_name!r}", lambda: 0, lambda _: [])
    return LanceIndex(store._table, store.vector_column_name, store.text_key)


def _faiss(store: Any, context: StorageContext) -> Index:  # noqa: ANN401 - as above
    def sample(count: int) -> list[Document]:
        rows = [(int(row), node) for row, node in _nodes_of_faiss(context) if int(row) < store.client.ntotal]
        chosen = [rows[place] for place in spread(len(rows), count)]
        return documents_of((_embedded(context, node), store.client.reconstruct(row)) for row, node in chosen)

    return InMemory("the FAISS index", lambda: store.client.ntotal, sample)


def _nodes_of_faiss(context: StorageContext) -> Iterator[tuple[str, str]]:
    """Yields the row in FAISS and the id of each node."""
    for structure in context.index_store.index_structs():
        yield from getattr(structure, "nodes_dict", {}).items()


def _simple(store: Any, context: StorageContext) -> Index:  # noqa: ANN401 - as above
    vectors = store.data.embedding_dict

    def sample(count: int) -> list[Document]:
        ids = list(vectors)
        chosen = [ids[place] for place in spread(len(ids), count)]
        return documents_of((_embedded(context, node), vectors[node]) for node in chosen)

    return InMemory("the SimpleVectorStore", lambda: len(vectors), sample)


def _embedded(context: StorageContext, node_id: str) -> str | None:
    """Returns the text of a node as it was embedded; `None` if the docstore lacks it."""
    node = context.docstore.get_document(node_id, raise_error=False)
    return node.get_content(metadata_mode=MetadataMode.EMBED) if isinstance(node, BaseNode) else None


_KINDS: Mapping[str, Callable[[Any, StorageContext], Index]] = {
    "ChromaVectorStore": _chroma,
    "QdrantVectorStore": _qdrant,
    "MilvusVectorStore": _milvus,
    "LanceDBVectorStore": _lance,
    "FaissVectorStore": _faiss,
    "SimpleVectorStore": _simple,
}
