"""Reads the keyword dictionaries that today's adapters hand on to sentence-transformers.

Their users write `model_kwargs={"device": "cuda"}` and `encode_kwargs={"normalize_embeddings": True}`, meaning the
arguments of `SentenceTransformer(...)` and of its `encode`. Every key of sentence-transformers 6 is either honoured or
refused with the reason; an unknown one is refused with a list of those that are known.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from bge_integrations.calls.progress import warn_user
from bge_integrations.catalogue.instructions import DOCUMENT_PROMPT_NAMES, QUERY_PROMPT_NAMES
from bge_integrations.encoder import BgeEncoder
from bge_integrations.errors import SettingsError
from bge_integrations.redaction import shown
from bge_integrations.settings import EncoderSettings, ModelSettings, TransformersKwargs, text_setting
from bge_integrations.texts import is_text, kind_of, plain

_SETTINGS_OF_LOADING = ("device", "cache_folder", "revision", "trust_remote_code", "local_files_only", "truncate_dim")
_TRANSFORMERS_GROUPS = {
    "model_kwargs": "model",
    "tokenizer_kwargs": "processor",
    "processor_kwargs": "processor",
    "config_kwargs": "config",
}
_DTYPE_KEYS = ("dtype", "torch_dtype")
_TOKEN_KEYS = ("token", "use_auth_token")
# langchain-community takes these at the top level and moves them into sentence-transformers' own model_kwargs.
_LIFTED_KEYS = (*_DTYPE_KEYS, "attn_implementation")
REFUSED_IN_LOADING = {
    "modules": "give the folder that they were saved to as model_name",
    "model_card_data": "it only matters for saving; set it on .client",
    "provider": "it belongs to backend='onnx', which is not used here; choose with device",
    "file_name": "it belongs to backend='onnx' and 'openvino'; choose with engine and precision",
    "export": "it belongs to backend='onnx' and 'openvino'; choose with engine",
}
LOADING_KEYS = tuple(
    sorted(
        {
            *_SETTINGS_OF_LOADING,
            *_TRANSFORMERS_GROUPS,
            *_LIFTED_KEYS,
            *_TOKEN_KEYS,
            "prompts",
            "default_prompt_name",
            # Without effect on vectors: the vector store compares them.
            "similarity_fn_name",
            "backend",
        }
    )
)

_RENAMED_IN_ENCODING = {
    "show_progress_bar": "show_progress",
    "truncate_dim": "truncate_dim",
    "batch_size": "batch_size",
    "device": "device",
    "task": "task",
}
_REFUSED_IN_ENCODING = {
    "pool": "no process pool is needed: leave it out",
    "processing_kwargs": "limit the length with max_length",
}
# They choose the container that the vectors come in, which the framework fixes here: lists of Python floats.
_WITHOUT_EFFECT = ("convert_to_numpy", "convert_to_tensor", "chunk_size")
ENCODING_KEYS = tuple(
    sorted(
        {
            *_RENAMED_IN_ENCODING,
            *_WITHOUT_EFFECT,
            "prompt",
            "prompt_name",
            "precision",
            "output_value",
            "normalize_embeddings",
        }
    )
)


def shared_fields(kind: type[ModelSettings]) -> tuple[str, ...]:
    """Returns the settings that an adapter may have as a field of the same name."""
    return tuple(f.name for f in dataclasses.fields(kind) if f.name not in ("model_name", "token"))


SHARED_FIELDS = shared_fields(EncoderSettings)


@dataclass(frozen=True)
class LoadingKwargs:
    """What the arguments of `SentenceTransformer(...)` mean here.

    Attributes:
        settings: Fields of `EncoderSettings`.
        prompts: Prompts by name, beside those saved in the checkpoint.
        default_prompt_name: The one for texts that get no other instruction.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt_name: str | None = None


@dataclass(frozen=True)
class EncodingKwargs:
    """What the arguments of `SentenceTransformer.encode` mean here.

    Attributes:
        settings: Fields of `EncoderSettings`.
        prompt: An instruction.
        prompt_name: The name of a prompt; `prompt` wins.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    prompt: str | None = None
    prompt_name: str | None = None

    def updated_by(self, other: EncodingKwargs) -> EncodingKwargs:
        """Returns both together, the other winning. A prompt and a prompt's name are one thing said twice."""
        prompts = other if (other.prompt, other.prompt_name) != (None, None) else self
        return EncodingKwargs({**self.settings, **other.settings}, prompts.prompt, prompts.prompt_name)


def with_paths_as_text(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a copy whose paths are written as text, which is what the frameworks' fields hold."""
    return {key: os.fspath(value) if isinstance(value, os.PathLike) else value for key, value in fields.items()}


def find_token(kwargs: Mapping[str, Any]) -> Any:  # noqa: ANN401 - whatever the user passed
    """Returns the hub token among the arguments of `SentenceTransformer(...)`, or among those that it hands on."""
    handed_on = [kwargs[key] for key in _TRANSFORMERS_GROUPS if isinstance(kwargs.get(key), Mapping)]
    found = (place[key] for place in (kwargs, *handed_on) for key in _TOKEN_KEYS if place.get(key) is not None)
    return next(found, None)


def json_ready_loading_kwargs(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a copy whose torch types and devices are written as text, without a token."""
    ready: dict[str, Any] = {}
    for key, value in kwargs.items():
        if key in _TOKEN_KEYS:
            continue
        if key == "device":
            ready[key] = _device_name(value)
        elif key in _DTYPE_KEYS:
            ready[key] = _dtype_name(value)
        elif key in _TRANSFORMERS_GROUPS and isinstance(value, Mapping):
            ready[key] = {
                k: _dtype_name(v) if k in _DTYPE_KEYS else v for k, v in value.items() if k not in _TOKEN_KEYS
            }
        else:
            ready[key] = value
    return ready


def json_ready_encoding_kwargs(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a copy whose device is written as text."""
    return {key: _device_name(value) if key == "device" else value for key, value in kwargs.items()}


def read_loading_kwargs(kwargs: Mapping[str, Any], name: str) -> LoadingKwargs:
    """Translates the arguments of `SentenceTransformer(...)`.

    Args:
        kwargs: The dictionary; not changed.
        name: What the user calls it, for messages.

    Raises:
        SettingsError: An unknown key, one that can't be honoured, or two that contradict each other.
    """
    require_known(kwargs, name, LOADING_KEYS, REFUSED_IN_LOADING)
    settings = {key: kwargs[key] for key in _SETTINGS_OF_LOADING if kwargs.get(key) is not None}
    token = find_token(kwargs)
    if token is not None:
        settings["token"] = token
    backend = kwargs.get("backend", "torch")
    if backend == "openvino":
        settings["engine"] = "openvino"
    elif backend != "torch":
        raise SettingsError(
            f"{name}['backend']={shown(backend)} can't be honoured; leave it out and choose with engine."
        )
    groups: dict[str, dict[str, Any]] = {"model": {}, "processor": {}, "config": {}}
    for key, group in _TRANSFORMERS_GROUPS.items():
        values = _dictionary(kwargs, key, name)
        groups[group].update({k: v for k, v in values.items() if k not in _TOKEN_KEYS})
    groups["model"].update({key: kwargs[key] for key in _LIFTED_KEYS if key in kwargs})
    settings.update(_from_transformers_model_kwargs(groups["model"], name))
    settings["transformers_kwargs"] = TransformersKwargs.of(**groups)
    saved = _dictionary(kwargs, "prompts", name)
    read = {plain(key) if is_text(key) else key: _text(saved, key, f"{name}['prompts']") for key in saved}
    prompts = {key: text for key, text in read.items() if text is not None}
    return LoadingKwargs(settings, prompts, _text(kwargs, "default_prompt_name", name))


def read_encoding_kwargs(kwargs: Mapping[str, Any], name: str) -> EncodingKwargs:
    """Translates the arguments of `SentenceTransformer.encode`.

    Args:
        kwargs: The dictionary; not changed.
        name: What the user calls it, for messages.

    Raises:
        SettingsError: An unknown key, or a value that can't be honoured.
    """
    require_known(kwargs, name, ENCODING_KEYS, _REFUSED_IN_ENCODING)
    precision = kwargs.get("precision")
    if precision not in (None, "float32"):
        raise SettingsError(
            f"{name}['precision']={shown(precision)} asks for quantised vectors, but the framework wants floats; "
            "quantise in the vector store. How the model computes is the setting `precision` outside this dictionary."
        )
    output = kwargs.get("output_value", "sentence_embedding")
    if output != "sentence_embedding":
        raise SettingsError(
            f"{name}['output_value']={shown(output)} is no text embedding; leave it out, or use .client."
        )
    settings = {setting: kwargs[key] for key, setting in _RENAMED_IN_ENCODING.items() if kwargs.get(key) is not None}
    if (normalize := kwargs.get("normalize_embeddings")) is not None:
        # As there: False adds no normalisation, but doesn't take away the one that is among the checkpoint's modules.
        settings["normalize"] = True if normalize else "checkpoint"
    prompt, prompt_name = (_text(kwargs, key, name) for key in ("prompt", "prompt_name"))
    return EncodingKwargs(settings, prompt, prompt_name)


def merge_settings(
    said: Mapping[str, Any], given: Mapping[str, Any], name: str, kind: type[ModelSettings] = EncoderSettings
) -> dict[str, Any]:
    """Returns the settings of typed fields with what a dictionary says put in.

    Args:
        said: Values of the fields that the user set; a default says nothing, since saved settings spell out all.
        given: What the dictionary says.
        name: What the user calls the dictionary.
        kind: The settings that both are of, whose defaults count.

    Raises:
        SettingsError: The user said two different things.
    """
    defaults = {f.name: f.default for f in dataclasses.fields(kind)}
    for key, value in given.items():
        # Of the two ways to ask for a progress bar, langchain-community lets the dictionary win; so do we.
        if key != "show_progress" and said.get(key, defaults[key]) not in (defaults[key], value):
            raise SettingsError(f"{key}={shown(said[key], key)}, but {name} says {shown(value, key)}; say it once.")
    return {**said, **given}


def build_encoders(
    settings: EncoderSettings, loading: LoadingKwargs, document: EncodingKwargs, query: EncodingKwargs
) -> tuple[BgeEncoder, BgeEncoder]:
    """Makes the encoders of documents and of queries, which share one model, and are one where nothing differs.

    Args:
        settings: What both have in common.
        loading: Where prompts are named.
        document: What is said of documents only.
        query: What is said of queries only.

    Raises:
        SettingsError: A prompt's name that neither the checkpoint nor the user's `prompts` knows.
        BgeError: Whatever loading raises.
    """
    for encoding in (document,) if query == document else (document, query):
        _warn_of_two_prompts(encoding)
    documents = _build_encoder(settings, loading, document)
    queries = _build_encoder(settings, loading, query)
    return documents, documents if queries.settings == documents.settings else queries


def _warn_of_two_prompts(encoding: EncodingKwargs) -> None:
    if encoding.prompt is not None and encoding.prompt_name is not None:
        warn_user(
            f"prompt={shown(encoding.prompt)} and prompt_name={encoding.prompt_name!r} are both given; prompt_name is "
            "ignored in favour of prompt. Give one of them.",
            UserWarning,
        )


def _build_encoder(settings: EncoderSettings, loading: LoadingKwargs, encoding: EncodingKwargs) -> BgeEncoder:
    plain = BgeEncoder.from_settings(settings.replace(**encoding.settings))

    def named(name: str | None) -> str | None:
        return _prompt_by_name(name, plain, loading.prompts) if name is not None else None

    def instruction(explicit: str | None, names: tuple[str, ...]) -> str | None:
        role_prompt = next((loading.prompts[name] for name in names if name in loading.prompts), None)
        choices: tuple[Callable[[], str | None], ...] = (
            lambda: explicit,
            lambda: encoding.prompt,
            lambda: named(encoding.prompt_name),
            lambda: role_prompt,
            lambda: named(loading.default_prompt_name),
        )
        return next((text for choice in choices if (text := choice()) is not None), None)

    complete = plain.settings.replace(
        query_instruction=instruction(settings.query_instruction, QUERY_PROMPT_NAMES),
        document_instruction=instruction(settings.document_instruction, DOCUMENT_PROMPT_NAMES),
    )
    return plain if complete == plain.settings else BgeEncoder.from_settings(complete)


def _prompt_by_name(name: str, encoder: BgeEncoder, prompts: Mapping[str, str]) -> str:
    known = {**encoder.backend.prompts, **prompts}
    if name not in known:
        raise SettingsError(
            f"There is no prompt named {name!r}; the checkpoint and model_kwargs['prompts'] have "
            f"{', '.join(map(repr, known)) or 'none'}."
        )
    return known[name]


def _from_transformers_model_kwargs(kwargs: dict[str, Any], name: str) -> dict[str, Any]:
    """Takes out of transformers' keywords what is a setting here."""
    settings: dict[str, Any] = {}
    for key in _DTYPE_KEYS:
        dtype = _dtype_name(kwargs.pop(key, None))
        if dtype is not None and settings.setdefault("precision", dtype) != dtype:
            raise SettingsError(f"{name}: dtype={settings['precision']!r}, but torch_dtype={dtype!r}; say it once.")
    if kwargs.pop("use_safetensors", None) is False:
        settings["allow_pickle_weights"] = True
    if "device_map" in kwargs:
        raise SettingsError(f"{name}: device_map={shown(kwargs['device_map'])} can't be honoured; choose with device.")
    return settings


def _dtype_name(dtype: Any) -> str | None:  # noqa: ANN401 - a torch.dtype, which must not be imported for this
    return None if dtype is None else _written(dtype).removeprefix("torch.")


def _device_name(device: Any) -> str | list[str] | None:  # noqa: ANN401 - a torch.device, text, or several of them
    if isinstance(device, (list, tuple)):
        return [_written(one) for one in device]
    return None if device is None else _written(device)


def _written(value: object) -> str:
    return plain(value) if is_text(value) else str(value)


def _dictionary(kwargs: Mapping[str, Any], key: str, name: str) -> dict[str, Any]:
    value = kwargs.get(key)
    if value is not None and not isinstance(value, Mapping):
        raise SettingsError(f"{name}[{key!r}]={shown(value, key)} is {kind_of(value)}; give a dictionary.")
    return dict(value or {})


def _text(kwargs: Mapping[str, Any], key: str, name: str) -> str | None:
    return text_setting(f"{name}[{key!r}]", kwargs.get(key))


def require_known(kwargs: Mapping[str, Any], name: str, known: tuple[str, ...], refused: Mapping[str, str]) -> None:
    """Refuses keys by name.

    Args:
        kwargs: The dictionary.
        name: What the user calls it.
        known: The keys that can be honoured.
        refused: The reason for each of those that can't.

    Raises:
        SettingsError: A key that is refused, with its reason, or unknown.
    """
    for key in kwargs:
        if key in refused:
            raise SettingsError(f"{name}[{key!r}] can't be honoured: {refused[key]}.")
        if key not in known:
            raise SettingsError(f"{name}[{key!r}] is unknown; the known keys are {', '.join(known)}.")
