"""What the adapters of both frameworks do with their settings, whichever pydantic class holds these."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from pydantic import (
    ModelWrapValidatorHandler,
    PrivateAttr,
    ValidationError,
    field_serializer,
    model_validator,
)
from pydantic_core import InitErrorDetails
from typing_extensions import Self

from bge_integrations.adapters.fields import ModelFields, RerankerFields
from bge_integrations.backend.guarantees.interrupts import in_thread
from bge_integrations.m3 import BgeM3Encoder
from bge_integrations.redaction import is_secret_name, without_secret_keys, without_secrets
from bge_integrations.reranker import BgeReranker
from bge_integrations.settings import ModelSettings, RerankerSettings

_KEYWORD_FIELDS = (
    "model_kwargs",
    "encode_kwargs",
    "query_encode_kwargs",
    "sentence_transformer_kwargs",
    "cross_encoder_kwargs",
)
"""Fields with keywords of sentence-transformers, which may be edited when they were checked already."""


@dataclass(frozen=True, eq=False)
class _Made:
    """What an adapter has made.

    Attributes:
        fields: A copy of the fields, as they were.
        settings: What they say.
        thing: What was made of it.
    """

    fields: tuple[dict[str, Any], set[str]]
    settings: Any
    thing: Any


class Adapter(ModelFields):
    """Makes something of its settings, and makes it again when one has changed since. Shows and saves no secret."""

    # What was made, with the fields and the settings that it was made from; None before.
    _made: _Made | None = PrivateAttr(default=None)

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
    def _settings(self) -> Any:  # noqa: ANN401 - each class has its own
        """Reads the fields, as they are now."""
        raise NotImplementedError

    def _make(self, settings: Any) -> Any:  # noqa: ANN401 - as above
        """Loads or joins what the settings ask for."""
        raise NotImplementedError

    def _current(self) -> Any:  # noqa: ANN401 - as above
        """Returns what the settings ask for."""
        # A field may have been changed since, by assignment, in a dictionary, or in a copy.
        made = self._made
        if made is None or not self._is_of(made):
            fields, settings = _copy_of(self._stored()), self._settings()
            thing = self._make(settings) if made is None or made.settings != settings else made.thing
            made = self._made = _Made(fields, settings, thing)
        return made.thing

    async def _current_async(self) -> Any:  # noqa: ANN401 - as above
        """As `_current`, which after unpickling, or a change, may have to load the model."""
        # Nothing here holds what was made before: it would be released in the event loop's thread.
        if self._made is not None and self._is_of(self._made):
            return self._made.thing
        return await in_thread(self._current, own=True)

    def _stored(self) -> tuple[dict[str, Any], set[str]]:
        """Returns what settings are read from: the fields as they are stored, and the names of those that were set."""
        return self.__dict__, self.model_fields_set

    def _is_of(self, made: _Made) -> bool:
        """Whether something was made from the fields as they are now. Takes a microsecond, unlike reading them."""
        return bool(made.fields == self._stored())


def _copy_of(stored: tuple[dict[str, Any], set[str]]) -> tuple[dict[str, Any], set[str]]:
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


class M3Adapter(Adapter):
    """Holds a `BgeM3Encoder`."""

    @property
    def encoder(self) -> BgeM3Encoder:
        """The encoder of all of bge-m3's outputs."""
        encoder: BgeM3Encoder = self._current()
        return encoder

    async def _encoder_async(self) -> BgeM3Encoder:
        encoder: BgeM3Encoder = await self._current_async()
        return encoder

    def _make(self, settings: ModelSettings) -> BgeM3Encoder:
        return BgeM3Encoder.from_settings(settings)


class RerankerAdapter(RerankerFields, Adapter):
    """Holds a `BgeReranker`."""

    @property
    def reranker(self) -> BgeReranker:
        """The reranker underneath."""
        reranker: BgeReranker = self._current()
        return reranker

    @property
    def client(self) -> Any:  # noqa: ANN401 - a library's class
        """sentence-transformers' CrossEncoder underneath, or transformers' decoder; it knows and takes no settings."""
        return self.reranker.client

    async def _reranker_async(self) -> BgeReranker:
        reranker: BgeReranker = await self._current_async()
        return reranker

    def _make(self, settings: RerankerSettings) -> BgeReranker:
        return BgeReranker.from_settings(settings)
