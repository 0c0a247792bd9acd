"""Stored vectors of a corpus as a LlamaIndex `BaseEmbedding`."""

from __future__ import annotations

import os
from typing import Any

from llama_index.core.base.embeddings.base import BaseEmbedding, Embedding
from llama_index.core.bridge.pydantic import Field, PrivateAttr

from bge_integrations import corpus
from bge_integrations.adapters.lists import to_lists, to_lists_async
from bge_integrations.adapters.models import EncoderAdapter
from bge_integrations.encoder import BgeEncoder
from bge_integrations.fingerprint import Fingerprint
from bge_integrations.llama_index.base import DEFAULT_TEXTS_PER_CALL
from bge_integrations.llama_index.batches import CheckedBatches

__all__ = ["StoredVectors"]


class StoredVectors(CheckedBatches, BaseEmbedding):
    """The vectors that `bge embed` has made, so that an index is filled without embedding again.

    Texts of the corpus are looked up. Queries and other texts are computed by the model of the corpus, which is loaded
    when it is needed first. Needs the extra `corpus`.

    Example:
        ```python
        from bge_integrations.llama_index import StoredVectors

        embeddings = StoredVectors("vectors")
        index = VectorStoreIndex([], embed_model=embeddings)
        embeddings.load_into(index)
        ```
    """

    folder: str = Field(description="Folder that `bge embed` has finished.")
    embed_batch_size: int = Field(
        default=DEFAULT_TEXTS_PER_CALL, description="Number of texts that are looked up at once.", gt=0, le=2048
    )
    _stored: corpus.StoredVectors = PrivateAttr()

    def __init__(
        self,
        folder: str | os.PathLike[str],
        encoder: BgeEncoder | EncoderAdapter | None = None,
        **kwargs: Any,  # noqa: ANN401 - the fields' own types
    ) -> None:
        """Opens a folder. No vector is read yet.

        Args:
            folder: A folder that `bge embed` has finished.
            encoder: The model for other texts, or an embedding of this package. `None`: the model that the folder
                names. It is not saved with the fields.
            **kwargs: Fields of `BaseEmbedding`.

        Raises:
            CorpusDataError: The folder is not finished, or damaged.
            IndexMismatchError: The model makes other vectors than those of the folder.
        """
        given = encoder.encoder if isinstance(encoder, EncoderAdapter) else encoder
        stored = corpus.StoredVectors(folder, given)
        kwargs = {"model_name": stored.fingerprint().model, **kwargs}
        super().__init__(folder=str(stored.folder), **kwargs)
        self._stored = stored

    @classmethod
    def class_name(cls) -> str:
        """Returns the name for serialisation."""
        return "BgeStoredVectors"

    @property
    def stored(self) -> corpus.StoredVectors:
        """The vectors and their model."""
        return self._stored

    def fingerprint(self) -> Fingerprint:
        """Returns the fingerprint of the model that made the vectors."""
        return self._stored.fingerprint()

    def load_into(self, store: Any, **options: Any) -> int:  # noqa: ANN401 - any store; the options of the function
        """Adds all rows of the corpus to a vector store or an index.

        Args:
            store: The vector store, or a `VectorStoreIndex`.
            **options: See `bge_integrations.corpus.load_into`.

        Returns:
            The number of rows that were added.

        Raises:
            SettingsError: It is no store, or an option is wrong.
        """
        return corpus.load_into(store, self._stored, **options)

    def _get_query_embedding(self, query: str) -> Embedding:
        vector: Embedding = self._stored.encode_queries([query])[0].tolist()
        return vector

    async def _aget_query_embedding(self, query: str) -> Embedding:
        vector: Embedding = (await self._stored.aencode_queries([query]))[0].tolist()
        return vector

    def _get_text_embedding(self, text: str) -> Embedding:
        return self._get_text_embeddings([text])[0]

    async def _aget_text_embedding(self, text: str) -> Embedding:
        return (await self._aget_text_embeddings([text]))[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        return to_lists(self._stored.encode_documents(texts))

    async def _aget_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        return await to_lists_async(await self._stored.aencode_documents(texts))
