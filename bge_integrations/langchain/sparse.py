"""bge-m3's lexical weights as sparse vectors for LangChain's vector stores."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bge_integrations._optional import is_installed, require_package
from bge_integrations.backend.guarantees.interrupts import in_thread
from bge_integrations.langchain.m3 import BgeM3Model
from bge_integrations.m3 import LexicalWeights, M3Output

if TYPE_CHECKING:
    from bge_integrations.langchain.milvus import BgeMilvusSparseEmbeddings

if TYPE_CHECKING or is_installed("langchain_qdrant"):
    from langchain_qdrant.sparse_embeddings import SparseEmbeddings, SparseVector
else:
    SparseEmbeddings = object


class BgeSparseEmbeddings(BgeM3Model, SparseEmbeddings):
    """bge-m3's lexical weights, for retrieval by exact words.

    This is a `SparseEmbeddings` for langchain-qdrant's `QdrantVectorStore`. For langchain-milvus' `Milvus` see
    `for_milvus`. `HuggingFaceBgeEmbeddings` that are created later with equal loading settings share its model in
    memory; `bge_m3_hybrid` creates both. Invalid settings raise pydantic's `ValidationError`, and loading raises errors
    of `bge_integrations.errors`.

    Example:
        ```python
        from bge_integrations.langchain import BgeSparseEmbeddings

        store = QdrantVectorStore.from_texts(
            texts, sparse_embedding=BgeSparseEmbeddings(), retrieval_mode=RetrievalMode.SPARSE, path="store"
        )
        ```
    """

    def embed_documents(self, texts: list[str]) -> list[SparseVector]:
        """Embeds documents.

        Returns:
            One sparse vector a document, in the order of the documents: token ids and their weights above 0. The vector
            of a text without words is empty.

        Raises:
            MissingExtraError: langchain-qdrant is not installed.
            BgeError: As `bge_integrations.BgeM3Encoder.encode_documents`.
        """
        _require_qdrant()
        return [_vector(weights) for weights in self.document_weights(texts)]

    async def aembed_documents(self, texts: list[str]) -> list[SparseVector]:
        """Async form of `embed_documents`. It does not block the event loop. Cancelling it drops uncomputed texts."""
        _require_qdrant()
        found = await self.adocument_weights(texts)
        return await in_thread(lambda: [_vector(weights) for weights in found])

    def embed_query(self, text: str) -> SparseVector:
        """Embeds a query, as `embed_documents`.

        Raises:
            MissingExtraError: langchain-qdrant is not installed.
            BgeError: As `bge_integrations.BgeM3Encoder.encode_queries`.
        """
        _require_qdrant()
        return _vector(self.query_weights(text))

    async def aembed_query(self, text: str) -> SparseVector:
        """Async form of `embed_query`. It does not block the event loop. Cancelling it drops uncomputed texts."""
        _require_qdrant()
        return _vector(await self.aquery_weights(text))

    def for_milvus(self) -> BgeMilvusSparseEmbeddings:
        """Returns these embeddings as a `BaseSparseEmbedding` for langchain-milvus' `Milvus`.

        Give the store `index_params` without `drop_ratio_build`: langchain-milvus sets it by default, and Milvus Lite
        refuses it. For `[dense, sparse.for_milvus()]` these are `[{"index_type": "AUTOINDEX", "metric_type": "IP"},
        {"index_type": "SPARSE_INVERTED_INDEX", "metric_type": "IP"}]`.

        Raises:
            MissingExtraError: langchain-milvus is not installed.
        """
        from bge_integrations.langchain.milvus import BgeMilvusSparseEmbeddings

        return BgeMilvusSparseEmbeddings(self)

    def document_weights(self, texts: list[str]) -> list[LexicalWeights]:
        """Returns the weights above 0 of each document, by token id. It needs no package of a vector store.

        Raises:
            BgeError: As `bge_integrations.BgeM3Encoder.encode_documents`.
        """
        return _lexical(self.encoder.encode_documents(texts, dense=False, colbert=False))

    async def adocument_weights(self, texts: list[str]) -> list[LexicalWeights]:
        """Async form of `document_weights`. It does not block the event loop. Cancelling it drops uncomputed texts."""
        return _lexical(await (await self._encoder_async()).aencode_documents(texts, dense=False, colbert=False))

    def query_weights(self, text: str) -> LexicalWeights:
        """Returns the weights above 0 of a query, by token id. It needs no package of a vector store.

        Raises:
            BgeError: As `bge_integrations.BgeM3Encoder.encode_queries`.
        """
        return _lexical(self.encoder.encode_queries([text], dense=False, colbert=False))[0]

    async def aquery_weights(self, text: str) -> LexicalWeights:
        """Async form of `query_weights`. It does not block the event loop. Cancelling it drops uncomputed texts."""
        return _lexical(await (await self._encoder_async()).aencode_queries([text], dense=False, colbert=False))[0]


def _lexical(found: M3Output) -> list[LexicalWeights]:
    return found.sparse or []


def _vector(weights: LexicalWeights) -> SparseVector:
    return SparseVector(indices=list(weights), values=list(weights.values()))


def _require_qdrant() -> None:
    require_package("langchain_qdrant", "langchain-qdrant")
