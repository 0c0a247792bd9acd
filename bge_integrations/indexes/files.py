"""A file beside an index, for stores that have no place for a fingerprint."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from bge_integrations.errors import FingerprintError
from bge_integrations.indexes.index import Document, Index

__all__ = ["FILE_NAME", "FileBeside", "InMemory", "record_file"]

FILE_NAME = "bge_fingerprint.json"
"""Name of the file in the folder of an index."""

Sample = Callable[[int], list[Document]]


class InMemory(Index):
    """An index whose store keeps no metadata. Its documents are compared each time."""

    @property
    def keeps_records(self) -> bool:
        """Whether it has a place for a fingerprint: it has none."""
        return False

    @property
    def rescales(self) -> bool:
        """Whether the store may change the length of vectors."""
        return self._rescales

    def __init__(self, name: str, count: Callable[[], int], sample: Sample, *, rescales: bool = False) -> None:
        """Looks at an index."""
        self.name = name
        self._rescales = rescales
        self._count, self._sample = count, sample

    def read(self) -> str | None:
        """Returns `None`."""
        return None

    def write(self, record: str) -> None:  # noqa: ARG002 - there is no place for it
        """Raises `FingerprintError`."""
        raise FingerprintError(
            f"{self.name} has no place for a fingerprint; give fingerprint_file=… (LlamaIndex: persist_dir=…)."
        )

    def count(self) -> int:
        """Returns the number of documents."""
        return self._count()

    def sample(self, count: int) -> list[Document]:
        """Returns a sample of documents."""
        return self._sample(count)


class FileBeside(Index):
    """An index whose fingerprint is in a file."""

    def __init__(self, index: Index | None, file: Path, name: str | None = None) -> None:
        """Puts a file beside an index.

        Args:
            index: The index; `None` if its documents can't be read.
            file: The file.
            name: What the index is; `None`: what `index` says.
        """
        self._index, self._file = index, file
        self.name = name or (index.name if index else f"the index of {file}")

    @property
    def rescales(self) -> bool:
        """Whether the store may change the length of vectors."""
        return self._index.rescales if self._index else False

    def read(self) -> str | None:
        """Returns the content of the file, or `None` if there is no such file.

        Raises:
            FingerprintError: The file can't be read.
        """
        try:
            return self._file.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            raise FingerprintError(f"the fingerprint in {self._file} can't be read: {error}.") from error

    def write(self, record: str) -> None:
        """Writes the file, at once or not at all.

        Raises:
            FingerprintError: The file can't be written.
        """
        unfinished = self._file.with_name(f"{self._file.name}.{os.getpid()}")
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            unfinished.write_text(f"{record}\n", encoding="utf-8")
            unfinished.replace(self._file)
        except OSError as error:
            unfinished.unlink(missing_ok=True)
            raise FingerprintError(f"the fingerprint can't be written to {self._file}: {error}.") from error

    def count(self) -> int:
        """Returns the number of documents; 0 if they can't be read."""
        return self._index.count() if self._index else 0

    def sample(self, count: int) -> list[Document]:
        """Returns a sample of documents."""
        return self._index.sample(count) if self._index else []


def record_file(path: str | os.PathLike[str]) -> Path:
    """Returns the file for a fingerprint: the path itself, or the usual name if the path is a folder."""
    file = Path(path).expanduser()
    return file / FILE_NAME if file.is_dir() or not file.suffix else file
