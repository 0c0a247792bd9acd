"""Data to evaluate retrieval on: queries, a corpus, and grades that say which documents answer which query."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from bge_integrations.calls.inputs import check_texts
from bge_integrations.errors import EvaluationDataError, InvalidInputError

__all__ = ["RetrievalData", "Searched"]

Places = Mapping[tuple[str, ...], str]
"""Where an entry stands in a file: by ("queries", id), ("corpus", id), ("qrels", query id, document id)."""


class Searched(Protocol):
    """What a search needs of data: no grades."""

    @property
    def queries(self) -> Mapping[str, str]:
        """Texts by query id."""
        ...

    @property
    def corpus(self) -> Mapping[str, str]:
        """Texts by document id."""
        ...

    @property
    def name(self) -> str:
        """The data's name in messages."""
        ...


@dataclass(frozen=True)
class RetrievalData:
    """Queries, documents, and grades of documents for queries.

    Attributes:
        queries: Texts by query id. Every query has at least one relevant document.
        corpus: Texts by document id, the title included.
        qrels: Grades by query id and document id; 1 or more is relevant, a document without a grade is not.
        groups: A group's name by query id, such as a category; a report has means of each group.
        candidates: Document ids by query id, for a reranker that is evaluated alone; `None` without them.
        name: The data's name in reports.
    """

    queries: Mapping[str, str]
    corpus: Mapping[str, str]
    qrels: Mapping[str, Mapping[str, int]]
    groups: Mapping[str, str] | None = None
    candidates: Mapping[str, Sequence[str]] | None = None
    name: str = "data"
    places: Places = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Checks everything once, so that no mistake shows as a silent zero.

        Raises:
            EvaluationDataError: An id is unknown, a text is empty or no text, a grade is no whole number, or a query
                has no relevant document. The error names the first place and says how many there are.
        """
        for kind, texts in (("queries", self.queries), ("corpus", self.corpus)):
            if not texts:
                raise EvaluationDataError(f"{self.name} has no {kind}.")
            self._require_texts(kind, texts)
        self._require(
            "names a query that is not among the queries",
            ((("qrels", query), query) for query in self.qrels if query not in self.queries),
            "Add the query, or remove its grades.",
        )
        self._require(
            "names a document that is not in the corpus",
            (
                (("qrels", query, document), document)
                for query, grades in self.qrels.items()
                for document in grades
                if document not in self.corpus
            ),
            "Add the document, or remove the grade.",
        )
        self._require(
            "is no whole number",
            (
                (("qrels", query, document), repr(grade))
                for query, grades in self.qrels.items()
                for document, grade in grades.items()
                if not isinstance(grade, int) or isinstance(grade, bool)
            ),
            "Grades are 0 (not relevant), 1 or more.",
        )
        self._require(
            "is a query without a relevant document",
            (
                (("qrels", query) if query in self.qrels else ("queries", query), query)
                for query in self.queries
                if not any(grade > 0 for grade in self.qrels.get(query, {}).values())
            ),
            "Grade a document 1 or more for it, or remove the query.",
        )
        self._require(
            "is a candidate that is not in the corpus",
            (
                (("candidates", query, document), document)
                for query, documents in (self.candidates or {}).items()
                for document in documents
                if document not in self.corpus
            ),
            "Add the document, or remove the candidate.",
        )

    @property
    def digest(self) -> str:
        """SHA-256 of the queries, the corpus and the grades, in any order; groups and the name are left out."""
        digest = hashlib.sha256()
        for kind in (self.queries, self.corpus, {query: dict(grades) for query, grades in self.qrels.items()}):
            digest.update(json.dumps(kind, sort_keys=True, ensure_ascii=False).encode())
            digest.update(b"\0")
        return digest.hexdigest()

    def save(self, folder: str | os.PathLike[str], split: str = "test") -> Path:
        """Writes a BEIR folder: corpus.jsonl, queries.jsonl and qrels/SPLIT.tsv.

        Titles are part of the texts by now, so that "title" is empty. A group is written as "group" beside the query.

        Args:
            folder: The folder; it is made if it is not there.
            split: The name of the file with the grades.

        Raises:
            OSError: The folder can't be written to.
        """
        target = Path(folder)
        (target / "qrels").mkdir(parents=True, exist_ok=True)
        groups = self.groups or {}
        queries = (
            {"_id": id_, "text": text, **({"group": groups[id_]} if id_ in groups else {})}
            for id_, text in self.queries.items()
        )
        corpus = ({"_id": id_, "title": "", "text": text} for id_, text in self.corpus.items())
        for name, rows in (("queries", queries), ("corpus", corpus)):
            lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            with (target / f"{name}.jsonl").open("w", encoding="utf-8") as file:
                file.writelines(lines)
        with (target / "qrels" / f"{split}.tsv").open("w", encoding="utf-8") as file:
            file.write("query-id\tcorpus-id\tscore\n")
            for query, grades in self.qrels.items():
                file.writelines(f"{query}\t{document}\t{grade}\n" for document, grade in grades.items())
        return target

    def _require_texts(self, kind: str, texts: Mapping[str, str]) -> None:
        ids = list(texts)
        try:
            check_texts(list(texts.values()), kind)
        except InvalidInputError as error:
            id_ = "?" if error.index is None else ids[error.index]
            raise EvaluationDataError(f"{self._place((kind, id_))}: {error}") from error
        self._require(
            "has no text",
            (((kind, id_), id_) for id_, text in texts.items() if not text.strip()),
            "Write one, or remove it and its grades.",
        )

    def _require(self, fault: str, found: Iterator[tuple[tuple[str, ...], str]], remedy: str) -> None:
        first = next(found, None)
        if first is not None:
            key, value = first
            others = sum(1 for _ in found)
            more = f" There are {others} more." if others else ""
            raise EvaluationDataError(f"{self._place(key)}: {value} {fault}.{more} {remedy}")

    def _place(self, key: tuple[str, ...]) -> str:
        kind, *ids = key
        return self.places.get(key) or f"{self.name}, {kind}{''.join(f'[{id_!r}]' for id_ in ids)}"
