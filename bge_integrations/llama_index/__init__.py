"""BGE models in LlamaIndex. Needs the extra `llama-index`."""

from bge_integrations._extras import require

require("llama_index.core", extra="llama-index")

# ruff: noqa: E402 - after the check
from bge_integrations.llama_index.embeddings import HuggingFaceBgeEmbedding
from bge_integrations.llama_index.hybrid import bge_m3_hybrid
from bge_integrations.llama_index.m3_reranker import BgeM3Rerank
from bge_integrations.llama_index.reranker import BgeRerank
from bge_integrations.llama_index.sparse import BgeSparseEmbedding

__all__ = ["BgeM3Rerank", "BgeRerank", "BgeSparseEmbedding", "HuggingFaceBgeEmbedding", "bge_m3_hybrid"]
