"""Puts data in local folders into mteb's official tasks, for machines without a hub.

A folder has one folder a task, named as mteb names the task, or as the task and its subset (`STS17-en-en`):

| type | files | keys of a line |
|---|---|---|
| STS | SPLIT.jsonl | `sentence1`, `sentence2`, `score` (a number) |
| PairClassification | SPLIT.jsonl | `sentence1`, `sentence2`, `label` or `labels` (0 or 1) |
| Classification | train.jsonl, SPLIT.jsonl | `text`, `label` (a text or a whole number) |
| Clustering | SPLIT.jsonl | `sentences` and `labels`, two lists of the same length; one set a line |
| Summarization | SPLIT.jsonl | `text`, and the lists `human_summaries`, `machine_summaries`, `relevance` |
| Retrieval | a BEIR folder: corpus.jsonl, queries.jsonl, qrels/SPLIT.tsv | see `load_retrieval_data` |
| Reranking | a BEIR folder, and candidates.jsonl | `_id` of the query, `candidates` (ids of documents) |

SPLIT is the split that the benchmark evaluates, such as `test`, `dev` or `validation`; without a file of this name,
`test` is read. Each file may end in .gz. The order of training rows matters, since mteb samples by their order. Names
that begin with `_` or `.` are passed over.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bge_integrations.errors import EvaluationDataError
from bge_integrations.evaluation.formats import json_lines, load_retrieval_data, plain_or_zipped
from bge_integrations.evaluation.mteb.library import import_mteb
from bge_integrations.texts import kind_of

__all__ = ["LocalTask", "fill_task", "find_local_tasks"]

_USUAL_SPLIT = "test"
_DIGEST_LETTERS = 12

Row = dict[str, Any]


@dataclass(frozen=True)
class LocalTask:
    """Local data of one task.

    Attributes:
        folder: Folder with the data.
        subset: mteb's name of the subset, such as "en-en", or `None` for the only one.
    """

    folder: Path
    subset: str | None = None


def find_local_tasks(folder: str | os.PathLike[str], tasks: Iterable[Any]) -> dict[str, LocalTask]:
    """Returns which tasks have data in a folder, by the task's name.

    Args:
        folder: Folder with one folder a task.
        tasks: mteb's task objects.

    Raises:
        EvaluationDataError: There is no such folder.
    """
    root = Path(folder).expanduser()
    try:
        names = {path.name for path in root.iterdir() if path.is_dir() and path.name[0] not in "._"}
    except OSError as error:
        raise EvaluationDataError(
            f"The folder {root} can't be read: {error.strerror or error}. Give a folder with one folder a task."
        ) from error
    found = {}
    for task in tasks:
        subsets = list(task.hf_subsets or ())
        places = [(task.metadata.name, subsets[0] if len(subsets) == 1 else None)]
        places += [(f"{task.metadata.name}-{subset}", subset) for subset in subsets]
        for name, subset in places:
            if name in names:
                found[task.metadata.name] = LocalTask(root / name, subset)
                break
    return found


def fill_task(task: Any, local: LocalTask) -> str:  # noqa: ANN401 - mteb's AbsTask
    """Reads local data into a task, so that mteb loads none from the hub.

    Args:
        task: mteb's task object. Its data, its subsets and the revision of its data change.
        local: Where the data are.

    Returns:
        Digest of the data. It is the revision too, so that results of other data are not taken for results of these.

    Raises:
        EvaluationDataError: A file is missing, a row is wrong, or tasks of this type can't have local data. The message
            names the file and the line.
    """
    import_mteb()
    from datasets import Dataset, DatasetDict

    kind = task.metadata.type
    if kind in ("Retrieval", "Reranking"):
        content: dict[str, Any] = {split: _retrieval(task, local, split) for split in task.eval_splits}
        digest = _digest(content)
        dataset = {
            split: {
                **parts,
                **{name: Dataset.from_list(parts[name]) for name in ("corpus", "queries")},
            }
            for split, parts in content.items()
        }
    elif kind in _READERS:
        splits = [*task.eval_splits, *([task.train_split] if kind == "Classification" else [])]
        content = {
            split: _rows(local.folder, split, lambda row, place: _READERS[kind](task, row, place)) for split in splits
        }
        if kind == "Classification":
            _check_labels(task, local, content)
        digest = _digest(content)
        dataset = DatasetDict({split: Dataset.from_list(rows) for split, rows in content.items()})
    else:
        raise EvaluationDataError(
            f"{local.folder}: {task.metadata.name} is of the type {kind}, and only {', '.join(_READERS)}, Retrieval "
            "and Reranking can have local data. Leave this task out."
        )
    subset = local.subset or "default"
    task.hf_subsets = [subset]
    task.dataset = {subset: dataset}
    task.data_loaded = True
    task.metadata = task.metadata.model_copy(
        update={"dataset": {**task.metadata.dataset, "path": "local", "revision": digest}}
    )
    return digest


def _rows(folder: Path, split: str, read: Callable[[Row, str], Row]) -> list[Row]:
    file = plain_or_zipped(folder / f"{split}.jsonl")
    if file is None and split != "train":
        file = plain_or_zipped(folder / f"{_USUAL_SPLIT}.jsonl")
    if file is None:
        raise EvaluationDataError(f"{folder} has no {split}.jsonl. Write one, with a row a line.")
    rows = [read(row, place) for place, row in json_lines(file)]
    if len(rows) < 2:
        raise EvaluationDataError(f"{file} has {len(rows)} rows; write at least 2.")
    return rows


def _sts(task: Any, row: Row, place: str) -> Row:  # noqa: ANN401 - mteb's AbsTask
    texts = {column: _text(row, column, place) for column in task.column_names}
    score = row.get("score")
    if isinstance(score, bool) or not isinstance(score, (int, float)) or not math.isfinite(score):
        raise EvaluationDataError(f"{place}: score is {score!r}; write a number.")
    return {**texts, "score": float(score)}


def _pair(task: Any, row: Row, place: str) -> Row:  # noqa: ANN401 - mteb's AbsTask
    texts = {column: _text(row, column, place) for column in (task.input1_column_name, task.input2_column_name)}
    label = row.get("label", row.get("labels"))
    if label not in (0, 1):
        raise EvaluationDataError(f"{place}: label is {label!r}; write 0 or 1.")
    return {**texts, task.label_column_name: int(label)}


def _class(task: Any, row: Row, place: str) -> Row:  # noqa: ANN401 - mteb's AbsTask
    text, label = _text(row, task.input_column_name, place), row.get(task.label_column_name)
    if isinstance(label, bool) or not isinstance(label, (str, int)):
        raise EvaluationDataError(f"{place}: {task.label_column_name} is {label!r}; write a text or a whole number.")
    return {task.input_column_name: text, task.label_column_name: label}


def _cluster(task: Any, row: Row, place: str) -> Row:  # noqa: ANN401 - mteb's AbsTask
    texts, labels = _texts(row, task.input_column_name, place), row.get(task.label_column_name)
    if not isinstance(labels, list) or len(labels) != len(texts) or len(set(map(type, labels))) > 1:
        raise EvaluationDataError(
            f"{place}: {task.label_column_name} must be a list of {len(texts)} texts or whole numbers, one for each of "
            f"{task.input_column_name}."
        )
    return {task.input_column_name: texts, task.label_column_name: labels}


def _summary(task: Any, row: Row, place: str) -> Row:  # noqa: ANN401 - mteb's AbsTask
    columns = (task.human_summaries_column_name, task.machine_summaries_column_name)
    people, machines = (_texts(row, column, place) for column in columns)
    relevance = row.get(task.relevancy_column_name)
    if not isinstance(relevance, list) or len(relevance) != len(machines):
        raise EvaluationDataError(
            f"{place}: {task.relevancy_column_name} must be a list of {len(machines)} numbers, one for each of "
            f"{columns[1]}."
        )
    text = _text(row, task.text_column_name, place)
    return {
        task.text_column_name: text,
        **dict(zip(columns, (people, machines), strict=True)),
        task.relevancy_column_name: relevance,
    }


_READERS: Mapping[str, Callable[[Any, Row, str], Row]] = {
    "STS": _sts,
    "PairClassification": _pair,
    "Classification": _class,
    "Clustering": _cluster,
    "Summarization": _summary,
}


def _retrieval(task: Any, local: LocalTask, split: str) -> dict[str, Any]:  # noqa: ANN401 - mteb's AbsTask
    grades = local.folder / "qrels"
    data = load_retrieval_data(local.folder, split if (grades / f"{split}.tsv").is_file() else _USUAL_SPLIT)
    candidates = None
    if task.metadata.type == "Reranking":
        file = plain_or_zipped(local.folder / "candidates.jsonl")
        if file is None:
            raise EvaluationDataError(
                f"{local.folder} has no candidates.jsonl, which a reranking task needs. Write a line for each query: "
                '{"_id": "q1", "candidates": ["d1", "d2"]}.'
            )
        candidates = dict(_candidates(row, place, data.corpus) for place, row in json_lines(file))
        lacking = next((query for query in data.queries if query not in candidates), None)
        if lacking is not None:
            raise EvaluationDataError(f"{file} has no candidates for the query {lacking!r}. Add a line for it.")
        candidates = {query: candidates[query] for query in data.queries}
    return {
        "corpus": [{"id": id_, "title": "", "text": text} for id_, text in data.corpus.items()],
        "queries": [{"id": id_, "text": text} for id_, text in data.queries.items()],
        "relevant_docs": {query: dict(graded) for query, graded in data.qrels.items()},
        "top_ranked": candidates,
    }


def _candidates(row: Row, place: str, corpus: Mapping[str, str]) -> tuple[str, list[str]]:
    documents = _texts(row, "candidates", place)
    unknown = next((document for document in documents if document not in corpus), None)
    if unknown is not None:
        raise EvaluationDataError(f"{place}: the candidate {unknown!r} is not in the corpus. Remove it.")
    return _text(row, "_id", place), list(dict.fromkeys(documents))


def _check_labels(task: Any, local: LocalTask, content: Mapping[str, list[Row]]) -> None:  # noqa: ANN401
    trained = {row[task.label_column_name] for row in content[task.train_split]}
    if len(trained) < 2:
        raise EvaluationDataError(f"{local.folder}: the training rows have one label only. A classifier needs two.")
    for split, rows in content.items():
        unknown = next((label for row in rows if (label := row[task.label_column_name]) not in trained), None)
        if unknown is not None:
            raise EvaluationDataError(
                f"{local.folder}: the label {unknown!r} of {split}.jsonl has no training row. Add one, and write "
                "labels in both files as texts, or in both as numbers."
            )


def _text(row: Row, column: str, place: str) -> str:
    value = row.get(column)
    if not isinstance(value, str):
        raise EvaluationDataError(f"{place}: {column} is {kind_of(value)}; write a text. The line has {_keys(row)}.")
    return value


def _texts(row: Row, column: str, place: str) -> list[str]:
    value = row.get(column)
    if not isinstance(value, list) or not value or not all(isinstance(one, str) for one in value):
        raise EvaluationDataError(f"{place}: {column} must be a list of texts. The line has {_keys(row)}.")
    return value


def _keys(row: Row) -> str:
    return "the keys " + ", ".join(map(repr, row)) if row else "no keys"


def _digest(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGEST_LETTERS]
