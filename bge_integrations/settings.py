"""The settings. Each is checked and documented here, once."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from typing import Any, ClassVar, Literal, TypedDict, cast, get_args
from urllib.parse import urlsplit

from typing_extensions import Self, TypeIs

from bge_integrations.errors import SettingsError
from bge_integrations.redaction import holds_secret, is_hub_token, shown, shown_fields
from bge_integrations.texts import (
    about_file_name,
    about_surrogate,
    file_names_are_utf8,
    is_text,
    kind_of,
    lone_surrogate,
    plain,
)

Purpose = Literal["vectors", "scores", "m3"]
"""Use of a model: one vector a text, one score a pair of texts, or all three outputs of bge-m3."""
Precision = Literal["auto", "float32", "bfloat16", "float16", "int8"]
EngineName = Literal["auto", "torch", "openvino", "sentence-transformers"]
OnTruncation = Literal["warn", "ignore", "error"]
Pooling = Literal["cls", "mean", "last"]
Example = tuple[str, str, str]
"""A task, a query and its response. The model reads them before the actual query."""
Normalization = bool | Literal["checkpoint"] | None

EndpointApi = Literal["auto", "tei", "openai"]
EndpointScores = Literal["probabilities", "logits"]

_PATHS = ("model_name", "cache_folder")
SECRETS = ("token", "api_key")
"""Fields that no pickle contains."""

OUTPUT_PRECISIONS = ("uint8", "binary", "ubinary")

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_HEADER_VALUE = re.compile(r"[!-~](?:[ -~]*[!-~])?")


@dataclass(frozen=True, kw_only=True)
class TransformersKwargs:
    """Keywords for transformers' `from_pretrained`. They are kept as JSON, so that equal keywords compare equal.

    Attributes:
        model: Keywords for `AutoModel`, such as `{"attn_implementation": "eager"}`.
        processor: Keywords for `AutoTokenizer`.
        config: Keywords for `AutoConfig`.
    """

    model: str = "{}"
    processor: str = "{}"
    config: str = "{}"

    def __post_init__(self) -> None:
        """Raises `SettingsError` for secrets, since these keywords are shown, dumped and pickled."""
        for name, values in self.as_dicts().items():
            for key, value in values.items():
                if holds_secret(value, key):
                    raise SettingsError(
                        f"{name}[{key!r}] reads like a secret, and keywords are shown and saved; give the hub token as "
                        "token=…, which is never shown or saved."
                    )

    @classmethod
    def of(
        cls,
        model: Mapping[str, Any] | None = None,
        processor: Mapping[str, Any] | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> TransformersKwargs:
        """Freezes three keyword dictionaries.

        Raises:
            SettingsError: A value can't be written as JSON, or it is a secret. Settings are shown, saved and loaded.
        """
        return cls(
            model=_to_json("model_kwargs", model),
            processor=_to_json("processor_kwargs", processor),
            config=_to_json("config_kwargs", config),
        )

    def as_dicts(self) -> dict[str, dict[str, Any]]:
        """Returns the three dictionaries under the names that sentence-transformers uses."""
        return {
            "model_kwargs": json.loads(self.model),
            "processor_kwargs": json.loads(self.processor),
            "config_kwargs": json.loads(self.config),
        }


def _to_json(name: str, values: Mapping[str, Any] | None) -> str:
    try:
        return json.dumps(dict(values or {}), sort_keys=True)
    except TypeError as error:
        raise SettingsError(
            f"{name}={shown(values)} can't be written as JSON ({error}), but settings must survive saving and loading; "
            "give numbers, texts, lists and dictionaries."
        ) from error


@dataclass(frozen=True, kw_only=True, repr=False)
class EndpointOptions:
    """Options for the server at `endpoint`. They contain no secret."""

    api: EndpointApi = "auto"
    """The server's routes. `"tei"`: `/embed`, `/embed_sparse` and `/rerank`, as text-embeddings-inference and `bge
    serve` have them. `"openai"`: `/v1/embeddings` and `/v1/rerank`. `"auto"`: what the server's `/info` says."""
    model: str | None = None
    """The model's name on the server, for the routes of `"openai"`. `None`: `model_name`."""
    tokenizer: str | None = None
    """Local folder or hub id with the model's tokenizer, to count tokens. `None`: `model_name`. If there are no such
    files, batches are made by characters."""
    api_key_env: str | None = None
    """Environment variable with the server's key, which is read when the connection is made."""
    key_header: str = "Authorization"
    """Header for the key. `Authorization` gets `Bearer KEY`, any other header the key alone."""
    headers: tuple[tuple[str, str], ...] = ()
    """Further headers of every request, without secrets."""
    connections: int = 8
    """Greatest number of requests at the same time."""
    timeout: float = 120.0
    """Greatest number of seconds to wait for an answer."""
    retries: int = 5
    """Greatest number of further tries for a request that another try can help."""
    retry_seconds: float = 60.0
    """Greatest number of seconds from the first try of a request to the start of its last."""
    verify: bool | str = True
    """Whether the server's TLS certificate is checked, or a file of certificates to check it with."""
    scores: EndpointScores = "probabilities"
    """What `/v1/rerank` returns. The routes of `"tei"` are asked for logits."""

    def __post_init__(self) -> None:
        """Checks every value on its own."""
        _make_plain(self, "api", "model", "tokenizer", "api_key_env", "key_header", "scores")
        _check_choice("endpoint_options['api']", self.api, get_args(EndpointApi))
        _check_choice("endpoint_options['scores']", self.scores, get_args(EndpointScores))
        for name in ("model", "tokenizer", "api_key_env", "key_header"):
            text_setting(f"endpoint_options[{name!r}]", getattr(self, name))
        if self.api_key_env is not None and not _VARIABLE.fullmatch(self.api_key_env):
            raise SettingsError(
                "endpoint_options['api_key_env'] is not the name of an environment variable; it takes the name of the "
                "variable, not the key."
            )
        if not _HEADER.fullmatch(self.key_header or ""):
            raise SettingsError(f"endpoint_options['key_header']={self.key_header!r} is not the name of a header.")
        if not _is_count(self.connections):
            raise SettingsError(
                f"endpoint_options['connections']={self.connections!r} must be a whole number of at least 1."
            )
        if not (self.retries == 0 or _is_count(self.retries)) or isinstance(self.retries, bool):
            raise SettingsError(f"endpoint_options['retries']={self.retries!r} must be a whole number of at least 0.")
        for name, least in (("timeout", "more than 0"), ("retry_seconds", "at least 0")):
            value = getattr(self, name)
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and value < float("inf")
            if not is_number or value < 0 or (name == "timeout" and not value):
                raise SettingsError(f"endpoint_options[{name!r}]={value!r} must be a number of seconds, {least}.")
        if not isinstance(self.verify, bool) and not is_text(self.verify):
            raise SettingsError(
                f"endpoint_options['verify'] is {kind_of(self.verify)}; give True, False or a file of certificates."
            )
        object.__setattr__(self, "headers", _headers(self.headers))

    @classmethod
    def of(cls, given: object) -> EndpointOptions:
        """Reads options from a dictionary with the names of the fields; `None` or an empty one: all defaults.

        Raises:
            SettingsError: An option is unknown or invalid.
        """
        if given is None or isinstance(given, EndpointOptions):
            return given or cls()
        if not isinstance(given, Mapping):
            raise SettingsError(f"endpoint_options is {kind_of(given)}; give a dictionary.")
        known = [f.name for f in dataclasses.fields(cls)]
        for name in given:
            if name not in known:
                raise SettingsError(
                    f"endpoint_options[{shown(name)}] is unknown; the known options are {', '.join(known)}."
                )
        return cls(**given)

    def __repr__(self) -> str:
        """Shows the options that differ from the defaults, without hub tokens."""
        changed = {f.name: value for f in dataclasses.fields(self) if (value := getattr(self, f.name)) != f.default}
        return f"EndpointOptions({', '.join(f'{name}={shown(value)}' for name, value in changed.items())})"


def _headers(given: object) -> tuple[tuple[str, str], ...]:
    pairs = list(given.items()) if isinstance(given, Mapping) else given
    if not isinstance(pairs, (list, tuple)) or not all(
        isinstance(one, (list, tuple)) and len(one) == 2 for one in pairs
    ):
        raise SettingsError(f"endpoint_options['headers'] is {kind_of(given)}; give a dictionary of texts.")
    for name, value in pairs:
        if not (is_text(name) and is_text(value) and _HEADER.fullmatch(name) and _HEADER_VALUE.fullmatch(value)):
            raise SettingsError(
                f"endpoint_options['headers'] has {shown(name)}, which is no header; give names and texts without line "
                "breaks, in ASCII."
            )
        if holds_secret(value, name):
            raise SettingsError(
                f"endpoint_options['headers'][{name!r}] reads like a secret, and headers are shown and saved; give the "
                "key as api_key, and the header's name as endpoint_options['key_header']."
            )
    return tuple((plain(name), plain(value)) for name, value in pairs)


_LOCAL_SETTINGS: Mapping[str, str] = {
    "device": "the server chooses its device",
    "precision": "the server chooses its precision",
    "engine": "the server computes",
    "threads": "the server computes",
    "trust_remote_code": "no code runs in this process",
    "allow_pickle_weights": "no weights are loaded in this process",
    "transformers_kwargs": "transformers loads nothing in this process",
}
"""Settings that make no sense with `endpoint`, each with the reason."""


@dataclass(frozen=True, kw_only=True, repr=False)
class ModelSettings:
    """Settings that every kind of model takes. Pickles contain neither the token nor the key."""

    _local: ClassVar[Mapping[str, str]] = _LOCAL_SETTINGS

    model_name: str
    """Hub id (`"BAAI/bge-small-en-v1.5"`), local folder, or folder made by `bge prepare`."""
    device: str | Sequence[str] | None = None
    """`"cpu"`, `"cuda"`, `"cuda:1"` or `"mps"`. `None` or `"auto"`: the first of cuda, mps and cpu that exists and
    supports `engine` and `precision`. A list, or `"all"`: the model is on each device, and they share the work."""
    precision: Precision = "auto"
    """Precision of the computation: `"float32"`, `"bfloat16"`, `"float16"` or `"int8"`. `"auto"`: float16 on CUDA,
    float32 elsewhere. Results are always float32."""
    engine: EngineName = "auto"
    """Engine that runs the model: `"openvino"`, `"torch"` or `"sentence-transformers"`. `"auto"`: the fastest engine
    that can run the model here."""
    max_length: int | None = None
    """Greatest number of tokens per text, or per pair of texts, special tokens included. `None`: the model's own
    limit."""
    query_instruction: str | None = None
    """Text before each query. `None`: the instruction the model was trained with. `""`: no instruction."""
    on_truncation: OnTruncation = "warn"
    """What happens to texts over `max_length`. `"warn"`: they are cut, with one warning a call. `"ignore"`: they are
    cut. `"error"`: the call raises `TruncationError`."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    cache_folder: str | None = None
    """Folder for hub files. `None`: `SENTENCE_TRANSFORMERS_HOME`, or the hub's usual cache folder."""
    token: str | bool | None = field(default=None, repr=False, compare=False)
    """Hub token. It is never shown, pickled or dumped."""
    trust_remote_code: bool = False
    """Run Python code that comes with the checkpoint."""
    local_files_only: bool = False
    """Use only local files and never connect to the hub."""
    allow_pickle_weights: bool = False
    """Load `pytorch_model.bin` if the checkpoint has no safetensors."""
    show_progress: bool = False
    """Show a progress bar for documents and pairs. Queries never show one."""
    batch_tokens: int | None = None
    """Greatest number of tokens, padding included, in one forward pass. `None`: the engine's own number."""
    batch_size: int | None = None
    """Greatest number of texts in one forward pass. `None`: no limit."""
    threads: int | None = None
    """CPU threads of the model. `None`: the least of the cores that this process may use, `OMP_NUM_THREADS`, and
    torch's number of threads if torch is imported. torch's number is raised only for a value given here."""
    max_queued_texts: int = 65536
    """Greatest number of documents in flight in the model at once, over all callers. Queries have a second limit of the
    same size. A call over its limit waits for room."""
    transformers_kwargs: TransformersKwargs = field(default_factory=TransformersKwargs)
    """Keywords for transformers' `from_pretrained`."""
    endpoint: str | None = None
    """Address of a server that runs the model, such as `"http://localhost:8080"`. `model_name` still says which model
    it is. `None`: the model runs in this process."""
    api_key: str | None = field(default=None, repr=False)
    """Key for the server at `endpoint`. It is never shown, pickled or dumped; `endpoint_options` can name an
    environment variable instead."""
    endpoint_options: EndpointOptions | Mapping[str, Any] = field(default_factory=EndpointOptions)
    """Options for the server at `endpoint`: the fields of `EndpointOptions`, also as a dictionary."""

    def __post_init__(self) -> None:
        """Checks every value on its own. Checks that depend on the model are made when it is loaded."""
        _make_plain(self, "model_name", "cache_folder", "precision", "engine", "on_truncation", "token")
        if not is_text(self.model_name) or not self.model_name.strip():
            raise SettingsError(
                f"model_name={self.model_name!r} names no model; give a hub id such as 'BAAI/bge-small-en-v1.5' "
                "or the path of a folder."
            )
        if is_hub_token(self.model_name):
            raise SettingsError("model_name is a hub token, not a model; give the token as token=….")
        if self.precision in OUTPUT_PRECISIONS:
            raise SettingsError(
                f"precision={self.precision!r} is a format for stored vectors, but `precision` is the precision of the "
                "computation here. Both frameworks need floats: quantise in the vector store instead."
            )
        _check_choice("precision", self.precision, get_args(Precision))
        _check_choice("engine", self.engine, get_args(EngineName))
        _check_choice("on_truncation", self.on_truncation, get_args(OnTruncation))
        self._check_positive("max_length", "batch_tokens", "batch_size", "threads", "max_queued_texts")
        self._check_text("cache_folder", "revision", "query_instruction")
        given: object = self.transformers_kwargs
        if given is None:
            object.__setattr__(self, "transformers_kwargs", TransformersKwargs())
        if not isinstance(self.transformers_kwargs, TransformersKwargs):
            raise SettingsError(
                f"transformers_kwargs={shown(self.transformers_kwargs)} is "
                f"{kind_of(self.transformers_kwargs)}; give TransformersKwargs.of(model={{...}}), from "
                "bge_integrations.settings."
            )
        if not (self.token is None or isinstance(self.token, (str, bool))):
            raise SettingsError(f"token is {kind_of(self.token)}; give a text, True, False or None.")
        self._check_device()
        self._check_endpoint()

    @classmethod
    def of(cls, model: str | os.PathLike[str] | Self) -> Self:
        """Returns settings as they are, and the default ones for a hub id or a folder."""
        return model if isinstance(model, cls) else cls(model_name=os.fspath(cast("str", model)))

    def _check_positive(self, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            if value is not None and not _is_count(value):
                raise SettingsError(f"{name}={value!r} must be a whole number of at least 1.")

    def _check_text(self, *names: str) -> None:
        for name in names:
            object.__setattr__(self, name, text_setting(name, getattr(self, name)))

    def _check_device(self) -> None:
        if self.device is None or is_text(self.device):
            self._check_text("device")
            return
        if not isinstance(self.device, (list, tuple)) or not all(is_text(one) for one in self.device):
            raise SettingsError(
                f"device={self.device!r} is {kind_of(self.device)}; give one device as text, such as 'cpu', "
                "'cuda' or 'cuda:1', a list of them, or 'all'."
            )
        if not self.device:
            raise SettingsError("device=[] names no device; give None for the first device that is available.")
        object.__setattr__(
            self, "device", tuple(text_setting(f"device[{place}]", one) for place, one in enumerate(self.device))
        )

    @property
    def server(self) -> EndpointOptions:
        """The options for the server at `endpoint`."""
        return EndpointOptions.of(self.endpoint_options)

    def _check_endpoint(self) -> None:
        _make_plain(self, "endpoint", "api_key")
        object.__setattr__(self, "endpoint_options", self.server)
        if self.api_key is not None and not (is_text(self.api_key) and _HEADER_VALUE.fullmatch(self.api_key)):
            raise SettingsError("api_key is not a text that a header can carry: ASCII, without line breaks.")
        if self.endpoint is None:
            for name, default in (("api_key", None), ("endpoint_options", EndpointOptions())):
                if getattr(self, name) != default:
                    raise SettingsError(f"{name} is given without endpoint; give the address of the server.")
            return
        object.__setattr__(self, "endpoint", _address(self.endpoint))
        if self.api_key is not None and self.server.api_key_env is not None:
            raise SettingsError("api_key and endpoint_options['api_key_env'] are both given; give one of them.")
        for one in dataclasses.fields(self):
            value = getattr(self, one.name)
            if one.name in self._local and value != default_of(one):
                raise SettingsError(
                    f"{one.name}={shown(value)} has no effect with endpoint={self.endpoint!r}: "
                    f"{self._local[one.name]}. Leave it out."
                )

    def replace(self, **changes: Any) -> Self:  # noqa: ANN401 - the fields' own types
        """Returns a copy with some fields changed. The copy is checked."""
        return dataclasses.replace(self, **changes)

    def __repr__(self) -> str:
        """Hides hub tokens in all fields."""
        return shown_fields(self)

    def __getstate__(self) -> dict[str, Any]:
        """Leaves the token and the key out of pickles."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in SECRETS}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restores the fields, with no token and no key. A pickle of an older version lacks the newest fields."""
        new = {"endpoint": None, "endpoint_options": EndpointOptions()}
        for name, value in {**dict.fromkeys(SECRETS), **new, **state}.items():
            object.__setattr__(self, name, value)


@dataclass(frozen=True, kw_only=True, repr=False)
class EncoderSettings(ModelSettings):
    """Settings of an encoder."""

    _local: ClassVar[Mapping[str, str]] = {**_LOCAL_SETTINGS, "pooling": "the server pools"}

    document_instruction: str | None = None
    """Text before each document. `None`: the instruction the model was trained with (of BGE's models only llm-embedder
    has one). `""`: no instruction."""
    task: str | None = None
    """Task description for an instruct model, or the name of one of llm-embedder's tasks."""
    examples: Sequence[Example | Sequence[str] | Mapping[str, str]] | None = None
    """Examples before each query, for bge-en-icl: triples of task, query and response, or dictionaries with the keys
    `instruct` (or `task`), `query` and `response`. They are kept as triples."""
    pooling: Pooling | None = None
    """How the hidden states of a text's tokens become its vector: `"cls"` is the first, `"mean"` the mean of all,
    `"last"` the last. `None`: as the model was trained. If the model's files do not say how, it is the mean, with a
    warning."""
    normalize: Normalization = None
    """L2 normalisation of the vectors. `None`: as the model was trained (BGE: yes). `True`: always. `False`: never.
    `"checkpoint"`: only if the checkpoint has a module for it, as in sentence-transformers."""
    truncate_dim: int | None = None
    """Number of leading dimensions to keep. Normalisation comes after the cut. `None`: all dimensions."""

    def __post_init__(self) -> None:
        """See `ModelSettings.__post_init__`."""
        super().__post_init__()
        _make_plain(self, "pooling", "normalize")
        _check_choice("pooling", self.pooling, (None, *get_args(Pooling)))
        if not (self.normalize is None or isinstance(self.normalize, bool) or self.normalize == "checkpoint"):
            raise SettingsError(f"normalize={self.normalize!r} is unknown; choose None, True, False or 'checkpoint'.")
        self._check_positive("truncate_dim")
        self._check_text("document_instruction", "task")
        object.__setattr__(self, "examples", _examples(self.examples))
        if self.examples is not None and self.query_instruction is not None:
            raise SettingsError(
                f"examples and query_instruction={self.query_instruction!r} are given, but examples belong to the "
                "model's own instruction; set task instead of query_instruction."
            )


@dataclass(frozen=True, kw_only=True, repr=False)
class RerankerSettings(ModelSettings):
    """Settings of a reranker."""

    _local: ClassVar[Mapping[str, str]] = {
        **_LOCAL_SETTINGS,
        "prompt": "the server writes the prompt of a decoder",
        **dict.fromkeys(("cutoff_layers", "compress_ratio", "compress_layers"), "the server computes the scores"),
    }

    normalize: bool = False
    """`True`: sigmoid scores between 0 and 1. `False`: logits, as in the authors' code. An activation that was saved
    with a CrossEncoder is not applied."""
    prompt: str | None = None
    """Question about query A and passage B, for decoder models. `None`: the prompt the model was trained with, which is
    known only for BGE's decoders. Other decoders need a value."""
    cutoff_layers: int | Sequence[int] | None = None
    """Layer that gives the score, as a number or a list of one, for models that can score after several layers
    (bge-reranker-v2-minicpm-layerwise, -v2.5-gemma2-lightweight). `None`: the authors' choice."""
    compress_ratio: int | None = None
    """Number of tokens merged into one, for models that merge tokens (bge-reranker-v2.5-gemma2-lightweight). `None`:
    the authors' choice."""
    compress_layers: Sequence[int] | None = None
    """Layers after which the same models merge tokens. `None`: the authors' choice."""

    def __post_init__(self) -> None:
        """See `ModelSettings.__post_init__`."""
        super().__post_init__()
        if not isinstance(self.normalize, bool):
            raise SettingsError(f"normalize={self.normalize!r} is unknown; choose True (sigmoid) or False (logit).")
        self._check_text("prompt")
        self._check_positive("compress_ratio")
        given = self.cutoff_layers
        layers = _layers("cutoff_layers", [given] if _is_count(given) else given)
        if layers is not None and len(layers) != 1:
            raise SettingsError(
                f"cutoff_layers={given!r} names {len(layers)} layers, and each layer gives another score; name one, "
                "and make one reranker for each layer (they share the model)."
            )
        object.__setattr__(self, "cutoff_layers", layers)
        object.__setattr__(self, "compress_layers", _layers("compress_layers", self.compress_layers))

    @property
    def cutoff_layer(self) -> int | None:
        """The layer to score after, if one was named."""
        return self.cutoff_layers[0] if isinstance(self.cutoff_layers, tuple) else None


class FileOptions(TypedDict, total=False):
    """The fields of `ModelSettings` about a model's files: their origin, and what is allowed with them."""

    revision: str | None
    cache_folder: str | None
    token: str | bool | None
    trust_remote_code: bool
    local_files_only: bool
    allow_pickle_weights: bool


class EmbedderFileOptions(FileOptions, total=False):
    """`FileOptions` for a model that computes vectors."""

    pooling: Pooling | None


class ModelOptions(FileOptions, total=False):
    """The fields of `ModelSettings` without `model_name`, as keywords of a constructor."""

    device: str | Sequence[str] | None
    precision: Precision
    engine: EngineName
    max_length: int | None
    query_instruction: str | None
    on_truncation: OnTruncation
    show_progress: bool
    batch_tokens: int | None
    batch_size: int | None
    threads: int | None
    max_queued_texts: int
    transformers_kwargs: TransformersKwargs
    endpoint: str | None
    api_key: str | None
    endpoint_options: EndpointOptions | Mapping[str, Any]


class EncoderOptions(ModelOptions, total=False):
    """The fields of `EncoderSettings` without `model_name`, as keywords of a constructor."""

    document_instruction: str | None
    task: str | None
    examples: Sequence[Example | Sequence[str] | Mapping[str, str]] | None
    pooling: Pooling | None
    normalize: Normalization
    truncate_dim: int | None


class RerankerOptions(ModelOptions, total=False):
    """The fields of `RerankerSettings` without `model_name`, as keywords of a constructor."""

    normalize: bool
    prompt: str | None
    cutoff_layers: int | Sequence[int] | None
    compress_ratio: int | None
    compress_layers: Sequence[int] | None


@cache
def _documented() -> Mapping[str, Mapping[str, str]]:
    """Returns the docstring below each field, by class. It is empty if Python has no sources."""
    try:
        tree = ast.parse(inspect.getsource(sys.modules[__name__]))
    except (OSError, TypeError):
        return {}
    return {node.name: dict(_texts_below_fields(node.body)) for node in tree.body if isinstance(node, ast.ClassDef)}


def _texts_below_fields(body: Sequence[ast.stmt]) -> Iterator[tuple[str, str]]:
    for first, second in pairwise(body):
        match first, second:
            case (
                ast.AnnAssign(target=ast.Name(id=name)),
                ast.Expr(value=ast.Constant(value=str(text))),
            ):
                yield name, inspect.cleandoc(text)


def description(name: str, kind: type[ModelSettings] = EncoderSettings) -> str | None:
    """Returns the description of a setting, or `None` if Python has no sources."""
    return next((texts[name] for base in kind.__mro__ if name in (texts := _documented().get(base.__name__, {}))), None)


def default_of(setting: dataclasses.Field[Any]) -> Any:  # noqa: ANN401 - the field's own type
    """Returns the default of a field of the settings."""
    return setting.default if setting.default_factory is dataclasses.MISSING else setting.default_factory()


def text_setting(name: str, value: object) -> str | None:
    """Returns the value of a text setting as a plain `str`, or `None` for `None`.

    Raises:
        SettingsError: The value is not a text, or UTF-8 can't encode it.
    """
    if value is None:
        return None
    if not is_text(value):
        raise SettingsError(f"{name}={value!r} is {kind_of(value)}; give a text or None.")
    return _plain_setting(name, value)


def _plain_setting(name: str, value: str) -> str:
    text = plain(value)
    position = lone_surrogate(text)
    if position is not None:
        if name in _PATHS and not file_names_are_utf8():
            raise SettingsError(f"{name}={text!r} {about_file_name(text)}")
        raise SettingsError(f"{name} {about_surrogate(text, position)}")
    return text


def _address(given: object) -> str:
    """Returns the address of a server without a slash at its end."""
    if not is_text(given):
        raise SettingsError(f"endpoint is {kind_of(given)}; give an address such as 'http://localhost:8080'.")
    text = given.strip()
    try:
        parts = urlsplit(text)
        _ = parts.port
    except ValueError:
        parts = urlsplit("")
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise SettingsError(
            "endpoint has a user, a password, a query or a fragment, which would be shown and saved; give the bare "
            "address, and the key as api_key."
        )
    if parts.scheme not in ("http", "https") or not parts.hostname or not text.isascii() or " " in text:
        raise SettingsError(f"endpoint={shown(text)} is no address; give one such as 'http://localhost:8080'.")
    return text.rstrip("/")


def _make_plain(settings: object, *names: str) -> None:
    """Converts paths and subclasses of `str` to plain `str`. Later checks handle other values."""
    for name in names:
        value = getattr(settings, name)
        written = os.fspath(value) if isinstance(value, os.PathLike) else value
        object.__setattr__(settings, name, _plain_setting(name, written) if is_text(written) else written)


def _check_choice(name: str, value: object, allowed: tuple[str | None, ...]) -> None:
    if value not in allowed:
        raise SettingsError(f"{name}={value!r} is unknown; choose one of {', '.join(map(repr, allowed))}.")


def _is_count(value: object) -> TypeIs[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _examples(given: object) -> tuple[Example, ...] | None:
    if given is None:
        return None
    if not isinstance(given, (list, tuple)):
        raise SettingsError(f"examples={shown(given)} is {kind_of(given)}; give a list of examples.")
    return tuple(_example(position, example) for position, example in enumerate(given)) or None


def _example(position: int, given: object) -> Example:
    """Reads a triple, or a dictionary in the form of bge-en-icl's model card."""
    parts: object = given
    if isinstance(given, Mapping) and set(given) in ({"instruct", "query", "response"}, {"task", "query", "response"}):
        parts = (given["instruct"] if "instruct" in given else given["task"], given["query"], given["response"])
    if not isinstance(parts, (list, tuple)) or len(parts) != 3 or not all(map(is_text, parts)):
        raise SettingsError(
            f"examples[{position}]={shown(given)} is no example; give three texts (task, query, response), or a "
            "dictionary with the keys 'instruct', 'query' and 'response'."
        )
    task, query, response = (
        _plain_setting(f"The {name} of examples[{position}]", part)
        for name, part in zip(("task", "query", "response"), parts, strict=True)
    )
    return task, query, response


def _layers(name: str, value: object) -> tuple[int, ...] | None:
    if value is None:
        return None
    if not isinstance(value, (list, tuple)) or not all(_is_count(layer) for layer in value):
        raise SettingsError(f"{name}={value!r} must be a list of whole numbers of at least 1.")
    return tuple(value)
