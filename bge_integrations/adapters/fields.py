"""Settings as fields of both frameworks' classes. Defaults and descriptions come from `bge_integrations.settings`."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, Field, SecretStr, ValidationInfo

from bge_integrations.errors import SettingsError
from bge_integrations.settings import (
    EncoderSettings,
    EngineName,
    ModelSettings,
    OnTruncation,
    Pooling,
    Precision,
    RerankerSettings,
    description,
)


def _at_least_one(value: int, info: ValidationInfo) -> int:
    if value < 1:
        raise SettingsError(f"{info.field_name}={value!r} must be a whole number of at least 1.")
    return value


Count = Annotated[int, AfterValidator(_at_least_one)]


def setting(name: str, kind: type[ModelSettings] = EncoderSettings, **more: Any) -> Any:  # noqa: ANN401 - as pydantic's Field
    """Returns the field for a setting.

    Args:
        name: Name of the setting.
        kind: Class of the settings.
        **more: Further arguments of `Field`, such as a `default` that differs from the setting's default.
    """
    (field,) = (field for field in dataclasses.fields(kind) if field.name == name)
    given: dict[str, Any] = {} if field.default is dataclasses.MISSING else {"default": field.default}
    return Field(**{"description": description(name, kind), **given, **more})


def plain_secret(value: SecretStr | bool | None) -> str | bool | None:
    """Returns the value of a field with a secret."""
    return value.get_secret_value() if isinstance(value, SecretStr) else value


class ModelFields(BaseModel):
    """Fields of all classes."""

    cache_folder: str | None = setting("cache_folder")
    query_instruction: str | None = setting("query_instruction")
    device: str | list[str] | None = setting("device")
    precision: Precision = setting("precision")
    engine: EngineName = setting("engine")
    max_length: Count | None = setting("max_length")
    on_truncation: OnTruncation = setting("on_truncation")
    revision: str | None = setting("revision")
    trust_remote_code: bool = setting("trust_remote_code")
    local_files_only: bool = setting("local_files_only")
    allow_pickle_weights: bool = setting("allow_pickle_weights")
    batch_tokens: Count | None = setting("batch_tokens")
    batch_size: Count | None = setting("batch_size")
    threads: Count | None = setting("threads")
    max_queued_texts: Count = setting("max_queued_texts")
    token: SecretStr | bool | None = setting("token", exclude=True, repr=False)
    endpoint: str | None = setting("endpoint")
    api_key: SecretStr | None = setting("api_key", exclude=True, repr=False)
    endpoint_options: dict[str, Any] = setting("endpoint_options", default_factory=dict)


class EncoderFields(BaseModel):
    """Further fields of classes with dense vectors."""

    task: str | None = setting("task")
    examples: list[Any] | None = setting("examples")
    pooling: Pooling | None = setting("pooling")
    truncate_dim: Count | None = setting("truncate_dim")


class RerankerFields(BaseModel):
    """Further fields of rerankers."""

    normalize: bool = setting("normalize", RerankerSettings)
    prompt: str | None = setting("prompt", RerankerSettings)
    cutoff_layers: int | list[int] | None = setting("cutoff_layers", RerankerSettings)
    compress_ratio: Count | None = setting("compress_ratio", RerankerSettings)
    compress_layers: list[int] | None = setting("compress_layers", RerankerSettings)
