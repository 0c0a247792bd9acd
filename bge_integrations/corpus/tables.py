"""Reads Parquet files. It needs pyarrow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from bge_integrations.errors import CorpusDataError

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["ROWS_A_BATCH", "parquet_batches", "parquet_schema"]

ROWS_A_BATCH = 1024
"""Rows of a table that are in memory at once."""


def parquet_schema(file: Path) -> pa.Schema:
    """Returns the columns of a Parquet file.

    Raises:
        CorpusDataError: The file can't be read.
    """
    from pyarrow import parquet

    with _as_unreadable(file):
        return parquet.read_schema(file)


def parquet_batches(file: Path, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """Yields the rows of a Parquet file, some at a time.

    Raises:
        CorpusDataError: The file can't be read.
    """
    from pyarrow import parquet

    with _as_unreadable(file), parquet.ParquetFile(file) as opened:
        yield from opened.iter_batches(batch_size=ROWS_A_BATCH, columns=columns)


@contextmanager
def _as_unreadable(file: Path) -> Iterator[None]:
    from pyarrow import ArrowException

    try:
        yield
    except (ArrowException, OSError) as error:
        raise CorpusDataError(f"{file} can't be read: {error}. Save or fetch it again.") from error
