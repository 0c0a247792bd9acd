"""Hybrid search with one model: bge-m3's dense vectors and lexical weights side by side."""

from __future__ import annotations

from typing import Any

from bge_integrations.langchain.embeddings import HuggingFaceBgeEmbeddings
from bge_integrations.langchain.sparse import BgeSparseEmbeddings


def bge_m3_hybrid(
    model_name: str = "BAAI/bge-m3",
    **settings: Any,  # noqa: ANN401 - the fields' own types
) -> tuple[HuggingFaceBgeEmbeddings, BgeSparseEmbeddings]:
    """Loads bge-m3 once, and returns embeddings of both kinds that use it.

    Example:
        ```python
        dense, sparse = bge_m3_hybrid()
        store = QdrantVectorStore.from_texts(
            texts, dense, sparse_embedding=sparse, retrieval_mode=RetrievalMode.HYBRID, path="store"
        )
        ```

    Args:
        model_name: Hub id or local folder.
        **settings: Fields that `HuggingFaceBgeEmbeddings` and `BgeSparseEmbeddings` both have.

    Returns:
        Dense and sparse embeddings. They share the model while nobody holds a dense-only model of the same settings
        that was loaded before.

    Raises:
        pydantic.ValidationError: A setting that is unknown or can't be honoured.
        BgeError: Whatever loading raises; see `bge_integrations.BgeM3Encoder`.
    """
    # First, since dense embeddings can use the model that is loaded for lexical weights, but not the other way.
    sparse = BgeSparseEmbeddings(model_name=model_name, **settings)
    return HuggingFaceBgeEmbeddings(model_name=model_name, **settings), sparse
