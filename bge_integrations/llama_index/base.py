"""Common base of the LlamaIndex classes: typed settings that can be pickled, without weights and token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from llama_index.core.bridge.pydantic import ConfigDict

from bge_integrations.adapters.fields import plain_secret, setting
from bge_integrations.adapters.keywords import (
    find_token,
    json_ready_loading_kwargs,
    merge_settings,
    shared_fields,
    with_paths_as_text,
)
from bge_integrations.adapters.remade import Adapter, saved_fields
from bge_integrations.errors import SettingsError
from bge_integrations.redaction import shown
from bge_integrations.settings import SECRETS, ModelSettings

# llama-index passes this many texts in one call, and sorting them by length saves padding. For 3,769 docstrings (mean
# 54 tokens, p95 200) in forward passes of 2048 tokens, padding is 64 % of the computed tokens at 10 texts a call
# (llama-index's own default), 29 % at 128, 12 % at 512 and 4 % at 2048, the greatest number that it allows.
DEFAULT_TEXTS_PER_CALL = 2048


class BgeModel(Adapter):
    """Settings as fields, and the model made from them. A changed field changes the model at its next use."""

    model_config = ConfigDict(
        protected_namespaces=("pydantic_model_",),
        arbitrary_types_allowed=True,
        extra="forbid",
        hide_input_in_errors=True,
    )

    further_field: ClassVar[str]
    """The field for arguments of sentence-transformers without a field of their own."""
    further_keys: ClassVar[tuple[str, ...]]
    """The names of these arguments."""
    renamed: ClassVar[Mapping[str, str]] = {}
    """Fields by their other names."""
    dropped: ClassVar[Mapping[str, str]] = {}
    """Unsupported arguments of the replaced class, with the reason. The value `None` is accepted."""

    model_name: str = setting("model_name")

    def __init__(self, **kwargs: Any) -> None:  # noqa: ANN401 - the fields' own types
        """Checks the settings, then loads the model or shares a loaded one.

        Args:
            **kwargs: The fields above, and any argument of the corresponding sentence-transformers class.

        Raises:
            pydantic.ValidationError: The value of a field has the wrong type.
            SettingsError: An argument is unknown, invalid or not supported.
            BgeError: Loading fails; see `bge_integrations.BgeEncoder`.
        """
        super().__init__(**self._to_fields(kwargs))
        self._load()

    @classmethod
    def class_name(cls) -> str:
        """Returns the name for serialisation."""
        return cls.__name__

    def __getstate__(self) -> dict[str, Any]:
        """Pickles the settings, without weights and token."""
        bare = self.model_copy()
        bare.__dict__.update(saved_fields(self.__dict__))
        bare._made = None
        state: dict[str, Any] = super(BgeModel, bare).__getstate__()
        return state

    def _merged(self, further: Mapping[str, Any], kind: type[ModelSettings], **fields: object) -> dict[str, Any]:
        """Returns the settings from the fields and from sentence-transformers' arguments.

        Args:
            further: Translated arguments of sentence-transformers.
            kind: Class of the settings.
            **fields: Values that replace those of the fields.
        """
        # The stored values: reading an attribute can give another one, such as the model's own limit.
        said = {name: self.__dict__[name] for name in shared_fields(kind) if name in self.model_fields_set}
        said |= {name: plain_secret(self.__dict__[name]) for name in SECRETS}
        merged = merge_settings({**said, **fields}, further, "the arguments", kind)
        return {**merged, "model_name": self.model_name}

    @classmethod
    def _to_fields(cls, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the fields for the user's arguments."""
        fields: dict[str, Any] = {}
        further = dict(kwargs.get(cls.further_field) or {})
        for key, value in with_paths_as_text(kwargs).items():
            name = cls.renamed.get(key, key)
            if key in cls.dropped:
                if value not in (None, "deprecated"):
                    raise SettingsError(f"{key}={shown(value, key)} is not supported: {cls.dropped[key]}.")
            elif (key == "callback_manager" and value is None) or value == "deprecated" or key == "class_name":
                continue
            elif name in cls.model_fields:
                if name in fields:
                    raise SettingsError(
                        f"{key}={shown(value, key)} is another name of {name}, which is given too; say it once."
                    )
                fields[name] = value
            elif key in cls.further_keys:
                further[key] = value
            else:
                choices = sorted({*cls.model_fields, *cls.further_keys, *cls.renamed})
                raise SettingsError(
                    f"{key}={shown(value, key)} is unknown; the known arguments are {', '.join(choices)}."
                )
        if fields.get("token") is None:
            fields["token"] = find_token(further)
        fields[cls.further_field] = json_ready_loading_kwargs(further)
        return fields
