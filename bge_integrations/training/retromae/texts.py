"""Where texts for pre-training come from: files, data sets, or any iterable. They are read one after the other."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bge_integrations._optional import require
from bge_integrations.backend.checkpoint.digests import file_identity
from bge_integrations.corpus.tables import parquet_batches, parquet_schema
from bge_integrations.errors import SettingsError, TrainingDataError
from bge_integrations.evaluation.formats import (
    is_saved_dataset,
    plain_or_zipped,
    read_errors_as,
)
from bge_integrations.texts import is_text, kind_of, plain
from bge_integrations.training.rows.data import text_fault
from bge_integrations.training.rows.passages import read_passages

__all__ = ["TextSource"]

_ENDINGS = (".jsonl", ".jsonl.gz", ".txt", ".txt.gz", ".parquet")
_SPLIT = "train"
_FIELD = "text"

_Value = tuple[str, Any]
"""Where a value stands, with the name of its field, and the value."""


@dataclass(frozen=True)
class TextSource:
    """Texts that are read when they are needed.

    Attributes:
        name: The data's name in records.
        state: Value that changes when the files change; `None` if that can't be known.
        read: Function that yields the place and the value of each text.
    """

    name: str
    state: Any
    read: Callable[[], Iterator[_Value]]

    @classmethod
    def of(cls, data: str | os.PathLike[str] | Iterable[str] | object) -> TextSource:
        """Looks at what is there, and reads no text.

        Raises:
            TrainingDataError: There is no such file, or its format is unknown.
            SettingsError: It is neither a path, nor a data set, nor texts.
            MissingExtraError: datasets is not installed and needed.
        """
        if isinstance(data, (str, os.PathLike)):
            return _from_path(Path(os.path.expanduser(os.fspath(data))))
        if isinstance(data, Mapping):  # a DatasetDict
            if _SPLIT not in data:
                raise TrainingDataError(f"The dataset has no split {_SPLIT!r}; it has {', '.join(map(str, data))}.")
            data = data[_SPLIT]
        if hasattr(data, "column_names"):
            return _from_dataset(data)
        if not isinstance(data, Iterable) or isinstance(data, (bytes, bytearray)):
            raise SettingsError(
                f"pretrain_retromae takes a path, a Dataset of the library datasets, or texts, but was given "
                f"{kind_of(data)}."
            )
        texts = data
        return cls("texts", None, lambda: ((f"text {number}", value) for number, value in enumerate(texts)))

    def __iter__(self) -> Iterator[str]:
        """Yields the texts. Blank ones are left out.

        Raises:
            TrainingDataError: One is no text, or a file can't be read; the file, the line and the field are named.
        """
        with read_errors_as(TrainingDataError):
            for place, value in self.read():
                if is_text(value) and (not value or value.isspace()):
                    continue
                if fault := text_fault(value):
                    raise TrainingDataError(f"{place} {fault}")
                yield plain(value)


def _from_path(path: Path) -> TextSource:
    if is_saved_dataset(path):
        datasets = require("datasets", extra="train")
        return TextSource.of(datasets.load_from_disk(str(path)))
    files = _files(path)
    state = [[file.name, *file_identity(file)] for file in files]
    return TextSource(path.resolve().name, state, lambda: (value for file in files for value in _of_file(file)))


def _files(path: Path) -> list[Path]:
    if path.is_file():
        if not path.name.endswith(_ENDINGS):
            raise TrainingDataError(
                f"{path} is of no known format. Give a file with a text a line ({', '.join(_ENDINGS)}), a folder of "
                "such files, or a folder that the library datasets has saved."
            )
        return [path]
    if not path.is_dir():
        raise TrainingDataError(f"There is no file or folder {path}. Give the path of texts.")
    corpus = plain_or_zipped(path / "corpus.jsonl")
    if corpus is not None:  # BEIR's folders have queries beside it
        return [corpus]
    found = sorted(file for file in path.iterdir() if not file.name.startswith("."))
    others = [file.name for file in found if not file.is_file() or not file.name.endswith(_ENDINGS)]
    if others:
        raise TrainingDataError(
            f"{path} has files that are no texts: {', '.join(others[:5])}. Move them elsewhere; only files that end "
            f"with {', '.join(_ENDINGS)} are read."
        )
    if not found:
        raise TrainingDataError(f"{path} is empty. Put files with texts into it.")
    return found


def _from_dataset(dataset: Any) -> TextSource:  # noqa: ANN401 - datasets is not imported
    names = dataset.column_names
    if names is not None and _FIELD not in names:
        raise TrainingDataError(f"The dataset has no column {_FIELD!r}; it has {', '.join(names)}. Rename one of them.")

    def read() -> Iterator[_Value]:
        return ((f"dataset, row {number}: {_FIELD}", row[_FIELD]) for number, row in enumerate(dataset))

    return TextSource("dataset", getattr(dataset, "_fingerprint", None), read)


def _of_file(file: Path) -> Iterator[_Value]:
    if file.name.endswith(".parquet"):
        yield from _of_parquet(file)
    else:
        # Their own errors name the line.
        yield from ((str(file), text) for text, _ in read_passages(file))


def _of_parquet(file: Path) -> Iterator[_Value]:
    require("datasets", extra="train")  # which installs pyarrow
    names = parquet_schema(file).names
    if _FIELD not in names:
        raise TrainingDataError(f"{file} has no column {_FIELD!r}; it has {', '.join(names)}. Rename one of them.")
    values = (value for batch in parquet_batches(file, [_FIELD]) for value in batch.column(0).to_pylist())
    yield from ((f"{file}, row {number}: {_FIELD}", value) for number, value in enumerate(values))
