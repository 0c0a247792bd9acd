"""Parquet files, as `bge embed` writes them: the fingerprint is in the metadata of their schema."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bge_integrations._optional import require_package
from bge_integrations.errors import FingerprintError, IndexMismatchError
from bge_integrations.fingerprint import METADATA_KEY
from bge_integrations.indexes.index import Document, Index, documents_of, spread

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["ParquetIndex"]

ENDING = ".parquet"
"""Ending of the files."""

_READS = 8
"""Groups of rows that a sample is read from."""


class ParquetIndex(Index):
    """One Parquet file, or all Parquet files of a folder."""

    def __init__(self, path: Path, vector_column: str | None = None, text_column: str = "text") -> None:
        """Looks at files.

        Args:
            path: A file, or a folder of files.
            vector_column: The column of the vectors; `None`: "vector", or the first column of lists of numbers.
            text_column: The column of the texts.

        Raises:
            FingerprintError: There are no such files.
            MissingExtraError: pyarrow is not installed.
        """
        require_package("pyarrow", "pyarrow")
        self._files = [path] if path.is_file() else sorted(path.glob(f"*{ENDING}"))
        if not self._files:
            raise FingerprintError(f"{path} has no Parquet files.")
        self._vector_column, self._text_column = vector_column, text_column
        self.name = f"the Parquet {'file' if path.is_file() else 'folder'} {str(path)!r}"

    def read(self) -> str | None:
        """Returns the recorded fingerprint as JSON.

        Raises:
            IndexMismatchError: Files have different fingerprints.
        """
        records: dict[str, Path] = {}
        for file in self._files:
            found = (self._schema(file).metadata or {}).get(METADATA_KEY.encode())
            if found is not None:
                records.setdefault(found.decode(), file)
        if len(records) > 1:
            names = ", ".join(file.name for file in records.values())
            raise IndexMismatchError(
                f"{self.name} holds vectors of {len(records)} models or settings: the fingerprints of {names} differ. "
                "Check each file by itself, and embed again those that don't fit."
            )
        return next(iter(records), None)

    def write(self, record: str) -> None:  # noqa: ARG002 - there is no place for it
        """Raises `FingerprintError`: a finished Parquet file can't be changed."""
        raise FingerprintError(
            f"{self.name} has no fingerprint, and finished Parquet files can't be changed; give a file for it, or "
            "write the vectors with `bge embed`."
        )

    @property
    def keeps_records(self) -> bool:
        """Whether a fingerprint can be recorded: it can't, once the files are written."""
        return False

    def count(self) -> int:
        """Returns the number of rows."""
        from pyarrow import parquet

        return sum(parquet.read_metadata(file).num_rows for file in self._files)

    def sample(self, count: int) -> list[Document]:
        """Returns documents from all over the files."""
        from pyarrow import parquet

        schema = self._schema(self._files[0])
        vectors = self._vector_column or _vector_column(schema)
        if vectors is None or self._text_column not in schema.names:
            return []
        # Only the files of the sample are opened: a corpus can have more of them than a process may open.
        groups = [(file, group) for file in self._files for group in range(parquet.read_metadata(file).num_row_groups)]
        chosen = [groups[place] for place in spread(len(groups), min(count, _READS))]
        each = -(-count // len(chosen)) if chosen else 0
        found: list[tuple[object, object]] = []
        for file, group in chosen:
            # The vectors of a whole group can be many megabytes; a batch is decoded by itself.
            with parquet.ParquetFile(file) as opened:
                rows = next(opened.iter_batches(each, row_groups=[group], columns=[self._text_column, vectors]), None)
            if rows is not None:
                found += zip(rows[self._text_column].to_pylist(), rows[vectors].to_pylist(), strict=True)
        return documents_of(found)

    def _schema(self, file: Path) -> pa.Schema:
        from pyarrow import ArrowException, parquet

        try:
            return parquet.read_schema(file)
        except (ArrowException, OSError) as error:
            raise FingerprintError(f"{file} can't be read: {error}") from error


def _vector_column(schema: pa.Schema) -> str | None:
    import pyarrow as pa

    lists = [
        field.name
        for field in schema
        if (pa.types.is_fixed_size_list(field.type) or pa.types.is_list(field.type))
        and pa.types.is_floating(field.type.value_type)
    ]
    return "vector" if "vector" in lists else next(iter(lists), None)
