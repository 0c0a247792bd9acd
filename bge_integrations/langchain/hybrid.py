"""Hybrid search with one model: dense vectors and lexical weights of bge-m3."""

from __future__ import annotations

from typing import Any

from bge_integrations.langchain.embeddings import HuggingFaceBgeEmbeddings
from bge_integrations.langchain.sparse import BgeSparseEmbeddings


def bge_m3_hybrid(
    model_name: str = "BAAI/bge-m3",
    **settings: Any,  # noqa: ANN401 - the fields' own types
) -> tuple[HuggingFaceBgeEmbeddings, BgeSparseEmbeddings]:
    """Loads bge-m3 once and returns dense and sparse embeddings that use it.

    Example:
        ```python
        dense, sparse = bge_m3_hybrid()
        store = QdrantVectorStore.from_texts(
            texts, dense, sparse_embedding=sparse, retrieval_mode=RetrievalMode.HYBRID, path="store"
        )
        ```

    Args:
        model_name: Hub id or local folder.
        **settings: Fields that both `HuggingFaceBgeEmbeddings` and `BgeSparseEmbeddings` have.

    Returns:
        Dense and sparse embeddings. They share one model, except if a dense-only model with the same settings is
        already loaded.

    Raises:
        pydantic.ValidationError: A setting is unknown, invalid or not supported.
        BgeError: Loading fails; see `bge_integrations.BgeM3Encoder`.
    """
    # First, since dense embeddings can use the model for lexical weights, but not the other way round.
    sparse = BgeSparseEmbeddings(model_name=model_name, **settings)
    return HuggingFaceBgeEmbeddings(model_name=model_name, **settings), sparse
