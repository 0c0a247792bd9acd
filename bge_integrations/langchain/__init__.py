"""BGE models in LangChain. Needs the extra `langchain`. Each name is imported at its first use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bge_integrations._lazy import attach
from bge_integrations._optional import require

require("langchain_core", extra="langchain")

if TYPE_CHECKING:
    from bge_integrations.langchain.embeddings import HuggingFaceBgeEmbeddings
    from bge_integrations.langchain.hybrid import bge_m3_hybrid
    from bge_integrations.langchain.index_guard import guard
    from bge_integrations.langchain.m3_reranker import BgeM3Reranker
    from bge_integrations.langchain.reranker import BgeReranker
    from bge_integrations.langchain.sparse import BgeSparseEmbeddings
    from bge_integrations.langchain.stored import StoredVectors

__all__ = [
    "BgeM3Reranker",
    "BgeReranker",
    "BgeSparseEmbeddings",
    "HuggingFaceBgeEmbeddings",
    "StoredVectors",
    "bge_m3_hybrid",
    "guard",
]

_HOMES = {
    "BgeM3Reranker": "m3_reranker",
    "BgeReranker": "reranker",
    "BgeSparseEmbeddings": "sparse",
    "HuggingFaceBgeEmbeddings": "embeddings",
    "StoredVectors": "stored",
    "bge_m3_hybrid": "hybrid",
    "guard": "index_guard",
}

__getattr__, __dir__ = attach(__name__, _HOMES)
