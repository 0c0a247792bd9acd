"""Milvus: the fingerprint is in the collection's properties."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from bge_integrations._optional import require_package
from bge_integrations.errors import FingerprintError
from bge_integrations.fingerprint import METADATA_KEY
from bge_integrations.indexes.index import (
    Document,
    Index,
    chosen,
    connected,
    documents_of,
    embedded_text,
)
from bge_integrations.redaction import without_credentials

if TYPE_CHECKING:
    from pymilvus import MilvusClient

__all__ = ["MilvusIndex", "open_milvus"]


class MilvusIndex(Index):
    """A collection of Milvus."""

    def __init__(
        self,
        client: MilvusClient,
        collection: str,
        vector_field: str = "vector",
        text_field: str = "text",
        before_creation: Callable[[Mapping[str, str]], None] | None = None,
    ) -> None:
        """Looks at a collection."""
        self._client = client
        self._collection = collection
        self._vector_field, self._text_field = vector_field, text_field
        self._before_creation = before_creation
        self.owns_client = False
        self.name = f"the Milvus collection {collection!r}"

    @property
    def keeps_records(self) -> bool:
        """Whether there is a collection, or one that is made later takes the fingerprint."""
        return self._before_creation is not None or self._client.has_collection(self._collection)

    def close(self) -> None:
        """Closes a client of its own."""
        if self.owns_client:
            self._client.close()

    def read(self) -> str | None:
        """Returns the recorded fingerprint as JSON."""
        if not self._client.has_collection(self._collection):
            return None
        properties = self._client.describe_collection(self._collection).get("properties") or {}
        found = properties.get(METADATA_KEY)
        return None if found is None else str(found)

    def write(self, record: str) -> None:
        """Records a fingerprint."""
        if self._before_creation is not None:
            self._before_creation({METADATA_KEY: record})
        if self._client.has_collection(self._collection):
            self._client.alter_collection_properties(self._collection, {METADATA_KEY: record})

    def count(self) -> int:
        """Returns the number of documents."""
        if not self._client.has_collection(self._collection):
            return 0
        return int(self._client.get_collection_stats(self._collection)["row_count"])

    def sample(self, count: int) -> list[Document]:
        """Returns the documents that Milvus gives first."""
        rows = self._client.query(self._collection, filter="", limit=count, output_fields=["*"])
        return documents_of(
            (embedded_text(row, (), row.get(self._text_field)), row.get(self._vector_field)) for row in rows
        )


def open_milvus(location: str, collection: str | None) -> MilvusIndex:
    """Opens a collection of a Milvus server, or in a file of Milvus Lite.

    Args:
        location: Address of the server, with http:// or https://, or path of the file.
        collection: The collection's name; `None`: the only one.

    Raises:
        FingerprintError: As `chosen` and `connected`, or the collection has no field of dense vectors.
        MissingExtraError: Milvus's client is not installed.
    """
    require_package("pymilvus", "pymilvus")
    from pymilvus import DataType, MilvusClient

    with connected(MilvusClient, location) as client:
        name = chosen(collection, client.list_collections(), without_credentials(location))
        client.load_collection(name)
        fields = client.describe_collection(name)["fields"]
        vectors = [one["name"] for one in fields if one["type"] == DataType.FLOAT_VECTOR]
        if not vectors:
            raise FingerprintError(f"the Milvus collection {name!r} has no field of dense vectors.")
    index = MilvusIndex(client, name, vectors[0])
    index.owns_client = True
    return index
