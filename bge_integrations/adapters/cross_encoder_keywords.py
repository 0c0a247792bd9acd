"""Reads the keyword dictionaries of classes that give no dense vectors: rerankers, and bge-m3's other outputs.

Users of langchain-community's `HuggingFaceCrossEncoder` write `model_kwargs={"device": "cuda"}`, meaning the arguments
of sentence-transformers' `CrossEncoder(...)`. Every key is either honoured or refused with the reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bge_integrations.adapters.keywords import (
    LOADING_KEYS,
    REFUSED_IN_LOADING,
    read_loading_kwargs,
    require_known,
)
from bge_integrations.errors import SettingsError

_FOR_DENSE_VECTORS = {
    "truncate_dim": "it belongs to dense vectors",
    "similarity_fn_name": "it belongs to dense vectors",
    "prompts": "give the text before each query as query_instruction",
    "default_prompt_name": "give the text before each query as query_instruction",
}
_REFUSED = {**REFUSED_IN_LOADING, **_FOR_DENSE_VECTORS}
COMMON_KEYS = tuple(key for key in LOADING_KEYS if key not in _FOR_DENSE_VECTORS)

# As sentence-transformers 6 still takes them.
_FORMER_NAMES = {
    "automodel_args": "model_kwargs",
    "tokenizer_args": "processor_kwargs",
    "config_args": "config_kwargs",
    "cache_dir": "cache_folder",
    "default_activation_function": "activation_fn",
}
_REFUSED_BY_CROSS_ENCODERS = {
    **_REFUSED,
    **{
        former: f"it is the former name of {name}, which is given too; say it once"
        for former, name in _FORMER_NAMES.items()
    },
    "keep_in_fp32_modules": "choose with precision",
    "classifier_dropout": "it only matters for training",
}
CROSS_ENCODER_KEYS = tuple(sorted((*COMMON_KEYS, "activation_fn", "max_length", "num_labels")))
_SIGMOID_BY_ACTIVATION = {"sigmoid": True, "identity": False}


def read_common_kwargs(kwargs: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Translates those arguments of `SentenceTransformer(...)` that do not belong to dense vectors.

    Args:
        kwargs: The dictionary; not changed.
        name: What the user calls it, for messages.

    Returns:
        Fields of `ModelSettings`.

    Raises:
        SettingsError: An unknown key, one that can't be honoured, or two that contradict each other.
    """
    require_known(kwargs, name, COMMON_KEYS, _REFUSED)
    return dict(read_loading_kwargs(kwargs, name).settings)


def read_cross_encoder_kwargs(kwargs: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Translates the arguments of `CrossEncoder(...)`.

    Args:
        kwargs: The dictionary; not changed.
        name: What the user calls it, for messages.

    Returns:
        Fields of `RerankerSettings`.

    Raises:
        SettingsError: An unknown key, one that can't be honoured, or two that contradict each other.
    """
    own = with_current_names(kwargs)
    require_known(own, name, CROSS_ENCODER_KEYS, _REFUSED_BY_CROSS_ENCODERS)
    activation, labels, max_length = (own.pop(key, None) for key in ("activation_fn", "num_labels", "max_length"))
    settings = read_common_kwargs(own, name)
    if labels not in (None, 1):
        raise SettingsError(
            f"{name}['num_labels']={labels!r} can't be honoured: a reranker gives one score; leave it out."
        )
    if max_length is not None:
        settings["max_length"] = max_length
    if activation is not None:
        sigmoid = _SIGMOID_BY_ACTIVATION.get(str(activation).rpartition(".")[2].lower())
        if sigmoid is None:
            raise SettingsError(
                f"{name}['activation_fn']={activation!r} can't be honoured: scores are logits, or go through the "
                "sigmoid with normalize=True."
            )
        settings["normalize"] = sigmoid
    return settings


def with_current_names(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a copy with former names of arguments replaced, and the activation written as text."""
    current = {key: value for key, value in kwargs.items() if key not in _FORMER_NAMES}
    for former, name in _FORMER_NAMES.items():
        if former in kwargs:
            current[former if name in current else name] = kwargs[former]
    if current.get("activation_fn") is not None:
        current["activation_fn"] = _activation_name(current["activation_fn"])
    return current


def _activation_name(activation: Any) -> str:  # noqa: ANN401 - a torch module, a function, or text
    if isinstance(activation, str):
        return activation
    named = activation if hasattr(activation, "__name__") else type(activation)
    return f"{named.__module__}.{named.__name__}"
