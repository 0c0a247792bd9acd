"""Reads the keyword dictionaries of classes without dense vectors: rerankers, and bge-m3's other outputs.

In langchain-community's `HuggingFaceCrossEncoder`, `model_kwargs={"device": "cuda"}` contains arguments of
sentence-transformers' `CrossEncoder(...)`. Every key is either supported or refused with the reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bge_integrations.adapters.keyword_tables import Row, Table, known_keys
from bge_integrations.adapters.keywords import LOADING, read_loading_kwargs
from bge_integrations.errors import SettingsError

_COMMON: Table = {
    **LOADING,
    **dict.fromkeys(("truncate_dim", "similarity_fn_name"), Row(refused="it belongs to dense vectors")),
    **dict.fromkeys(
        ("prompts", "default_prompt_name"), Row(refused="give the text before each query as query_instruction")
    ),
}
"""Rows for the arguments of `SentenceTransformer(...)`. Those for dense vectors are refused."""

COMMON_KEYS = known_keys(_COMMON)

# sentence-transformers 6 still accepts these names.
_FORMER_NAMES = {
    "automodel_args": "model_kwargs",
    "tokenizer_args": "processor_kwargs",
    "config_args": "config_kwargs",
    "cache_dir": "cache_folder",
    "default_activation_function": "activation_fn",
}
_SIGMOID_BY_ACTIVATION = {"sigmoid": True, "identity": False}


def _sigmoid(value: object, where: str) -> bool | None:
    if value is None:
        return None
    sigmoid = _SIGMOID_BY_ACTIVATION.get(str(value).rpartition(".")[2].lower())
    if sigmoid is None:
        raise SettingsError(
            f"{where}={value!r} is not supported: scores are logits, or go through the sigmoid with normalize=True."
        )
    return sigmoid


def _one_label(value: object, where: str) -> None:
    if value not in (None, 1):
        raise SettingsError(f"{where}={value!r} is not supported: a reranker gives one score; leave it out.")


_CROSS_ENCODER: Table = {
    **_COMMON,
    "activation_fn": Row("normalize", _sigmoid),
    "max_length": Row("max_length"),
    "num_labels": Row(None, _one_label),
    **{
        former: Row(refused=f"it is the former name of {name}, which is given too; say it once")
        for former, name in _FORMER_NAMES.items()
    },
    "keep_in_fp32_modules": Row(refused="choose with precision"),
    "classifier_dropout": Row(refused="it only matters for training"),
}
"""Rows for the arguments of `CrossEncoder(...)`, by their current names."""

CROSS_ENCODER_KEYS = known_keys(_CROSS_ENCODER)


def read_common_kwargs(kwargs: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Translates the arguments of `SentenceTransformer(...)` to fields of `ModelSettings`, as `read_loading_kwargs`.

    Arguments for dense vectors are refused.
    """
    return dict(read_loading_kwargs(kwargs, name, _COMMON).settings)


def read_cross_encoder_kwargs(kwargs: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Translates the arguments of `CrossEncoder(...)` to fields of `RerankerSettings`, as `read_loading_kwargs`."""
    return dict(read_loading_kwargs(with_current_names(kwargs), name, _CROSS_ENCODER).settings)


def with_current_names(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a copy with current names in place of former ones, and the activation as text."""
    current = {key: value for key, value in kwargs.items() if key not in _FORMER_NAMES}
    for former, name in _FORMER_NAMES.items():
        if former in kwargs:
            current[former if name in current else name] = kwargs[former]
    if current.get("activation_fn") is not None:
        current["activation_fn"] = _activation_name(current["activation_fn"])
    return current


def _activation_name(activation: object) -> str:
    if isinstance(activation, str):
        return activation
    named = activation if hasattr(activation, "__name__") else type(activation)
    return f"{named.__module__}.{named.__name__}"
