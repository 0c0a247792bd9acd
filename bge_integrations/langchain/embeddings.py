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
    """BGE embedding models in LangChain, with the right instruction on the right side.

    Takes the place of langchain-community's deprecated class of this name, and takes what langchain-huggingface's
    `HuggingFaceEmbeddings` takes too. Embedders with equal loading settings share one model in memory, with
    LlamaIndex's as well. Bad settings raise pydantic's `ValidationError`; loading raises the errors of
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
    """Arguments of `SentenceTransformer(...)`, such as `device`, `revision` or `prompts`, honoured key by key."""
    encode_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Arguments of `SentenceTransformer.encode`, such as `normalize_embeddings` or `batch_size`, for both sides."""
    query_encode_kwargs: dict[str, Any] = Field(default_factory=dict)
    """The same for queries only; adds to `encode_kwargs`."""
    embed_instruction: str | None = setting("document_instruction")
    multi_process: bool = False
    """Use all devices, as `device="all"` does, unless `device` names some. No process is started for it."""
    normalize: bool | Literal["checkpoint"] | None = setting("normalize")

    def __init__(self, **data: Any) -> None:  # noqa: ANN401 - the fields' own types
        """Checks the settings, then loads the model or joins those that already hold it.

        Raises:
            pydantic.ValidationError: A setting that is unknown or can't be honoured.
            BgeError: Whatever loading raises; see `bge_integrations.BgeEncoder`.
        """
        for name in ("encode_kwargs", "query_encode_kwargs"):
            if isinstance(data.get(name), dict):
                data[name] = json_ready_encoding_kwargs(data[name])
        super().__init__(**data)

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Embeds documents.

        Args:
            texts: The documents.

        Returns:
            One list of Python floats a document, in the order given.

        Raises:
            BgeError: As `bge_integrations.BgeEncoder.encode_documents`.
        """
        return to_lists(self._role_encoders()[0].encode_documents(texts))

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        """As `embed_documents`, without blocking the event loop; cancelled, it gives up what is not computed yet."""
        encoder = (await self._role_encoders_async())[0]
        return await to_lists_async(await encoder.aencode_documents(texts))

    def embed_query(self, text: str) -> list[float]:
        """Embeds a query, with the query instruction.

        Args:
            text: The query.

        Returns:
            The vector, as Python floats.

        Raises:
            BgeError: As `bge_integrations.BgeEncoder.encode_queries`.
        """
        vector: list[float] = self._role_encoders()[1].encode_queries([text])[0].tolist()
        return vector

    async def aembed_query(self, text: str) -> list[float]:
        """As `embed_query`, without blocking the event loop; cancelled, it gives up what is not computed yet."""
        encoder = (await self._role_encoders_async())[1]
        vector: list[float] = (await encoder.aencode_queries([text]))[0].tolist()
        return vector

    def cache_namespace(self, role: Literal["query", "document"]) -> str:
        """Names what a vector of this role depends on, for the keys of a cache.

        `CacheBackedEmbeddings` keys vectors by their raw text, so queries and documents need two namespaces: the
        instruction makes their vectors differ.

        Example:
            ```python
            cached = CacheBackedEmbeddings.from_bytes_store(
                embeddings,
                LocalFileStore("cache/" + embeddings.cache_namespace("document")),
                query_embedding_cache=LocalFileStore("cache/" + embeddings.cache_namespace("query")),
                key_encoder="sha256",
            )
            ```

        Args:
            role: The side that the vectors are on.

        Returns:
            A name made of letters, digits, `.`, `-` and `_`; equal for equal models and settings.
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
