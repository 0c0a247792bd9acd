"""Separates query vectors from document vectors in one LlamaIndex key-value store."""

from __future__ import annotations

from typing import Any

from llama_index.core.storage.kvstore.types import DEFAULT_COLLECTION, BaseKVStore

_SUFFIX = "_of_queries"


class QueryCollections(BaseKVStore):
    """A view of a store in which every collection has another name.

    llama-index keys cached vectors by the raw text, in one collection for queries and documents. A query would get the
    vector of a document with the same text, or the other way round.
    """

    def __init__(self, store: BaseKVStore) -> None:
        self._store = store

    def put(self, key: str, val: dict[str, Any], collection: str = DEFAULT_COLLECTION) -> None:
        """Stores a value."""
        self._store.put(key, val, collection + _SUFFIX)

    async def aput(self, key: str, val: dict[str, Any], collection: str = DEFAULT_COLLECTION) -> None:
        """Stores a value."""
        await self._store.aput(key, val, collection + _SUFFIX)

    def get(self, key: str, collection: str = DEFAULT_COLLECTION) -> dict[str, Any] | None:
        """Returns a value, or `None`."""
        return self._store.get(key, collection + _SUFFIX)

    async def aget(self, key: str, collection: str = DEFAULT_COLLECTION) -> dict[str, Any] | None:
        """Returns a value, or `None`."""
        return await self._store.aget(key, collection + _SUFFIX)

    def get_all(self, collection: str = DEFAULT_COLLECTION) -> dict[str, dict[str, Any]]:
        """Returns all values of a collection."""
        return self._store.get_all(collection + _SUFFIX)

    async def aget_all(self, collection: str = DEFAULT_COLLECTION) -> dict[str, dict[str, Any]]:
        """Returns all values of a collection."""
        return await self._store.aget_all(collection + _SUFFIX)

    def delete(self, key: str, collection: str = DEFAULT_COLLECTION) -> bool:
        """Deletes a value."""
        return self._store.delete(key, collection + _SUFFIX)

    async def adelete(self, key: str, collection: str = DEFAULT_COLLECTION) -> bool:
        """Deletes a value."""
        return await self._store.adelete(key, collection + _SUFFIX)
