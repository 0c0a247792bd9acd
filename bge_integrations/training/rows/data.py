"""Data to train on: rows of a query, passages that answer it, and passages that do not."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import cached_property
from numbers import Real
from pathlib import Path
from typing import Any, Literal, get_args

from bge_integrations.errors import SettingsError, TrainingDataError
from bge_integrations.evaluation.data import RetrievalData
from bge_integrations.texts import about_surrogate, is_text, lone_surrogate, shortened
from bge_integrations.training.rows.partition import partition

__all__ = ["ROW_TYPES", "Split", "SplitBy", "TrainingData", "TrainingRow", "text_fault"]

ROW_TYPES = ("normal", "only_1neg", "symmetric_class", "symmetric_sts", "symmetric_clustering")
"""FlagEmbedding's types of rows."""

SplitBy = Literal["passage", "document", "query"]

_ENDINGS = (".jsonl", ".jsonl.gz", ".json", ".json.gz")


@dataclass(frozen=True)
class TrainingRow:
    """A query with its positive and negative passages. `TrainingData` checks it.

    Attributes:
        query: The text of the query, without an instruction.
        pos: Passages that answer it, at least one. A single text is taken as one passage.
        neg: Passages that do not answer it; rows may have different numbers of them.
        pos_scores: A teacher's score for each positive.
        neg_scores: A teacher's score for each negative.
        prompt: The instruction before this query; for an instruct model, the task in its template. `None`: the model's
            own. `""`: no instruction.
        type: FlagEmbedding's type of the row. `"only_1neg"`: one negative is drawn, also where `negatives` allows more.
            `"symmetric_sts"` and `"symmetric_clustering"`: the row's instruction is before its passages too. With
            `same_source`, a batch has rows of one type, and batches of a type `"symmetric_…"` have half as many rows.
            Otherwise `"symmetric_class"` is as `"normal"`: no row repeats negatives.
        no_in_batch_neg: Whether passages of other rows are no negatives for this query.
        id: The row's id; `TrainingData` gives one to rows without.
        document: The id of the document that the positives are cut from, if known.
        source: The name of the file that the row comes from, without its ending.
    """

    query: str
    pos: tuple[str, ...]
    neg: tuple[str, ...] = ()
    pos_scores: tuple[float, ...] | None = None
    neg_scores: tuple[float, ...] | None = None
    prompt: str | None = None
    type: str = "normal"
    no_in_batch_neg: bool = False
    id: str = ""
    document: str | None = None
    source: str = ""

    def __post_init__(self) -> None:
        """Makes tuples of lists, and of a single text, which must never become its characters; and floats of scores."""
        for name in ("pos", "neg", "pos_scores", "neg_scores"):
            value = getattr(self, name)
            if is_text(value):
                object.__setattr__(self, name, (value,))
            elif isinstance(value, Iterable) and not isinstance(value, (tuple, bytes, Mapping, Set)):
                object.__setattr__(self, name, tuple(value))
        for name in ("pos_scores", "neg_scores"):
            scores = getattr(self, name)
            if isinstance(scores, tuple):
                object.__setattr__(self, name, tuple(map(_as_float, scores)))


@dataclass(frozen=True)
class TrainingData:
    """Rows to train on.

    A text that stands twice among the positives or the negatives of a row is kept once; `notes` says how often that
    happened.

    Attributes:
        rows: The rows, at least one.
        name: The data's name in reports.
        corpus: Texts by id of all passages to search in, where the format has them. They need not be in a row.
        places: Where each row stands, for error messages; empty without files.
        notes: What was left out while the data were read, in words.
    """

    rows: Sequence[TrainingRow]
    name: str = "data"
    corpus: Mapping[str, str] | None = None
    places: Sequence[str] = field(default=(), repr=False, compare=False)
    notes: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        """Checks everything once.

        Raises:
            TrainingDataError: There are no rows; a text is blank, no text, or both positive and negative; scores are
                missing or not finite; a type is unknown; or an id is there twice. The error names the place and the
                field of the first fault, and says how many other rows have faults.
        """
        rows = tuple(self.rows)
        if not rows:
            raise TrainingDataError(f"{self.name} has no rows. Give at least one query with a positive passage.")
        faults = ((index, fault) for index, row in enumerate(rows) if (fault := _fault_of(row)))
        self._refuse(faults)
        repeats = {"positive": 0, "negative": 0}
        rows = tuple(_without_repeats(row, repeats) for row in rows)
        rows = tuple(row if row.id else dataclasses.replace(row, id=str(index)) for index, row in enumerate(rows))
        first: dict[str, int] = {}
        self._refuse(
            (index, f"the id {row.id!r} is there already ({self._place(before)}). Give each row an id of its own.")
            for index, row in enumerate(rows)
            if (before := first.setdefault(row.id, index)) != index
        )
        for id_, text in (self.corpus or {}).items():
            if fault := text_fault(text):
                raise TrainingDataError(f"{self.name}, corpus[{id_!r}] {fault}")
        object.__setattr__(self, "rows", rows)
        notes = tuple(
            f"{count} {kind} passages that a row has already were left out." for kind, count in repeats.items() if count
        )
        object.__setattr__(self, "notes", (*self.notes, *notes))

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all that training depends on: the rows in their order. Names, ids and the corpus are left out."""
        digest = hashlib.sha256()
        sources: dict[str, int] = {}
        for row in self.rows:
            content: list[Any] = [row.query, row.pos, row.neg, row.pos_scores, row.neg_scores, row.prompt, row.type]
            content += [row.no_in_batch_neg, row.document, sources.setdefault(row.source, len(sources))]
            digest.update(json.dumps(content, ensure_ascii=False).encode() + b"\n")
        return digest.hexdigest()

    def passages(self) -> list[str]:
        """Returns the distinct positives and negatives of all rows, in the order in which they first appear."""
        return list(dict.fromkeys(text for row in self.rows for text in (*row.pos, *row.neg)))

    def split(self, by: SplitBy = "passage", validation: float = 0.1, test: float = 0.0, seed: int = 0) -> Split:
        """Divides the rows at random, so that a held-out question has no twin in the training part.

        Rows with equal queries always stay together. A passage may be a negative on one side and a positive on the
        other. The parts depend on the texts and the seed, not on the order of the rows.

        Args:
            by: What stays on one side. `"passage"`: all rows that share a positive, also over several rows.
                `"document"`: those, and all rows of one document. `"query"`: only equal queries.
            validation: Share of the rows for the validation part, at least one row; 0: no such part.
            test: Share of the rows for the test part, at least one row; 0: no such part.
            seed: Another seed gives other parts.

        Raises:
            SettingsError: `by` is unknown, or the shares are no numbers from 0 to below 1 in sum.
            TrainingDataError: A row has no document for `by="document"`, or the groups of rows that belong together
                are too large for these shares.
        """
        if by not in get_args(SplitBy):
            raise SettingsError(f"by={by!r} is not known; choose one of {', '.join(map(repr, get_args(SplitBy)))}.")
        if not (validation >= 0 and test >= 0 and validation + test < 1):
            raise SettingsError(
                f"validation={validation} and test={test} must be 0 or more, and below 1 in sum, so that rows are left "
                "to train on."
            )
        if by == "document":
            fault = 'document is missing. Name the document of each row, or split by="passage".'
            self._refuse((index, fault) for index, row in enumerate(self.rows) if row.document is None)
        chosen = partition([list(_keys(row, by)) for row in self.rows], (test, validation), seed)
        for_test, for_validation, rest = chosen
        return Split(
            self._part(rest, "train"),
            self._part(for_validation, "validation") if for_validation else None,
            self._part(for_test, "test") if for_test else None,
        )

    def as_retrieval_data(self) -> RetrievalData:
        """Returns the data as queries, a corpus and grades, to evaluate on.

        Rows with equal queries become one query with the positives of all of them. Positives have the grade 1, other
        negatives 0. The corpus is the data's own, and all positives and negatives that it lacks. Data from several
        sources have the source as group. A query's graded documents are its candidates, if every query has a negative.
        Prompts and scores are lost.
        """
        corpus = dict(self.corpus or {})
        ids: dict[str, list[str]] = {}
        for id_, text in corpus.items():
            ids.setdefault(text, []).append(id_)
        for number, text in enumerate(self.passages()):
            if text not in ids:
                id_ = next(name for name in _names(f"d{number}") if name not in corpus)
                corpus[id_] = text
                ids[text] = [id_]
        queries: dict[str, str] = {}
        qrels: dict[str, dict[str, int]] = {}
        groups: dict[str, str] = {}
        of_query: dict[str, str] = {}
        for row in self.rows:
            query = of_query.setdefault(row.query, row.id)
            queries[query] = row.query
            groups.setdefault(query, row.source)
            grades = qrels.setdefault(query, {})
            grades.update((id_, 1) for text in row.pos for id_ in ids[text])
            for text in row.neg:
                for id_ in ids[text]:
                    grades.setdefault(id_, 0)
        rerankable = all(0 in grades.values() for grades in qrels.values())
        return RetrievalData(
            queries,
            corpus,
            qrels,
            groups if len(set(groups.values())) > 1 else None,
            {query: list(grades) for query, grades in qrels.items()} if rerankable else None,
            self.name,
        )

    def save(self, file: str | os.PathLike[str]) -> Path:
        """Writes FlagEmbedding's format: a JSON object for each row, on a line of its own.

        `id`, `document`, `source` (of data from several files) and `no_in_batch_neg` are written too, which
        FlagEmbedding does not read. It knows the last only as the end of a file's name. A file that is there is
        replaced when all is written. The corpus is not written.

        Args:
            file: The file; its name ends with .jsonl or .json, and .gz after it to compress it.

        Raises:
            SettingsError: The file's name has another ending.
            OSError: The file can't be written.
        """
        target = Path(file)
        if not target.name.endswith(_ENDINGS):
            raise SettingsError(f"file={os.fspath(file)!r} must end with one of {', '.join(_ENDINGS)}.")
        sources = len({row.source for row in self.rows}) > 1
        types = {row.type for row in self.rows} != {"normal"}
        return _replace(target, (_as_line(row, sources=sources, types=types) for row in self.rows))

    def to_llama_index(self, file: str | os.PathLike[str]) -> Path:
        """Writes the JSON of LlamaIndex's `EmbeddingQAFinetuneDataset`: queries, corpus and relevant documents.

        The format has no negatives, scores, prompts and types. Negatives are written as part of the corpus only. The
        file is ASCII, since LlamaIndex reads it in the locale's encoding.

        Raises:
            OSError: The file can't be written.
        """
        data = self.as_retrieval_data()
        relevant = {query: [id_ for id_, grade in grades.items() if grade] for query, grades in data.qrels.items()}
        content = {"queries": data.queries, "corpus": data.corpus, "relevant_docs": relevant, "mode": "text"}
        return _replace(Path(file), [json.dumps(content, indent=4) + "\n"])

    def _part(self, rows: Sequence[int], name: str) -> TrainingData:
        places = [self.places[row] for row in rows] if self.places else ()
        return TrainingData([self.rows[row] for row in rows], f"{self.name}-{name}", self.corpus, places)

    def _refuse(self, faults: Iterator[tuple[int, str]]) -> None:
        first = next(faults, None)
        if first is not None:
            index, fault = first
            others = sum(1 for _ in faults)
            more = "" if not others else f" {others} more row{'s have' if others > 1 else ' has'} faults like this."
            raise TrainingDataError(f"{self._place(index)}: {fault}{more}")

    def _place(self, index: int) -> str:
        return self.places[index] if self.places else f"{self.name}, rows[{index}]"


@dataclass(frozen=True)
class Split:
    """Parts of training data.

    Attributes:
        train: The rows to train on.
        validation: The rows to choose a checkpoint by; `None` for the share 0.
        test: The rows to judge by at the end; `None` for the share 0.
    """

    train: TrainingData
    validation: TrainingData | None
    test: TrainingData | None


def _as_float(score: object) -> object:
    """Returns a number as a `float`, also one of numpy's; other values as they are, for the message about them."""
    if isinstance(score, bool) or not isinstance(score, Real):
        return score
    try:
        return float(score)
    except OverflowError:  # a whole number of hundreds of digits
        return math.inf


def text_fault(text: object) -> str | None:
    """Returns the end of a message about a value that is no text to train on, with the remedy, or `None`."""
    if not is_text(text):
        return f"is {shortened(text)}; write a text."
    if not text or text.isspace():
        return "is blank; write a text, or leave it out."
    position = lone_surrogate(text)
    return None if position is None else about_surrogate(text, position)


def _fault_of(row: object) -> str | None:
    """Returns the first fault of a row with its field and the remedy, or `None`."""
    if not isinstance(row, TrainingRow):
        return f"{shortened(row)} is no TrainingRow. Write TrainingRow(query, (positive,), (negative, …))."
    return next((fault for check in _CHECKS if (fault := check(row))), None)


def _fault_of_texts(row: TrainingRow) -> str | None:
    if fault := text_fault(row.query):
        return f"query {fault}"
    for name in ("pos", "neg"):
        texts: object = getattr(row, name)
        if not isinstance(texts, tuple):
            return f"{name} is {shortened(texts)}; write a list of texts."
        for position, text in enumerate(texts):
            if fault := text_fault(text):
                return f"{name}[{position}] {fault}"
    if not row.pos:
        return "pos is empty. Give at least one passage that answers the query, or remove the row."
    positives = set(row.pos)
    both = next((position for position, text in enumerate(row.neg) if text in positives), None)
    if both is not None:
        return f"neg[{both}] is a positive of this row too: {shortened(row.neg[both])}. Remove it from pos or from neg."
    return None


def _fault_of_scores(row: TrainingRow) -> str | None:
    for kind in ("pos", "neg"):
        name = f"{kind}_scores"
        scores: object = getattr(row, name)
        if scores is None:
            continue
        if not isinstance(scores, tuple):
            return f"{name} is {shortened(scores)}; write a list of numbers."
        texts = getattr(row, kind)
        if len(scores) != len(texts):
            return f"{name} has {len(scores)} scores, but {kind} has {len(texts)} texts. Give one for each."
        for position, score in enumerate(scores):
            if not isinstance(score, float) or not math.isfinite(score):
                return f"{name}[{position}] is {score!r}; write a finite number."
    return None


def _fault_of_the_rest(row: TrainingRow) -> str | None:
    if row.type not in ROW_TYPES:
        return f"type is {shortened(row.type)}; write one of {', '.join(ROW_TYPES)}."
    flag: object = row.no_in_batch_neg
    if not isinstance(flag, bool):
        return f"no_in_batch_neg is {shortened(flag)}; write true or false."
    for name in ("prompt", "document", "id", "source"):
        value = getattr(row, name)
        if value is None and name in ("prompt", "document"):
            continue
        if not is_text(value):
            return f"{name} is {shortened(value)}; write a text."
        position = lone_surrogate(value)
        if position is not None:
            return f"{name} {about_surrogate(value, position)}"
    return None


_CHECKS: tuple[Callable[[TrainingRow], str | None], ...] = (_fault_of_texts, _fault_of_scores, _fault_of_the_rest)


def _without_repeats(row: TrainingRow, repeats: dict[str, int]) -> TrainingRow:
    """Returns a row with each text once, and counts the others. The score of the first one stays."""
    changes: dict[str, Any] = {}
    for name, kind in (("pos", "positive"), ("neg", "negative")):
        texts = getattr(row, name)
        distinct = tuple(dict.fromkeys(texts))
        if len(distinct) < len(texts):
            repeats[kind] += len(texts) - len(distinct)
            changes[name] = distinct
            scores = getattr(row, f"{name}_scores")
            if scores is not None:
                changes[f"{name}_scores"] = tuple(scores[texts.index(text)] for text in distinct)
    return dataclasses.replace(row, **changes) if changes else row


def _keys(row: TrainingRow, by: SplitBy) -> Iterator[str]:
    yield f"query\0{row.query}"
    if by != "query":
        yield from (f"passage\0{text}" for text in row.pos)
    if by == "document":
        yield f"document\0{row.document}"


def _names(name: str) -> Iterator[str]:
    while True:
        yield name
        name += "'"


def _as_line(row: TrainingRow, *, sources: bool, types: bool) -> str:
    content: dict[str, Any] = {"query": row.query, "pos": row.pos, "neg": row.neg}
    for name in ("pos_scores", "neg_scores", "prompt"):
        if getattr(row, name) is not None:
            content[name] = getattr(row, name)
    if types:
        content["type"] = row.type
    if row.no_in_batch_neg:
        content["no_in_batch_neg"] = True
    content["id"] = row.id
    if row.document is not None:
        content["document"] = row.document
    if sources:
        content["source"] = row.source
    return json.dumps(content, ensure_ascii=False) + "\n"


def _replace(target: Path, lines: Iterable[str]) -> Path:
    """Writes a file under another name first, so that a file that is there stays whole until all is written."""
    unfinished = target.with_name(f"{target.name}.unfinished")
    opens: Callable[..., Any] = gzip.open if target.suffix == ".gz" else open
    try:
        with opens(unfinished, "wt", encoding="utf-8") as file:
            file.writelines(lines)
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)
    return target
