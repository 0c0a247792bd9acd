"""BGE models as LangChain `Embeddings`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from langchain_core.embeddings import Embeddings
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, SecretStr, model_validator

from bge_integrations.driving import in_thread
from bge_integrations.encoder import BgeEncoder
from bge_integrations.sentence_transformers_kwargs import (
    SHARED_FIELDS,
    EncodingKwargs,
    LoadingKwargs,
    build_encoders,
    find_token,
    json_ready_encoding_kwargs,
    json_ready_loading_kwargs,
    merge_settings,
    read_encoding_kwargs,
    read_loading_kwargs,
    with_paths_as_text,
)
from bge_integrations.settings import EncoderSettings, EngineName, OnTruncation, Precision
from bge_integrations.validation import check_text
from bge_integrations.vectors import to_lists, to_lists_async

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

_Settings = tuple[EncoderSettings, LoadingKwargs, EncodingKwargs, EncodingKwargs]


class HuggingFaceBgeEmbeddings(BaseModel, Embeddings):
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

    model_config = ConfigDict(extra="forbid", protected_namespaces=(), populate_by_name=True, hide_input_in_errors=True)

    model_name: str = Field(default="BAAI/bge-large-en", alias="model")
    """Hub id or local folder."""
    cache_folder: str | None = None
    """Where hub files are kept; None takes `SENTENCE_TRANSFORMERS_HOME` or the hub's usual cache."""
    model_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Arguments of `SentenceTransformer(...)`, such as `device`, `revision` or `prompts`, honoured key by key."""
    encode_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Arguments of `SentenceTransformer.encode`, such as `normalize_embeddings` or `batch_size`, for both sides."""
    query_encode_kwargs: dict[str, Any] = Field(default_factory=dict)
    """The same for queries only; adds to `encode_kwargs`."""
    query_instruction: str | None = None
    """Text before each query. None takes what the model was trained with, `""` is none."""
    embed_instruction: str | None = None
    """Text before each document. None takes what the model was trained with: none for BGE, but for llm-embedder."""
    multi_process: bool = False
    """Use all devices, as `device="all"` does, unless `device` names some. No process is started for it."""
    show_progress: bool = False
    """A progress bar while documents are embedded; never for a query."""
    device: str | list[str] | None = None
    """`"cpu"`, `"cuda"`, `"cuda:1"` or `"mps"`; None takes the first there is of cuda, mps and cpu. A list, or `"all"`,
    puts the model on each, and they share the work."""
    precision: Precision = "auto"
    """How the model computes; `"auto"` is float16 on CUDA and float32 elsewhere."""
    engine: EngineName = "auto"
    """What runs the model."""
    max_length: int | None = None
    """Tokens per text, special tokens included; None takes the model's own limit."""
    task: str | None = None
    """What an instruct model is asked to do, or the name of one of llm-embedder's tasks."""
    examples: list[Any] | None = None
    """For bge-en-icl, examples to go before each query: triples of task, query and response, or dictionaries with the
    keys `instruct`, `query` and `response`."""
    normalize: bool | Literal["checkpoint"] | None = None
    """L2-normalise: None as the model was trained (BGE: yes), True always, False never, `"checkpoint"` only if the
    checkpoint's own modules do."""
    truncate_dim: int | None = None
    """Keep only so many leading dimensions; normalised again afterwards."""
    on_truncation: OnTruncation = "warn"
    """For texts over `max_length`: `"warn"` once a call, `"ignore"`, or `"error"`."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    trust_remote_code: bool = False
    """Run Python code that comes with the checkpoint."""
    local_files_only: bool = False
    """Never ask the hub."""
    allow_pickle_weights: bool = False
    """Load `pytorch_model.bin` where a checkpoint has no safetensors."""
    batch_tokens: int | None = None
    """Tokens, padding included, in one forward pass; None takes the engine's own figure."""
    threads: int | None = None
    """Processor cores to use; None takes those that this process may use."""
    max_queued_texts: int = 65536
    """Documents, and as many queries, that may be in flight at once, over all callers; a call beyond it waits."""
    token: SecretStr | bool | None = Field(default=None, exclude=True, repr=False)
    """Hub token; never shown, dumped or pickled."""

    # The encoders of documents and of queries, with what they were made from.
    _encoders: tuple[_Settings, tuple[BgeEncoder, BgeEncoder]] | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _check_settings(self) -> HuggingFaceBgeEmbeddings:
        settings, _, document, query = self._settings()
        for encoding in (document, query):
            settings.replace(**encoding.settings)
        return self

    def __init__(self, **data: Any) -> None:  # noqa: ANN401 - the fields' own types
        """Checks the settings, then loads the model or joins those that already hold it.

        Raises:
            pydantic.ValidationError: A setting that is unknown or can't be honoured.
            BgeError: Whatever loading raises; see `bge_integrations.BgeEncoder`.
        """
        super().__init__(**_with_own_kwargs(data))
        self._role_encoders()

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
        check_text(text)
        vector: list[float] = self._role_encoders()[1].encode_queries([text])[0].tolist()
        return vector

    async def aembed_query(self, text: str) -> list[float]:
        """As `embed_query`, without blocking the event loop; cancelled, it gives up what is not computed yet."""
        check_text(text)
        encoder = (await self._role_encoders_async())[1]
        vector: list[float] = (await encoder.aencode_queries([text]))[0].tolist()
        return vector

    @property
    def encoder(self) -> BgeEncoder:
        """The encoder of documents."""
        return self._role_encoders()[0]

    @property
    def client(self) -> SentenceTransformer:
        """The SentenceTransformer underneath; its own `encode` knows nothing of these settings."""
        return self.encoder.client

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

    def __getstate__(self) -> dict[Any, Any]:
        """Pickles settings, not weights, and no token."""
        state = super().__getstate__()
        state["__dict__"] = {**state["__dict__"], "token": None}
        state["__pydantic_private__"] = {"_encoders": None}
        return state

    def _role_encoders(self) -> tuple[BgeEncoder, BgeEncoder]:
        settings = self._settings()
        made = self._encoders
        # A setting may have been changed since, by assignment, in a dictionary, or in a copy.
        if made is None or made[0] != settings:
            made = self._encoders = settings, build_encoders(*settings)
        return made[1]

    async def _role_encoders_async(self) -> tuple[BgeEncoder, BgeEncoder]:
        """As `_role_encoders`, which after unpickling may have to load the model."""
        return self._role_encoders() if self._encoders else await in_thread(self._role_encoders)

    def _settings(self) -> _Settings:
        loading = read_loading_kwargs(self.model_kwargs, "model_kwargs")
        document = read_encoding_kwargs(self.encode_kwargs, "encode_kwargs")
        query = document.updated_by(read_encoding_kwargs(self.query_encode_kwargs, "query_encode_kwargs"))
        said = {name: getattr(self, name) for name in SHARED_FIELDS if name in self.model_fields_set}
        said["token"] = self.token.get_secret_value() if isinstance(self.token, SecretStr) else self.token
        common = merge_settings(said, loading.settings, "model_kwargs")
        for name, encoding in (("encode_kwargs", document), ("query_encode_kwargs", query)):
            merge_settings(common, encoding.settings, name)
        if self.multi_process and common.get("device") is None:
            common["device"] = "all"
        settings = EncoderSettings(**common, model_name=self.model_name, document_instruction=self.embed_instruction)
        return settings, loading, document, query


def _with_own_kwargs(data: dict[str, Any]) -> dict[str, Any]:
    """Keeps the user's dictionaries as they are, and the token out of ours and of pydantic's errors."""
    data = with_paths_as_text(data)
    given = data.get("model_kwargs")
    if isinstance(given, dict):
        token = find_token(given)
        if token is not None:
            data["token"] = token
        data["model_kwargs"] = json_ready_loading_kwargs(given)
    for name in ("encode_kwargs", "query_encode_kwargs"):
        if isinstance(data.get(name), dict):
            data[name] = json_ready_encoding_kwargs(data[name])
    if isinstance(data.get("token"), str):
        data["token"] = SecretStr(data["token"])
    return data
