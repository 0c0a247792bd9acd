"""Every exception that this package raises on purpose, and its warnings.

```
BgeError
├── InvalidInputError                  a text, or the container of texts, can't be encoded
│   ├── InputTypeError                 (also a TypeError)   not a `str`, or a bare `str` where a list belongs
│   ├── InputValueError                (also a ValueError)  a `str` that no tokenizer can read
│   │   └── MissingEmbeddingError      a token that the model has no embedding for
│   └── TruncationError                (also a ValueError)  longer than the model, under `on_truncation="error"`
├── SettingsError                      (also a ValueError)  a setting, or two together, that can't be honoured
│   ├── DeviceNotAvailableError        the device named is not on this machine
│   ├── EngineNotAvailableError        the engine named can't be used here
│   └── UnsupportedModelError          the model is of another kind (a reranker, say) or can't be run
├── ModelLoadError                     (also an OSError)    the checkpoint can't be loaded
│   ├── ModelNotFoundError             no such folder, or no such model on the hub
│   ├── ModelNotCachedError            not in the cache, and the hub can't be reached
│   ├── UnsafeWeightsError             only pickled weights, or custom code, not allowed by name
│   └── PreparedModelError             a prepared folder is damaged, or another version's
├── PoolingMismatchError               (also a ValueError)  called like a BGE model, but its files pool otherwise
├── NonFiniteOutputError               (also a ValueError)  the model gave NaN or infinity for a text
├── DeviceMemoryError                  (also a MemoryError) one text alone does not fit into the device's memory
├── EngineFailedError                  (also a RuntimeError) the engine fails on a text even alone, or has died
├── ModelClosedError                   (also a RuntimeError) used after `close()`
└── MissingExtraError                  (also an ImportError) an optional dependency is not installed
```

Each one also derives from the built-in class in brackets, so `except ValueError` keeps working. Two former names are
still there: `NonFiniteEmbeddingError` and `EncoderClosedError`.
"""

from __future__ import annotations

from bge_integrations.redaction import without_hub_tokens

__all__ = [
    "BgeError",
    "DeviceMemoryError",
    "DeviceNotAvailableError",
    "EncoderClosedError",
    "EngineFailedError",
    "EngineNotAvailableError",
    "InputTypeError",
    "InputValueError",
    "InvalidInputError",
    "MissingEmbeddingError",
    "MissingExtraError",
    "ModelClosedError",
    "ModelLoadError",
    "ModelNotCachedError",
    "ModelNotFoundError",
    "NonFiniteEmbeddingError",
    "NonFiniteOutputError",
    "PoolingMismatchError",
    "PoolingWarning",
    "PreparedModelError",
    "SettingsError",
    "TruncationError",
    "TruncationWarning",
    "UnsafeWeightsError",
    "UnsupportedModelError",
]


class BgeError(Exception):
    """Base of every exception that this package raises on purpose. No message shows a token of the hub."""

    def __init__(self, *parts: object) -> None:
        super().__init__(*(without_hub_tokens(part) if isinstance(part, str) else part for part in parts))


class InvalidInputError(BgeError):
    """A text, or the container of texts, can't be encoded.

    Attributes:
        index: Position of the offending text in the call, or None if the container itself is at fault.
    """

    def __init__(self, message: str, index: int | None = None) -> None:
        super().__init__(message)
        self.index = index

    def __reduce__(self) -> tuple[type[InvalidInputError], tuple[str, int | None]]:
        return type(self), (str(self), self.index)


class InputTypeError(InvalidInputError, TypeError):
    """A text is not a `str`, or a bare `str` was given where a list of texts belongs."""


class InputValueError(InvalidInputError, ValueError):
    """A text is a `str` that can't be encoded: UTF-8 can't write it, or the model lacks an embedding for it."""


class MissingEmbeddingError(InputValueError):
    """A text has a token that the model has no embedding for: its tokenizer and its weights don't fit together."""


class TruncationError(InvalidInputError, ValueError):
    """A text is longer than the model's limit while `on_truncation="error"`."""


class SettingsError(BgeError, ValueError):
    """A setting, or two settings together, can't be honoured."""


class DeviceNotAvailableError(SettingsError):
    """The device named is not on this machine."""


class EngineNotAvailableError(SettingsError):
    """The engine named can't be used here."""


class UnsupportedModelError(SettingsError):
    """The model is of another kind than the class can run."""


class ModelLoadError(BgeError, OSError):
    """The checkpoint can't be loaded."""


class ModelNotFoundError(ModelLoadError):
    """There is no such folder, or no such model on the hub."""


class ModelNotCachedError(ModelLoadError):
    """The model is not in the cache and the hub can't be reached."""


class UnsafeWeightsError(ModelLoadError):
    """The checkpoint runs code when loaded (pickle or custom modules) and that was not allowed by name."""


class PreparedModelError(ModelLoadError):
    """A prepared folder is damaged, or was written by another version."""


class PoolingMismatchError(BgeError, ValueError):
    """A checkpoint that is called like a BGE model, but whose own files ask for another pooling."""


class NonFiniteOutputError(BgeError, ValueError):
    """The model gave NaN or infinity for a text.

    Attributes:
        index: Position in the call of the first text concerned.
    """

    def __init__(self, message: str, index: int) -> None:
        super().__init__(message)
        self.index = index

    def __reduce__(self) -> tuple[type[NonFiniteOutputError], tuple[str, int]]:
        return type(self), (str(self), self.index)


NonFiniteEmbeddingError = NonFiniteOutputError
"""The former name."""


class DeviceMemoryError(BgeError, MemoryError):
    """One text alone does not fit into the device's memory.

    Attributes:
        index: Position of the text in the call.
    """

    def __init__(self, message: str, index: int) -> None:
        super().__init__(message)
        self.index = index

    def __reduce__(self) -> tuple[type[DeviceMemoryError], tuple[str, int]]:
        return type(self), (str(self), self.index)


class EngineFailedError(BgeError, RuntimeError):
    """The engine fails on a text, even alone, or has died; the cause is what it raised.

    Attributes:
        index: Position of the text in the call; None if no text is at fault.
    """

    def __init__(self, message: str, index: int | None) -> None:
        super().__init__(message)
        self.index = index

    def __reduce__(self) -> tuple[type[EngineFailedError], tuple[str, int | None]]:
        return type(self), (str(self), self.index)


class ModelClosedError(BgeError, RuntimeError):
    """An encoder or a reranker was used after its `close()`."""


EncoderClosedError = ModelClosedError
"""The former name."""


class MissingExtraError(BgeError, ImportError):
    """An optional dependency is not installed; the message is the command that installs it."""


class TruncationWarning(UserWarning):
    """Some texts of a call were longer than the model reads, and were cut."""


class PoolingWarning(UserWarning):
    """Nothing says how a model makes a vector of its hidden states, so that the mean of all tokens is taken."""
