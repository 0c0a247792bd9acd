"""The first pass over an input: every row is checked and copied to the shard that it belongs to, and equal texts meet.

Nothing is computed here, so that bad input is refused before work is wasted. Afterwards the input is not needed again.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bge_integrations.backend.guarantees.files import sync_folder
from bge_integrations.calls.progress import Progress
from bge_integrations.corpus.files import write_file, writing
from bge_integrations.corpus.plan import (
    PLAN,
    Kind,
    Plan,
    Shard,
    Task,
    instruction_of,
    recorded_settings,
    text_digest,
    to_json,
)
from bge_integrations.corpus.source import Broken, CorpusSource, Others, Row
from bge_integrations.corpus.splitters import Cut, cut_by_tokens
from bge_integrations.encoder import BgeEncoder
from bge_integrations.errors import CorpusDataError, CorpusWriteError

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["LOOKUP", "PLACE_BITS", "REJECTED", "find_places", "rows_file", "survey", "text_key"]

LOOKUP, REJECTED = "lookup.sqlite", "rejected.jsonl"
_IDS = "ids.sqlite"
PLACE_BITS = 32
"""Bits of a row in a place; the shard stands above them."""

_CHARACTERS_A_SHARD = 1 << 26
_KEYS_A_QUERY = 500
"""Every SQLite takes 999 parameters in a statement."""
_CACHE_KIB = 65536
_TO_JSON = json.JSONEncoder(ensure_ascii=False).encode
_OWN = ("id", "text", "text_sha256", "vector")
_DOCUMENT = "document"


def rows_file(number: int) -> str:
    """Returns the name of the file with the rows of a shard that is not embedded yet."""
    return f"rows-{number:06d}.arrow"


def text_key(digest: str) -> bytes:
    """Returns the key of a text in the file `LOOKUP`."""
    return bytes.fromhex(digest[:32])


def find_places(connection: sqlite3.Connection, keys: Sequence[bytes]) -> dict[bytes, int]:
    """Returns the place of each key that is there: the first row with this text, its shard in the upper bits."""
    found: dict[bytes, int] = {}
    for start in range(0, len(keys), _KEYS_A_QUERY):
        part = keys[start : start + _KEYS_A_QUERY]
        marks = ",".join("?" * len(part))
        found.update(connection.execute(f"SELECT key, place FROM places WHERE key IN ({marks})", part))
    return found


def survey(
    source: CorpusSource, task: Task, encoder: BgeEncoder, batch_tokens: int, folder: Path, *, show_progress: bool
) -> Plan:
    """Reads the whole input, and writes all that is needed to embed it.

    Memory holds the rows of one shard. Texts are compared by their SHA-256, in a file.

    Args:
        source: The input.
        task: What is asked for.
        encoder: The model, which is only asked where to cut texts.
        batch_tokens: See `Plan`.
        folder: An empty folder to write to.
        show_progress: Whether to count the rows on a bar.

    Raises:
        CorpusDataError: A row is broken, and broken rows are not put aside. The file and the line are named.
        CorpusWriteError: The folder can't be written to.
    """
    state = source.state()
    with Progress(None, shown=show_progress, unit="row", title="Reading") as progress, _as_write_error(folder):
        with closing(_database(folder / LOOKUP)) as texts, closing(_database(folder / _IDS)) as ids:
            reading = _Survey(source, task, folder, texts, ids, encoder, progress)
            reading.run()
            texts.execute("COMMIT")
        (folder / _IDS).unlink()
    if not reading.shards:
        raise CorpusDataError(f"{source.place} has no rows with a text.")
    plan = Plan(
        task=task,
        source=source.place.resolve().name,
        state=state,
        content=reading.content.hexdigest(),
        fingerprint=encoder.fingerprint(),
        settings=recorded_settings(encoder),
        instruction=instruction_of(encoder, task.role),
        batch_tokens=batch_tokens,
        rejected=reading.rejected,
        columns=reading.kinds if source.schema is None else None,
        shards=tuple(reading.shards),
    )
    with writing(folder):
        for name in (LOOKUP, REJECTED):
            if (folder / name).exists():
                with (folder / name).open("rb") as file:
                    os.fsync(file.fileno())
        write_file(folder / PLAN, to_json(plan.to_dict()))
        sync_folder(folder)
    return plan


def _database(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None)
    # A survey that is killed begins again, so nothing needs a journal.
    connection.execute("PRAGMA journal_mode = OFF")
    connection.execute("PRAGMA synchronous = OFF")
    connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
    connection.execute("CREATE TABLE places (key BLOB PRIMARY KEY, place INTEGER NOT NULL) WITHOUT ROWID")
    connection.execute("BEGIN")
    return connection


@contextmanager
def _as_write_error(folder: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise CorpusWriteError(
            f"{folder / LOOKUP} can't be written: {error}. Remove the cause, and run the same command again."
        ) from error


@dataclass(frozen=True)
class _Entry:
    """A row of the output."""

    row: Row
    document: str | None
    digest: str
    others: str | None


class _Survey:
    """Rows on their way to the shards."""

    def __init__(
        self,
        source: CorpusSource,
        task: Task,
        folder: Path,
        texts: sqlite3.Connection,
        ids: sqlite3.Connection,
        encoder: BgeEncoder,
        progress: Progress,
    ) -> None:
        self.shards: list[Shard] = []
        self.kinds: dict[str, Kind] = {}
        self.content = hashlib.sha256()
        self.rejected = 0
        self._source = source
        self._task = task
        self._folder = folder
        self._texts = texts
        self._ids = ids
        self._encoder = encoder
        self._progress = progress
        self._cuts: dict[str, Cut] = {}
        self._waiting: list[_Entry] = []
        self._characters = 0
        self._names: set[str] = set()

    def run(self) -> None:
        """Reads all rows."""
        if self._source.schema is not None:
            self._require_free(self._source.schema.names, str(self._source.place))
        for found in self._source.rows():
            if isinstance(found, Broken):
                self._refuse(found)
                continue
            entries = self._entries(found)
            if entries is None:
                continue
            for entry in entries:
                self._waiting.append(entry)
                self._characters += len(entry.row.text)
                if len(self._waiting) >= self._task.rows_per_shard or self._characters >= _CHARACTERS_A_SHARD:
                    self._flush()
        if self._waiting:
            self._flush()

    def _entries(self, row: Row) -> list[_Entry] | None:
        """Returns what becomes of a row; `None` if it is broken."""
        others = None
        if not isinstance(row.others, Others):
            if not self._names.issuperset(row.others):
                self._require_free(row.others, self._source.where(row.file, row.line))
                self._names.update(row.others)
            others = _TO_JSON(row.others)
            try:
                others.encode()
            except UnicodeEncodeError as error:
                reason = f"has a character that UTF-8 can't write, beside its text: {error.reason}."
                self._refuse(Broken(row.file, row.line, reason, json.dumps({"id": row.id, **row.others})))
                return None
            for name, value in row.others.items():
                self.kinds[name] = _merged(self.kinds.get(name), value)
        if not self._task.chunk:
            return [_Entry(row, None, text_digest(row.text), others)]
        parts = [part for part in self._cut(row)(row.text) if part.strip()]
        return [
            _Entry(replace(row, id=f"{row.id}#{number}", text=part), row.id, text_digest(part), others)
            for number, part in enumerate(parts)
        ]

    def _cut(self, row: Row) -> Cut:
        suffix = self._source.files[row.file].suffix
        if suffix not in self._cuts:
            self._cuts[suffix] = cut_by_tokens(self._encoder, self._source.files[row.file])
        return self._cuts[suffix]

    def _require_free(self, names: Iterable[str], place: str) -> None:
        taken = [name for name in names if name in (*_OWN, *((_DOCUMENT,) if self._task.chunk else ()))]
        if taken:
            raise CorpusDataError(
                f"{place} has a column {taken[0]!r} that is not used, and the output has a column of this name. Rename "
                "it, or use it as text_column or id_column."
            )

    def _refuse(self, broken: Broken) -> None:
        place = self._source.where(broken.file, broken.line)
        if not self._task.reject:
            raise CorpusDataError(f"{place} {broken.reason} Repair it, or put broken rows aside with reject=True.")
        record = {
            "file": self._source.files[broken.file].name,
            self._source.unit or "row": broken.line,
            "reason": broken.reason,
            "content": broken.content,
        }
        line = (json.dumps(record) + "\n").encode()
        self.content.update(line)
        with writing(self._folder / REJECTED), (self._folder / REJECTED).open("ab") as file:
            file.write(line)
        self.rejected += 1

    def _flush(self) -> None:
        """Writes the rows that wait as a shard."""
        entries = self._with_new_ids(self._waiting)
        read = len(self._waiting)
        self._waiting, self._characters = [], 0
        if not entries:
            return
        shard = len(self.shards)
        keys = [text_key(entry.digest) for entry in entries]
        known = find_places(self._texts, list(dict.fromkeys(keys)))
        places, new = [], {}
        for row, key in enumerate(keys):
            place = known.setdefault(key, (shard << PLACE_BITS) | row)
            if place == (shard << PLACE_BITS) | row:
                new[key] = place
            places.append(place)
        # In their order, neighbours go to the same pages of the file.
        self._texts.executemany("INSERT INTO places VALUES (?, ?)", sorted(new.items()))
        content = self._table(entries, places)
        self.content.update(content)
        write_file(self._folder / rows_file(shard), content)
        self.shards.append(Shard(len(entries), len(new)))
        self._progress.add(read, 0)

    def _with_new_ids(self, entries: list[_Entry]) -> list[_Entry]:
        """Returns the entries without those whose id is there already."""
        if self._source.id_column is None:
            return entries  # ids that are made of places differ
        keys = [hashlib.blake2b(entry.row.id.encode(), digest_size=16).digest() for entry in entries]
        known = set(find_places(self._ids, list(dict.fromkeys(keys))))
        kept, new = [], []
        for entry, key in zip(entries, keys, strict=True):
            if key in known:
                reason = f"has the id {entry.row.id!r}, as an earlier row has."
                self._refuse(Broken(entry.row.file, entry.row.line, reason, entry.row.text))
                continue
            known.add(key)
            kept.append(entry)
            new.append((key, 0))
        self._ids.executemany("INSERT INTO places VALUES (?, ?)", sorted(new))
        return kept

    def _table(self, entries: Sequence[_Entry], places: Sequence[int]) -> memoryview:
        """Returns an Arrow file of the rows."""
        import pyarrow as pa

        row = (1 << PLACE_BITS) - 1
        columns: dict[str, pa.Array] = {
            "file": pa.array([entry.row.file for entry in entries], pa.int32()),
            "line": pa.array([entry.row.line for entry in entries], pa.int64()),
            "source_shard": pa.array([place >> PLACE_BITS for place in places], pa.int32()),
            "source_row": pa.array([place & row for place in places], pa.int32()),
            "id": pa.array([entry.row.id for entry in entries], pa.string()),
            "text_sha256": pa.array([entry.digest for entry in entries], pa.string()),
            "text": pa.array([entry.row.text for entry in entries], pa.string()),
        }
        if self._task.chunk:
            columns[_DOCUMENT] = pa.array([entry.document for entry in entries], pa.string())
        if self._source.schema is None:
            table = pa.table({**columns, "others": pa.array([entry.others for entry in entries], pa.string())})
        else:
            others = _taken([entry.row.others for entry in entries], self._source.schema)
            table = pa.table(columns)
            for field, column in zip(self._source.schema, others.columns, strict=True):
                table = table.append_column(field, column)
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="lz4")) as writer:
            writer.write_table(table.combine_chunks())
        return memoryview(sink.getvalue())


def _taken(rows: Sequence[Any], schema: pa.Schema) -> pa.Table:
    """Returns a table of rows that stand in several batches."""
    import pyarrow as pa

    parts: list[tuple[pa.RecordBatch, list[int]]] = []
    for row in rows:
        if not parts or parts[-1][0] is not row.batch:
            parts.append((row.batch, []))
        parts[-1][1].append(row.index)
    if not len(schema):
        return pa.table({})
    return pa.Table.from_batches([batch.take(pa.array(indices)) for batch, indices in parts], schema=schema)


def _merged(before: Kind | None, value: object) -> Kind:
    """Returns the type of a column with a further value."""
    kind: Kind
    if value is None:
        return before or "null"
    if isinstance(value, bool):
        kind = "bool"
    elif isinstance(value, int) and -(1 << 63) <= value < 1 << 63:
        kind = "int"
    elif isinstance(value, float):
        kind = "float"
    elif isinstance(value, str):
        kind = "str"
    else:
        kind = "json"
    if before in (None, "null", kind):
        return kind
    # A whole number above 2**53 has no exact float.
    if {before, kind} == {"int", "float"}:
        return "float"
    return "json"


def typed(column: Sequence[Any], kind: Kind) -> pa.Array:
    """Returns the values of a column as an Arrow array of its type. Other values than plain ones become JSON."""
    import pyarrow as pa

    types = {"bool": pa.bool_(), "int": pa.int64(), "float": pa.float64(), "str": pa.string(), "null": pa.string()}
    if kind != "json":
        return pa.array(column, types[kind])
    return pa.array([None if value is None else json.dumps(value, ensure_ascii=False) for value in column], pa.string())


def other_columns(texts: Sequence[str], kinds: Mapping[str, Kind]) -> dict[str, pa.Array]:
    """Returns the other columns of rows from the JSON in which they were kept."""
    rows = [json.loads(text) for text in texts]
    return {name: typed([row.get(name) for row in rows], kind) for name, kind in kinds.items()}
