"""BGE models as LangChain `Embeddings`."""

from __future__ import annotations

from typing import Any, Literal

from langchain_core.embeddings import Embeddings
from pydantic import Field

from bge_integrations.adapters.fields import setting
from bge_integrations.adapters.keywords import (
    json_ready_encoding_kwargs,
    merge_settings,
    read_encoding_kwargs,
    read_loading_kwargs,
)
from bge_integrations.adapters.lists import to_lists, to_lists_async
from bge_integrations.adapters.models import EncoderAdapter, EncodingSettings
from bge_integrations.langchain.base import BgeModel
from bge_integrations.settings import EncoderSettings, text_setting


class HuggingFaceBgeEmbeddings(EncoderAdapter, BgeModel, Embeddings):
    """BGE embedding models in LangChain, with the right instruction for queries and for documents.

    It replaces langchain-community's deprecated class of this name. It also takes the arguments of
    langchain-huggingface's `HuggingFaceEmbeddings`. Embeddings with equal loading settings share one model in memory,
    also with LlamaIndex classes. Invalid settings raise pydantic's `ValidationError`, and loading raises errors of
    `bge_integrations.errors`.

    Example:
        ```python
        from bge_integrations.langchain import HuggingFaceBgeEmbeddings

        embeddings = HuggingFaceBgeEmbeddings(model_name="BAAI/bge-small-en-v1.5")
        store = InMemoryVectorStore.from_texts(texts, embeddings)
        ```
    """

    model_name: str = setting("model_name", default="BAAI/bge-large-en", alias="model")
    model_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Arguments of `SentenceTransformer(...)`, such as `device`, `revision` or `prompts`. Each key is checked."""
    encode_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Arguments of `SentenceTransformer.encode`, such as `normalize_embeddings` or `batch_size`."""
    query_encode_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Arguments of `SentenceTransformer.encode` only for queries. They are added to `encode_kwargs`."""
    embed_instruction: str | None = setting("document_instruction")
    multi_process: bool = False
    """Use all devices, as `device="all"` does, if `device` is not given. No process is started."""
    normalize: bool | Literal["checkpoint"] | None = setting("normalize")

    def __init__(self, **data: Any) -> None:  # noqa: ANN401 - the fields' own types
        for name in ("encode_kwargs", "query_encode_kwargs"):
            if isinstance(data.get(name), dict):
                data[name] = json_ready_encoding_kwargs(data[name])
        super().__init__(**data)

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Embeds documents.

        Returns:
            One list of Python floats a document, in the order of the documents.

        Raises:
            BgeError: As `bge_integrations.BgeEncoder.encode_documents`.
        """
        return to_lists(self._role_encoders()[0].encode_documents(texts))

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        """Async form of `embed_documents`. It does not block the event loop. Cancelling it drops uncomputed texts."""
        encoder = (await self._role_encoders_async())[0]
        return await to_lists_async(await encoder.aencode_documents(texts))

    def embed_query(self, text: str) -> list[float]:
        """Embeds a query, with the query instruction.

        Raises:
            BgeError: As `bge_integrations.BgeEncoder.encode_queries`.
        """
        vector: list[float] = self._role_encoders()[1].encode_queries([text])[0].tolist()
        return vector

    async def aembed_query(self, text: str) -> list[float]:
        """Async form of `embed_query`. It does not block the event loop. Cancelling it drops uncomputed texts."""
        encoder = (await self._role_encoders_async())[1]
        vector: list[float] = (await encoder.aencode_queries([text]))[0].tolist()
        return vector

    def cache_namespace(self, role: Literal["query", "document"]) -> str:
        """Returns a name for the keys of a cache. It depends on everything that a vector of this role depends on.

        `CacheBackedEmbeddings` keys vectors by their raw text. Queries and documents need two namespaces, since their
        instructions differ.

        Example:
            ```python
            cached = CacheBackedEmbeddings.from_bytes_store(
                embeddings,
                LocalFileStore("cache/" + embeddings.cache_namespace("document")),
                query_embedding_cache=LocalFileStore("cache/" + embeddings.cache_namespace("query")),
                key_encoder="sha256",
            )
            ```

        Returns:
            Letters, digits, `.`, `-` and `_`. The name is the same for equal models and settings.
        """
        return self._role_encoders()[role == "query"].cache_namespace(role)

    def _check(self) -> None:
        settings = self._settings()
        for encoding in (settings.document, settings.query):
            settings.common.replace(**encoding.settings)

    def _settings(self) -> EncodingSettings:
        loading = read_loading_kwargs(self.model_kwargs, "model_kwargs")
        document = read_encoding_kwargs(self.encode_kwargs, "encode_kwargs")
        query = document.updated_by(read_encoding_kwargs(self.query_encode_kwargs, "query_encode_kwargs"))
        common = self._merged(loading.settings, EncoderSettings)
        for name, encoding in (("encode_kwargs", document), ("query_encode_kwargs", query)):
            merge_settings(common, encoding.settings, name)
        if self.multi_process and common.get("device") is None:
            common["device"] = "all"
        instruction = text_setting("embed_instruction", self.embed_instruction)
        settings = EncoderSettings(**common, model_name=self.model_name, document_instruction=instruction)
        return EncodingSettings(settings, loading, document, query)
