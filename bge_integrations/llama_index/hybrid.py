"""Hybrid search with one model: bge-m3's dense vectors and lexical weights side by side."""

from __future__ import annotations

import os
from typing import Any

from bge_integrations.llama_index.embeddings import HuggingFaceBgeEmbedding
from bge_integrations.llama_index.sparse import BgeSparseEmbedding


def bge_m3_hybrid(
    model_name: str | os.PathLike[str] = "BAAI/bge-m3",
    **settings: Any,  # noqa: ANN401 - the fields' own types
) -> tuple[HuggingFaceBgeEmbedding, BgeSparseEmbedding]:
    """Loads bge-m3 once, and returns embeddings of both kinds that use it.

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
        **settings: Arguments that `HuggingFaceBgeEmbedding` and `BgeSparseEmbedding` both take.

    Returns:
        Dense and sparse embeddings. They share the model while nobody holds a dense-only model of the same settings
        that was loaded before.

    Raises:
        pydantic.ValidationError: A setting of the wrong type.
        SettingsError: A setting that is unknown to one of them, or can't be honoured.
        BgeError: Whatever loading raises; see `bge_integrations.BgeM3Encoder`.
    """
    # First, since dense embeddings can use the model that is loaded for lexical weights, but not the other way round.
    sparse = BgeSparseEmbedding(model_name, **settings)
    return HuggingFaceBgeEmbedding(model_name, **settings), sparse
