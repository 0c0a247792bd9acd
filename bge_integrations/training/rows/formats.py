"""Reads training data in the formats that people have."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bge_integrations.errors import SettingsError, TrainingDataError
from bge_integrations.evaluation.data import RetrievalData
from bge_integrations.evaluation.formats import (
    json_lines,
    load_retrieval_data,
    plain_or_zipped,
    read_errors_as,
    table_lines,
    text_lines,
)
from bge_integrations.texts import is_text, kind_of, shortened
from bge_integrations.training.rows.data import TrainingData, TrainingRow, text_fault

__all__ = ["load_training_data"]

_QUERY = ("query", "anchor", "question")
_POSITIVE = ("pos", "positive", "context")
_NEGATIVE = re.compile(r"neg|negative(_\d+)?")
_OTHERS = ("pos_scores", "neg_scores", "prompt", "type", "no_in_batch_neg", "id", "document", "source")
# Other columns are left out with a note. But these look as if they mattered.
_REFUSED = re.compile(r"pos|neg|prompt|query_prompt|passage_prompt|label")
_READ = re.compile("|".join((*_QUERY, *_POSITIVE, _NEGATIVE.pattern, *_OTHERS)))
_OWN_NEGATIVES = "no_in_batch_neg"
_ENDINGS = (".jsonl", ".json", ".csv", ".tsv")

_Record = tuple[str, Mapping[str, Any]]


def load_training_data(path_or_dataset: str | os.PathLike[str] | object, *, split: str = "train") -> TrainingData:
    """Reads data to train on.

    | format | files |
    |---|---|
    | FlagEmbedding | a .jsonl or .json file: `query`, `pos`, `neg`, `pos_scores`, `neg_scores`, `prompt`, `type` |
    | pairs, triples | a .jsonl or .json file, or a .csv or .tsv file with a header |
    | a folder | files of these formats; each is a source |
    | LlamaIndex | a .json file: `queries`, `corpus`, `relevant_docs` (EmbeddingQAFinetuneDataset) |
    | BEIR | a folder: corpus.jsonl, queries.jsonl, qrels/SPLIT.tsv; documents of grade 0 are negatives |
    | datasets | a `Dataset`, or a `DatasetDict` with the split |

    All files may end in .gz. Columns are `query`, `anchor` or `question`; `pos`, `positive` or `context`; and `neg`,
    `negative`, `negative_1`, `negative_2` and so on, each a text or a list of texts. A row may also have `id`,
    `document`, `source` and `no_in_batch_neg`. Other columns are left out; `notes` of the data names them. `query` and
    a positive are required. An empty cell of a .csv or .tsv file is a missing value.

    As in FlagEmbedding, `no_in_batch_neg` at the end of a file's or folder's name means that passages of other rows are
    no negatives for its rows.

    Args:
        path_or_dataset: The file, the folder, a dataset of the library datasets, or LlamaIndex's
            EmbeddingQAFinetuneDataset.
        split: The split of a BEIR folder or a `DatasetDict`.

    Raises:
        TrainingDataError: The format is unknown, or something in it is wrong; the file, the line and the field are
            named. A folder has a file of another kind.
        SettingsError: The argument is neither a path nor a dataset.
    """
    if isinstance(path_or_dataset, (str, os.PathLike)):
        with read_errors_as(TrainingDataError):
            return _from_path(Path(os.path.expanduser(os.fspath(path_or_dataset))), split)
    if hasattr(path_or_dataset, "relevant_docs"):
        return _from_question_dataset(path_or_dataset)
    return _from_dataset(path_or_dataset, split)


def _from_question_dataset(dataset: Any) -> TrainingData:  # noqa: ANN401 - LlamaIndex's EmbeddingQAFinetuneDataset
    qrels = {query: dict.fromkeys(map(str, ids), 1) for query, ids in dataset.relevant_docs.items()}
    with read_errors_as(TrainingDataError):
        data = RetrievalData(dataset.queries, dataset.corpus, qrels, name="dataset")
        return _from_retrieval_data(data, are_documents=False)


@dataclass(frozen=True)
class _Source:
    """What rows have from their file.

    Attributes:
        name: The file's name without its ending.
        own_negatives: Whether passages of other rows are no negatives.
        prefix: Text before each id, so that ids of several files differ.
    """

    name: str
    own_negatives: bool = False
    prefix: str = ""


@dataclass
class _Reading:
    """The rows that have been read, where each stands, and the columns that have been left out."""

    rows: list[TrainingRow] = field(default_factory=list)
    places: list[str] = field(default_factory=list)
    unread: dict[str, None] = field(default_factory=dict)

    def read(self, records: Iterable[_Record], source: _Source) -> None:
        for number, (place, record) in enumerate(records):
            # A missing value is the same as a missing name.
            values = {str(name): value for name, value in record.items() if value is not None}
            self.add(_row(values, place, source, number), place)
            self.unread.update(dict.fromkeys(name for name in values if not _READ.fullmatch(name)))

    def add(self, row: TrainingRow, place: str) -> None:
        self.rows.append(row)
        self.places.append(place)

    def data(self, name: str, corpus: Mapping[str, str] | None = None) -> TrainingData:
        notes = (f"These columns were not read: {', '.join(self.unread)}.",) if self.unread else ()
        return TrainingData(self.rows, name, corpus, self.places, notes)


def _from_path(path: Path, split: str) -> TrainingData:
    if path.is_dir():
        return _from_folder(path, split)
    if not path.is_file():
        raise TrainingDataError(f"There is no file or folder {path}. Give the path of training data.")
    if _kind(path) == ".json" and not _has_lines(path):
        content = _content(path)
        if isinstance(content, dict):
            return _from_retrieval_data(load_retrieval_data(path), are_documents=False)
    reading = _Reading()
    name = _stem(path)
    reading.read(_records(path), _Source(name, name.endswith(_OWN_NEGATIVES)))
    return reading.data(name)


def _from_folder(folder: Path, split: str) -> TrainingData:
    if plain_or_zipped(folder / "corpus.jsonl"):
        return _from_retrieval_data(load_retrieval_data(folder, split), are_documents=True)
    files = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    others = [file.name for file in files if not file.is_file() or _kind(file) not in _ENDINGS]
    if others:
        raise TrainingDataError(
            f"{folder} has files that are no training data: {', '.join(others)}. Move them elsewhere; only files that "
            f"end with {', '.join(_ENDINGS)} or these and .gz are read."
        )
    if not files:
        raise TrainingDataError(f"{folder} is empty. Put files with training data into it.")
    reading = _Reading()
    name = folder.resolve().name
    sources: dict[str, Path] = {}
    for file in files:
        source = _stem(file)
        if sources.setdefault(source, file) is not file:
            raise TrainingDataError(
                f"{file} and {sources[source].name} have one name, which names the rows. Rename one of them."
            )
        own_negatives = source.endswith(_OWN_NEGATIVES) or name.endswith(_OWN_NEGATIVES)
        prefix = f"{source}/" if len(files) > 1 else ""
        reading.read(_records(file), _Source(source, own_negatives, prefix))
    return reading.data(name)


def _from_retrieval_data(data: RetrievalData, *, are_documents: bool) -> TrainingData:
    reading = _Reading()
    for query, text in data.queries.items():
        positives, negatives = (
            {document: data.corpus[document] for document, grade in data.qrels[query].items() if (grade > 0) is wanted}
            for wanted in (True, False)
        )
        row = TrainingRow(
            text,
            tuple(positives.values()),
            tuple(negatives.values()),
            id=query,
            # Rows with a common positive stay together in any case, so that the first document is enough.
            document=next(iter(positives)) if are_documents else None,
            source=data.name,
        )
        reading.add(row, data.places.get(("qrels", query), data.name))
    return reading.data(data.name, data.corpus)


def _from_dataset(dataset: Any, split: str) -> TrainingData:  # noqa: ANN401 - datasets is not imported
    if isinstance(dataset, Mapping):
        if split not in dataset:
            raise TrainingDataError(f"The dataset has no split {split!r}; it has {', '.join(map(str, dataset))}.")
        dataset = dataset[split]
    if not hasattr(dataset, "column_names") or not isinstance(dataset, Iterable):
        raise SettingsError(
            f"load_training_data takes a path or a Dataset of the library datasets, but was given {kind_of(dataset)}."
        )
    reading = _Reading()
    records = ((f"dataset, row {number}", row) for number, row in enumerate(dataset))
    reading.read(records, _Source("dataset"))
    return reading.data("dataset")


def _records(file: Path) -> Iterator[_Record]:
    """Yields the place and the values of each row of a file."""
    kind = _kind(file)
    if kind in (".csv", ".tsv"):
        return _of_table(file, "\t" if kind == ".tsv" else ",")
    if kind == ".jsonl" or (kind == ".json" and _has_lines(file)):
        return json_lines(file)
    if kind == ".json":
        return _of_list(file)
    raise TrainingDataError(
        f"{file} is of no known format. Give a file that ends with {', '.join(_ENDINGS)} or these and .gz, a folder of "
        "such files, or a BEIR folder."
    )


def _has_lines(file: Path) -> bool:
    """Whether a .json file is a JSONL file, as FlagEmbedding writes them, by its first line."""
    first = next((line for line in text_lines(file) if line.strip()), "{}")
    try:
        content = json.loads(first)
    except ValueError:
        return False
    return isinstance(content, dict) and "relevant_docs" not in content


def _content(file: Path) -> object:
    try:
        return json.loads("".join(text_lines(file)))
    except json.JSONDecodeError as error:
        raise TrainingDataError(f"{file}, line {error.lineno} is no JSON: {error}.") from error


def _of_list(file: Path) -> Iterator[_Record]:
    content = _content(file)
    if not isinstance(content, list):
        raise TrainingDataError(f"{file} is no list of rows. Load a file of LlamaIndex's by itself, not in a folder.")
    for number, row in enumerate(content):
        place = f"{file}, element {number}"
        if not isinstance(row, dict):
            raise TrainingDataError(f"{place} is no JSON object.")
        yield place, row


def _of_table(file: Path, delimiter: str) -> Iterator[_Record]:
    for place, row in table_lines(file, delimiter):
        yield place, {name: _cell(name, cell, place) for name, cell in row.items() if cell}


def _cell(name: str, cell: str, place: str) -> object:
    """Returns the value of a cell. Columns that are lists in FlagEmbedding's format may hold a list in JSON."""
    if name in ("pos_scores", "neg_scores", "no_in_batch_neg") or (name in ("pos", "neg") and cell[:2] in ('["', "['")):
        try:
            return json.loads(cell.lower() if name == _OWN_NEGATIVES else cell)
        except ValueError as error:
            raise TrainingDataError(
                f"{place}: {name} is no JSON: {shortened(cell)}. Write a list as JSON, or one column for each text "
                "(negative_1, negative_2, …)."
            ) from error
    return cell


def _row(values: Mapping[str, Any], place: str, source: _Source, number: int) -> TrainingRow:
    """Makes a row of named values."""
    query = _column(values, _QUERY, "query", place)
    positive = _column(values, _POSITIVE, "positive", place)
    negatives = sorted((name for name in values if _NEGATIVE.fullmatch(name)), key=_number)
    for name in values:
        if _REFUSED.match(name) and not _READ.fullmatch(name):
            raise TrainingDataError(
                f"{place}: {name} is not read. Remove it, or rename it to one of {', '.join(_POSITIVE)}, neg, "
                f"negative, negative_1, {', '.join(_OTHERS)}."
            )
    if fault := text_fault(values[query]):
        raise TrainingDataError(f"{place}: {query} {fault}")
    return TrainingRow(
        values[query],
        _texts(values[positive], place, positive),
        tuple(text for name in negatives for text in _texts(values[name], place, name)),
        _numbers(values, "pos_scores", place),
        _numbers(values, "neg_scores", place),
        values.get("prompt"),
        values.get("type", "normal"),
        values.get("no_in_batch_neg", source.own_negatives),
        source.prefix + (_id(values, "id", place) or str(number)),
        _id(values, "document", place),
        values.get("source", source.name),
    )


def _column(values: Mapping[str, Any], names: tuple[str, ...], what: str, place: str) -> str:
    found = [name for name in names if name in values]
    if not found:
        has = ", ".join(values) or "nothing"
        raise TrainingDataError(
            f"{place} has no {what}: name it {', '.join(names[:-1])} or {names[-1]}. It has: {has}."
        )
    if len(found) > 1:
        raise TrainingDataError(f"{place} has a {what} twice: {' and '.join(found)}. Keep one of them.")
    return found[0]


def _number(name: str) -> int:
    number = name.rpartition("_")[2]
    return int(number) if number.isdecimal() else -1


def _texts(value: object, place: str, name: str) -> tuple[str, ...]:
    if is_text(value):
        texts: tuple[Any, ...] = (value,)
    elif isinstance(value, (list, tuple)):
        texts = tuple(value)
    else:
        raise TrainingDataError(f"{place}: {name} is {shortened(value)}; write a text or a list of texts.")
    for position, text in enumerate(texts):
        if fault := text_fault(text):
            raise TrainingDataError(f"{place}: {name}{'' if is_text(value) else f'[{position}]'} {fault}")
    return texts


def _numbers(values: Mapping[str, Any], name: str, place: str) -> tuple[float, ...] | None:
    value = values.get(name)
    if value is None:
        return None
    if isinstance(value, (int, float)):
        return (value,)
    if isinstance(value, (list, tuple)):
        return tuple(value)
    raise TrainingDataError(f"{place}: {name} is {shortened(value)}; write a list of numbers.")


def _id(values: Mapping[str, Any], name: str, place: str) -> str | None:
    value = values.get(name)
    if value is None or is_text(value):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise TrainingDataError(f"{place}: {name} is {shortened(value)}; write a text or a whole number.")


def _kind(file: Path) -> str:
    """Returns a file's ending, without .gz."""
    return Path(file.name.removesuffix(".gz")).suffix.lower()


def _stem(file: Path) -> str:
    return Path(file.name.removesuffix(".gz")).stem
