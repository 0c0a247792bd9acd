"""Every exception that this package raises on purpose, and its warnings.

```
BgeError
├── InvalidInputError                  a text, or the container of texts, can't be encoded
│   ├── InputTypeError                 (also a TypeError)   not a `str`, or a bare `str` instead of a list
│   ├── InputValueError                (also a ValueError)  a `str` that no tokenizer can read
│   │   └── MissingEmbeddingError      a token for which the model has no embedding
│   └── TruncationError                (also a ValueError)  a text over the limit, under `on_truncation="error"`
├── SettingsError                      (also a ValueError)  a setting is invalid, or settings contradict each other
│   ├── DeviceNotAvailableError        the chosen device is not on this machine
│   ├── EngineNotAvailableError        the chosen engine can't be used here
│   └── UnsupportedModelError          the model is of another kind (for example a reranker) or can't be run
├── ModelLoadError                     (also an OSError)    the checkpoint can't be loaded
│   ├── ModelNotFoundError             no such folder, or no such model on the hub
│   ├── ModelNotCachedError            not in the cache, and the hub can't be reached
│   ├── UnsafeWeightsError             only pickled weights or custom code, which no setting allows
│   └── PreparedModelError             a prepared folder is damaged, or written by another version
├── PoolingMismatchError               (also a ValueError)  the name of a BGE model, but files with another pooling
├── NonFiniteOutputError               (also a ValueError)  the model gave NaN or infinity for a text
├── DeviceMemoryError                  (also a MemoryError) one text alone does not fit into the device's memory
├── EngineFailedError                  (also a RuntimeError) the engine fails on one text alone, or has died
├── EndpointError                      (also a RuntimeError) the server at `endpoint` gives no usable answer
│   └── EndpointMismatchError          it computes other vectors than expected
├── ModelClosedError                   (also a RuntimeError) used after `close()`
├── EvaluationDataError                (also a ValueError)  data to evaluate on are wrong: the file, the line and the id
├── TrainingDataError                  (also a ValueError)  data to train on are wrong: the file, the line and the field
├── CorpusDataError                    (also a ValueError)  rows of a corpus are wrong: the file and the line
├── CorpusWriteError                   (also an OSError)    a corpus's output, or a file of vectors, can't be written
├── ChatModelError                     (also a RuntimeError) the chat model that makes questions fails again and again
├── IndexMismatchError               (also a ValueError)  an index was made by another model, or with other settings
├── FingerprintError                 (also a ValueError)  a fingerprint is damaged, or an index has no place for it
└── MissingExtraError                  (also an ImportError) an optional dependency is not installed
```

Each class also derives from the built-in class in brackets, so `except ValueError` catches it. Two former names are
still valid: `NonFiniteEmbeddingError` and `EncoderClosedError`.
"""

from __future__ import annotations

from bge_integrations.redaction import without_hub_tokens

__all__ = [
    "BgeError",
    "ChatModelError",
    "CorpusDataError",
    "CorpusWriteError",
    "DeviceMemoryError",
    "DeviceNotAvailableError",
    "EncoderClosedError",
    "EndpointError",
    "EndpointMismatchError",
    "EngineFailedError",
    "EngineNotAvailableError",
    "EvaluationDataError",
    "EvaluationWarning",
    "FingerprintError",
    "IndexMismatchError",
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
    "TrainingDataError",
    "TruncationError",
    "TruncationWarning",
    "UnsafeWeightsError",
    "UnsupportedModelError",
]


class BgeError(Exception):
    """Base of every exception that this package raises on purpose. Its message hides hub tokens."""

    def __init__(self, *parts: object) -> None:
        super().__init__(*(without_hub_tokens(part) if isinstance(part, str) else part for part in parts))


class InvalidInputError(BgeError):
    """A text, or the container of texts, can't be encoded.

    Attributes:
        index: Position in the call of the wrong text, or `None` if the container is wrong.
    """

    def __init__(self, message: str, index: int | None = None) -> None:
        super().__init__(message)
        self.index = index

    def __reduce__(self) -> tuple[type[InvalidInputError], tuple[str, int | None]]:
        return type(self), (str(self), self.index)


class InputTypeError(InvalidInputError, TypeError):
    """A text is not a `str`, or a bare `str` was given instead of a list of texts."""


class InputValueError(InvalidInputError, ValueError):
    """A text is a `str` that can't be encoded: UTF-8 can't write it, or the model lacks an embedding for a token."""


class MissingEmbeddingError(InputValueError):
    """A text has a token for which the model has no embedding: tokenizer and weights don't fit together."""


class TruncationError(InvalidInputError, ValueError):
    """A text is longer than the model's limit while `on_truncation="error"`."""


class SettingsError(BgeError, ValueError):
    """A setting is invalid or not supported, or two settings contradict each other."""


class DeviceNotAvailableError(SettingsError):
    """The chosen device is not on this machine."""


class EngineNotAvailableError(SettingsError):
    """The chosen engine can't be used here."""


class UnsupportedModelError(SettingsError):
    """The class can't run this kind of model."""


class ModelLoadError(BgeError, OSError):
    """The checkpoint can't be loaded."""


class ModelNotFoundError(ModelLoadError):
    """The folder does not exist, or the hub has no such model."""


class ModelNotCachedError(ModelLoadError):
    """The model is not in the cache, and the hub can't be reached."""


class UnsafeWeightsError(ModelLoadError):
    """The checkpoint would run code while it is loaded (pickle or custom modules), and no setting allows this."""


class PreparedModelError(ModelLoadError):
    """A prepared folder is damaged, or was written by another version."""


class PoolingMismatchError(BgeError, ValueError):
    """A checkpoint has the name of a BGE model, but its own files ask for another pooling."""


class NonFiniteOutputError(BgeError, ValueError):
    """The model gave NaN or infinity for a text.

    Attributes:
        index: Position in the call of the first such text.
    """

    def __init__(self, message: str, index: int) -> None:
        super().__init__(message)
        self.index = index

    def __reduce__(self) -> tuple[type[NonFiniteOutputError], tuple[str, int]]:
        return type(self), (str(self), self.index)


NonFiniteEmbeddingError = NonFiniteOutputError
"""The former name."""


class DeviceMemoryError(BgeError, MemoryError):
    """One text alone does not fit into the device's memory, or a training does not.

    Attributes:
        index: Position of the text in the call, or `None` in training.
    """

    def __init__(self, message: str, index: int | None) -> None:
        super().__init__(message)
        self.index = index

    def __reduce__(self) -> tuple[type[DeviceMemoryError], tuple[str, int | None]]:
        return type(self), (str(self), self.index)


class EngineFailedError(BgeError, RuntimeError):
    """The engine fails on one text alone, or has died. `__cause__` is the engine's own exception.

    Attributes:
        index: Position of the text in the call, or `None` if no text is the reason.
    """

    def __init__(self, message: str, index: int | None) -> None:
        super().__init__(message)
        self.index = index

    def __reduce__(self) -> tuple[type[EngineFailedError], tuple[str, int | None]]:
        return type(self), (str(self), self.index)


class EndpointError(BgeError, RuntimeError):
    """The server at `endpoint` can't be reached, refuses a request, or gives an answer that can't be used.

    Attributes:
        index: Position in the call of the text that the server refused, or `None` if no text is the reason.
        status: Status of the server's HTTP answer, or `None` without an answer.
    """

    def __init__(self, message: str, index: int | None = None, status: int | None = None) -> None:
        super().__init__(message)
        self.index = index
        self.status = status

    def __reduce__(self) -> tuple[type[EndpointError], tuple[str, int | None, int | None]]:
        return type(self), (str(self), self.index, self.status)


class EndpointMismatchError(EndpointError):
    """The server at `endpoint` computes other vectors than the expected model. The message says how they differ."""


class ModelClosedError(BgeError, RuntimeError):
    """An encoder or a reranker was used after its `close()`."""


EncoderClosedError = ModelClosedError
"""The former name."""


class EvaluationDataError(BgeError, ValueError):
    """Data to evaluate on can't be used as they are; the message names the file, the line and the id."""


class TrainingDataError(BgeError, ValueError):
    """Data to train on can't be used as they are; the message names the file, the line and the field."""


class CorpusDataError(BgeError, ValueError):
    """Rows of a corpus can't be used as they are; the message names the file and the line."""


class CorpusWriteError(BgeError, OSError):
    """The output of a corpus, or a file of vectors, can't be written: for example, the disk is full."""


class ChatModelError(BgeError, RuntimeError):
    """The chat model that makes questions fails again and again, so that the next calls would fail too.

    `__cause__` is the last failure. Finished answers are kept, if there is a file for them.
    """


class IndexMismatchError(BgeError, ValueError):
    """The vectors of an index were made by another model, or with other settings. The message says what differs.

    Attributes:
        differences: What differs, one sentence each.
    """

    def __init__(self, message: str, differences: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.differences = differences

    def __reduce__(self) -> tuple[type[IndexMismatchError], tuple[str, tuple[str, ...]]]:
        return type(self), (str(self), self.differences)


class FingerprintError(BgeError, ValueError):
    """A fingerprint is damaged, or an index has no place for one or no vectors that can be read."""


class MissingExtraError(BgeError, ImportError):
    """An optional dependency is not installed. The message gives the command that installs it."""


class TruncationWarning(UserWarning):
    """Some texts of a call were over the limit and were cut."""


class EvaluationWarning(UserWarning):
    """An evaluation measures something else than it seems to."""


class PoolingWarning(UserWarning):
    """A model's files do not say how its hidden states become a vector, so the mean of all tokens is used."""
