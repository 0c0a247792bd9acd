"""The base class of encoders and rerankers, which hold a loaded model and share it."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from typing_extensions import Self

from bge_integrations.backend.checkpoint.digests import cache_name, key_of
from bge_integrations.backend.checkpoint.location import name_without_path
from bge_integrations.backend.display.steps import shown_steps
from bge_integrations.backend.guarantees.forks import notice_fork
from bge_integrations.backend.guarantees.interrupts import in_thread, uninterrupted
from bge_integrations.backend.loading import registry
from bge_integrations.backend.machine.cpu import set_torch_threads
from bge_integrations.calls.call import Terms
from bge_integrations.calls.progress import warn_user
from bge_integrations.catalogue.instructions import Instruction, Role, resolve_instruction
from bge_integrations.errors import ModelClosedError, PoolingWarning, SettingsError, TruncationWarning
from bge_integrations.settings import Example, ModelSettings, default_of

if TYPE_CHECKING:
    from bge_integrations.backend.loading.model import LoadedModel
    from bge_integrations.backend.scheduler import Priority, Statistics
    from bge_integrations.settings import Purpose

Settings = TypeVar("Settings", bound=ModelSettings)


class ModelHandle(Generic[Settings]):
    """Holds a loaded model, shared by all objects with equal loading settings. Pickles and copies carry only settings.

    Attributes:
        settings: The user's settings.
    """

    settings: Settings
    _purpose: ClassVar[Purpose]
    _settings_kind: ClassVar[type[ModelSettings]]
    __signature__: ClassVar[inspect.Signature]

    def __init_subclass__(cls) -> None:
        """Sets a signature with every setting for `help` and editors. The constructor itself takes `**options`."""
        super().__init_subclass__()
        if "__init__" not in vars(cls):
            return
        own = [*inspect.signature(cls.__init__).parameters.values()][1:]
        if "_settings_kind" in vars(cls):  # else a user's class, whose constructor has a signature of its own
            own[1:] = [
                inspect.Parameter(
                    field.name,
                    inspect.Parameter.KEYWORD_ONLY,
                    default=default_of(field),
                    annotation=field.type,
                )
                for field in dataclasses.fields(cls._settings_kind)
                if field.name != own[0].name
            ]
        cls.__signature__ = inspect.Signature(own)

    @classmethod
    def from_settings(cls, settings: Settings, *, load: bool = True) -> Self:
        """Creates an object from settings.

        Args:
            settings: The settings.
            load: Whether the model is loaded now. Otherwise it is loaded at the first use.
        """
        holder = cls.__new__(cls)
        holder._start(settings)
        if load:
            holder._loaded()
        return holder

    def __setattr__(self, name: str, value: object) -> None:
        """Sets an attribute, but no setting: a change would have no effect.

        Raises:
            SettingsError: `name` is `settings` or a setting.
        """
        given = self.__dict__.get("settings")
        if given is not None and (name == "settings" or hasattr(given, name)):
            changed = "…" if name == "settings" else f"{name}=…"
            raise SettingsError(
                f"{name} can't be changed afterwards; create a new object, which shares the model if possible: "
                f"{type(self).__name__}.from_settings(old.settings.replace({changed}))."
            )
        super().__setattr__(name, value)

    def _start(self, settings: Settings) -> None:
        self.settings = settings
        self._model: LoadedModel | None = None
        self._closed = False

    @property
    def backend(self) -> LoadedModel:
        """The loaded model, shared by all objects with equal loading settings."""
        return self._loaded()

    @property
    def max_length(self) -> int:
        """Maximum number of tokens of a text or a pair of texts, special tokens included. Longer ones are cut."""
        return self.settings.max_length or self._limit_of(self._loaded())

    def stats(self) -> Statistics:
        """Returns the statistics of the loaded model, for all objects that share it."""
        return self._loaded().statistics()

    def close(self) -> None:
        """Releases the model. Its memory is freed when no other object holds it. May be called twice."""
        self._closed = True
        self._model = None

    def __enter__(self) -> Self:
        """Returns the object itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Calls `close`."""
        self.close()

    def __repr__(self) -> str:
        """Shows the model's name and whether it is loaded."""
        state = "closed" if self._closed else "loaded" if self._model else "not loaded"
        return f"{type(self).__name__}({self.settings.model_name!r}, {state})"

    def __reduce__(self) -> tuple[Any, tuple[type[Self], Settings]]:
        """Pickles and copies only the settings. The new object loads or shares the model at its first use."""
        return _restore, (type(self), self.settings)

    def _cache_name(self, use: str, facts: Mapping[str, object]) -> str:
        """Returns a name for the keys of a cache: the model's name, a use, and a digest of named facts."""
        return f"{cache_name(self.settings.model_name)}_{use}_{key_of(facts)[:16]}"

    def _terms(self, priority: Priority) -> Terms:
        return Terms(model=self._loaded(), settings=self.settings, max_length=self.max_length, priority=priority)

    def _loaded(self) -> LoadedModel:
        notice_fork()
        model = self._model
        if model is not None:
            return model
        self._require_open()
        with shown_steps(f"Loading {name_without_path(self.settings.model_name)}"):
            model = uninterrupted(self._acquired)
        if model.tokenizer.is_estimate and self.settings.on_truncation == "warn":
            warn_user(
                f"The tokenizer of {self.settings.model_name} is not here, so no text is known to be too long: "
                f"{self.settings.endpoint} cuts or refuses texts over its limit. Give a folder with the tokenizer as "
                "endpoint_options={'tokenizer': …}, or set on_truncation='ignore'.",
                TruncationWarning,
            )
        while model.notes:
            warn_user(model.notes.popleft(), PoolingWarning)
        threads, model.torch_threads = model.torch_threads, None
        if threads is not None:
            set_torch_threads(threads)
        self._model = model
        if self._closed:  # another thread has closed it meanwhile
            self._model = None
        self._require_open()
        return model

    async def _ready(self) -> None:
        """Loads the model in another thread if it is not loaded yet."""
        if self._model is None:
            await in_thread(self._loaded, own=True)

    def _require_open(self) -> None:
        if self._closed:
            raise ModelClosedError(
                f"This {type(self).__name__} of {self.settings.model_name} was closed; create a new one. This is quick "
                "while another object holds the model."
            )

    def _acquired(self) -> LoadedModel:
        from bge_integrations.backend.checkpoint.request import LoadRequest

        model = registry.acquire(LoadRequest.from_settings(self.settings, self._purpose))
        self._check_against(model)
        return model

    def _check_against(self, model: LoadedModel) -> None:
        """Raises `SettingsError` if the settings do not fit the model."""
        if model.tokenizer.is_estimate:
            for setting in ("max_length", "on_truncation"):
                if getattr(self.settings, setting) not in (None, "warn", "ignore"):
                    model.require_tokenizer(f"{setting}={getattr(self.settings, setting)!r}")
        limit, name = self.settings.max_length, self.settings.model_name
        if limit is None:
            return
        capacity = model.facts.positions
        if capacity is not None and limit > capacity:
            raise SettingsError(
                f"max_length={limit} is more than the {capacity} positions that {name} has; give at most {capacity}."
            )
        least = self._least_length(model)
        if limit < least:
            raise SettingsError(
                f"max_length={limit} leaves no room beside the {model.tokenizer.special_tokens} special tokens of "
                f"{name}; give at least {least}."
            )

    def _resolve(
        self,
        model: LoadedModel,
        role: Role,
        *,
        explicit: str | None,
        task: str | None = None,
        examples: Sequence[Example] | None = None,
    ) -> Instruction:
        """Returns the instruction for texts of a role, from `resolve_instruction` and the model's properties."""
        return resolve_instruction(
            role,
            explicit=explicit,
            task=task,
            spec=model.spec,
            saved_prompts=model.prompts,
            default_prompt_name=model.facts.default_prompt_name,
            recognized_by=model.facts.recognized_by,
            examples=examples,
        )

    def _limit_of(self, model: LoadedModel) -> int:
        """Returns `max_length` for a model that this object does not hold yet."""
        return self.settings.max_length or model.facts.max_tokens

    def _least_length(self, model: LoadedModel) -> int:
        """Returns the tokens of the shortest text."""
        return model.tokenizer.special_tokens + 1


def _restore(kind: type[ModelHandle[Any]], settings: ModelSettings) -> ModelHandle[Any]:
    return kind.from_settings(settings, load=False)
