"""BGE models in LlamaIndex. Needs the extra `llama-index`. Each name is imported at its first use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bge_integrations._lazy import attach
from bge_integrations._optional import require

require("llama_index.core", extra="llama-index")

if TYPE_CHECKING:
    from bge_integrations.llama_index.embeddings import HuggingFaceBgeEmbedding
    from bge_integrations.llama_index.finetuning import BgeFinetuneEngine
    from bge_integrations.llama_index.hybrid import bge_m3_hybrid
    from bge_integrations.llama_index.index_guard import guard
    from bge_integrations.llama_index.m3_reranker import BgeM3Rerank
    from bge_integrations.llama_index.reranker import BgeRerank
    from bge_integrations.llama_index.sparse import BgeSparseEmbedding
    from bge_integrations.llama_index.stored import StoredVectors

__all__ = [
    "BgeFinetuneEngine",
    "BgeM3Rerank",
    "BgeRerank",
    "BgeSparseEmbedding",
    "HuggingFaceBgeEmbedding",
    "StoredVectors",
    "bge_m3_hybrid",
    "guard",
]

_HOMES = {
    "BgeFinetuneEngine": "finetuning",
    "BgeM3Rerank": "m3_reranker",
    "BgeRerank": "reranker",
    "BgeSparseEmbedding": "sparse",
    "HuggingFaceBgeEmbedding": "embeddings",
    "StoredVectors": "stored",
    "bge_m3_hybrid": "hybrid",
    "guard": "index_guard",
}

__getattr__, __dir__ = attach(__name__, _HOMES)
