"""The settings, checked once, in one place."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from typing import Any, Literal, TypedDict, get_args

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
"""What a model is loaded for: one vector a text, a score a pair of texts, or all three outputs of bge-m3."""
Precision = Literal["auto", "float32", "bfloat16", "float16", "int8"]
EngineName = Literal["auto", "torch", "openvino", "sentence-transformers"]
OnTruncation = Literal["warn", "ignore", "error"]
Pooling = Literal["cls", "mean", "last"]
Example = tuple[str, str, str]
"""A task, a query and its response, shown to a model before the query proper."""
Normalization = bool | Literal["checkpoint"] | None

_PATHS = ("model_name", "cache_folder")

OUTPUT_PRECISIONS = ("uint8", "binary", "ubinary")


@dataclass(frozen=True, kw_only=True)
class TransformersKwargs:
    """Keywords handed on to transformers' `from_pretrained`, kept as JSON so that equal ones compare equal.

    Attributes:
        model: For `AutoModel`, such as `{"attn_implementation": "eager"}`.
        processor: For `AutoTokenizer`.
        config: For `AutoConfig`.
    """

    model: str = "{}"
    processor: str = "{}"
    config: str = "{}"

    def __post_init__(self) -> None:
        """Refuses secrets: these keywords are shown, dumped and pickled."""
        for name, values in self.as_dicts().items():
            for key, value in values.items():
                if holds_secret(value, key):
                    raise SettingsError(
                        f"{name}[{key!r}] reads like a secret, and keywords are shown and saved; give the hub's token "
                        "as token=…, which never is."
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
            SettingsError: A value that can't be written as JSON, since settings must survive a round trip; or a secret,
                since settings are shown and saved.
        """
        return cls(
            model=_to_json("model_kwargs", model),
            processor=_to_json("processor_kwargs", processor),
            config=_to_json("config_kwargs", config),
        )

    def as_dicts(self) -> dict[str, dict[str, Any]]:
        """Returns them under sentence-transformers' own names."""
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
class ModelSettings:
    """What every model takes, whatever it is used for. Holds no weights, and pickles without the token."""

    model_name: str
    """Hub id (`"BAAI/bge-small-en-v1.5"`), local folder, or folder made by `bge prepare`."""
    device: str | Sequence[str] | None = None
    """`"cpu"`, `"cuda"`, `"cuda:1"` or `"mps"`. `None` or `"auto"`: the first of cuda, mps and cpu that is there and
    can compute as `engine` and `precision` ask. A list, or `"all"`, puts the model on each, and they share the work."""
    precision: Precision = "auto"
    """How the model computes: `"float32"`, `"bfloat16"`, `"float16"` or `"int8"`. `"auto"`: float16 on CUDA, float32
    elsewhere. Results are float32 in any case."""
    engine: EngineName = "auto"
    """What runs the model: `"openvino"`, `"torch"` or `"sentence-transformers"`. `"auto"`: the fastest that can run it
    here."""
    max_length: int | None = None
    """Tokens per text, or pair of texts, special tokens included. `None`: the model's own limit."""
    query_instruction: str | None = None
    """Text before each query. `None`: the instruction the model was trained with. `""`: no instruction."""
    on_truncation: OnTruncation = "warn"
    """What happens to texts over `max_length`: `"warn"` once a call, `"ignore"`, or `"error"`."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    cache_folder: str | None = None
    """Where hub files are kept. `None`: `SENTENCE_TRANSFORMERS_HOME`, or the hub's usual cache."""
    token: str | bool | None = field(default=None, repr=False, compare=False)
    """Hub token; never shown, pickled or dumped."""
    trust_remote_code: bool = False
    """Run Python code that comes with the checkpoint."""
    local_files_only: bool = False
    """Never ask the hub."""
    allow_pickle_weights: bool = False
    """Load `pytorch_model.bin` where a checkpoint has no safetensors."""
    show_progress: bool = False
    """A progress bar for documents and pairs; never for queries."""
    batch_tokens: int | None = None
    """Tokens, padding included, in one forward pass. `None`: the engine's own figure."""
    batch_size: int | None = None
    """Upper limit on the texts in one forward pass. `None`: no limit."""
    threads: int | None = None
    """Threads that compute on the processor. `None`: the least of the cores that this process may use,
    `OMP_NUM_THREADS`, and torch's number if torch is imported. torch's own number is raised only if it is given
    here."""
    max_queued_texts: int = 65536
    """Documents, and as many queries, that may be in flight at once in the model, over all callers; a call beyond it
    waits for room."""
    transformers_kwargs: TransformersKwargs = field(default_factory=TransformersKwargs)
    """Keywords for transformers' `from_pretrained`."""

    def __post_init__(self) -> None:
        """Checks every value on its own; what depends on the model is checked when it is loaded."""
        _make_plain(self, "model_name", "cache_folder", "precision", "engine", "on_truncation", "token")
        if not is_text(self.model_name) or not self.model_name.strip():
            raise SettingsError(
                f"model_name={self.model_name!r} names no model; give a hub id such as 'BAAI/bge-small-en-v1.5' "
                "or the path of a folder."
            )
        if is_hub_token(self.model_name):
            raise SettingsError("model_name is a token of the hub, not a model; give the token as token=….")
        if self.precision in OUTPUT_PRECISIONS:
            raise SettingsError(
                f"precision={self.precision!r} is a format for stored vectors; here `precision` says how the model "
                "computes. Both frameworks want floats: quantise in the vector store instead."
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
            raise SettingsError("device=[] names no device; give None for the first there is.")
        object.__setattr__(
            self, "device", tuple(text_setting(f"device[{place}]", one) for place, one in enumerate(self.device))
        )

    def replace(self, **changes: Any) -> Self:  # noqa: ANN401 - the fields' own types
        """Returns a copy with some fields changed, checked again."""
        return dataclasses.replace(self, **changes)

    def __repr__(self) -> str:
        """Shows no token, wherever it was put."""
        return shown_fields(self)

    def __getstate__(self) -> dict[str, Any]:
        """Leaves the token out of pickles."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "token"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restores what `__getstate__` kept."""
        for name, value in {"token": None, **state}.items():
            object.__setattr__(self, name, value)


@dataclass(frozen=True, kw_only=True, repr=False)
class EncoderSettings(ModelSettings):
    """Everything that decides what an encoder computes."""

    document_instruction: str | None = None
    """Text before each document. `None`: the instruction the model was trained with, which of BGE's only llm-embedder
    has. `""`: no instruction."""
    task: str | None = None
    """What an instruct model is asked to do, or the name of one of llm-embedder's tasks."""
    examples: Sequence[Example | Sequence[str] | Mapping[str, str]] | None = None
    """For bge-en-icl, examples to go before each query: triples of task, query and response, or dictionaries with the
    keys `instruct` (or `task`), `query` and `response`. Kept as triples."""
    pooling: Pooling | None = None
    """How the hidden states of a text's tokens become its vector: `"cls"` is the first, `"mean"` the mean of all,
    `"last"` the last one. `None`: as the model was trained; where nothing says how, a warning names this setting."""
    normalize: Normalization = None
    """L2-normalise the vectors. `None`: as the model was trained (BGE: yes). `True`: always. `False`: never.
    `"checkpoint"`: only if the checkpoint's own modules do, as sentence-transformers."""
    truncate_dim: int | None = None
    """Leading dimensions to keep, normalised again afterwards. `None`: all."""

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
    """Everything that decides what a reranker computes."""

    normalize: bool = False
    """Put scores through the sigmoid, so that they lie between 0 and 1; else they are logits, as in the authors' code.
    An activation that was saved with a CrossEncoder is not applied."""
    prompt: str | None = None
    """For decoder models, what they are asked of query A and passage B. `None`: what they were trained with, which is
    known of BGE's alone; any other decoder needs it."""
    cutoff_layers: int | Sequence[int] | None = None
    """For models that can score after any of several layers (bge-reranker-v2-minicpm-layerwise,
    -v2.5-gemma2-lightweight): the layer, as a number or a list of one. `None`: the authors' choice."""
    compress_ratio: int | None = None
    """For models that merge tokens (bge-reranker-v2.5-gemma2-lightweight): how many become one. `None`: the authors'
    choice."""
    compress_layers: Sequence[int] | None = None
    """For the same: the layers after which they merge tokens. `None`: the authors' choice."""

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
                f"cutoff_layers={given!r} names {len(layers)} layers, each with a score of its own; name one, "
                "and make a reranker for each (they share the model)."
            )
        object.__setattr__(self, "cutoff_layers", layers)
        object.__setattr__(self, "compress_layers", _layers("compress_layers", self.compress_layers))

    @property
    def cutoff_layer(self) -> int | None:
        """The layer to score after, if one was named."""
        return self.cutoff_layers[0] if isinstance(self.cutoff_layers, tuple) else None


class FileOptions(TypedDict, total=False):
    """The fields of `ModelSettings` that say where a model's files come from and what may be done with them."""

    revision: str | None
    cache_folder: str | None
    token: str | bool | None
    trust_remote_code: bool
    local_files_only: bool
    allow_pickle_weights: bool


class EmbedderFileOptions(FileOptions, total=False):
    """The same for a model that gives vectors, with how its files are read as one."""

    pooling: Pooling | None


class ModelOptions(FileOptions, total=False):
    """The fields of `ModelSettings` but the model's name, as keywords of a constructor."""

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


class EncoderOptions(ModelOptions, total=False):
    """The fields of `EncoderSettings` but the model's name, as keywords of a constructor."""

    document_instruction: str | None
    task: str | None
    examples: Sequence[Example | Sequence[str] | Mapping[str, str]] | None
    pooling: Pooling | None
    normalize: Normalization
    truncate_dim: int | None


class RerankerOptions(ModelOptions, total=False):
    """The fields of `RerankerSettings` but the model's name, as keywords of a constructor."""

    normalize: bool
    prompt: str | None
    cutoff_layers: int | Sequence[int] | None
    compress_ratio: int | None
    compress_layers: Sequence[int] | None


@cache
def _documented() -> Mapping[str, Mapping[str, str]]:
    """Returns what stands below each field, by class; empty where Python has no sources."""
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
    """Returns the text about a setting; `None` where Python has no sources."""
    return next((texts[name] for base in kind.__mro__ if name in (texts := _documented().get(base.__name__, {}))), None)


def text_setting(name: str, value: object) -> str | None:
    """Returns a setting that is a text, as a plain `str`; None if it is None.

    Raises:
        SettingsError: It is no text, or one that UTF-8 can't write.
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


def _make_plain(settings: object, *names: str) -> None:
    """Writes paths as text, and texts of any class as plain ones. Leaves everything else to further checks."""
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
    """Reads a triple, or a dictionary as bge-en-icl's card writes them."""
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
