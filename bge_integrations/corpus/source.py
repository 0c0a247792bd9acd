"""Where the texts of a corpus come from: files and folders in the formats that people have, read row by row."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bge_integrations._optional import require
from bge_integrations.corpus.tables import ROWS_A_BATCH, parquet_batches, parquet_schema
from bge_integrations.errors import CorpusDataError, SettingsError
from bge_integrations.evaluation.formats import (
    Fault,
    is_saved_dataset,
    json_records,
    plain_or_zipped,
    read_errors_as,
    table_records,
)
from bge_integrations.texts import about_surrogate, is_text, kind_of, lone_surrogate, plain, shortened

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["TEXT_ENDINGS", "Broken", "CorpusSource", "Others", "Row", "text_files"]

_LINES = (".jsonl", ".jsonl.gz", ".ndjson", ".ndjson.gz")
_TABLES = {".csv": ",", ".csv.gz": ",", ".tsv": "\t", ".tsv.gz": "\t"}
_PARQUET = ".parquet"
_DATA = (*_LINES, *_TABLES, _PARQUET)
TEXT_ENDINGS = (".txt", ".md", ".markdown")
_IDS = ("_id", "id")
_TITLE, _TEXT, _PAGE_CONTENT = "title", "text", "page_content"


@dataclass(frozen=True)
class Others:
    """The further values of a row in an Arrow table.

    Attributes:
        batch: Rows of the table, the further columns only.
        index: The row in it.
    """

    batch: pa.RecordBatch
    index: int


@dataclass(frozen=True)
class Row:
    """A row with a text.

    Attributes:
        file: Index of its file in `CorpusSource.files`.
        line: Number of its line from 1; for tables of Arrow, of its row from 0.
        id: The id.
        text: The text that is embedded.
        others: The input's other columns.
    """

    file: int
    line: int
    id: str
    text: str
    others: Mapping[str, Any] | Others


@dataclass(frozen=True)
class Broken:
    """A row that can't be used.

    Attributes:
        file: As in `Row`.
        line: As in `Row`.
        reason: The end of a sentence that begins with the place of the row.
        content: The row as it stands in the file, as far as it can be shown.
    """

    file: int
    line: int
    reason: str
    content: str = ""


@dataclass(frozen=True)
class CorpusSource:
    """The texts of files, which are read when they are needed.

    Attributes:
        place: The path that was given.
        files: The files.
        unit: The word for the number of a row: "line", "row" or "" for whole files.
        schema: Names and types of the other columns; `None`: they are found while rows are read.
        text_columns: Columns whose values are joined to a text; `None`: see `CorpusSource.of`.
        id_column: The column with ids; `None`: see `CorpusSource.of`.
    """

    place: Path
    files: tuple[Path, ...]
    unit: str
    schema: pa.Schema | None
    text_columns: tuple[str, ...] | None
    id_column: str | None
    _read: Callable[[Path, int], Iterator[Row | Broken]] = field(repr=False, compare=False)

    @classmethod
    def of(
        cls, path: str | os.PathLike[str], *, text_columns: Sequence[str] | None = None, id_column: str | None = None
    ) -> CorpusSource:
        """Looks at what is there. Of the rows, at most the first one is read.

        Raises:
            CorpusDataError: There is no such file, its format is unknown, or it has no such column.
            MissingExtraError: pyarrow or datasets is not installed and needed.
        """
        place = Path(os.path.expanduser(path))
        given = None if text_columns is None else tuple(text_columns)
        with read_errors_as(CorpusDataError):
            if is_saved_dataset(place):
                return _of_dataset(place, given, id_column)
            files, kind = _files(place)
            if kind == "texts":
                if given or id_column:
                    raise SettingsError(
                        f"{place} is a folder of texts, which have no columns; leave text_column=None and "
                        "id_column=None."
                    )
                return cls(place, files, "", None, None, None, partial(_whole_text, place))
            if kind == _PARQUET:
                schema = _schema_of(files)
                columns = _Columns.of(schema.names, given, id_column, str(files[0]))
                read = partial(_of_batches, columns, schema, parquet_batches)
                return cls(place, files, "row", columns.others_of(schema), columns.texts, columns.id, read)
            first = next((row for file in files for _, row in _records(file) if not isinstance(row, Fault)), {})
            columns = _Columns.of(list(first), given, id_column, str(files[0]))
            return cls(place, files, "line", None, columns.texts, columns.id, partial(_of_records, columns))

    def rows(self) -> Iterator[Row | Broken]:
        """Yields the rows, and those that can't be used.

        Raises:
            CorpusDataError: A file can't be read.
        """
        with read_errors_as(CorpusDataError):
            for number, file in enumerate(self.files):
                yield from self._read(file, number)

    def where(self, file: int, line: int) -> str:
        """Returns the place of a row in words."""
        return f"{self.files[file]}, {self.unit} {line}" if self.unit else str(self.files[file])

    def state(self) -> str:
        """Returns a text that changes when a file is added, removed or written to. It is the same on all machines.

        Raises:
            CorpusDataError: A file can't be found.
        """
        digest = hashlib.sha256()
        for file in self.files:
            try:
                stat = file.stat()
            except OSError as error:
                raise CorpusDataError(f"{file} can't be read: {error.strerror or error}.") from error
            digest.update(json.dumps([file.name, stat.st_size, stat.st_mtime_ns]).encode())
        return digest.hexdigest()


def text_files(folder: Path) -> list[Path]:
    """Returns the .txt and .md files in a folder and in folders of it, without hidden ones, in the order of names."""
    return sorted(
        file
        for file in folder.rglob("*")
        if file.suffix.lower() in TEXT_ENDINGS
        and file.is_file()
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
    )


def text_fault(value: object) -> str | None:
    """Returns why a value is no text to embed, as the end of a sentence, or `None`."""
    if not is_text(value):
        return f"is {kind_of(value)}, not a text: {shortened(value)}."
    text = plain(value)
    position = lone_surrogate(text)
    if position is not None:
        return about_surrogate(text, position)
    return None if text.strip() else "has no text."


@dataclass(frozen=True)
class _Columns:
    """What the columns of a row mean.

    Attributes:
        texts: Columns whose values are joined to the text.
        id: The column with ids; `None`: ids are made of the place.
    """

    texts: tuple[str, ...]
    id: str | None

    @classmethod
    def of(cls, names: Sequence[str], texts: Sequence[str] | None, id_: str | None, place: str) -> _Columns:
        known = ", ".join(names) or "no columns"
        for option, wanted in (*(("text_column", name) for name in texts or ()), ("id_column", id_)):
            if wanted is not None and wanted not in names:
                raise CorpusDataError(f"{place} has no column for {option}={wanted!r}. It has: {known}.")
        if texts is None:
            if _TEXT not in names and _PAGE_CONTENT not in names:
                raise CorpusDataError(f"{place} has no column 'text'. It has: {known}. Name one with text_column='…'.")
            # As in BEIR, a passage is its title, a blank and its text.
            texts = (_TITLE, _TEXT) if _TEXT in names else (_PAGE_CONTENT,)
        return cls(tuple(texts), id_ or next((name for name in _IDS if name in names and name not in texts), None))

    def text(self, values: Mapping[str, Any]) -> tuple[str, str | None]:
        """Returns the text of a row, and why there is none."""
        parts = []
        for name in self.texts:
            value = values.get(name)
            if value is None or (is_text(value) and not value.strip()):
                continue
            if fault := text_fault(value):
                return "", f"has a fault in {name}, which {fault}"
            parts.append(plain(value))
        if not parts:
            return "", f"has no text in {' and '.join(self.texts)}."
        return (parts[0] if len(parts) == 1 else " ".join(parts).strip()), None

    def id_of(self, values: Mapping[str, Any]) -> tuple[str, str | None]:
        """Returns the id of a row, and why there is none."""
        value = values.get(self.id or "")
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value), None
        if not is_text(value) or not value or lone_surrogate(plain(value)) is not None:
            return "", f"has no {self.id} that is a text or a whole number."
        return plain(value), None

    def is_other(self, name: str) -> bool:
        """Whether a column is kept under its own name. Of joined texts, all but the one named "text" are."""
        return name != self.id and (name not in self.texts or (len(self.texts) > 1 and name != _TEXT))

    def others_of(self, schema: pa.Schema) -> pa.Schema:
        """Returns the other columns of a table."""
        import pyarrow as pa

        return pa.schema([one for one in schema if self.is_other(one.name)])


def _files(place: Path) -> tuple[tuple[Path, ...], str]:
    """Returns the files of an input, and their kind: an ending, "texts" or "lines"."""
    if place.is_file():
        ending = _ending(place)
        if ending is None:
            raise CorpusDataError(
                f"{place} is of no known format. Give a file that ends with {', '.join(_DATA)}, a BEIR folder, a "
                "folder of such files or of texts, or a folder of the library datasets."
            )
        return (place,), ending
    if not place.is_dir():
        raise CorpusDataError(f"There is no file or folder {place}. Give the path of a corpus.")
    corpus = plain_or_zipped(place / "corpus.jsonl")
    if corpus is not None:
        return (corpus,), _LINES[0]
    files = sorted(file for file in place.iterdir() if file.is_file() and not file.name.startswith("."))
    data = [file for file in files if _ending(file)]
    kinds = {_ending(file) == _PARQUET for file in data}
    if len(kinds) > 1:
        raise CorpusDataError(f"{place} has .parquet files beside files of other formats. Give them one by one.")
    texts = text_files(place)
    if data and texts:
        raise CorpusDataError(
            f"{place} has files with rows ({data[0].name}) and files that are texts ({texts[0].name}). Move one kind "
            "elsewhere."
        )
    if data:
        return tuple(data), _PARQUET if True in kinds else _LINES[0]
    if texts:
        return tuple(texts), "texts"
    raise CorpusDataError(f"{place} has no files that end with {', '.join((*_DATA, *TEXT_ENDINGS))}.")


def _ending(file: Path) -> str | None:
    return next((ending for ending in _DATA if file.name.lower().endswith(ending)), None)


def _records(file: Path) -> Iterator[tuple[int, dict[str, Any] | Fault]]:
    ending = _ending(file) or ""
    # Bytes that are no UTF-8 become lone surrogates, so that only their row is broken.
    if ending in _TABLES:
        return table_records(file, _TABLES[ending], decoding="surrogateescape")
    return json_records(file, decoding="surrogateescape")


def _of_records(columns: _Columns, file: Path, number: int) -> Iterator[Row | Broken]:
    for line, values in _records(file):
        if isinstance(values, Fault):
            yield Broken(number, line, values.reason, values.content)
            continue
        text, fault = columns.text(values)
        id_ = f"{file.name}:{line}"
        if fault is None and columns.id is not None:
            id_, fault = columns.id_of(values)
        if fault is not None:
            yield Broken(number, line, fault, json.dumps(values, ensure_ascii=True))
            continue
        others = {name: value for name, value in values.items() if columns.is_other(name)}
        yield Row(number, line, id_, text, others)


def _whole_text(folder: Path, file: Path, number: int) -> Iterator[Row | Broken]:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        yield Broken(number, 0, f"is no text in UTF-8: {error.reason} at byte {error.start}.")
        return
    except OSError as error:
        raise CorpusDataError(f"{file} can't be read: {error.strerror or error}.") from error
    name = file.relative_to(folder).as_posix()
    if fault := text_fault(name):
        yield Broken(number, 0, f"has a name that {fault}")
    elif fault := text_fault(text):
        yield Broken(number, 0, fault)
    else:
        yield Row(number, 0, name, text, {})


def _schema_of(files: Sequence[Path]) -> pa.Schema:
    """Returns the columns of .parquet files, which have to be the same in all of them."""
    require("pyarrow", extra="corpus")
    schema = None
    for file in files:
        found = parquet_schema(file).remove_metadata()
        if schema is not None and not schema.equals(found):
            raise CorpusDataError(f"{file} has other columns than {files[0]}. Give them one by one.")
        schema = found
    return schema


def _of_dataset(place: Path, texts: Sequence[str] | None, id_: str | None) -> CorpusSource:
    require("pyarrow", extra="corpus")
    datasets = require("datasets", extra="train")
    data = datasets.load_from_disk(str(place))
    if isinstance(data, Mapping):
        splits = [str(name) for name in data]
        if len(splits) != 1:
            raise CorpusDataError(
                f"{place} has the splits {', '.join(splits)}. Give the folder of one of them, such as "
                f"{place / splits[0]}."
            )
        return _of_dataset(place / splits[0], texts, id_)
    schema = data.features.arrow_schema.remove_metadata()
    columns = _Columns.of(schema.names, texts, id_, str(place))

    def batches(_file: Path) -> Iterator[pa.RecordBatch]:
        for table in data.with_format("arrow").iter(batch_size=ROWS_A_BATCH):
            yield from table.combine_chunks().to_batches()

    read = partial(_of_batches, columns, schema, batches)
    files = sorted(file for file in place.iterdir() if file.is_file() and file.suffix in (".arrow", ".json"))
    # Read once, whatever the number of its files; the state depends on all of them.
    return _DatasetSource(place, tuple(files), "row", columns.others_of(schema), columns.texts, columns.id, read)


class _DatasetSource(CorpusSource):
    """A folder of the library datasets, whose files are read together."""

    def rows(self) -> Iterator[Row | Broken]:
        """See `CorpusSource.rows`."""
        yield from self._read(self.place, 0)

    def where(self, file: int, line: int) -> str:  # noqa: ARG002 - there is one place for all files
        """See `CorpusSource.where`."""
        return f"{self.place}, row {line}"


def _of_batches(
    columns: _Columns,
    schema: pa.Schema,
    batches: Callable[[Path], Iterator[pa.RecordBatch]],
    file: Path,
    number: int,
) -> Iterator[Row | Broken]:
    names = [*columns.texts, *(() if columns.id is None else (columns.id,))]
    names = [name for name in names if name in schema.names]
    others = columns.others_of(schema).names
    line = 0
    for batch in batches(file):
        rest = batch.select(others)
        for index, values in enumerate(batch.select(names).to_pylist()):
            text, fault = columns.text(values)
            id_ = f"{file.name}:{line}"
            if fault is None and columns.id is not None:
                id_, fault = columns.id_of(values)
            if fault is None:
                yield Row(number, line, id_, text, Others(rest, index))
            else:
                yield Broken(number, line, fault, json.dumps(values, ensure_ascii=True, default=str))
            line += 1
