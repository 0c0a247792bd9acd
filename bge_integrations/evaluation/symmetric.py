"""Embeds texts for tasks where all texts play the same part: similarity, classification."""

from __future__ import annotations

from typing import Any

import numpy as np

from bge_integrations.errors import SettingsError
from bge_integrations.evaluation.ranking import Floats
from bge_integrations.texts import kind_of

_METHODS = ("encode", "embed_documents", "get_text_embedding_batch")
"""Of this package's encoders, LangChain's `Embeddings`, and LlamaIndex's `BaseEmbedding`."""


def embed(embedder: object, texts: list[str]) -> Floats:
    """Returns the vectors of texts, each different text embedded once.

    Args:
        embedder: An encoder, embeddings of LangChain or LlamaIndex, or a function from texts to vectors.
        texts: The texts.

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
    places = {text: place for place, text in enumerate(dict.fromkeys(texts))}
    vectors = np.asarray(method(list(places)), dtype=np.float32)
    if vectors.ndim != 2 or len(vectors) != len(places):
        raise SettingsError(
            f"The embedder gave an array of shape {vectors.shape} for {len(places)} texts; give a vector of the same "
            "length for each."
        )
    spread: Floats = vectors[[places[text] for text in texts]]
    return spread
