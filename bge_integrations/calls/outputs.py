"""The places of the user's choice for the vectors of a call: an array, or a file."""

from __future__ import annotations

import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray
from typing_extensions import Self

from bge_integrations.backend.guarantees.files import WholeFile
from bge_integrations.errors import CorpusWriteError, SettingsError
from bge_integrations.texts import add_note, kind_of

VectorOutput: TypeAlias = NDArray[np.float32] | str | os.PathLike[str]
"""A float32 array of shape [texts, dimension], such as a `numpy.memmap`; or the path of a new `.npy` file."""

_ENDING = ".npy"


class VectorStream(ABC):
    """Takes the vectors of a call, slice by slice. A block around the call cleans up if the call fails.

    Attributes:
        written: Number of vectors that were taken. Each is complete.
    """

    @staticmethod
    def to(output: VectorOutput, dimension: int) -> VectorStream:
        """Returns the stream to a place.

        Args:
            output: The place.
            dimension: Length of the vectors.

        Raises:
            SettingsError: Vectors of this length can't be written there.
        """
        return _ArrayStream(output, dimension) if isinstance(output, np.ndarray) else _FileStream(output, dimension)

    def __init__(self) -> None:
        self.written = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: type[BaseException] | None, error: BaseException | None, __: object) -> None:
        if error is not None:
            self.give_up(error)

    @abstractmethod
    def expect(self, count: int | None) -> None:
        """Raises `SettingsError` if there is not a row for each text.

        Args:
            count: Number of texts; `None` if it is not known.
        """

    @abstractmethod
    def take(self, vectors: NDArray[np.float32]) -> None:
        """Writes the next vectors, shape [texts, dimension]."""

    @abstractmethod
    def finish(self) -> NDArray[np.float32]:
        """Completes the output, and returns all vectors."""

    @abstractmethod
    def give_up(self, error: BaseException) -> None:
        """Says or does what follows from an error of the call."""


class _ArrayStream(VectorStream):
    """Writes into an array."""

    def __init__(self, array: NDArray[np.float32], dimension: int) -> None:
        super().__init__()
        self._array = array
        self._dimension = dimension
        if array.dtype != np.float32:
            raise SettingsError(
                f"output has the dtype {array.dtype}, but vectors are float32; make it with dtype=np.float32."
            )
        if array.ndim != 2 or array.shape[1] != dimension:
            raise self._misfit("texts")
        if not array.flags.writeable:
            raise SettingsError("output is read-only; open it for writing, with mode='r+' if it is a memmap.")

    def expect(self, count: int | None) -> None:
        """See `VectorStream.expect`."""
        if count not in (None, len(self._array)):
            raise self._misfit(str(count))

    def take(self, vectors: NDArray[np.float32]) -> None:
        """See `VectorStream.take`."""
        start, room = self.written, len(self._array) - self.written
        self._array[start : start + len(vectors)] = vectors[:room]
        self.written += min(len(vectors), room)
        if len(vectors) > room:
            raise SettingsError(f"output has {len(self._array)} rows, so there is none for text {len(self._array)}.")

    def finish(self) -> NDArray[np.float32]:
        """See `VectorStream.finish`."""
        return self._array if self.written == len(self._array) else self._array[: self.written]

    def give_up(self, error: BaseException) -> None:
        """See `VectorStream.give_up`."""
        add_note(error, f"The first {self.written} rows of output are written.")

    def _misfit(self, texts: str) -> SettingsError:
        return SettingsError(f"output has the shape {self._array.shape}, but needs ({texts}, {self._dimension}).")


class _FileStream(VectorStream):
    """Writes a new `.npy` file, which gets its name when all vectors are in it.

    A call that is cancelled gives up on the event loop while another thread may write. That thread then cleans up.
    """

    def __init__(self, path: str | os.PathLike[str], dimension: int) -> None:
        super().__init__()
        if not isinstance(path, (str, os.PathLike)):
            raise SettingsError(f"output is {kind_of(path)}; give a float32 array, or the path of a {_ENDING} file.")
        self._path = Path(os.path.expanduser(path)).absolute()
        self._dimension = dimension
        self._file: WholeFile | None = None
        self._writing = threading.Lock()
        self._given_up = False
        if self._path.suffix != _ENDING or self._path.is_dir():
            raise SettingsError(f"output={os.fspath(path)!r} is no name of a {_ENDING} file.")
        if not self._path.parent.is_dir():
            raise SettingsError(f"output={os.fspath(path)!r} is in a folder that does not exist. Make it first.")

    def expect(self, count: int | None) -> None:
        """See `VectorStream.expect`. A file has room for any number."""

    def take(self, vectors: NDArray[np.float32]) -> None:
        """See `VectorStream.take`."""
        with self._open() as file:
            file.content.write(np.ascontiguousarray(vectors).data)
            self.written += len(vectors)

    def finish(self) -> NDArray[np.float32]:
        """See `VectorStream.finish`."""
        with self._open() as file:
            self._write_head(file)
            file.finish()
        vectors: NDArray[np.float32] = np.load(self._path, mmap_mode="r" if self.written else None)
        return vectors

    def give_up(self, error: BaseException) -> None:  # noqa: ARG002 - the file is not there, whatever the error
        """See `VectorStream.give_up`."""
        self._given_up = True
        if self._writing.acquire(blocking=False):
            self._writing.release()
            self._clean_up()

    @contextmanager
    def _open(self) -> Iterator[WholeFile]:
        try:
            with self._writing:
                if self._file is None:
                    self._file = WholeFile(self._path)
                    self._write_head(self._file)
                yield self._file
        except OSError as error:
            raise CorpusWriteError(f"{self._path} can't be written: {error.strerror or error}.") from error
        finally:
            if self._given_up:
                self._clean_up()

    def _write_head(self, file: WholeFile) -> None:
        # Its length is a multiple of 64 bytes, and does not change with the number of rows.
        file.content.seek(0)
        head = {"descr": "<f4", "fortran_order": False, "shape": (self.written, self._dimension)}
        npy.write_array_header_1_0(file.content, head)

    def _clean_up(self) -> None:
        if self._file is not None:
            self._file.give_up()
