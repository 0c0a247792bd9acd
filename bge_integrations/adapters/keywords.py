"""Reads the keyword dictionaries that other adapters pass to sentence-transformers.

`model_kwargs={"device": "cuda"}` contains arguments of `SentenceTransformer(...)`, and
`encode_kwargs={"normalize_embeddings": True}` contains arguments of its `encode`. Every key of sentence-transformers 6
is either supported or refused with the reason. The error for an unknown key lists the known keys.
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
from bge_integrations.settings import SECRETS, EncoderSettings, ModelSettings, TransformersKwargs, text_setting
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
    """Returns the row of a transformers argument that langchain-community moves from the top into `model_kwargs`."""
    return Row("model", lambda value, _: {key: value})


def _texts(value: object, where: str) -> dict[str, str]:
    named = {key: text_setting(f"{where}[{key!r}]", text) for key, text in _dictionary(value, where).items()}
    return {plain(key) if is_text(key) else key: text for key, text in named.items() if text is not None}


def _text(value: object, where: str) -> str | None:
    return text_setting(where, value)


def _engine(value: object, where: str) -> str | None:
    if value not in (None, "torch", "openvino"):
        raise SettingsError(f"{where}={shown(value)} is not supported; leave it out and choose with engine.")
    return "openvino" if value == "openvino" else None


LOADING: Table = {
    **{name: Row(name) for name in ("device", "cache_folder", "revision", "trust_remote_code", "local_files_only")},
    "truncate_dim": Row("truncate_dim"),
    # Read by `find_token`, since the inner dictionaries can contain a token too.
    **dict.fromkeys(_TOKEN_KEYS, Row()),
    "backend": Row("engine", _engine),
    "model_kwargs": Row("model", _without_tokens),
    **{key: _lifted(key) for key in (*_DTYPE_KEYS, "attn_implementation")},
    "tokenizer_kwargs": Row("processor", _without_tokens),
    "processor_kwargs": Row("processor", _without_tokens),
    "config_kwargs": Row("config", _without_tokens),
    "prompts": Row("prompts", _texts),
    "default_prompt_name": Row("default_prompt_name", _text),
    # No effect on vectors: the vector store compares them.
    "similarity_fn_name": Row(),
    "modules": Row(refused="give the folder that they were saved to as model_name"),
    "model_card_data": Row(refused="it only matters for saving; set it on .client"),
    "provider": Row(refused="it belongs to backend='onnx', which is not used here; choose with device"),
    "file_name": Row(refused="it belongs to backend='onnx' and 'openvino'; choose with engine and precision"),
    "export": Row(refused="it belongs to backend='onnx' and 'openvino'; choose with engine"),
}
"""Rows for the arguments of `SentenceTransformer(...)`. "model", "processor" and "config" collect transformers' own."""

LOADING_KEYS = known_keys(LOADING)


def _floats(value: object, where: str) -> None:
    if value not in (None, "float32"):
        raise SettingsError(
            f"{where}={shown(value)} asks for quantised vectors, but the framework needs floats; quantise in the "
            "vector store. The setting `precision`, outside this dictionary, is the precision of the computation."
        )


def _sentence(value: object, where: str) -> None:
    if value != "sentence_embedding":
        raise SettingsError(f"{where}={shown(value)} is no text embedding; leave it out, or use .client.")


def _normalization(value: object, _: str) -> bool | str | None:
    # As in sentence-transformers: False adds no normalisation, but keeps a normalisation module of the checkpoint.
    return None if value is None else True if value else "checkpoint"


ENCODING: Table = {
    "show_progress_bar": Row("show_progress"),
    **{name: Row(name) for name in ("truncate_dim", "batch_size", "device", "task")},
    "normalize_embeddings": Row("normalize", _normalization),
    "prompt": Row("prompt", _text),
    "prompt_name": Row("prompt_name", _text),
    "precision": Row(None, _floats),
    "output_value": Row(None, _sentence),
    # These choose the container of the vectors, which the framework fixes: lists of Python floats.
    **dict.fromkeys(("convert_to_numpy", "convert_to_tensor", "chunk_size"), Row()),
    "pool": Row(refused="no process pool is needed: leave it out"),
    "processing_kwargs": Row(refused="limit the length with max_length"),
}
"""Rows for the arguments of `SentenceTransformer.encode`."""

ENCODING_KEYS = known_keys(ENCODING)


def shared_fields(kind: type[ModelSettings]) -> tuple[str, ...]:
    """Returns the names of the settings that an adapter can have as fields of the same names."""
    return tuple(f.name for f in dataclasses.fields(kind) if f.name not in ("model_name", *SECRETS))


@dataclass(frozen=True)
class LoadingKwargs:
    """The translated arguments of `SentenceTransformer(...)`.

    Attributes:
        settings: Fields of the settings' class.
        prompts: Prompts by name. They are added to those of the checkpoint.
        default_prompt_name: Name of the prompt for texts without another instruction.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt_name: str | None = None


@dataclass(frozen=True)
class EncodingKwargs:
    """The translated arguments of `SentenceTransformer.encode`.

    Attributes:
        settings: Fields of `EncoderSettings`.
        prompt: Instruction.
        prompt_name: Name of a prompt. `prompt` has priority.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    prompt: str | None = None
    prompt_name: str | None = None

    def updated_by(self, other: EncodingKwargs) -> EncodingKwargs:
        """Returns the union of both. `other` has priority; its prompt or prompt name replaces both of `self`."""
        prompts = other if (other.prompt, other.prompt_name) != (None, None) else self
        return EncodingKwargs({**self.settings, **other.settings}, prompts.prompt, prompts.prompt_name)


def read_loading_kwargs(kwargs: Mapping[str, Any], name: str, table: Table = LOADING) -> LoadingKwargs:
    """Translates the arguments of `SentenceTransformer(...)`.

    Args:
        kwargs: Arguments. The dictionary is not changed.
        name: Name of the dictionary in messages.
        table: Rows for the arguments of `SentenceTransformer` or another class of sentence-transformers.

    Raises:
        SettingsError: A key is unknown or not supported, or two keys contradict each other.
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
    """Translates the arguments of `SentenceTransformer.encode`, as `read_loading_kwargs`."""
    settings = read_table(ENCODING, kwargs, name)
    prompt, prompt_name = settings.pop("prompt", None), settings.pop("prompt_name", None)
    return EncodingKwargs(settings, prompt, prompt_name)


def find_token(kwargs: Mapping[str, Any]) -> Any:  # noqa: ANN401 - the user's own type
    """Returns the hub token in the arguments of `SentenceTransformer(...)`, or in their inner dictionaries."""
    handed_on = [kwargs[key] for key in _GROUPS_OF_TRANSFORMERS if isinstance(kwargs.get(key), Mapping)]
    found = (place[key] for place in (kwargs, *handed_on) for key in _TOKEN_KEYS if place.get(key) is not None)
    return next(found, None)


def with_paths_as_text(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a copy with paths as text, since the frameworks' fields hold texts."""
    return {key: os.fspath(value) if isinstance(value, os.PathLike) else value for key, value in fields.items()}


def json_ready_loading_kwargs(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a copy with torch's dtypes and devices as text, and without a token."""
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
    """Returns a copy with the device as text."""
    return {key: _device_name(value) if key == "device" else value for key, value in kwargs.items()}


def merge_settings(
    said: Mapping[str, Any], given: Mapping[str, Any], name: str, kind: type[ModelSettings] = EncoderSettings
) -> dict[str, Any]:
    """Returns the settings from typed fields and from a dictionary.

    Args:
        said: Values of the fields that the user set. A default value counts as not set, since saved settings contain
            every field.
        given: Settings from the dictionary.
        name: Name of the dictionary in messages.
        kind: Class of the settings, with the defaults.

    Raises:
        SettingsError: A field and the dictionary give different values.
    """
    defaults = {f.name: f.default for f in dataclasses.fields(kind)}
    for key, value in given.items():
        # The progress bar of the dictionary has priority, as in langchain-community.
        if key != "show_progress" and said.get(key, defaults[key]) not in (defaults[key], value):
            raise SettingsError(f"{key}={shown(said[key], key)}, but {name} says {shown(value, key)}; say it once.")
    return {**said, **given}


def _from_model_kwargs(kwargs: dict[str, Any], name: str) -> dict[str, Any]:
    """Moves the keywords that are settings here out of transformers' keywords."""
    settings: dict[str, Any] = {}
    for key in _DTYPE_KEYS:
        dtype = _dtype_name(kwargs.pop(key, None))
        if dtype is not None and settings.setdefault("precision", dtype) != dtype:
            raise SettingsError(f"{name}: dtype={settings['precision']!r}, but torch_dtype={dtype!r}; say it once.")
    if kwargs.pop("use_safetensors", None) is False:
        settings["allow_pickle_weights"] = True
    if "device_map" in kwargs:
        raise SettingsError(f"{name}: device_map={shown(kwargs['device_map'])} is not supported; choose with device.")
    return settings


def _dtype_name(dtype: object) -> str | None:
    return None if dtype is None else _written(dtype).removeprefix("torch.")


def _device_name(device: object) -> str | list[str] | None:
    if isinstance(device, (list, tuple)):
        return [_written(one) for one in device]
    return None if device is None else _written(device)


def _written(value: object) -> str:
    return plain(value) if is_text(value) else str(value)
