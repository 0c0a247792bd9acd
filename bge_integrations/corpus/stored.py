"""Vectors of a corpus on disk, found by their texts."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from bge_integrations.backend.guarantees.interrupts import in_thread
from bge_integrations.calls.inputs import check_texts
from bge_integrations.calls.waiting import OnLoop
from bge_integrations.catalogue.instructions import Role
from bge_integrations.corpus.plan import MANIFEST, OWN_FOLDER, Plan, read_json, text_digest
from bge_integrations.corpus.shards import ShardFile, shard_name
from bge_integrations.corpus.survey import LOOKUP, PLACE_BITS, find_places, text_key
from bge_integrations.encoder import BgeEncoder
from bge_integrations.errors import CorpusDataError, IndexMismatchError, ModelLoadError
from bge_integrations.fingerprint import Fingerprint

__all__ = ["StoredBatch", "StoredVectors"]

_OPEN_SHARDS = 256
"""Shards that stay mapped. Linux allows 65,530 maps a process."""


@dataclass(frozen=True)
class StoredBatch:
    """Rows of a corpus, in the order of the input.

    Attributes:
        start: Index of the first row in the corpus.
        ids: Their ids.
        texts: Their texts.
        columns: Their other columns, by name. Missing values are left out.
        vectors: Their vectors, float32, shape [rows, dimension].
    """

    start: int
    ids: list[str]
    texts: list[str]
    columns: list[dict[str, Any]]
    vectors: NDArray[np.float32]


class StoredVectors:
    """The vectors that `bge embed` has made, in place of the model.

    It has the methods of `BgeEncoder`. A text that is in the corpus, in the role that it was embedded in, is looked up.
    Other texts are computed by the model of the corpus, which is loaded when it is needed first. Files are mapped into
    memory, so several processes share it. Several threads can use one object. Pickles have only the path and settings.

    Example:
        ```python
        stored = StoredVectors("vectors")
        stored.encode_documents(texts)  # from the disk
        stored.encode_queries(["what is a vector?"])  # from the model
        ```
    """

    def __init__(self, folder: str | os.PathLike[str], encoder: BgeEncoder | None = None) -> None:
        """Opens a folder. No vector is read yet.

        Args:
            folder: A folder that `bge embed` or `embed_corpus` has finished.
            encoder: The model for other texts. `None`: the model that the folder names.

        Raises:
            CorpusDataError: The folder is not finished, or damaged.
            IndexMismatchError: The model makes other vectors than those of the folder.
        """
        self.folder = Path(os.path.expanduser(folder)).absolute()
        found = read_json(self.folder / MANIFEST)
        if found is None:
            about = "is not finished: run `bge embed` again, which goes on where it was"
            if not (self.folder / OWN_FOLDER).is_dir():
                about = "is no folder that `bge embed` has made"
            raise CorpusDataError(f"{self.folder} {about}.")
        self._plan = Plan.from_dict(found, self.folder / MANIFEST)
        self._starts = np.cumsum([0, *(shard.rows for shard in self._plan.shards)])
        self._lock = threading.RLock()
        self._connection: tuple[int, sqlite3.Connection] | None = None
        self._shards: OrderedDict[int, ShardFile] = OrderedDict()
        self._given = encoder
        self._encoder: BgeEncoder | None = None
        if encoder is not None:
            self._require_same(encoder)
            self._encoder = encoder

    def __len__(self) -> int:
        """Returns the number of rows."""
        return self._plan.rows

    @property
    def dimension(self) -> int:
        """Length of the vectors."""
        return self._plan.fingerprint.dimension

    @property
    def role(self) -> Role:
        """Role of the texts in the corpus."""
        return self._plan.task.role

    @property
    def content(self) -> str:
        """A digest of the rows and of the model's fingerprint."""
        return text_digest(f"{self._plan.content} {self._plan.fingerprint.to_json()}")

    def fingerprint(self) -> Fingerprint:
        """Returns the fingerprint of the model that made the vectors."""
        return self._plan.fingerprint

    @property
    def encoder(self) -> BgeEncoder:
        """The model for texts that are not in the corpus. It is loaded now if it was not needed before.

        Raises:
            IndexMismatchError: It has changed since the corpus was embedded.
            ModelLoadError: It can't be loaded.
        """
        with self._lock:
            if self._encoder is None:
                try:
                    encoder = BgeEncoder.from_settings(self._plan.encoder_settings)
                except ModelLoadError as error:
                    raise type(error)(
                        f"The model of {self.folder} can't be loaded: {error} Give it as encoder=BgeEncoder(…)."
                    ) from error
                self._require_same(encoder)
                self._encoder = encoder
            return self._encoder

    def find(self, texts: Iterable[str], *, role: Role = "document") -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Looks vectors up, and computes none.

        Args:
            texts: Texts.
            role: Role of the texts. Only texts of the corpus's role are found.

        Returns:
            Vectors, float32, shape [n, dimension], zero for texts that are not there; and whether each is there, shape
            [n].

        Raises:
            InputTypeError: `texts` is a bare `str`, or an element is not a `str`.
            InputValueError: UTF-8 can't encode a text.
            CorpusDataError: A file of the folder is missing or damaged.
        """
        return self._find(check_texts(texts, "find"), role)

    def encode_documents(self, texts: Iterable[str]) -> NDArray[np.float32]:
        """Returns the vectors of documents, looked up or computed; see `BgeEncoder.encode_documents`.

        Raises:
            CorpusDataError: A file of the folder is missing or damaged.
            BgeError: As `BgeEncoder.encode_documents` and `encoder`, if a text is not in the corpus.
        """
        return self._encode(texts, "document", "encode_documents")

    def encode_queries(self, texts: Iterable[str]) -> NDArray[np.float32]:
        """Returns the vectors of queries; see `encode_documents`."""
        return self._encode(texts, "query", "encode_queries")

    def encode(self, texts: Iterable[str]) -> NDArray[np.float32]:
        """Returns the vectors of texts for a symmetric use; see `encode_documents`."""
        return self._encode(texts, "symmetric", "encode")

    async def aencode_documents(self, texts: Iterable[str]) -> NDArray[np.float32]:
        """Async form of `encode_documents`. It does not block the event loop."""
        return await self._encode_async(texts, "document", "aencode_documents")

    async def aencode_queries(self, texts: Iterable[str]) -> NDArray[np.float32]:
        """Async form of `encode_queries`. It does not block the event loop."""
        return await self._encode_async(texts, "query", "aencode_queries")

    async def aencode(self, texts: Iterable[str]) -> NDArray[np.float32]:
        """Async form of `encode`. It does not block the event loop."""
        return await self._encode_async(texts, "symmetric", "aencode")

    def batches(self, size: int = 1000, *, start: int = 0) -> Iterator[StoredBatch]:
        """Yields all rows in the order of the input.

        Args:
            size: Rows of a batch, at most. A batch has rows of one file only.
            start: Index of the first row.

        Raises:
            CorpusDataError: A file of the folder is missing or damaged.
        """
        for number, first in enumerate(self._starts[:-1].tolist()):
            end = int(self._starts[number + 1])
            if end <= start:
                continue
            shard = self._shard(number)
            rows = shard.table()
            for index in range(max(start, first), end, size):
                part = rows.slice(index - first, min(size, end - index)).to_pylist()
                places = np.arange(index - first, index - first + len(part))
                yield StoredBatch(
                    start=index,
                    ids=[row.pop("id") for row in part],
                    texts=[row.pop("text") for row in part],
                    columns=[_known(row) for row in part],
                    vectors=shard.take(places).astype(np.float32, copy=False),
                )

    def close(self) -> None:
        """Closes the files, and the model if this object has loaded it. May be called twice."""
        with self._lock:
            if self._connection is not None:
                self._connection[1].close()
                self._connection = None
            self._shards.clear()
            if self._encoder is not None and self._given is None:
                self._encoder.close()
                self._encoder = None

    def __enter__(self) -> Self:
        """Returns the object itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Calls `close`."""
        self.close()

    def __reduce__(self) -> tuple[Callable[..., StoredVectors], tuple[str, BgeEncoder | None]]:
        """Pickles the path, and the settings of an encoder that was given."""
        return type(self), (str(self.folder), self._given)

    def __repr__(self) -> str:
        """Shows the folder and the number of rows."""
        return f"StoredVectors({str(self.folder)!r}, {len(self):,} rows)"

    def _encode(self, texts: Iterable[str], role: Role, method: str) -> NDArray[np.float32]:
        checked = check_texts(texts, method)
        found, is_there = self._find(checked, role)
        missing = np.flatnonzero(~is_there)
        if len(missing):
            encoder = self.encoder
            compute = {
                "document": encoder.encode_documents,
                "query": encoder.encode_queries,
                "symmetric": encoder.encode,
            }
            found[missing] = compute[role]([checked[index] for index in missing])
        return found

    async def _encode_async(self, texts: Iterable[str], role: Role, method: str) -> NDArray[np.float32]:
        checked = await OnLoop(texts).run(partial(check_texts, texts, method))
        found, is_there = await in_thread(partial(self._find, checked, role))
        missing = np.flatnonzero(~is_there)
        if len(missing):
            encoder = await in_thread(lambda: self.encoder, own=True) if self._encoder is None else self._encoder
            compute = {
                "document": encoder.aencode_documents,
                "query": encoder.aencode_queries,
                "symmetric": encoder.aencode,
            }
            found[missing] = await compute[role]([checked[index] for index in missing])
        return found

    def _find(self, texts: list[str], role: Role) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        found = np.zeros((len(texts), self.dimension), dtype=np.float32)
        is_there = np.zeros(len(texts), dtype=np.bool_)
        if role != self.role or not texts:
            return found, is_there
        keys = [text_key(text_digest(text)) for text in texts]
        with self._lock:
            known = self._places(keys)
            places = np.array([known.get(key, -1) for key in keys], dtype=np.int64)
            is_there = places >= 0
            shards, rows = places >> PLACE_BITS, places & ((1 << PLACE_BITS) - 1)
            for number in np.unique(shards[is_there]).tolist():
                own = is_there & (shards == number)
                found[own] = self._shard(number).take(rows[own])
        return found, is_there

    def _places(self, keys: Iterable[bytes]) -> dict[bytes, int]:
        """Returns the places of the texts that are there."""
        path = self.folder / OWN_FOLDER / LOOKUP
        try:
            # A connection does not survive a fork.
            if self._connection is None or self._connection[0] != os.getpid():
                uri = f"file:{quote(str(path))}?mode=ro&immutable=1"
                self._connection = os.getpid(), sqlite3.connect(uri, uri=True, check_same_thread=False)
            return find_places(self._connection[1], list(dict.fromkeys(keys)))
        except sqlite3.Error as error:
            raise CorpusDataError(f"{path} can't be read: {error}. Embed the corpus again.") from error

    def _shard(self, number: int) -> ShardFile:
        with self._lock:
            if number not in self._shards:
                path = self.folder / shard_name(number)
                try:
                    self._shards[number] = ShardFile(path, self.dimension, self._plan.task.dtype)
                except FileNotFoundError as error:
                    raise CorpusDataError(f"{path} is missing. Embed the corpus again.") from error
                if len(self._shards) > _OPEN_SHARDS:
                    self._shards.popitem(last=False)
            self._shards.move_to_end(number)
            return self._shards[number]

    def _require_same(self, encoder: BgeEncoder) -> None:
        found = self._plan.compare(encoder)
        if found.state == "different":
            raise IndexMismatchError(
                f"The vectors in {self.folder} were made by another model: {'; '.join(found.differences)}. Give that "
                "model as encoder=…, or embed the corpus again.",
                found.differences,
            )


def _known(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if value is not None and name != "text_sha256"}
