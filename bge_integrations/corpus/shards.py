"""Shards: Parquet files with a row for each text, whose vectors are read through a memory map.

The column `vector` is one plain, uncompressed page in each group of rows, without levels for missing values behind
its start. So its numbers stand in the file one after the other, as any reader of Parquet finds them, and they can be
looked up without being decoded. A file that another program has written again is decoded instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bge_integrations._optional import require
from bge_integrations.corpus.plan import Dtype, Plan
from bge_integrations.corpus.survey import other_columns
from bge_integrations.errors import CorpusDataError

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["FINGERPRINT", "VECTOR", "ShardFile", "shard_bytes", "shard_name"]

FINGERPRINT = b"bge_fingerprint"
"""The key of the fingerprint in a schema's metadata."""
VECTOR = "vector"

_ROWS_A_GROUP = 16384
"""Below the rows at which pyarrow begins a new page."""
_PAGE = 1 << 30
_INTERNAL = ("file", "line", "source_shard", "source_row", "others")


def shard_name(number: int) -> str:
    """Returns the file name of a shard."""
    return f"part-{number:06d}.parquet"


def shard_bytes(plan: Plan, rows: pa.Table, vectors: NDArray[np.floating[Any]]) -> memoryview:
    """Returns the content of a shard, the same bytes for the same rows.

    Args:
        plan: The plan.
        rows: The rows, as the survey wrote them.
        vectors: Their vectors, float32 or float16, shape [rows, dimension].
    """
    import pyarrow as pa
    from pyarrow import parquet

    table = rows.drop_columns([name for name in _INTERNAL if name in rows.column_names])
    if plan.columns is not None:
        for name, column in other_columns(rows["others"].to_pylist(), plan.columns).items():
            table = table.append_column(name, column)
    numbers = pa.array(np.ascontiguousarray(vectors).reshape(-1))
    item = pa.field("element", numbers.type, nullable=False)
    array = pa.FixedSizeListArray.from_arrays(numbers, type=pa.list_(item, vectors.shape[1]))
    table = table.append_column(pa.field(VECTOR, array.type, nullable=False), array)
    table = table.replace_schema_metadata({FINGERPRINT: plan.fingerprint.to_json()})
    others = [name for name in table.column_names if name != VECTOR]
    sink = pa.BufferOutputStream()
    parquet.write_table(
        table,
        sink,
        row_group_size=_ROWS_A_GROUP,
        data_page_size=_PAGE,
        compression={**dict.fromkeys(_leaves(table.schema, others), "zstd"), f"{VECTOR}.list.element": "none"},
        use_dictionary=[name for name in others if name not in ("id", "text", "text_sha256")],
        write_statistics=["id"],
    )
    return memoryview(sink.getvalue())


def _leaves(schema: pa.Schema, names: Sequence[str]) -> list[str]:
    """Returns the paths of the columns in a Parquet file; those of nested columns are several."""
    import pyarrow as pa
    from pyarrow import parquet

    sink = pa.BufferOutputStream()
    parquet.write_table(schema.empty_table().select(names), sink)
    written = parquet.ParquetFile(pa.BufferReader(sink.getvalue())).schema
    return [written.column(number).path for number in range(len(written))]


class ShardFile:
    """A shard that is there."""

    def __init__(self, path: Path, dimension: int, dtype: Dtype) -> None:
        """Opens a shard.

        Raises:
            CorpusDataError: It is damaged.
            FileNotFoundError: There is no such file.
        """
        require("pyarrow", extra="corpus")
        from pyarrow import ArrowException, parquet

        self.path = path
        self._dtype = np.dtype(dtype).newbyteorder("<")
        self._dimension = dimension
        try:
            self._file = parquet.ParquetFile(path, memory_map=True)
        except FileNotFoundError:
            raise
        except (ArrowException, OSError) as error:
            raise CorpusDataError(
                f"{path} is damaged: {error}. Remove its folder, and embed the corpus again."
            ) from error
        metadata = self._file.metadata
        self.rows = metadata.num_rows
        self._map = np.memmap(path, mode="r", dtype=np.uint8)
        self._groups = [self._vectors(number) for number in range(metadata.num_row_groups)]
        self._ends = np.cumsum([metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)])

    def take(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """Returns the vectors of some rows as they are stored, shape [rows, dimension]."""
        found = np.empty((len(rows), self._dimension), dtype=self._dtype)
        groups = np.searchsorted(self._ends, rows, side="right")
        for group in np.unique(groups):
            own = groups == group
            start = int(self._ends[group - 1]) if group else 0
            found[own] = self._groups[group][rows[own] - start]
        return found

    def all(self) -> NDArray[Any]:
        """Returns all vectors as they are stored, shape [rows, dimension]."""
        return self.take(np.arange(self.rows))

    def table(self) -> pa.Table:
        """Returns all columns but the vectors."""
        return self._file.read([name for name in self._file.schema_arrow.names if name != VECTOR])

    def _vectors(self, group: int) -> NDArray[Any]:
        """Returns the vectors of a group of rows: a view into the file, or decoded ones."""
        metadata = self._file.metadata.row_group(group)
        column = metadata.column(metadata.num_columns - 1)
        size = metadata.num_rows * self._dimension * self._dtype.itemsize
        start = column.data_page_offset
        if (
            column.path_in_schema.startswith(f"{VECTOR}.")
            and column.compression == "UNCOMPRESSED"
            and not column.has_dictionary_page
            and set(column.encodings) <= {"PLAIN", "RLE"}
            and self._first_page(start) >= size
        ):
            end = start + column.total_compressed_size
            return self._map[end - size : end].view(self._dtype).reshape(metadata.num_rows, self._dimension)
        numbers = self._file.read_row_group(group, [VECTOR])[VECTOR].combine_chunks().flatten()
        found: NDArray[Any] = np.asarray(numbers.to_numpy(zero_copy_only=False), dtype=self._dtype)
        return found.reshape(metadata.num_rows, self._dimension)

    def _first_page(self, start: int) -> int:
        """Returns the size of the page that begins at an offset; 0 if it is no page of data.

        A page's header begins with three numbers of Thrift's compact protocol: its kind (0: data), its size, and its
        compressed size. Each is one byte for the field, and a zigzag varint.
        """
        place, found = start, []
        for _ in range(3):
            if self._map[place] != 0x15:
                return 0
            value = shift = 0
            while True:
                place += 1
                byte = int(self._map[place])
                value |= (byte & 0x7F) << shift
                shift += 7
                if byte < 0x80:
                    break
            place += 1
            found.append(value >> 1)
        kind, _, compressed = found
        return compressed if kind == 0 else 0
