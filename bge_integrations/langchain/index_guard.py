"""Guards a LangChain vector store against vectors of another model."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from langchain_core.vectorstores import VectorStore

from bge_integrations.errors import FingerprintError
from bge_integrations.fingerprint import LEAST_COSINE
from bge_integrations.indexes.check import Model, guarded
from bge_integrations.indexes.files import FileBeside, InMemory, record_file
from bge_integrations.indexes.index import Document, Index, documents_of, spread

__all__ = ["guard"]

Store = TypeVar("Store", bound=VectorStore)


def guard(
    store: Store,
    *,
    embeddings: object | None = None,
    fingerprint_file: str | os.PathLike[str] | None = None,
    least_cosine: float = LEAST_COSINE,
    overwrite: bool = False,
) -> Store:
    """Returns a vector store after a check that its embeddings fit the vectors that it holds.

    At its first use, the model's fingerprint is recorded: in the metadata of a collection of Chroma, Qdrant, Milvus or
    PGVector, in the schema of a LanceDB table, or in `fingerprint_file`. Afterwards it is compared. If the store has
    documents but no fingerprint, 32 of them are embedded again and compared first. Stores in memory (FAISS,
    InMemoryVectorStore) without `fingerprint_file` keep no record, so documents are compared each time.

    Example:
        ```python
        store = guard(Chroma("docs", embeddings, persist_directory="chroma"))
        ```

    Args:
        store: The store.
        embeddings: The embeddings; `None`: those of the store. A cache around them is seen through.
        fingerprint_file: File for the fingerprint, or folder of the index, for stores that have no place for it.
        least_cosine: Least cosine of vectors that count as the same. int8 vectors need about 0.98.
        overwrite: Record the model without a check, as after all documents were embedded again.

    Raises:
        IndexMismatchError: The index was made by another model, or with other settings. The message says what differs.
        FingerprintError: The kind of store is unknown and there is no `fingerprint_file`; or a fingerprint is damaged;
            or the documents of an index without a fingerprint can't be read with their vectors.
        BgeError: As `bge_integrations.BgeEncoder.encode_documents`.
    """
    model = Model.of(_embeddings_of(store) if embeddings is None else embeddings)
    guarded(_index_of(store, fingerprint_file), model, least_cosine=least_cosine, overwrite=overwrite)
    return store


def _embeddings_of(store: VectorStore) -> object:
    found: object = store.embeddings
    # Milvus has a list for hybrid search. The sparse ones have another interface.
    for one in found if isinstance(found, (list, tuple)) else [found]:
        if hasattr(one, "embed_documents") and _is_dense(one):
            return one
    raise FingerprintError(f"{type(store).__name__} has no dense embeddings; give embeddings=….")


def _is_dense(embeddings: object) -> bool:
    return not any(kind.__name__ == "BaseSparseEmbedding" for kind in type(embeddings).__mro__)


def _index_of(store: VectorStore, fingerprint_file: str | os.PathLike[str] | None) -> Index:
    make = next((_KINDS[kind.__name__] for kind in type(store).__mro__ if kind.__name__ in _KINDS), None)
    index = make(store) if make else None
    if fingerprint_file is not None:
        return FileBeside(index, record_file(fingerprint_file))
    if index is None:
        raise FingerprintError(
            f"{type(store).__name__} is not a store whose metadata are known here ({', '.join(_KINDS)}); give "
            "fingerprint_file=…, a file to keep the fingerprint in."
        )
    return index


# Stores are recognised by the names of their classes, so that none of their packages is imported.
def _chroma(store: Any) -> Index:  # noqa: ANN401 - a class of another package
    from bge_integrations.indexes.chroma import ChromaIndex

    return ChromaIndex(store._collection)


def _qdrant(store: Any) -> Index:  # noqa: ANN401 - as above
    from bge_integrations.indexes.qdrant import QdrantIndex

    return QdrantIndex(store.client, store.collection_name, store.vector_name, store.content_payload_key)


def _milvus(store: Any) -> Index:  # noqa: ANN401 - as above
    from bge_integrations.indexes.milvus import MilvusIndex

    def before_creation(properties: Mapping[str, str]) -> None:
        store.collection_properties = {**(store.collection_properties or {}), **properties}

    field, embeddings = store._vector_field, store.embeddings
    if isinstance(field, list):
        dense = _embeddings_of(store)
        field = field[next(place for place, one in enumerate(embeddings) if one is dense)]
    return MilvusIndex(store.client, store.collection_name, field, store._text_field, before_creation)


def _postgres(store: Any) -> Index:  # noqa: ANN401 - as above
    from bge_integrations.indexes.postgres import PostgresIndex

    if store._engine is None:
        raise FingerprintError("this PGVector was made with async_mode=True; guard one with a blocking connection.")
    return PostgresIndex(store._engine, store.collection_name)


def _lance(store: Any) -> Index:  # noqa: ANN401 - as above
    from bge_integrations.indexes.lance import LanceIndex

    table = store.get_table()
    if table is None:
        return InMemory(f"the LanceDB table {store._table_name!r}", lambda: 0, lambda _: [])
    return LanceIndex(table, store._vector_key, store._text_key)


def _faiss(store: Any) -> Index:  # noqa: ANN401 - as above
    ids = store.index_to_docstore_id

    def sample(count: int) -> list[Document]:
        rows = sorted(ids)
        chosen = [rows[place] for place in spread(len(rows), count)]
        return documents_of(
            (getattr(store.docstore.search(ids[row]), "page_content", None), store.index.reconstruct(row))
            for row in chosen
        )

    return InMemory("the FAISS index", lambda: len(ids), sample, rescales=store._normalize_L2)


def _in_memory(store: Any) -> Index:  # noqa: ANN401 - as above
    def sample(count: int) -> list[Document]:
        rows = list(store.store.values())
        return documents_of((rows[place]["text"], rows[place]["vector"]) for place in spread(len(rows), count))

    return InMemory("the InMemoryVectorStore", lambda: len(store.store), sample)


_KINDS: Mapping[str, Callable[[Any], Index]] = {
    "Chroma": _chroma,
    "QdrantVectorStore": _qdrant,
    "Milvus": _milvus,
    "PGVector": _postgres,
    "LanceDB": _lance,
    "FAISS": _faiss,
    "InMemoryVectorStore": _in_memory,
}
