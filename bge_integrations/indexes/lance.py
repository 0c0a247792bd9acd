"""LanceDB: the fingerprint is in the metadata of the vectors' field in the table's schema."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from bge_integrations._optional import require_package
from bge_integrations.errors import FingerprintError
from bge_integrations.fingerprint import METADATA_KEY
from bge_integrations.indexes.index import Document, Index, chosen, documents_of, embedded_text, spread

if TYPE_CHECKING:
    from lancedb.table import Table

__all__ = ["LanceIndex", "open_lance"]

ENDING = ".lance"
"""Ending of a table's folder."""

_READS = 8
"""Places of the table that a sample is read from."""


class LanceIndex(Index):
    """A table of LanceDB."""

    def __init__(self, table: Table, vector_key: str = "vector", text_key: str = "text") -> None:
        """Looks at a table."""
        self._table = table
        self._vector_key, self._text_key = vector_key, text_key
        self.name = f"the LanceDB table {table.name!r}"

    def read(self) -> str | None:
        """Returns the recorded fingerprint as JSON."""
        found = self._metadata().get(METADATA_KEY.encode())
        return None if found is None else found.decode()

    def write(self, record: str) -> None:
        """Records a fingerprint."""
        table: Any = self._table
        if hasattr(table, "update_field_metadata"):
            table.update_field_metadata({"path": self._vector_key, "metadata": {METADATA_KEY: record}})
        else:  # older versions only replace all metadata of a field
            kept = {name.decode(): value.decode() for name, value in self._metadata().items()}
            table.replace_field_metadata(self._vector_key, {**kept, METADATA_KEY: record})

    def count(self) -> int:
        """Returns the number of documents."""
        return int(self._table.count_rows())

    def sample(self, count: int) -> list[Document]:
        """Returns documents from all over the table."""
        each = -(-count // _READS)
        found: list[tuple[object, object]] = []
        for offset in spread(-(-self.count() // each), _READS):
            for row in self._table.search().limit(each).offset(offset * each).to_list():
                payload = row.get("metadata") if isinstance(row.get("metadata"), dict) else {}
                found.append((embedded_text(payload or {}, (), row.get(self._text_key)), row.get(self._vector_key)))
        return documents_of(found)

    def _metadata(self) -> dict[bytes, bytes]:
        return dict(self._table.schema.field(self._vector_key).metadata or {})


def open_lance(folder: Path, table: str | None) -> LanceIndex:
    """Opens a table in a folder of LanceDB.

    Raises:
        FingerprintError: As `chosen`, or the table has no column of vectors.
        MissingExtraError: LanceDB is not installed.
    """
    require_package("lancedb", "lancedb")
    import lancedb

    name = chosen(table, sorted(one.stem for one in folder.glob(f"*{ENDING}")), str(folder))
    opened = lancedb.connect(folder).open_table(name)
    # Only lists of a fixed size have this attribute.
    vectors = [field.name for field in opened.schema if hasattr(field.type, "list_size")]
    if not vectors:
        raise FingerprintError(f"the LanceDB table {name!r} has no column of vectors.")
    return LanceIndex(opened, "vector" if "vector" in vectors else vectors[0])
