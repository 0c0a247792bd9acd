"""BGE models in LlamaIndex. Needs the extra `llama-index`."""

from bge_integrations._extras import require

require("llama_index.core", extra="llama-index")

from bge_integrations.llama_index.embeddings import HuggingFaceBgeEmbedding  # noqa: E402 - after the check

__all__ = ["HuggingFaceBgeEmbedding"]
