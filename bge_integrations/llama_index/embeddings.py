"""BGE models as a LlamaIndex `BaseEmbedding`."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, Literal

from llama_index.core.base.embeddings.base import BaseEmbedding, Embedding
from llama_index.core.bridge.pydantic import ConfigDict, Field, PrivateAttr, SecretStr

from bge_integrations.driving import in_thread
from bge_integrations.encoder import BgeEncoder
from bge_integrations.errors import SettingsError
from bge_integrations.llama_index.cache import QueryCollections
from bge_integrations.sentence_transformers_kwargs import (
    LOADING_KEYS,
    SHARED_FIELDS,
    EncodingKwargs,
    LoadingKwargs,
    build_encoders,
    find_token,
    json_ready_loading_kwargs,
    merge_settings,
    read_loading_kwargs,
    with_paths_as_text,
)
from bge_integrations.settings import EncoderSettings, EngineName, OnTruncation, Precision
from bge_integrations.validation import check_text
from bge_integrations.vectors import to_lists, to_lists_async

if TYPE_CHECKING:
    import os

    from sentence_transformers import SentenceTransformer

# llama-index hands over this many texts at a time, and only within them can sorting by length save padding. Of 3,769
# docstrings (mean 54 tokens, p95 200) in forward passes of 2048 tokens, padding is 64 % of what is computed at 10
# texts a time (llama-index's own default), 29 % at 128, 12 % at 512 and 4 % at 2048, the most that it allows.
_DEFAULT_TEXTS_PER_CALL = 2048

_DROPPED = {
    "tokenizer_name": "the checkpoint's own tokenizer is used",
    "tokenizer": "the checkpoint's own tokenizer is used",
    "pooling": "the model's own pooling is used",
    "model": "give model_name; equal settings share one loaded model",
}


class HuggingFaceBgeEmbedding(BaseEmbedding):
    """BGE embedding models in LlamaIndex, with the right instruction on the right side.

    Takes what llama-index-embeddings-huggingface's `HuggingFaceEmbedding` takes for text. Embedders with equal loading
    settings share one model in memory, with LangChain's as well.

    Example:
        ```python
        from bge_integrations.llama_index import HuggingFaceBgeEmbedding

        Settings.embed_model = HuggingFaceBgeEmbedding("BAAI/bge-small-en-v1.5")
        ```
    """

    model_config = ConfigDict(
        protected_namespaces=("pydantic_model_",),
        arbitrary_types_allowed=True,
        extra="forbid",
        hide_input_in_errors=True,
    )

    model_name: str = Field(default="BAAI/bge-small-en", description="Hub id or local folder.")
    embed_batch_size: int = Field(
        default=_DEFAULT_TEXTS_PER_CALL,
        description="Texts handed to the encoder at a time; it makes its own batches of them by tokens.",
        gt=0,
        le=2048,
    )
    max_length: int | None = Field(default=None, description="Tokens per text, special tokens included.", gt=0)
    query_instruction: str | None = Field(
        default=None, description="Text before each query: None as the model was trained, '' none."
    )
    text_instruction: str | None = Field(
        default=None, description="Text before each text: None as the model was trained, '' none."
    )
    normalize: bool | Literal["checkpoint"] | None = Field(
        default=True, description="L2-normalise: None as the model was trained, True always, False never."
    )
    cache_folder: str | None = Field(default=None, description="Where hub files are kept.")
    trust_remote_code: bool = Field(default=False, description="Run Python code that comes with the checkpoint.")
    device: str | list[str] | None = Field(
        default=None, description="None takes the first there is of cuda, mps and cpu; a list or 'all' uses each."
    )
    parallel_process: bool = Field(
        default=False, description="Use target_devices, or all devices, unless device names some; starts no process."
    )
    target_devices: list[str] | None = Field(default=None, description="Devices to use with parallel_process.")
    show_progress_bar: bool = Field(default=False, description="A progress bar for texts, never for a query.")
    precision: Precision = Field(default="auto", description="How the model computes.")
    engine: EngineName = Field(default="auto", description="What runs the model.")
    task: str | None = Field(default=None, description="What an instruct model is asked to do.")
    examples: list[Any] | None = Field(
        default=None, description="For bge-en-icl: task, query and response of examples to go before each query."
    )
    truncate_dim: int | None = Field(default=None, description="Keep only so many leading dimensions.", gt=0)
    on_truncation: OnTruncation = Field(default="warn", description="For texts over max_length.")
    revision: str | None = Field(default=None, description="Branch, tag or commit on the hub.")
    local_files_only: bool = Field(default=False, description="Never ask the hub.")
    allow_pickle_weights: bool = Field(default=False, description="Load pytorch_model.bin if there is nothing else.")
    batch_tokens: int | None = Field(default=None, description="Tokens in one forward pass.", gt=0)
    threads: int | None = Field(default=None, description="Processor cores; None takes what this process may.", gt=0)
    max_queued_texts: int = Field(default=65536, description="In flight at once; a call beyond it waits.", gt=0)
    sentence_transformer_kwargs: dict[str, Any] = Field(
        default_factory=dict, description="Further arguments of SentenceTransformer(...), such as prompts."
    )
    token: SecretStr | bool | None = Field(default=None, exclude=True, repr=False, description="Hub token.")

    # The encoders of texts and of queries, with what they were made from.
    _encoders: tuple[tuple[EncoderSettings, LoadingKwargs], tuple[BgeEncoder, BgeEncoder]] | None = PrivateAttr(
        default=None
    )

    def __init__(self, model_name: str | os.PathLike[str] = "BAAI/bge-small-en", **kwargs: Any) -> None:  # noqa: ANN401 - the fields' own types
        """Checks the settings, then loads the model or joins those that already hold it.

        Args:
            model_name: Hub id or local folder.
            **kwargs: The fields above, and any argument of `SentenceTransformer(...)`.

        Raises:
            pydantic.ValidationError: A field's value is of the wrong type.
            SettingsError: An argument that is unknown or can't be honoured.
            BgeError: Whatever loading raises; see `bge_integrations.BgeEncoder`.
        """
        fields = _to_fields({"model_name": model_name, **kwargs}, set(type(self).model_fields))
        super().__init__(**fields)
        self._role_encoders()
        if self.max_length is None:
            # As the class that this one replaces: splitters read the limit from here.
            self.max_length = self.encoder.max_length

    @classmethod
    def class_name(cls) -> str:
        """The name under which it is serialised."""
        return "HuggingFaceBgeEmbedding"

    @property
    def encoder(self) -> BgeEncoder:
        """The encoder of texts."""
        return self._role_encoders()[0]

    @property
    def client(self) -> SentenceTransformer:
        """The SentenceTransformer underneath; its own `encode` knows nothing of these settings."""
        return self.encoder.client

    def get_query_embedding(self, query: str) -> Embedding:
        """Embeds a query, with the query instruction.

        Args:
            query: The query.

        Returns:
            The vector, as Python floats.

        Raises:
            BgeError: As `bge_integrations.BgeEncoder.encode_queries`.
        """
        vector: Embedding = _get_query_embedding(self._with_query_cache(), query)
        return vector

    async def aget_query_embedding(self, query: str) -> Embedding:
        """As `get_query_embedding`, without blocking the event loop."""
        vector: Embedding = await _aget_query_embedding(self._with_query_cache(), query)
        return vector

    def _get_query_embedding(self, query: str) -> Embedding:
        check_text(query)
        vector: Embedding = self._role_encoders()[1].encode_queries([query])[0].tolist()
        return vector

    async def _aget_query_embedding(self, query: str) -> Embedding:
        check_text(query)
        encoder = (await self._role_encoders_async())[1]
        vector: Embedding = (await encoder.aencode_queries([query]))[0].tolist()
        return vector

    def _get_text_embedding(self, text: str) -> Embedding:
        check_text(text)
        return self._get_text_embeddings([text])[0]

    async def _aget_text_embedding(self, text: str) -> Embedding:
        check_text(text)
        return (await self._aget_text_embeddings([text]))[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        return to_lists(self.encoder.encode_documents(texts))

    async def _aget_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        encoder = (await self._role_encoders_async())[0]
        return await to_lists_async(await encoder.aencode_documents(texts))

    def __getstate__(self) -> dict[str, Any]:
        """Pickles settings, not weights, and no token."""
        bare = self.model_copy(update={"token": None})
        bare._encoders = None
        return BaseEmbedding.__getstate__(bare)

    def _with_query_cache(self) -> HuggingFaceBgeEmbedding:
        if self.embeddings_cache is None:
            return self
        # Made here if need be: what the copy made would be lost with it, and made again for the next query.
        self._role_encoders()
        return self.model_copy(update={"embeddings_cache": QueryCollections(self.embeddings_cache)})

    def _role_encoders(self) -> tuple[BgeEncoder, BgeEncoder]:
        loading = read_loading_kwargs(self.sentence_transformer_kwargs, "the arguments")
        settings = self._settings(loading), loading
        made = self._encoders
        # A setting may have been changed since, by assignment or in a copy.
        if made is None or made[0] != settings:
            made = self._encoders = settings, build_encoders(*settings, EncodingKwargs(), EncodingKwargs())
        return made[1]

    async def _role_encoders_async(self) -> tuple[BgeEncoder, BgeEncoder]:
        """As `_role_encoders`, which after unpickling may have to load the model."""
        return self._role_encoders() if self._encoders else await in_thread(self._role_encoders)

    def _settings(self, loading: LoadingKwargs) -> EncoderSettings:
        said = {name: getattr(self, name) for name in SHARED_FIELDS if name in self.model_fields_set}
        said["token"] = self.token.get_secret_value() if isinstance(self.token, SecretStr) else self.token
        said["show_progress"] = self.show_progress_bar
        if self.parallel_process and self.device is None:
            said["device"] = self.target_devices or "all"
        common = merge_settings(said, loading.settings, "the arguments")
        return EncoderSettings(
            **{"normalize": self.normalize, **common},
            model_name=self.model_name,
            document_instruction=self.text_instruction,
        )


def _to_fields(kwargs: dict[str, Any], known: set[str]) -> dict[str, Any]:
    """Sorts what a user passed into the fields, the rest into `sentence_transformer_kwargs`."""
    fields: dict[str, Any] = {}
    further: dict[str, Any] = dict(kwargs.get("sentence_transformer_kwargs") or {})
    for key, value in with_paths_as_text(kwargs).items():
        if key in _DROPPED:
            if value not in (None, "deprecated"):
                raise SettingsError(f"{key}={value!r} can't be honoured: {_DROPPED[key]}.")
        elif key == "show_progress":
            fields["show_progress_bar"] = value
        elif key == "callback_manager" and value is None:
            continue
        elif key in known:
            fields[key] = value
        elif key in LOADING_KEYS:
            further[key] = value
        else:
            choices = sorted({*known, *LOADING_KEYS, "show_progress"})
            raise SettingsError(f"{key}={value!r} is unknown; the known arguments are {', '.join(choices)}.")
    if fields.get("token") is None:
        fields["token"] = find_token(further)
    fields["sentence_transformer_kwargs"] = json_ready_loading_kwargs(further)
    return fields


# The functions under llama-index's tracing decorator: the overriding methods are traced already.
_get_query_embedding = inspect.unwrap(BaseEmbedding.get_query_embedding)
_aget_query_embedding = inspect.unwrap(BaseEmbedding.aget_query_embedding)
