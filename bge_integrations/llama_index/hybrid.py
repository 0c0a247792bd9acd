"""Hybrid search with one model: dense vectors and lexical weights of bge-m3."""

from __future__ import annotations

import os
from typing import Any

from bge_integrations.llama_index.embeddings import HuggingFaceBgeEmbedding
from bge_integrations.llama_index.sparse import BgeSparseEmbedding


def bge_m3_hybrid(
    model_name: str | os.PathLike[str] = "BAAI/bge-m3",
    **settings: Any,  # noqa: ANN401 - the fields' own types
) -> tuple[HuggingFaceBgeEmbedding, BgeSparseEmbedding]:
    """Loads bge-m3 once and returns dense and sparse embeddings that use it.

    Example:
        ```python
        dense, sparse = bge_m3_hybrid()
        store = QdrantVectorStore(
            "papers",
            client=client,
            enable_hybrid=True,
            sparse_doc_fn=sparse.sparse_doc_fn,
            sparse_query_fn=sparse.sparse_query_fn,
        )
        index = VectorStoreIndex(
            nodes, storage_context=StorageContext.from_defaults(vector_store=store), embed_model=dense
        )
        found = index.as_retriever(vector_store_query_mode="hybrid").retrieve("what is a panda?")
        ```

    Args:
        model_name: Hub id or local folder.
        **settings: Arguments that both `HuggingFaceBgeEmbedding` and `BgeSparseEmbedding` take.

    Returns:
        Dense and sparse embeddings. They share one model, except if a dense-only model with the same settings is
        already loaded.

    Raises:
        pydantic.ValidationError: A setting has the wrong type.
        SettingsError: One of the two classes does not know a setting, or a setting is invalid or not supported.
        BgeError: Loading fails; see `bge_integrations.BgeM3Encoder`.
    """
    # First, since dense embeddings can use the model for lexical weights, but not the other way round.
    sparse = BgeSparseEmbedding(model_name, **settings)
    return HuggingFaceBgeEmbedding(model_name, **settings), sparse
