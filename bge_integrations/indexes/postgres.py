"""PostgreSQL with pgvector, in the tables of langchain-postgres: the fingerprint is in the collection's metadata."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from bge_integrations._optional import require_package
from bge_integrations.errors import FingerprintError
from bge_integrations.fingerprint import METADATA_KEY
from bge_integrations.indexes.index import Document, Index, chosen, documents_of

if TYPE_CHECKING:
    from sqlalchemy import Engine

__all__ = ["PostgresIndex", "open_postgres"]

_READ = "SELECT cmetadata ->> :key FROM langchain_pg_collection WHERE name = :name"
# `cmetadata` has the type json, which has no operator to merge. Without metadata it is the null of JSON, not of SQL.
_WRITE = """
UPDATE langchain_pg_collection
SET cmetadata = (
    CASE WHEN json_typeof(cmetadata) = 'object' THEN cmetadata::jsonb ELSE '{}'::jsonb END || CAST(:added AS jsonb)
)::json
WHERE name = :name
"""
_COUNT = """
SELECT count(*) FROM langchain_pg_embedding AS e JOIN langchain_pg_collection AS c ON c.uuid = e.collection_id
WHERE c.name = :name
"""
# The ids are random unless the user gives them.
_SAMPLE = """
SELECT e.document, CAST(e.embedding AS text)
FROM langchain_pg_embedding AS e JOIN langchain_pg_collection AS c ON c.uuid = e.collection_id
WHERE c.name = :name AND e.embedding IS NOT NULL ORDER BY e.id LIMIT :count
"""


class PostgresIndex(Index):
    """A collection of langchain-postgres's `PGVector`."""

    def __init__(self, engine: Engine, collection: str) -> None:
        """Looks at a collection."""
        self._engine = engine
        self._collection = collection
        self.name = f"the PostgreSQL collection {collection!r}"

    def read(self) -> str | None:
        """Returns the recorded fingerprint as JSON."""
        found = self._one(_READ, key=METADATA_KEY)
        return None if found is None else str(found)

    def write(self, record: str) -> None:
        """Records a fingerprint."""
        from sqlalchemy import text

        with self._engine.begin() as connection:
            added = json.dumps({METADATA_KEY: record})
            connection.execute(text(_WRITE), {"name": self._collection, "added": added})

    def count(self) -> int:
        """Returns the number of documents."""
        return int(str(self._one(_COUNT)))

    def sample(self, count: int) -> list[Document]:
        """Returns the documents with the first ids."""
        from sqlalchemy import text

        with self._engine.connect() as connection:
            rows = connection.execute(text(_SAMPLE), {"name": self._collection, "count": count}).all()
        return documents_of((document, json.loads(vector)) for document, vector in rows)

    def _one(self, statement: str, **values: object) -> object:
        from sqlalchemy import text

        with self._engine.connect() as connection:
            return connection.execute(text(statement), {"name": self._collection, **values}).scalar()


def open_postgres(address: str, collection: str | None) -> PostgresIndex:
    """Opens a collection of langchain-postgres's `PGVector`.

    Raises:
        FingerprintError: As `chosen`, or the database can't be reached, or it has no such tables.
        MissingExtraError: SQLAlchemy is not installed.
    """
    require_package("sqlalchemy", "sqlalchemy")
    from sqlalchemy import create_engine, text
    from sqlalchemy.exc import SQLAlchemyError
    from sqlalchemy.pool import NullPool

    try:
        engine = create_engine(address, poolclass=NullPool)
        place = f"the database {engine.url.database!r}"
        with engine.connect() as connection:
            names = [str(row[0]) for row in connection.execute(text("SELECT name FROM langchain_pg_collection"))]
    except (SQLAlchemyError, ImportError) as error:
        # Without the address, which can hold a password. A driver that is missing is named.
        reason = str(error) if isinstance(error, ImportError) else type(error).__name__
        raise FingerprintError(f"the collections of the database can't be read: {reason}.") from None
    return PostgresIndex(engine, chosen(collection, names, place))
