"""Stored vectors of a corpus as LangChain `Embeddings`."""

from __future__ import annotations

import os
from typing import Any

from langchain_core.embeddings import Embeddings

from bge_integrations import corpus
from bge_integrations.adapters.lists import to_lists, to_lists_async
from bge_integrations.adapters.models import EncoderAdapter
from bge_integrations.encoder import BgeEncoder
from bge_integrations.fingerprint import Fingerprint

__all__ = ["StoredVectors"]


class StoredVectors(Embeddings):
    """The vectors that `bge embed` has made, so that a store is filled without embedding again.

    Texts of the corpus are looked up. Queries and other texts are computed by the model of the corpus, which is loaded
    when it is needed first. Needs the extra `corpus`.

    Attributes:
        stored: The vectors and their model.

    Example:
        ```python
        from bge_integrations.langchain import StoredVectors

        embeddings = StoredVectors("vectors")
        store = Chroma(embedding_function=embeddings, persist_directory="chroma")
        embeddings.load_into(store)
        ```
    """

    def __init__(self, folder: str | os.PathLike[str], encoder: BgeEncoder | EncoderAdapter | None = None) -> None:
        """Opens a folder. No vector is read yet.

        Args:
            folder: A folder that `bge embed` has finished.
            encoder: The model for other texts, or embeddings of this package. `None`: the model that the folder names.

        Raises:
            CorpusDataError: The folder is not finished, or damaged.
            IndexMismatchError: The model makes other vectors than those of the folder.
        """
        given = encoder.encoder if isinstance(encoder, EncoderAdapter) else encoder
        self.stored = corpus.StoredVectors(folder, given)

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Returns the vectors of documents, looked up or computed.

        Raises:
            BgeError: As `bge_integrations.corpus.StoredVectors.encode_documents`.
        """
        return to_lists(self.stored.encode_documents(texts))

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        """Async form of `embed_documents`. It does not block the event loop."""
        return await to_lists_async(await self.stored.aencode_documents(texts))

    def embed_query(self, text: str) -> list[float]:
        """Returns the vector of a query.

        Raises:
            BgeError: As `bge_integrations.corpus.StoredVectors.encode_queries`.
        """
        vector: list[float] = self.stored.encode_queries([text])[0].tolist()
        return vector

    async def aembed_query(self, text: str) -> list[float]:
        """Async form of `embed_query`. It does not block the event loop."""
        vector: list[float] = (await self.stored.aencode_queries([text]))[0].tolist()
        return vector

    def fingerprint(self) -> Fingerprint:
        """Returns the fingerprint of the model that made the vectors."""
        return self.stored.fingerprint()

    def load_into(self, store: Any, **options: Any) -> int:  # noqa: ANN401 - any store; the options of the function
        """Adds all rows of the corpus to a vector store with these embeddings.

        Args:
            store: The vector store.
            **options: See `bge_integrations.corpus.load_into`.

        Returns:
            The number of rows that were added.

        Raises:
            SettingsError: The store has other embeddings, or an option is wrong.
        """
        return corpus.load_into(store, self.stored, **options)
