"""Caches the model that an adapter makes from its fields, and keeps secrets out of what it shows and saves."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from pydantic import (
    ModelWrapValidatorHandler,
    PrivateAttr,
    ValidationError,
    field_serializer,
    model_validator,
)
from pydantic_core import InitErrorDetails
from typing_extensions import Self

from bge_integrations.adapters.fields import ModelFields
from bge_integrations.backend.guarantees.interrupts import in_thread
from bge_integrations.redaction import is_secret_name, without_secret_keys, without_secrets
from bge_integrations.settings import SECRETS

_KEYWORD_FIELDS = (
    "model_kwargs",
    "encode_kwargs",
    "query_encode_kwargs",
    "sentence_transformer_kwargs",
    "cross_encoder_kwargs",
)
"""Fields with keywords of sentence-transformers. The user can edit these dictionaries after validation."""


Stored = tuple[dict[str, Any], set[str]]
"""The stored fields of an adapter, and the names of the fields that were set."""

Settings = TypeVar("Settings")
Model = TypeVar("Model")


@dataclass(frozen=True, eq=False)
class Made(Generic[Settings, Model]):
    """The model that an adapter made from its fields. It is replaced, never changed: copies of the adapter share it."""

    fields: Stored
    settings: Settings
    model: Model

    @classmethod
    def again(
        cls,
        before: Made[Settings, Model] | None,
        stored: Stored,
        read: Callable[[], Settings],
        make: Callable[[Settings], Model],
    ) -> Made[Settings, Model]:
        """Returns `before`, or a new one if the fields have changed since.

        Args:
            before: The previous result, or `None`.
            stored: Current fields. A field can change by assignment, inside a dictionary, or in a copy. A comparison
                takes a microsecond, unlike `read`.
            read: Function that reads the settings from the fields.
            make: Function that loads the model, or shares a loaded one.
        """
        if before is not None and before.fields == stored:
            return before
        fields, settings = _copy_of(stored), read()
        model = make(settings) if before is None or before.settings != settings else before.model
        return cls(fields, settings, model)


class Adapter(ModelFields):
    """Makes a model from its fields, and makes it again after a field has changed. It shows and saves no secrets."""

    # Each subclass gives the exact type.
    _made: Made[Any, Any] | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _check_settings(self) -> Self:
        self._check()
        return self

    # Defined after the other validator, so that it wraps it.
    @model_validator(mode="wrap")
    @classmethod
    def _show_no_secrets(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:  # noqa: ANN401 - any input
        """Removes secrets from the input that a validation error records."""
        try:
            return handler(data)
        except ValidationError as error:
            safe = _without_secrets(error)
        raise safe  # outside of `except`, so that `__context__` does not keep the original error

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        """Yields the fields without secrets."""
        for name, value in super().__repr_args__():
            yield name, without_secrets(value, name)

    @field_serializer(*_KEYWORD_FIELDS, check_fields=False)
    def _dump_keywords(self, keywords: dict[str, Any]) -> dict[str, Any]:
        return without_secret_keys(keywords)

    def _check(self) -> None:
        """Raises `SettingsError` for settings that are wrong for every model. It runs during validation."""

    def _load(self) -> None:
        """Makes the model of the current fields, if it is not made yet."""
        self._model()

    # Not marked as abstract: llama-index traces methods that override an abstract one, with their arguments.
    def _settings(self) -> object:
        """Returns the settings in the current fields."""
        raise NotImplementedError

    def _make(self, settings: Any) -> Any:  # noqa: ANN401 - each subclass names the types
        """Makes the model from the settings."""
        raise NotImplementedError

    def _model(self) -> Any:  # noqa: ANN401 - as above
        """Returns the model of the current fields."""
        before = self._made
        made = Made.again(before, self._stored(), self._settings, self._make)
        if made is not before:  # an assignment to a private attribute of pydantic is slow
            self._made = made
        return made.model

    async def _model_async(self) -> Any:  # noqa: ANN401 - as above
        """Async form of `_model`, which can take long after unpickling or a change."""
        if not self._is_current():
            await in_thread(self._load, own=True)
        return self._model()

    def _is_current(self) -> bool:
        # No variable of `_model_async` holds the previous model, since the event loop's thread would then release it.
        made = self._made
        return made is not None and made.fields == self._stored()

    def _stored(self) -> Stored:
        return self.__dict__, self.model_fields_set


def _copy_of(stored: Stored) -> Stored:
    """Returns a copy, dictionaries and lists included, that later changes of the fields do not affect."""
    values, names = stored
    copied = {name: deepcopy(value) if isinstance(value, (dict, list)) else value for name, value in values.items()}
    return copied, set(names)


def saved_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields of an adapter for a pickle: without token and key, and without secrets in the keywords."""
    keywords = {name: without_secret_keys(fields[name]) for name in _KEYWORD_FIELDS if name in fields}
    return {**fields, **keywords, **dict.fromkeys(SECRETS)}


def _without_secrets(error: ValidationError) -> ValidationError:
    """Returns the same errors without secrets in their inputs."""
    lines = [
        InitErrorDetails(
            type=line["type"],
            loc=line["loc"],
            # For a field of several types, the last part of `loc` is the type that was tried.
            input=without_secrets(line["input"], next(filter(is_secret_name, line["loc"]), "")),
            ctx=line.get("ctx", {}),
        )
        for line in error.errors(include_url=False)
    ]
    return ValidationError.from_exception_data(error.title, lines, hide_input=True)
