"""What the LangChain classes have in common: typed settings that travel, without weights and without the token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ConfigDict, Field, SecretStr

from bge_integrations.adapters.keywords import (
    find_token,
    json_ready_loading_kwargs,
    merge_settings,
    shared_fields,
    with_paths_as_text,
)
from bge_integrations.adapters.remade import Adapter, saved_fields
from bge_integrations.settings import EngineName, ModelSettings, OnTruncation, Precision


class BgeModel(Adapter):
    """Settings as fields, and what is made from them: anew when one has been changed since."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=(), populate_by_name=True, hide_input_in_errors=True)

    model_name: str = Field(alias="model")
    """Hub id or local folder."""
    cache_folder: str | None = None
    """Where hub files are kept; None takes `SENTENCE_TRANSFORMERS_HOME` or the hub's usual cache."""
    model_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Arguments of `SentenceTransformer(...)`, such as `device` or `revision`, honoured key by key."""
    query_instruction: str | None = None
    """Text before each query. None takes what the model was trained with, `""` is none."""
    show_progress: bool = False
    """A progress bar while documents are embedded or pairs scored; never for a query."""
    device: str | list[str] | None = None
    """`"cpu"`, `"cuda"`, `"cuda:1"` or `"mps"`; None takes the first of cuda, mps and cpu that can do
    what is asked. A list, or `"all"`, puts the model on each, and they share the work."""
    precision: Precision = "auto"
    """How the model computes; `"auto"` is float16 on CUDA and float32 elsewhere."""
    engine: EngineName = "auto"
    """What runs the model."""
    max_length: int | None = None
    """Tokens per text, or pair of texts, special tokens included; None takes the model's own limit."""
    on_truncation: OnTruncation = "warn"
    """For texts over `max_length`: `"warn"` once a call, `"ignore"`, or `"error"`."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    trust_remote_code: bool = False
    """Run Python code that comes with the checkpoint."""
    local_files_only: bool = False
    """Never ask the hub."""
    allow_pickle_weights: bool = False
    """Load `pytorch_model.bin` where a checkpoint has no safetensors."""
    batch_tokens: int | None = None
    """Tokens, padding included, in one forward pass; None takes the engine's own figure."""
    batch_size: int | None = None
    """Upper limit on the texts in one forward pass; None sets no limit."""
    threads: int | None = None
    """Threads that compute; None takes the least of usable cores, `OMP_NUM_THREADS` and torch's number."""
    max_queued_texts: int = 65536
    """Documents, and as many queries, that may be in flight at once, over all callers; a call beyond it waits."""
    token: SecretStr | bool | None = Field(default=None, exclude=True, repr=False)
    """Hub token; never shown, dumped or pickled."""

    def __init__(self, **data: Any) -> None:  # noqa: ANN401 - the fields' own types
        """Checks the settings, then loads the model or joins those that already hold it.

        Raises:
            pydantic.ValidationError: A setting that is unknown or can't be honoured.
            BgeError: Whatever loading raises; see `bge_integrations.BgeEncoder`.
        """
        super().__init__(**_with_own_kwargs(data))
        self._current()

    def __getstate__(self) -> dict[Any, Any]:
        """Pickles settings, not weights, and no token."""
        state = super().__getstate__()
        state["__dict__"] = saved_fields(state["__dict__"])
        state["__pydantic_private__"] = {"_made": None}
        return state

    def _check(self) -> None:
        """Refuses settings that can be seen to be wrong before anything is loaded."""
        self._settings()

    def _merged(self, given: Mapping[str, Any], kind: type[ModelSettings]) -> dict[str, Any]:
        """Returns what the fields say, with what `model_kwargs` say put in."""
        said = {name: getattr(self, name) for name in shared_fields(kind) if name in self.model_fields_set}
        said["token"] = self.token.get_secret_value() if isinstance(self.token, SecretStr) else self.token
        return merge_settings(said, given, "model_kwargs", kind)


def _with_own_kwargs(data: dict[str, Any]) -> dict[str, Any]:
    """Keeps the user's dictionary as it is, and the token out of ours and of pydantic's errors."""
    data = with_paths_as_text(data)
    given = data.get("model_kwargs")
    if isinstance(given, dict):
        token = find_token(given)
        if token is not None:
            data["token"] = token
        data["model_kwargs"] = json_ready_loading_kwargs(given)
    if isinstance(data.get("token"), str):
        data["token"] = SecretStr(data["token"])
    return data
