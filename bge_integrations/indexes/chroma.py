"""Chroma: the fingerprint is in the collection's metadata."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bge_integrations._optional import require_package
from bge_integrations.fingerprint import METADATA_KEY
from bge_integrations.indexes.index import Document, Index, chosen, documents_of, embedded_text, spread

if TYPE_CHECKING:
    from chromadb.api.models.Collection import Collection

__all__ = ["ChromaIndex", "open_chroma"]

FILE = "chroma.sqlite3"
"""The file by which a folder of Chroma is recognised."""

_SPACE = "hnsw:space"


class ChromaIndex(Index):
    """A collection of Chroma."""

    def __init__(self, collection: Collection) -> None:
        self._collection = collection
        self.name = f"the Chroma collection {collection.name!r}"

    def read(self) -> str | None:
        """Returns the recorded fingerprint as JSON."""
        found = (self._collection.metadata or {}).get(METADATA_KEY)
        return None if found is None else str(found)

    def write(self, record: str) -> None:
        """Records a fingerprint."""
        # Chroma refuses its own key for the metric in a change. The collection's configuration keeps the metric.
        kept = {name: value for name, value in (self._collection.metadata or {}).items() if name != _SPACE}
        self._collection.modify(metadata={**kept, METADATA_KEY: record})

    def count(self) -> int:
        """Returns the number of documents."""
        return self._collection.count()

    def sample(self, count: int) -> list[Document]:
        """Returns documents from all over the collection."""
        found: list[tuple[object, object]] = []
        for offset in spread(self.count(), count):
            row = self._collection.get(offset=offset, limit=1, include=["embeddings", "documents", "metadatas"])
            texts, vectors, payloads = row["documents"], row["embeddings"], row["metadatas"]
            if texts and vectors is not None and len(vectors):
                payload = (payloads[0] if payloads else None) or {}
                found.append((embedded_text(payload, (), texts[0]), vectors[0]))
        return documents_of(found)


def open_chroma(folder: Path, collection: str | None) -> ChromaIndex:
    """Opens a collection in a folder of Chroma.

    Raises:
        FingerprintError: As `chosen`.
        MissingExtraError: Chroma is not installed.
    """
    require_package("chromadb", "chromadb")
    import chromadb

    client = chromadb.PersistentClient(str(folder))
    names = [one.name for one in client.list_collections()]
    return ChromaIndex(client.get_collection(chosen(collection, names, str(folder))))
