"""BGE models in LangChain. Needs the extra `langchain`."""

from bge_integrations._extras import require

require("langchain_core", extra="langchain")

from bge_integrations.langchain.embeddings import HuggingFaceBgeEmbeddings  # noqa: E402 - after the check

__all__ = ["HuggingFaceBgeEmbeddings"]
