"""Keeps vectors, lexical weights and scores on disk, so that the next evaluation does not compute them again."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np

from bge_integrations.backend.checkpoint.digests import cache_root
from bge_integrations.backend.guarantees.logs import get_logger
from bge_integrations.backend.prepared.entries import cache_limit
from bge_integrations.evaluation.vectors import Embed, Floats

__all__ = ["EvaluationCache"]

logger = get_logger(__name__)

Weights = Callable[[list[str]], Sequence[Mapping[int, float]]]
"""Function from texts to lexical weights by token id."""
Compute = Callable[[list[str]], Sequence[bytes]]

_ENDING = ".sqlite"
_TEXTS_A_SLICE = 4096
"""Texts that are computed before their results are saved. An interrupted run loses at most these."""
_KEYS_A_QUERY = 500
"""Every SQLite takes 999 parameters in a statement."""
_LONGEST_NAME = 120
_PATIENCE_S = 30.0
_WEIGHT = np.dtype([("token", "<i4"), ("weight", "<f4")])


@dataclass(frozen=True)
class CacheFile:
    """One file of the cache.

    Attributes:
        path: The file.
        size: Its size in bytes.
        used: The time of its last use, in seconds since 1970.
    """

    path: Path
    size: int
    used: float


class EvaluationCache:
    """Results of models by everything that they depend on: the model's content, its settings, the role and the text.

    Each combination of model, settings and role has a SQLite file of its own. Several processes can use the cache at
    once. What can't be read or written is computed, and a warning in the log says why. All files together are kept
    within `BGE_INTEGRATIONS_CACHE_LIMIT`: the least recently used are removed first.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None) -> None:
        """Names the folder. It is made when something is kept.

        Args:
            folder: The folder; `None`: "evaluation" in `BGE_INTEGRATIONS_CACHE`, or in the system's place for caches.

        Raises:
            OSError: There is no home folder, and `BGE_INTEGRATIONS_CACHE` is not set.
        """
        self.folder = cache_root() / "evaluation" if folder is None else Path(folder).expanduser()

    def vectors(self, namespace: str, embed: Embed) -> Embed:
        """Returns a function that embeds only texts without a kept vector.

        Args:
            namespace: Letters, digits, `.`, `-` and `_`, different for results that can differ.
            embed: Function from texts to float32 vectors.
        """

        def kept(texts: list[str]) -> Floats:
            def compute(missing: list[str]) -> list[bytes]:
                return [row.tobytes() for row in np.ascontiguousarray(embed(missing), dtype="<f4")]

            rows = self.results(namespace, texts, compute)
            return np.frombuffer(b"".join(rows), dtype="<f4").reshape(len(texts), -1)

        return kept

    def weights(self, namespace: str, encode: Weights) -> Weights:
        """Returns a function that gives lexical weights, and computes only those that are not kept.

        Args:
            namespace: As for `vectors`.
            encode: Function from texts to weights by token id.
        """

        def kept(texts: list[str]) -> list[dict[int, float]]:
            def compute(missing: list[str]) -> list[bytes]:
                return [np.array(list(found.items()), dtype=_WEIGHT).tobytes() for found in encode(missing)]

            rows = [np.frombuffer(row, dtype=_WEIGHT) for row in self.results(namespace, texts, compute)]
            return [dict(zip(row["token"].tolist(), row["weight"].tolist(), strict=True)) for row in rows]

        return kept

    def results(self, namespace: str, keys: Sequence[str], compute: Compute) -> list[bytes]:
        """Returns the results for some keys, from the cache or computed.

        Args:
            namespace: As for `vectors`.
            keys: Texts, no text twice.
            compute: Function from keys to a result for each.
        """
        digests = [blake2b(key.encode("utf-8", "surrogatepass"), digest_size=16).digest() for key in keys]
        found = self._read(namespace, digests)
        missing = [(key, digest) for key, digest in zip(keys, digests, strict=True) if digest not in found]
        for start in range(0, len(missing), _TEXTS_A_SLICE):
            part = missing[start : start + _TEXTS_A_SLICE]
            values = compute([key for key, _ in part])
            computed = {digest: value for (_, digest), value in zip(part, values, strict=True)}
            self._write(namespace, computed)
            found |= computed
        return [found[digest] for digest in digests]

    def files(self) -> list[CacheFile]:
        """Returns the files of the cache, last used first; [] without a cache."""
        found = []
        with contextlib.suppress(OSError):
            for path in self.folder.iterdir():
                if path.suffix == _ENDING:
                    with contextlib.suppress(OSError):  # removed meanwhile
                        stat = path.stat()
                        found.append(CacheFile(path, stat.st_size, max(stat.st_atime, stat.st_mtime)))
        return sorted(found, key=lambda file: file.used, reverse=True)

    def _read(self, namespace: str, digests: Sequence[bytes]) -> dict[bytes, bytes]:
        found: dict[bytes, bytes] = {}
        path = self._path(namespace)
        if path.exists():
            with self._trouble(path), closing(_connect(path)) as connection:
                for start in range(0, len(digests), _KEYS_A_QUERY):
                    part = digests[start : start + _KEYS_A_QUERY]
                    marks = ",".join("?" * len(part))
                    found.update(connection.execute(f"SELECT key, value FROM results WHERE key IN ({marks})", part))
            with contextlib.suppress(OSError):
                os.utime(path)
        return found

    def _write(self, namespace: str, results: Mapping[bytes, bytes]) -> None:
        path = self._path(namespace)
        with self._trouble(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with closing(_connect(path)) as connection, connection:
                connection.execute(
                    "CREATE TABLE IF NOT EXISTS results (key BLOB PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID"
                )
                connection.executemany("INSERT OR REPLACE INTO results VALUES (?, ?)", results.items())
            self._prune(keep=path)

    def _prune(self, keep: Path) -> None:
        limit, files = cache_limit(), self.files()
        if limit is None:
            return
        excess = sum(file.size for file in files) - limit
        for file in reversed(files):
            if excess <= 0:
                return
            if file.path != keep:
                file.path.unlink(missing_ok=True)
                excess -= file.size

    @contextmanager
    def _trouble(self, path: Path) -> Iterator[None]:
        """A block whose errors cost only time."""
        try:
            yield
        except (sqlite3.OperationalError, OSError) as error:
            logger.warning("results of the evaluation can't be kept in %s: %s", path, error)
        except sqlite3.DatabaseError as error:
            logger.warning("%s is damaged (%s); it is removed, and its results are computed again", path, error)
            with contextlib.suppress(OSError):
                path.unlink()

    def _path(self, namespace: str) -> Path:
        return self.folder / f"{namespace[-_LONGEST_NAME:]}{_ENDING}"


def _connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, timeout=_PATIENCE_S)
