"""Reads evaluation data in the formats that people have."""

from __future__ import annotations

import csv
import gzip
import json
import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bge_integrations.errors import BgeError, CorpusDataError, EvaluationDataError
from bge_integrations.evaluation.data import RetrievalData

__all__ = [
    "Fault",
    "is_saved_dataset",
    "json_lines",
    "json_records",
    "load_retrieval_data",
    "plain_or_zipped",
    "read_errors_as",
    "table_lines",
    "table_records",
    "text_lines",
]

_HEADERS = ("query-id", "query_id", "qid", "queryid")


def load_retrieval_data(path: str | os.PathLike[str], split: str = "test") -> RetrievalData:
    """Reads data to evaluate retrieval on.

    | format | files |
    |---|---|
    | BEIR | a folder: corpus.jsonl, queries.jsonl (either may end in .gz), qrels/SPLIT.tsv |
    | FlagEmbedding | a folder: corpus.jsonl, SPLIT_queries.jsonl, SPLIT_qrels.jsonl |
    | LlamaIndex | a .json file: queries, corpus, relevant_docs (EmbeddingQAFinetuneDataset) |
    | query, pos, neg | a .jsonl file: a query, relevant texts and others a line, as for fine-tuning |

    A qrels file has three columns, with or without a header, or the four of TREC. Of a BEIR folder, the queries are
    those that have grades in the split. A document is embedded as its title, a blank and its text.

    Args:
        path: The folder or file.
        split: The split, where there are several.

    Raises:
        EvaluationDataError: The format is unknown, or something in it is wrong; the file, the line and the id are
            named.
    """
    place = Path(os.path.expanduser(path))
    reading = _Reading(place.stem.removesuffix(".jsonl") if place.is_file() else place.resolve().name)
    if place.is_dir():
        _folder(reading, place, split)
    elif place.is_file():
        _file(reading, place)
    else:
        raise EvaluationDataError(f"There is no file or folder {place}. Give the path of evaluation data.")
    return reading.data()


@dataclass
class _Reading:
    """What has been read, and where each entry stands."""

    name: str
    queries: dict[str, str] = field(default_factory=dict)
    corpus: dict[str, str] = field(default_factory=dict)
    qrels: dict[str, dict[str, int]] = field(default_factory=dict)
    groups: dict[str, str] = field(default_factory=dict)
    candidates: dict[str, list[str]] = field(default_factory=dict)
    places: dict[tuple[str, ...], str] = field(default_factory=dict)

    def add_text(self, kind: str, id_: str, text: str, place: str) -> None:
        texts = self.queries if kind == "queries" else self.corpus
        if id_ in texts:
            raise EvaluationDataError(
                f"{place}: the id {id_!r} is there already ({self.places[kind, id_]}). Give each of {kind} an id of "
                "its own."
            )
        texts[id_] = text
        self.places[kind, id_] = place

    def add_grade(self, query: str, document: str, grade: int, place: str) -> None:
        if document in self.qrels.setdefault(query, {}):
            raise EvaluationDataError(
                f"{place}: {document!r} has a grade for the query {query!r} already "
                f"({self.places['qrels', query, document]}). Remove one of them."
            )
        self.qrels[query][document] = grade
        self.places.setdefault(("qrels", query), place)
        self.places["qrels", query, document] = place

    def data(self) -> RetrievalData:
        return RetrievalData(
            self.queries,
            self.corpus,
            self.qrels,
            self.groups or None,
            self.candidates or None,
            self.name,
            self.places,
        )


def _folder(reading: _Reading, folder: Path, split: str) -> None:
    corpus = plain_or_zipped(folder / "corpus.jsonl")
    if corpus is None:
        raise EvaluationDataError(
            f"{folder} has no corpus.jsonl, so it is neither a BEIR folder nor one of FlagEmbedding's. It holds: "
            f"{_listing(folder)}."
        )
    graded = plain_or_zipped(folder / f"{split}_qrels.jsonl")
    if graded is not None:
        _read_lines(reading, "corpus", corpus)
        _read_lines(reading, "queries", _needed(folder / f"{split}_queries.jsonl"))
        for place, row in json_lines(graded):
            reading.add_grade(
                _id(row, place, "qid"), _id(row, place, "docid"), _grade(row.get("relevance", 1), place), place
            )
        return
    qrels = next(
        (
            folder / "qrels" / f"{split}{ending}"
            for ending in (".tsv", ".txt", ".trec")
            if (folder / "qrels" / f"{split}{ending}").is_file()
        ),
        None,
    )
    if qrels is None:
        splits = sorted(path.stem for path in (folder / "qrels").glob("*.tsv"))
        known = f" It has grades for: {', '.join(splits)}." if splits else ""
        raise EvaluationDataError(f"{folder} has no qrels/{split}.tsv.{known} Name the split.")
    _read_qrels(reading, qrels)
    _read_lines(reading, "queries", _needed(folder / "queries.jsonl"), only=reading.qrels)
    _read_lines(reading, "corpus", corpus)


def _file(reading: _Reading, file: Path) -> None:
    if file.name.endswith((".jsonl", ".jsonl.gz")):
        _read_fine_tuning(reading, file)
    elif file.name.endswith((".json", ".json.gz")):
        _read_llama_index(reading, file)
    else:
        raise EvaluationDataError(
            f"{file} is of no known format. Give a BEIR folder, a folder of FlagEmbedding's, a .json file of "
            "LlamaIndex's, or a .jsonl file with query, pos and neg."
        )


def _read_lines(reading: _Reading, kind: str, file: Path, only: Mapping[str, object] | None = None) -> None:
    for place, row in json_lines(file):
        id_ = _id(row, place, "_id", "id")
        if only is not None and id_ not in only:
            continue
        title, text = (_text(row.get(key, ""), place, key) for key in ("title", "text"))
        reading.add_text(kind, id_, f"{title} {text}".strip() if kind == "corpus" else text, place)
        group = row.get("group")
        if kind == "queries" and isinstance(group, str):
            reading.groups[id_] = group


def _read_qrels(reading: _Reading, file: Path) -> None:
    for number, line in enumerate(text_lines(file), start=1):
        place = f"{file}, line {number}"
        columns = line.split("\t") if "\t" in line else line.split()
        if not line.strip() or (number == 1 and columns[0].strip().lower() in _HEADERS):
            continue
        if len(columns) == 4:  # TREC's second column is not used
            columns = [columns[0], columns[2], columns[3]]
        if len(columns) != 3:
            raise EvaluationDataError(
                f"{place} has {len(columns)} columns; write query, document and grade, or the four columns of TREC."
            )
        query, document, grade = (column.strip() for column in columns)
        reading.add_grade(query, document, _grade(grade, place), place)


def _read_llama_index(reading: _Reading, file: Path) -> None:
    try:
        content = json.loads("".join(text_lines(file)))
    except ValueError as error:
        raise EvaluationDataError(f"{file} is no JSON: {error}.") from error
    parts: list[Any] = [
        content.get(key) if isinstance(content, dict) else None for key in ("queries", "corpus", "relevant_docs")
    ]
    if not all(isinstance(part, dict) for part in parts):
        raise EvaluationDataError(f"{file} lacks queries, corpus or relevant_docs, each an object by id.")
    queries, corpus, relevant = parts
    for kind, texts in (("queries", queries), ("corpus", corpus)):
        for id_, text in texts.items():
            reading.add_text(kind, id_, _text(text, f"{file}, {kind}[{id_!r}]", "text"), f"{file}, {kind}[{id_!r}]")
    for query, documents in relevant.items():
        place = f"{file}, relevant_docs[{query!r}]"
        if not isinstance(documents, list):
            raise EvaluationDataError(f"{place} is no list of document ids.")
        for document in dict.fromkeys(map(str, documents)):
            reading.add_grade(query, document, 1, place)


def _read_fine_tuning(reading: _Reading, file: Path) -> None:
    """Reads a query, relevant texts and others a line. Equal texts are one document."""
    ids: dict[str, str] = {}
    for number, (place, row) in enumerate(json_lines(file)):
        query = str(row.get("id", number))
        reading.add_text("queries", query, _text(row.get("query"), place, "query"), place)
        for key, grade in (("pos", 1), ("neg", 0)):
            texts = row.get(key, [])
            if not isinstance(texts, list):
                raise EvaluationDataError(f"{place}: {key} is no list of texts.")
            for text in texts:
                document = ids.setdefault(_text(text, place, key), f"d{len(ids)}")
                if document not in reading.corpus:
                    reading.add_text("corpus", document, text, place)
                if document not in reading.qrels.get(query, {}):
                    reading.add_grade(query, document, grade, place)
        reading.candidates[query] = list(reading.qrels.get(query, {}))


@dataclass(frozen=True)
class Fault:
    """A row of a file that can't be read, unlike the rows after it.

    Attributes:
        reason: The end of a sentence that begins with the place of the row.
        content: The row as it stands in the file.
    """

    reason: str
    content: str = ""


Records = Iterator[tuple[int, dict[str, Any] | Fault]]
"""Numbers of lines, from 1, each with a row or with the reason why it can't be read."""


def json_lines(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the place and the content of each line of a JSONL file, which may be a .gz file.

    Raises:
        EvaluationDataError: The file can't be read, or a line is no JSON object.
    """
    return _required(file, json_records(file))


def json_records(file: Path, *, decoding: str = "strict") -> Records:
    """Yields the rows of a JSONL file, which may be a .gz file. Blank lines are left out.

    Args:
        file: The file.
        decoding: How bytes that are no UTF-8 are read, as in `open(errors=…)`.

    Raises:
        EvaluationDataError: The file can't be read.
    """
    for number, line in enumerate(text_lines(file, decoding=decoding), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield number, Fault(f"is no JSON: {error}.", line)
            continue
        yield number, row if isinstance(row, dict) else Fault("is no JSON object.", line)


def table_lines(file: Path, delimiter: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the place and the cells of each row of a .csv or .tsv file with a header, which may be a .gz file.

    Raises:
        EvaluationDataError: The file can't be read, or a row has more or fewer cells than the header.
    """
    return _required(file, table_records(file, delimiter))


def table_records(file: Path, delimiter: str, *, decoding: str = "strict") -> Records:
    """Yields the rows of a .csv or .tsv file with a header, which may be a .gz file: cells by name. Empty cells stay.

    Args:
        file: The file.
        delimiter: The character between two cells.
        decoding: How bytes that are no UTF-8 are read, as in `open(errors=…)`.

    Raises:
        EvaluationDataError: The file can't be read, or its header has a name twice.
    """
    reader = csv.reader(text_lines(file, decoding=decoding), delimiter=delimiter)
    header: list[str] = []
    while True:
        number = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            yield number, Fault(f"can't be read: {error}.")
            continue
        if cells is None:
            return
        if not any(cell.strip() for cell in cells):
            continue
        if not header:
            header = [cell.strip() for cell in cells]
            if len(set(header)) < len(header):
                raise EvaluationDataError(
                    f"{file}, line {number}: the header has a name twice. Rename one of the columns."
                )
        elif len(cells) != len(header):
            reason = (
                f"has {len(cells)} cells, but the header has {len(header)}. Put texts with {delimiter!r} or line "
                "breaks in quotation marks."
            )
            yield number, Fault(reason, delimiter.join(cells))
        else:
            yield number, dict(zip(header, cells, strict=True))


def _required(file: Path, records: Records) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, row in records:
        place = f"{file}, line {number}"
        if isinstance(row, Fault):
            raise EvaluationDataError(f"{place} {row.reason}")
        yield place, row


def text_lines(file: Path, *, decoding: str = "strict") -> Iterator[str]:
    """Yields the lines of a text file, which may be a .gz file.

    Args:
        file: The file.
        decoding: How bytes that are no UTF-8 are read, as in `open(errors=…)`.

    Raises:
        EvaluationDataError: The file can't be read.
    """
    opens: Callable[..., Any] = gzip.open if file.suffix == ".gz" else open
    try:
        with opens(file, "rt", encoding="utf-8-sig", errors=decoding) as opened:
            yield from opened
    except OSError as error:
        raise EvaluationDataError(f"{file} can't be read: {error.strerror or error}.") from error
    except (EOFError, UnicodeDecodeError, zlib.error) as error:
        raise EvaluationDataError(f"{file} can't be read as UTF-8 text: {error}. Save or fetch it again.") from error


@contextmanager
def read_errors_as(kind: type[BgeError]) -> Iterator[None]:
    """A block whose readers are shared with evaluation and corpora, though the user does something else.

    Args:
        kind: The error that is raised in place of theirs.
    """
    try:
        yield
    except (CorpusDataError, EvaluationDataError) as error:
        raise kind(str(error)) from error


def is_saved_dataset(folder: Path) -> bool:
    """Returns whether the library datasets has saved a folder."""
    return any((folder / name).is_file() for name in ("dataset_info.json", "dataset_dict.json"))


def plain_or_zipped(file: Path) -> Path | None:
    """Returns a file, or the .gz file beside it, or `None` if there is neither."""
    return next((path for path in (file, file.with_name(f"{file.name}.gz")) if path.is_file()), None)


def _needed(file: Path) -> Path:
    found = plain_or_zipped(file)
    if found is None:
        raise EvaluationDataError(f"There is no {file}, nor {file.name}.gz beside it.")
    return found


def _id(row: Mapping[str, Any], place: str, *keys: str) -> str:
    value = next((row[key] for key in keys if key in row), None)
    if not isinstance(value, (str, int)) or isinstance(value, bool):
        raise EvaluationDataError(f"{place} has no {' or '.join(keys)} that is a text or a whole number.")
    return str(value)


def _text(value: object, place: str, key: str) -> str:
    if not isinstance(value, str):
        raise EvaluationDataError(f"{place}: {key} is {value!r}; write a text.")
    return value


def _grade(value: object, place: str) -> int:
    try:
        grade = float(str(value))
    except ValueError:
        grade = float("nan")
    if not grade.is_integer():
        raise EvaluationDataError(f"{place}: the grade is {value!r}; write a whole number.")
    return int(grade)


def _listing(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir())
    return ", ".join(names[:8]) + (", …" if names[8:] else "") or "nothing"
