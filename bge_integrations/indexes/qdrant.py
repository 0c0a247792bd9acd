"""Qdrant: the fingerprint is in the collection's metadata."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

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
    from qdrant_client import QdrantClient

__all__ = ["QdrantIndex", "open_qdrant"]


class QdrantIndex(Index):
    """A collection of Qdrant."""

    def __init__(
        self, client: QdrantClient, collection: str, vector_name: str = "", text_key: str = "page_content"
    ) -> None:
        """Looks at a collection.

        Args:
            client: The client.
            collection: The collection's name.
            vector_name: Name of the dense vectors; "" for the collection's only vectors without a name.
            text_key: Key of the text in a payload of LangChain.
        """
        self._client = client
        self._collection = collection
        self._given_name = vector_name
        self._text_key = text_key
        self.owns_client = False
        self.name = f"the Qdrant collection {collection!r}"

    @property
    def keeps_records(self) -> bool:
        """Whether there is a collection; LlamaIndex makes it with the first documents."""
        return bool(self._client.collection_exists(self._collection))

    @property
    def rescales(self) -> bool:
        """Whether the metric is the cosine, for which Qdrant normalises what it stores."""
        vectors = self._config().params.vectors
        one = vectors[self._vector_name] if isinstance(vectors, Mapping) else vectors
        return str(one.distance.value).lower() == "cosine"

    def close(self) -> None:
        """Closes a client of its own."""
        if self.owns_client:
            self._client.close()

    def read(self) -> str | None:
        """Returns the recorded fingerprint as JSON."""
        if not self.keeps_records:
            return None
        found = (getattr(self._config(), "metadata", None) or {}).get(METADATA_KEY)
        return None if found is None else str(found)

    def write(self, record: str) -> None:
        """Records a fingerprint.

        Raises:
            FingerprintError: The server or its client is older than 1.16, which have no metadata of collections.
        """
        try:
            self._client.update_collection(self._collection, metadata={METADATA_KEY: record})
        except (TypeError, AssertionError) as error:
            raise self._too_old() from error
        if self.read() is None:  # an older server leaves it out in silence
            raise self._too_old()

    def count(self) -> int:
        """Returns the number of documents."""
        if not self.keeps_records:
            return 0
        return int(self._client.count(self._collection).count)

    def sample(self, count: int) -> list[Document]:
        """Returns documents that Qdrant draws at random."""
        from qdrant_client import models

        name = self._vector_name
        points = self._client.query_points(
            self._collection,
            query=models.SampleQuery(sample=models.Sample.RANDOM),
            using=name or None,
            limit=count,
            with_payload=True,
            with_vectors=[name] if name else True,
        ).points
        held = [one.vector[name] if isinstance(one.vector, Mapping) else one.vector for one in points]
        texts = [embedded_text(one.payload or {}, (self._text_key,)) for one in points]
        return documents_of(zip(texts, held, strict=True))

    @property
    def _vector_name(self) -> str:
        """The given name; "" or the only name if the collection has no vectors of this name."""
        vectors = self._config().params.vectors
        if not isinstance(vectors, Mapping):
            return ""
        return self._given_name if self._given_name in vectors or len(vectors) != 1 else str(next(iter(vectors)))

    def _config(self) -> Any:  # noqa: ANN401 - a class of an untyped library
        return self._client.get_collection(self._collection).config

    def _too_old(self) -> FingerprintError:
        return FingerprintError(
            f"{self.name} can't keep a fingerprint: Qdrant's server or client is older than 1.16. Update it, or give "
            "fingerprint_file=…."
        )


def open_qdrant(location: str, collection: str | None) -> QdrantIndex:
    """Opens a collection of a Qdrant server, or in a local folder.

    Args:
        location: Address of the server, with http:// or https://, or path of the folder.
        collection: The collection's name; `None`: the only one.

    Raises:
        FingerprintError: As `chosen` and `connected`, for example if another process has the folder open.
        MissingExtraError: Qdrant's client is not installed.
    """
    require_package("qdrant_client", "qdrant-client")
    from qdrant_client import QdrantClient

    def connect(location: str) -> QdrantClient:
        return QdrantClient(location) if "://" in location else QdrantClient(path=location)

    with connected(connect, location) as client:
        names = [one.name for one in client.get_collections().collections]
        index = QdrantIndex(client, chosen(collection, names, without_credentials(location)))
    index.owns_client = True
    return index
