"""Fills vector stores of both frameworks with vectors that are there already."""

from __future__ import annotations

import os
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from bge_integrations._optional import require
from bge_integrations.calls.progress import Progress
from bge_integrations.corpus.files import write_file
from bge_integrations.corpus.plan import read_json, to_json
from bge_integrations.corpus.stored import StoredBatch, StoredVectors
from bge_integrations.errors import SettingsError
from bge_integrations.texts import kind_of

__all__ = ["load_into"]

_IDS = uuid.UUID("6ba7b810-9dad-11d1-80b4-00c04fd430c8")
_ID = "id"
"""The key of a row's own id in the metadata, where the store's id is another one."""


def load_into(
    store: Any,  # noqa: ANN401 - no framework is imported
    stored: StoredVectors | str | os.PathLike[str],
    *,
    batch_size: int = 1000,
    uuids: bool | None = None,
    resume_file: str | os.PathLike[str] | None = None,
    show_progress: bool = False,
) -> int:
    """Adds all rows of a corpus to a vector store. Nothing is computed.

    A load that was interrupted goes on: rows whose ids are in the store are left out. For a store that can't be asked
    for ids, such as LlamaIndex's FAISS, `resume_file` keeps how far the load came.

    Args:
        store: A vector store of LangChain whose embeddings are `bge_integrations.langchain.StoredVectors`; or a vector
            store or a `VectorStoreIndex` of LlamaIndex.
        stored: The vectors, or their folder.
        batch_size: Rows that are added at once.
        uuids: Whether rows get UUIDs made of their ids, which are kept as `id` in the metadata. `None`: for Qdrant,
            which takes no other ids.
        resume_file: A file for the number of rows that are loaded.
        show_progress: Whether to show a progress bar.

    Returns:
        The number of rows that were added by this call.

    Raises:
        SettingsError: It is no such store, its embeddings are others, or an argument is wrong.
        CorpusDataError: The folder is not finished, or damaged.
    """
    if batch_size < 1:
        raise SettingsError(f"batch_size={batch_size} must be 1 or more.")
    if not isinstance(stored, StoredVectors):
        with StoredVectors(stored) as opened:
            return load_into(
                store,
                opened,
                batch_size=batch_size,
                uuids=uuids,
                resume_file=resume_file,
                show_progress=show_progress,
            )
    target = _target(store, stored)
    mark = _Mark(None if resume_file is None else Path(os.path.expanduser(resume_file)), stored)
    takes_uuids = _is_qdrant(target.inner) if uuids is None else uuids
    added = 0
    with Progress(len(stored), shown=show_progress, unit="row", title="Loading") as progress:
        progress.add(mark.rows, 0)
        for batch in stored.batches(batch_size, start=mark.rows):
            named = _with_uuids(batch) if takes_uuids else batch
            there = target.known(named.ids)
            keep = [index for index, id_ in enumerate(named.ids) if id_ not in there]
            if keep:
                target.add(named if len(keep) == len(named.ids) else _part(named, keep))
            added += len(keep)
            mark.move(batch.start + len(batch.ids))
            progress.add(len(batch.ids), 0)
    return added


class _Mark:
    """How far a load came, in a file."""

    def __init__(self, path: Path | None, stored: StoredVectors) -> None:
        self.rows = 0
        self._path = path
        self._content = stored.content
        found = None if path is None else read_json(path)
        if found is not None:
            if found.get("content") != self._content:
                raise SettingsError(
                    f"resume_file={str(path)!r} is about other vectors. Remove it, or name another file."
                )
            self.rows = int(found["rows"])

    def move(self, rows: int) -> None:
        if self._path is not None:
            write_file(self._path, to_json({"content": self._content, "rows": rows}))


class _Target(Protocol):
    """A store that is filled."""

    @property
    def inner(self) -> Any:  # noqa: ANN401 - no framework is imported
        """See above."""
        ...

    def known(self, ids: Sequence[str]) -> set[str]:
        """Returns those of some ids that are in the store, as far as it can be asked."""
        ...

    def add(self, batch: StoredBatch) -> None:
        """Adds rows."""
        ...


def _target(store: Any, stored: StoredVectors) -> _Target:  # noqa: ANN401 - no framework is imported
    if hasattr(store, "add_texts") and hasattr(store, "similarity_search"):
        return _LangChain(store, stored)
    if hasattr(store, "insert_nodes") and hasattr(store, "vector_store"):
        return _Index(store)
    if hasattr(store, "add") and hasattr(store, "stores_text"):
        return _LlamaIndex(store)
    raise SettingsError(
        f"load_into was given {kind_of(store)}; give a vector store of LangChain, or a vector store or a "
        "VectorStoreIndex of LlamaIndex."
    )


@dataclass(frozen=True)
class _LangChain:
    """A vector store of LangChain. It asks its embeddings, which look the vectors up."""

    inner: Any
    stored: StoredVectors

    def __post_init__(self) -> None:
        own = getattr(getattr(self.inner, "embeddings", None), "stored", None)
        if not isinstance(own, StoredVectors) or own.content != self.stored.content:
            raise SettingsError(
                f"The embeddings of the {type(self.inner).__name__} are not the StoredVectors that are loaded, so it "
                f"would compute all vectors again. Make it with StoredVectors({str(self.stored.folder)!r}) of "
                "bge_integrations.langchain as its embeddings."
            )

    def known(self, ids: Sequence[str]) -> set[str]:
        try:
            found = self.inner.get_by_ids(list(ids))
        except NotImplementedError:
            return set()
        # Qdrant's documents have it in their metadata.
        return {str(document.id or document.metadata.get("_id")) for document in found}

    def add(self, batch: StoredBatch) -> None:
        # Some stores refuse metadata without a key.
        metadata = batch.columns if all(batch.columns) else None
        self.inner.add_texts(batch.texts, metadatas=metadata, ids=batch.ids)


@dataclass(frozen=True)
class _LlamaIndex:
    """A vector store of LlamaIndex."""

    inner: Any

    def known(self, ids: Sequence[str]) -> set[str]:
        # Qdrant's collection is made with the first rows.
        if _is_qdrant(self.inner) and not self.inner.client.collection_exists(self.inner.collection_name):
            return set()
        try:
            return {node.node_id for node in self.inner.get_nodes(node_ids=list(ids))}
        except NotImplementedError:
            return set()

    def add(self, batch: StoredBatch) -> None:
        self.inner.add(_nodes(batch))


class _Index:
    """An index of LlamaIndex over a vector store."""

    def __init__(self, index: Any) -> None:  # noqa: ANN401 - no framework is imported
        self.inner = index.vector_store
        self._index = index

    def known(self, ids: Sequence[str]) -> set[str]:
        if self.inner.stores_text:
            return _LlamaIndex(self.inner).known(ids)
        return set(ids).intersection(self._index.index_struct.nodes_dict.values())

    def add(self, batch: StoredBatch) -> None:
        # Nodes with an embedding are not embedded.
        self._index.insert_nodes(_nodes(batch))


def _nodes(batch: StoredBatch) -> list[Any]:
    require("llama_index.core", extra="llama-index")
    from llama_index.core.schema import TextNode

    return [
        # The vector is of the text alone, so the text to embed has no metadata.
        TextNode(id_=id_, text=text, metadata=columns, embedding=vector, excluded_embed_metadata_keys=list(columns))
        for id_, text, columns, vector in zip(
            batch.ids, batch.texts, batch.columns, batch.vectors.tolist(), strict=True
        )
    ]


def _is_qdrant(store: Any) -> bool:  # noqa: ANN401 - no framework is imported
    client = next((getattr(store, name, None) for name in ("client", "_client") if getattr(store, name, None)), None)
    return type(client).__module__.partition(".")[0] == "qdrant_client"


def _with_uuids(batch: StoredBatch) -> StoredBatch:
    columns = [{**columns, _ID: id_} for id_, columns in zip(batch.ids, batch.columns, strict=True)]
    ids = [str(uuid.uuid5(_IDS, id_)) for id_ in batch.ids]
    return StoredBatch(batch.start, ids, batch.texts, columns, batch.vectors)


def _part(batch: StoredBatch, rows: Sequence[int]) -> StoredBatch:
    return StoredBatch(
        batch.start,
        [batch.ids[row] for row in rows],
        [batch.texts[row] for row in rows],
        [batch.columns[row] for row in rows],
        batch.vectors[list(rows)],
    )
