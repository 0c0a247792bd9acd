"""Embeds texts for tasks where all texts play the same part: similarity, classification."""

from __future__ import annotations

from typing import Any

from bge_integrations.errors import SettingsError
from bge_integrations.evaluation.vectors import Floats, unique_vectors
from bge_integrations.texts import kind_of

_METHODS = ("encode", "embed_documents", "get_text_embedding_batch")
"""Of this package's encoders, LangChain's `Embeddings`, and LlamaIndex's `BaseEmbedding`."""


def embed(embedder: object, texts: list[str]) -> Floats:
    """Returns the vectors of texts, each different text embedded once.

    Returns:
        float32, shape [texts, dimension].

    Raises:
        SettingsError: It can't embed, or gives something else than a vector for each text.
    """
    it: Any = embedder
    if hasattr(it, "dense_encoder"):  # of bge-m3, its dense vectors
        it = it.dense_encoder()
    method = next((getattr(it, name) for name in _METHODS if hasattr(it, name)), it)
    if isinstance(embedder, type) or not callable(method):
        raise SettingsError(
            f"embedder={embedder!r} is {kind_of(embedder)}, which can't embed texts. Give an encoder, embeddings of "
            "LangChain or LlamaIndex, or a function from a list of texts to vectors."
        )
    return unique_vectors(method, texts)
