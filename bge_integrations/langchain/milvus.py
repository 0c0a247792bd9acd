"""bge-m3's lexical weights for langchain-milvus, which has an interface of its own for them."""

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
"""Ids beyond those of any vocabulary, of which no text with words has a weight. A document's is no query's."""


@dataclass(frozen=True)
class BgeMilvusSparseEmbeddings(BaseSparseEmbedding):  # type: ignore[misc]  # its stubs can't be read
    """Lexical weights as langchain-milvus' `Milvus` takes them; see `BgeSparseEmbeddings.for_milvus`.

    Attributes:
        embeddings: What computes them.
    """

    embeddings: BgeSparseEmbeddings

    def embed_documents(self, texts: list[str]) -> list[LexicalWeights]:
        """Embeds documents.

        Args:
            texts: The documents.

        Returns:
            The weights above 0 by token id of each document, in the order given. Milvus Lite stores no empty vector,
            so a text without words has the weight 1 on the id `DOCUMENT_WITHOUT_WORDS`, by which no query finds it.

        Raises:
            BgeError: As `bge_integrations.BgeM3Encoder.encode_documents`.
        """
        return _storable(self.embeddings.document_weights(texts))

    async def aembed_documents(self, texts: list[str]) -> list[LexicalWeights]:
        """As `embed_documents`, without blocking the event loop; cancelled, it gives up what is not computed yet."""
        return _storable(await self.embeddings.adocument_weights(texts))

    def embed_query(self, query: str) -> LexicalWeights:
        """Embeds a query.

        Args:
            query: The query.

        Returns:
            Its weights above 0 by token id. A query without words has the weight 1 on the id `QUERY_WITHOUT_WORDS`,
            which finds no document, as an empty vector would, which older servers refuse.

        Raises:
            BgeError: As `bge_integrations.BgeM3Encoder.encode_queries`.
        """
        return self.embeddings.query_weights(query) or {QUERY_WITHOUT_WORDS: 1.0}

    async def aembed_query(self, query: str) -> LexicalWeights:
        """As `embed_query`, without blocking the event loop; cancelled, it gives up what is not computed yet."""
        return await self.embeddings.aquery_weights(query) or {QUERY_WITHOUT_WORDS: 1.0}


def _storable(documents: Sequence[LexicalWeights]) -> list[LexicalWeights]:
    return [weights or {DOCUMENT_WITHOUT_WORDS: 1.0} for weights in documents]
