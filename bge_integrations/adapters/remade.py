"""What an adapter makes of its fields, and how it shows and saves them."""

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

_KEYWORD_FIELDS = (
    "model_kwargs",
    "encode_kwargs",
    "query_encode_kwargs",
    "sentence_transformer_kwargs",
    "cross_encoder_kwargs",
)
"""Fields with keywords of sentence-transformers, which may be edited when they were checked already."""


Stored = tuple[dict[str, Any], set[str]]
"""The fields of an adapter as they are stored, and the names of those that were set."""

Settings = TypeVar("Settings")
Model = TypeVar("Model")


@dataclass(frozen=True, eq=False)
class Made(Generic[Settings, Model]):
    """What an adapter has made of its fields. It is replaced, never changed: copies of the adapter hold it too.

    Attributes:
        fields: A copy of the fields, as they were.
        settings: What they say.
        model: What was made of that.
    """

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
        """Returns what was made before, or makes it again if the fields say something else now.

        Args:
            before: What was made before; `None` if nothing was.
            stored: The fields, one of which may have changed by assignment, in a dictionary, or in a copy. Comparing
                them takes a microsecond, unlike reading them.
            read: Reads the fields.
            make: Loads or joins what they ask for.
        """
        if before is not None and before.fields == stored:
            return before
        fields, settings = _copy_of(stored), read()
        model = make(settings) if before is None or before.settings != settings else before.model
        return cls(fields, settings, model)


class Adapter(ModelFields):
    """Makes something of its settings, and makes it again when one has changed since. Shows and saves no secret."""

    # Each kind of adapter says of what it is.
    _made: Made[Any, Any] | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _check_settings(self) -> Self:
        self._check()
        return self

    # After the other one, so that it is around it.
    @model_validator(mode="wrap")
    @classmethod
    def _show_no_secrets(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:  # noqa: ANN401 - any input
        """Keeps secrets out of what an error records of its input."""
        try:
            return handler(data)
        except ValidationError as error:
            safe = _without_secrets(error)
        raise safe  # outside, so that it doesn't carry the other one along

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        """Shows the fields without secrets."""
        for name, value in super().__repr_args__():
            yield name, without_secrets(value, name)

    @field_serializer(*_KEYWORD_FIELDS, check_fields=False)
    def _dump_keywords(self, keywords: dict[str, Any]) -> dict[str, Any]:
        return without_secret_keys(keywords)

    def _check(self) -> None:
        """Refuses settings that can be seen to be wrong before anything is loaded, as a part of validation."""

    # Not marked as abstract: llama-index traces what overrides an abstract method, with its arguments.
    def _load(self) -> None:
        """Makes what the fields ask for, unless it is made already."""
        raise NotImplementedError

    def _settings(self) -> object:
        """Reads the fields, as they are now."""
        raise NotImplementedError

    async def _loaded_async(self) -> None:
        """As `_load`, which after unpickling, or a change, may take long."""
        # Nothing here holds what was made before: it would be released in the event loop's thread.
        if self._made is None or self._made.fields != self._stored():
            await in_thread(self._load, own=True)

    def _stored(self) -> Stored:
        return self.__dict__, self.model_fields_set


def _copy_of(stored: Stored) -> Stored:
    """Returns a copy that later changes of the fields don't reach, also within dictionaries and lists."""
    values, names = stored
    copied = {name: deepcopy(value) if isinstance(value, (dict, list)) else value for name, value in values.items()}
    return copied, set(names)


def saved_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields of an adapter as a pickle may hold them: no token, and no secret among the keywords."""
    keywords = {name: without_secret_keys(fields[name]) for name in _KEYWORD_FIELDS if name in fields}
    return {**fields, **keywords, "token": None}


def _without_secrets(error: ValidationError) -> ValidationError:
    """Returns the same errors with inputs that may be shown."""
    lines = [
        InitErrorDetails(
            type=line["type"],
            loc=line["loc"],
            # The place ends with the type that was tried where a field may have several.
            input=without_secrets(line["input"], next(filter(is_secret_name, line["loc"]), "")),
            ctx=line.get("ctx", {}),
        )
        for line in error.errors(include_url=False)
    ]
    return ValidationError.from_exception_data(error.title, lines, hide_input=True)
