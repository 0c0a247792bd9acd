"""Reads the keyword dictionaries that today's adapters hand on to sentence-transformers.

Their users write `model_kwargs={"device": "cuda"}` and `encode_kwargs={"normalize_embeddings": True}`, meaning the
arguments of `SentenceTransformer(...)` and of its `encode`. Every key of sentence-transformers 6 is either honoured or
refused with the reason; an unknown one is refused with a list of those that are known.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bge_integrations.adapters.keyword_tables import Row, Table, known_keys, read_table
from bge_integrations.errors import SettingsError
from bge_integrations.redaction import shown
from bge_integrations.settings import EncoderSettings, ModelSettings, TransformersKwargs, text_setting
from bge_integrations.texts import is_text, kind_of, plain

_DTYPE_KEYS = ("dtype", "torch_dtype")
_TOKEN_KEYS = ("token", "use_auth_token")
_GROUPS_OF_TRANSFORMERS = ("model_kwargs", "tokenizer_kwargs", "processor_kwargs", "config_kwargs")


def _dictionary(value: object, where: str) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise SettingsError(f"{where}={shown(value, where)} is {kind_of(value)}; give a dictionary.")
    return dict(value)


def _without_tokens(value: object, where: str) -> dict[str, Any]:
    return {key: inner for key, inner in _dictionary(value, where).items() if key not in _TOKEN_KEYS}


def _lifted(key: str) -> Row:
    """An argument of transformers that langchain-community takes at the top level, and moves into `model_kwargs`."""
    return Row("model", lambda value, _: {key: value})


def _texts(value: object, where: str) -> dict[str, str]:
    named = {key: text_setting(f"{where}[{key!r}]", text) for key, text in _dictionary(value, where).items()}
    return {plain(key) if is_text(key) else key: text for key, text in named.items() if text is not None}


def _text(value: object, where: str) -> str | None:
    return text_setting(where, value)


def _engine(value: object, where: str) -> str | None:
    if value not in (None, "torch", "openvino"):
        raise SettingsError(f"{where}={shown(value)} can't be honoured; leave it out and choose with engine.")
    return "openvino" if value == "openvino" else None


LOADING: Table = {
    **{name: Row(name) for name in ("device", "cache_folder", "revision", "trust_remote_code", "local_files_only")},
    "truncate_dim": Row("truncate_dim"),
    # Read by `find_token`, since they may stand in the dictionaries below too.
    **dict.fromkeys(_TOKEN_KEYS, Row()),
    "backend": Row("engine", _engine),
    "model_kwargs": Row("model", _without_tokens),
    **{key: _lifted(key) for key in (*_DTYPE_KEYS, "attn_implementation")},
    "tokenizer_kwargs": Row("processor", _without_tokens),
    "processor_kwargs": Row("processor", _without_tokens),
    "config_kwargs": Row("config", _without_tokens),
    "prompts": Row("prompts", _texts),
    "default_prompt_name": Row("default_prompt_name", _text),
    # Without effect on vectors: the vector store compares them.
    "similarity_fn_name": Row(),
    "modules": Row(refused="give the folder that they were saved to as model_name"),
    "model_card_data": Row(refused="it only matters for saving; set it on .client"),
    "provider": Row(refused="it belongs to backend='onnx', which is not used here; choose with device"),
    "file_name": Row(refused="it belongs to backend='onnx' and 'openvino'; choose with engine and precision"),
    "export": Row(refused="it belongs to backend='onnx' and 'openvino'; choose with engine"),
}
"""The arguments of `SentenceTransformer(...)`. "model", "processor" and "config" are transformers' own."""

LOADING_KEYS = known_keys(LOADING)


def _floats(value: object, where: str) -> None:
    if value not in (None, "float32"):
        raise SettingsError(
            f"{where}={shown(value)} asks for quantised vectors, but the framework wants floats; quantise in the "
            "vector store. How the model computes is the setting `precision` outside this dictionary."
        )


def _sentence(value: object, where: str) -> None:
    if value != "sentence_embedding":
        raise SettingsError(f"{where}={shown(value)} is no text embedding; leave it out, or use .client.")


def _normalization(value: object, _: str) -> bool | str | None:
    # As there: False adds no normalisation, but doesn't take away the one that is among the checkpoint's modules.
    return None if value is None else True if value else "checkpoint"


ENCODING: Table = {
    "show_progress_bar": Row("show_progress"),
    **{name: Row(name) for name in ("truncate_dim", "batch_size", "device", "task")},
    "normalize_embeddings": Row("normalize", _normalization),
    "prompt": Row("prompt", _text),
    "prompt_name": Row("prompt_name", _text),
    "precision": Row(None, _floats),
    "output_value": Row(None, _sentence),
    # They choose the container that the vectors come in, which the framework fixes here: lists of Python floats.
    **dict.fromkeys(("convert_to_numpy", "convert_to_tensor", "chunk_size"), Row()),
    "pool": Row(refused="no process pool is needed: leave it out"),
    "processing_kwargs": Row(refused="limit the length with max_length"),
}
"""The arguments of `SentenceTransformer.encode`."""

ENCODING_KEYS = known_keys(ENCODING)


def shared_fields(kind: type[ModelSettings]) -> tuple[str, ...]:
    """Returns the settings that an adapter may have as a field of the same name."""
    return tuple(f.name for f in dataclasses.fields(kind) if f.name not in ("model_name", "token"))


@dataclass(frozen=True)
class LoadingKwargs:
    """What the arguments of `SentenceTransformer(...)` mean here.

    Attributes:
        settings: Fields of the settings' class.
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


def read_loading_kwargs(kwargs: Mapping[str, Any], name: str, table: Table = LOADING) -> LoadingKwargs:
    """Translates the arguments of `SentenceTransformer(...)`.

    Args:
        kwargs: The dictionary; not changed.
        name: What the user calls it, for messages.
        table: What becomes of each argument; another class of that library has a table of its own.

    Raises:
        SettingsError: An unknown key, one that can't be honoured, or two that contradict each other.
    """
    said = read_table(table, kwargs, name)
    prompts, default_prompt_name = said.pop("prompts", {}), said.pop("default_prompt_name", None)
    model, processor, config = (said.pop(group, {}) for group in ("model", "processor", "config"))
    token = find_token(kwargs)
    settings = {
        **said,
        **({} if token is None else {"token": token}),
        **_from_model_kwargs(model, name),
        "transformers_kwargs": TransformersKwargs.of(model=model, processor=processor, config=config),
    }
    return LoadingKwargs(settings, prompts, default_prompt_name)


def read_encoding_kwargs(kwargs: Mapping[str, Any], name: str) -> EncodingKwargs:
    """Translates the arguments of `SentenceTransformer.encode`.

    Args:
        kwargs: The dictionary; not changed.
        name: What the user calls it, for messages.

    Raises:
        SettingsError: An unknown key, or a value that can't be honoured.
    """
    settings = read_table(ENCODING, kwargs, name)
    prompt, prompt_name = settings.pop("prompt", None), settings.pop("prompt_name", None)
    return EncodingKwargs(settings, prompt, prompt_name)


def find_token(kwargs: Mapping[str, Any]) -> Any:  # noqa: ANN401 - whatever the user passed
    """Returns the hub token among the arguments of `SentenceTransformer(...)`, or among those that it hands on."""
    handed_on = [kwargs[key] for key in _GROUPS_OF_TRANSFORMERS if isinstance(kwargs.get(key), Mapping)]
    found = (place[key] for place in (kwargs, *handed_on) for key in _TOKEN_KEYS if place.get(key) is not None)
    return next(found, None)


def with_paths_as_text(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a copy whose paths are written as text, which is what the frameworks' fields hold."""
    return {key: os.fspath(value) if isinstance(value, os.PathLike) else value for key, value in fields.items()}


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
        elif key in _GROUPS_OF_TRANSFORMERS and isinstance(value, Mapping):
            ready[key] = {
                k: _dtype_name(v) if k in _DTYPE_KEYS else v for k, v in value.items() if k not in _TOKEN_KEYS
            }
        else:
            ready[key] = value
    return ready


def json_ready_encoding_kwargs(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a copy whose device is written as text."""
    return {key: _device_name(value) if key == "device" else value for key, value in kwargs.items()}


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


def _from_model_kwargs(kwargs: dict[str, Any], name: str) -> dict[str, Any]:
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


def _dtype_name(dtype: object) -> str | None:
    return None if dtype is None else _written(dtype).removeprefix("torch.")


def _device_name(device: object) -> str | list[str] | None:
    if isinstance(device, (list, tuple)):
        return [_written(one) for one in device]
    return None if device is None else _written(device)


def _written(value: object) -> str:
    return plain(value) if is_text(value) else str(value)
