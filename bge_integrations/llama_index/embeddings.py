"""BGE models as a LlamaIndex `BaseEmbedding`."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from llama_index.core.base.embeddings.base import BaseEmbedding, Embedding
from llama_index.core.bridge.pydantic import Field

from bge_integrations.adapters.fields import setting
from bge_integrations.adapters.keywords import (
    LOADING_KEYS,
    read_loading_kwargs,
)
from bge_integrations.adapters.lists import to_lists, to_lists_async
from bge_integrations.adapters.models import EncoderAdapter, EncodingSettings
from bge_integrations.calls.inputs import check_text
from bge_integrations.calls.waiting import OnLoop
from bge_integrations.llama_index.base import DEFAULT_TEXTS_PER_CALL, BgeModel
from bge_integrations.llama_index.batches import CheckedBatches
from bge_integrations.llama_index.query_cache import QueryCollections
from bge_integrations.settings import EncoderSettings, text_setting

if TYPE_CHECKING:
    import os


_DROPPED = {
    "tokenizer_name": "the checkpoint's own tokenizer is used",
    "tokenizer": "the checkpoint's own tokenizer is used",
    "model": "give model_name; equal settings share one loaded model",
}


class HuggingFaceBgeEmbedding(EncoderAdapter, BgeModel, CheckedBatches, BaseEmbedding):
    """BGE embedding models in LlamaIndex, with the right instruction for queries and for documents.

    It takes the arguments of llama-index-embeddings-huggingface's `HuggingFaceEmbedding` that concern text. Embeddings
    with equal loading settings share one model in memory, also with LangChain classes.

    Example:
        ```python
        from bge_integrations.llama_index import HuggingFaceBgeEmbedding

        Settings.embed_model = HuggingFaceBgeEmbedding("BAAI/bge-small-en-v1.5")
        ```
    """

    further_field: ClassVar[str] = "sentence_transformer_kwargs"
    further_keys: ClassVar[tuple[str, ...]] = LOADING_KEYS
    renamed: ClassVar[Mapping[str, str]] = {"show_progress": "show_progress_bar"}
    dropped: ClassVar[Mapping[str, str]] = _DROPPED

    model_name: str = setting("model_name", default="BAAI/bge-small-en")
    embed_batch_size: int = Field(
        default=DEFAULT_TEXTS_PER_CALL,
        description="Number of texts per call of the encoder, which makes its own batches by tokens.",
        gt=0,
        le=2048,
    )
    text_instruction: str | None = setting("document_instruction")
    normalize: bool | Literal["checkpoint"] | None = setting("normalize", default=True)
    parallel_process: bool = Field(
        default=False,
        description="Use target_devices, or all devices, if device is not given. No process is started.",
    )
    target_devices: list[str] | None = Field(default=None, description="Devices to use with parallel_process.")
    show_progress_bar: bool = setting("show_progress")
    sentence_transformer_kwargs: dict[str, Any] = Field(
        default_factory=dict, description="Further arguments of SentenceTransformer(...), such as prompts."
    )

    def __init__(self, model_name: str | os.PathLike[str] = "BAAI/bge-small-en", **kwargs: Any) -> None:  # noqa: ANN401 - the fields' own types
        """Checks the settings, then loads the model or shares a loaded one.

        Args:
            model_name: Hub id or local folder.
            **kwargs: The fields above, and any argument of `SentenceTransformer(...)`.

        Raises:
            pydantic.ValidationError: The value of a field has the wrong type.
            SettingsError: An argument is unknown, invalid or not supported.
            BgeError: Loading fails; see `bge_integrations.BgeEncoder`.
        """
        super().__init__(model_name=model_name, **kwargs)

    def __getattribute__(self, name: str) -> Any:  # noqa: ANN401 - any attribute
        """Returns the model's own limit for a `max_length` that is not set.

        Splitters read this attribute, as they do in the replaced class. The stored value stays `None`, also in dumps,
        pickles and copies, so that another model uses its own limit.
        """
        value = super().__getattribute__(name)
        return self.encoder.max_length if value is None and name == "max_length" else value

    def get_query_embedding(self, query: str) -> Embedding:
        """Embeds a query, with the query instruction.

        Raises:
            BgeError: As `bge_integrations.BgeEncoder.encode_queries`.
        """
        vector: Embedding = _get_query_embedding(self._with_query_cache(), check_text(query))
        return vector

    async def aget_query_embedding(self, query: str) -> Embedding:
        """Async form of `get_query_embedding`. It does not block the event loop."""
        await self._role_encoders_async()  # outside the event loop's thread, if they must be made
        checked = await OnLoop([query]).run(partial(check_text, query))
        vector: Embedding = await _aget_query_embedding(self._with_query_cache(), checked)
        return vector

    def _get_query_embedding(self, query: str) -> Embedding:
        vector: Embedding = self._role_encoders()[1].encode_queries([query])[0].tolist()
        return vector

    async def _aget_query_embedding(self, query: str) -> Embedding:
        encoder = (await self._role_encoders_async())[1]
        vector: Embedding = (await encoder.aencode_queries([query]))[0].tolist()
        return vector

    def _get_text_embedding(self, text: str) -> Embedding:
        return self._get_text_embeddings([text])[0]

    async def _aget_text_embedding(self, text: str) -> Embedding:
        return (await self._aget_text_embeddings([text]))[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        return to_lists(self.encoder.encode_documents(texts))

    async def _aget_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        encoder = (await self._role_encoders_async())[0]
        return await to_lists_async(await encoder.aencode_documents(texts))

    def _with_query_cache(self) -> HuggingFaceBgeEmbedding:
        if self.embeddings_cache is None:
            return self
        # Made here, so that the copy does not make its own encoders for every query.
        self._role_encoders()
        return self.model_copy(update={"embeddings_cache": QueryCollections(self.embeddings_cache)})

    def _settings(self) -> EncodingSettings:
        loading = read_loading_kwargs(self.sentence_transformer_kwargs, "the arguments")
        fields: dict[str, object] = {"show_progress": self.show_progress_bar}
        if self.parallel_process and self.device is None:
            fields["device"] = self.target_devices or "all"
        common = self._merged(loading.settings, EncoderSettings, **fields)
        instruction = text_setting("text_instruction", self.text_instruction)
        settings = {"normalize": self.normalize, **common, "document_instruction": instruction}
        return EncodingSettings(EncoderSettings(**settings), loading)


# The functions without llama-index's tracing decorator, since the overriding methods are traced already.
_get_query_embedding = inspect.unwrap(BaseEmbedding.get_query_embedding)
_aget_query_embedding = inspect.unwrap(BaseEmbedding.aget_query_embedding)
