"""bge-m3's lexical weights as a LlamaIndex `BaseSparseEmbedding`, and as functions for vector stores."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from llama_index.core.base.embeddings.base_sparse import BaseSparseEmbedding
from llama_index.core.bridge.pydantic import Field

from bge_integrations.adapters.fields import setting
from bge_integrations.llama_index.base import DEFAULT_TEXTS_PER_CALL
from bge_integrations.llama_index.batches import CheckedBatches
from bge_integrations.llama_index.m3 import BgeM3Model
from bge_integrations.m3 import LexicalWeights, M3Output


class BgeSparseEmbedding(BgeM3Model, CheckedBatches, BaseSparseEmbedding):
    """bge-m3's lexical weights, for retrieval by exact words.

    An embedding is a dictionary of weights above 0, by token id. It is empty for a text without words. A
    `HuggingFaceBgeEmbedding` that is created later with equal loading settings shares its model in memory;
    `bge_m3_hybrid` creates both.

    Example:
        ```python
        from bge_integrations.llama_index import bge_m3_hybrid

        dense, sparse = bge_m3_hybrid()
        store = QdrantVectorStore(
            "papers",
            client=client,
            enable_hybrid=True,
            sparse_doc_fn=sparse.sparse_doc_fn,
            sparse_query_fn=sparse.sparse_query_fn,
        )
        ```
    """

    renamed: ClassVar[Mapping[str, str]] = {"show_progress_bar": "show_progress"}

    embed_batch_size: int = Field(
        default=DEFAULT_TEXTS_PER_CALL,
        description="Number of texts per call of the encoder, which makes its own batches by tokens.",
        gt=0,
        le=2048,
    )
    show_progress: bool = setting("show_progress")

    def __init__(self, model_name: str | os.PathLike[str] = "BAAI/bge-m3", **kwargs: Any) -> None:  # noqa: ANN401 - the fields' own types
        """Checks the settings, then loads the model or shares a loaded one.

        Args:
            model_name: Hub id or local folder.
            **kwargs: The fields above, and arguments of `SentenceTransformer(...)`.

        Raises:
            pydantic.ValidationError: The value of a field has the wrong type.
            SettingsError: An argument is unknown, invalid or not supported.
            BgeError: Loading fails; see `bge_integrations.BgeM3Encoder`.
        """
        super().__init__(model_name=model_name, **kwargs)

    def sparse_doc_fn(self, texts: list[str]) -> tuple[list[list[int]], list[list[float]]]:
        """Embeds texts for `QdrantVectorStore(sparse_doc_fn=...)`.

        Returns:
            Token ids of each text, and their weights.

        Raises:
            BgeError: As `bge_integrations.BgeM3Encoder.encode_documents`.
        """
        return _columns(self._get_text_embeddings(texts))

    def sparse_query_fn(self, texts: list[str]) -> tuple[list[list[int]], list[list[float]]]:
        """Embeds queries for `QdrantVectorStore(sparse_query_fn=...)`. The result is that of `sparse_doc_fn`.

        Raises:
            BgeError: As `bge_integrations.BgeM3Encoder.encode_queries`.
        """
        return _columns(_lexical(self.encoder.encode_queries(texts, dense=False, colbert=False)))

    def _get_query_embedding(self, query: str) -> LexicalWeights:
        return _lexical(self.encoder.encode_queries([query], dense=False, colbert=False))[0]

    async def _aget_query_embedding(self, query: str) -> LexicalWeights:
        encoder = await self._encoder_async()
        return _lexical(await encoder.aencode_queries([query], dense=False, colbert=False))[0]

    def _get_text_embedding(self, text: str) -> LexicalWeights:
        return self._get_text_embeddings([text])[0]

    async def _aget_text_embedding(self, text: str) -> LexicalWeights:
        return (await self._aget_text_embeddings([text]))[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[LexicalWeights]:
        return _lexical(self.encoder.encode_documents(texts, dense=False, colbert=False))

    async def _aget_text_embeddings(self, texts: list[str]) -> list[LexicalWeights]:
        encoder = await self._encoder_async()
        return _lexical(await encoder.aencode_documents(texts, dense=False, colbert=False))


def _lexical(found: M3Output) -> list[LexicalWeights]:
    return found.sparse or []


def _columns(weights: Sequence[LexicalWeights]) -> tuple[list[list[int]], list[list[float]]]:
    return [list(each) for each in weights], [list(each.values()) for each in weights]
