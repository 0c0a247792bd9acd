"""The table of word embeddings, in which numpy looks up the rows of tokens.

It is not part of the graph, because OpenVINO reads every number of a graph's tables when it compiles the graph. The
table is 47 of the 133 MB of bge-small-en, and 1.0 of the 2.3 GB of bge-m3, and texts use few of its rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bge_integrations.backend.engines.openvino.rounding import rounded_to_int8

_VALUES, _SCALE = "values", "scale"
_ROUNDED_AT_ONCE = 8192


@dataclass(frozen=True, eq=False)
class WordTable:
    """A row for each token id.

    Attributes:
        stored: The rows, float32, shape [words, hidden size]; or pairs of int8 values and a float32 scale, shape
            [words].
    """

    stored: NDArray[Any]

    @classmethod
    def of(cls, rows: NDArray[np.float32], *, int8: bool) -> WordTable:
        """Makes a table.

        Args:
            rows: The rows, float32, shape [words, hidden size].
            int8: Whether they are rounded to int8.
        """
        if not int8:
            return cls(rows)
        stored = np.empty(len(rows), _int8_rows(rows.shape[1]))
        for start in range(0, len(rows), _ROUNDED_AT_ONCE):  # rounding takes three times the memory of its rows
            part = slice(start, start + _ROUNDED_AT_ONCE)
            stored[_VALUES][part], scales = rounded_to_int8(rows[part])
            stored[_SCALE][part] = scales[:, 0]
        return cls(stored)

    @classmethod
    def open(cls, path: Path) -> WordTable:
        """Maps a saved table: a row is read from the file when it is used.

        Raises:
            OSError: The file can't be read.
            ValueError: The file has no such table.
        """
        try:
            table = cls(np.asarray(np.load(path, mmap_mode="r", allow_pickle=False)))
        except EOFError as error:
            raise ValueError("it is empty") from error
        kind = table.stored.dtype
        if (table.stored.ndim, kind) not in ((2, np.dtype(np.float32)), (1, _int8_rows(table.width))):
            raise ValueError(f"it has {table.stored.ndim} dimensions of {kind}")
        return table

    def save(self, path: Path) -> None:
        """Writes the table into a file, in the format `.npy`.

        Raises:
            OSError: It can't be written.
        """
        np.save(path, self.stored, allow_pickle=False)

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.stored)

    @property
    def width(self) -> int:
        """Length of a row."""
        row = self.stored.dtype[_VALUES] if self.stored.dtype.names == (_VALUES, _SCALE) else self.stored
        return row.shape[-1] if row.shape else 0

    def rows(self, ids: NDArray[np.int32]) -> NDArray[np.float32]:
        """Returns the rows of token ids, float32, shape [..., hidden size].

        Raises:
            IndexError: An id is not in the table.
        """
        found = self.stored.take(ids, axis=0)
        return found if found.dtype.names is None else found[_VALUES] * found[_SCALE][..., None]


def _int8_rows(width: int) -> np.dtype[np.void]:
    return np.dtype([(_VALUES, np.int8, (width,)), (_SCALE, np.float32)])
