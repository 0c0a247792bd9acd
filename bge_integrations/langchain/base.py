"""Common base of the LangChain classes: typed settings that can be pickled, without weights and token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ConfigDict, Field, SecretStr

from bge_integrations.adapters.fields import plain_secret, setting
from bge_integrations.adapters.keywords import (
    find_token,
    json_ready_loading_kwargs,
    merge_settings,
    shared_fields,
    with_paths_as_text,
)
from bge_integrations.adapters.remade import Adapter, saved_fields
from bge_integrations.settings import SECRETS, ModelSettings


class BgeModel(Adapter):
    """Settings as fields, and the model made from them. A changed field changes the model at its next use."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=(), populate_by_name=True, hide_input_in_errors=True)

    model_name: str = setting("model_name", alias="model")
    model_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Arguments of `SentenceTransformer(...)`, such as `device` or `revision`. Each key is checked."""
    show_progress: bool = setting("show_progress")

    def __init__(self, **data: Any) -> None:  # noqa: ANN401 - the fields' own types
        """Checks the settings, then loads the model or shares a loaded one.

        Raises:
            pydantic.ValidationError: A setting is unknown, invalid or not supported.
            BgeError: Loading fails; see `bge_integrations.BgeEncoder`.
        """
        super().__init__(**_with_own_kwargs(data))
        self._load()

    def __getstate__(self) -> dict[Any, Any]:
        """Pickles the settings, without weights and token."""
        state = super().__getstate__()
        state["__dict__"] = saved_fields(state["__dict__"])
        state["__pydantic_private__"] = {"_made": None}
        return state

    def _check(self) -> None:
        self._settings()

    def _merged(self, given: Mapping[str, Any], kind: type[ModelSettings]) -> dict[str, Any]:
        """Returns the settings from the fields and from `model_kwargs`."""
        said = {name: getattr(self, name) for name in shared_fields(kind) if name in self.model_fields_set}
        said |= {name: plain_secret(getattr(self, name)) for name in SECRETS}
        return merge_settings(said, given, "model_kwargs", kind)


def _with_own_kwargs(data: dict[str, Any]) -> dict[str, Any]:
    """Returns a copy whose token and key are a `SecretStr`, the token outside `model_kwargs`.

    The user's dictionary is not changed.
    """
    data = with_paths_as_text(data)
    given = data.get("model_kwargs")
    if isinstance(given, dict):
        token = find_token(given)
        if token is not None:
            data["token"] = token
        data["model_kwargs"] = json_ready_loading_kwargs(given)
    for name in SECRETS:
        if isinstance(data.get(name), str):
            data[name] = SecretStr(data[name])
    return data
