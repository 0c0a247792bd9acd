"""bge-m3's lexical weights in the interface of langchain-milvus."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bge_integrations._optional import require_package
from bge_integrations.m3 import LexicalWeights

require_package("langchain_milvus", "langchain-milvus")

from langchain_milvus.utils.sparse import BaseSparseEmbedding  # noqa: E402 - after the check

if TYPE_CHECKING:
    from bge_integrations.langchain.sparse import BgeSparseEmbeddings

DOCUMENT_WITHOUT_WORDS = 1 << 24
QUERY_WITHOUT_WORDS = DOCUMENT_WITHOUT_WORDS + 1
"""Ids for texts without words, beyond any vocabulary. They differ, so that such a query finds no such document."""


@dataclass(frozen=True)
class BgeMilvusSparseEmbeddings(BaseSparseEmbedding):  # type: ignore[misc]  # its stubs can't be read
    """Lexical weights in the form that langchain-milvus' `Milvus` needs; see `BgeSparseEmbeddings.for_milvus`."""

    embeddings: BgeSparseEmbeddings

    def embed_documents(self, texts: list[str]) -> list[LexicalWeights]:
        """Embeds documents.

        Returns:
            For each document its weights above 0, by token id. Milvus Lite can't store an empty vector, so a document
            without words has the weight 1 for the id `DOCUMENT_WITHOUT_WORDS`. No query finds it.

        Raises:
            BgeError: As `bge_integrations.BgeM3Encoder.encode_documents`.
        """
        return _storable(self.embeddings.document_weights(texts))

    async def aembed_documents(self, texts: list[str]) -> list[LexicalWeights]:
        """Async form of `embed_documents`. It does not block the event loop. Cancelling it drops uncomputed texts."""
        return _storable(await self.embeddings.adocument_weights(texts))

    def embed_query(self, query: str) -> LexicalWeights:
        """Embeds a query.

        Returns:
            The query's weights above 0, by token id. A query without words has the weight 1 for the id
            `QUERY_WITHOUT_WORDS` and finds no document. Older servers refuse an empty vector.

        Raises:
            BgeError: As `bge_integrations.BgeM3Encoder.encode_queries`.
        """
        return self.embeddings.query_weights(query) or {QUERY_WITHOUT_WORDS: 1.0}

    async def aembed_query(self, query: str) -> LexicalWeights:
        """Async form of `embed_query`. It does not block the event loop. Cancelling it drops uncomputed texts."""
        return await self.embeddings.aquery_weights(query) or {QUERY_WITHOUT_WORDS: 1.0}


def _storable(documents: Sequence[LexicalWeights]) -> list[LexicalWeights]:
    return [weights or {DOCUMENT_WITHOUT_WORDS: 1.0} for weights in documents]
