"""Finds held-out questions that training data already know."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from bge_integrations.errors import SettingsError
from bge_integrations.evaluation.data import RetrievalData
from bge_integrations.texts import shortened
from bge_integrations.training.rows.data import TrainingData

__all__ = ["NO_BLANKS", "Leakage", "Overlap", "leakage"]

NO_BLANKS = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff"
)
"""Characters of scripts without blanks between words (Chinese, Japanese, Thai, Lao, Khmer, Burmese), for a class of a
regular expression."""
# Such a character, or a word.
_UNITS = re.compile(rf"[{NO_BLANKS}]|[^\W{NO_BLANKS}]+")

_Unit = tuple[str, ...]


@dataclass(frozen=True)
class Overlap:
    """A query that shares words in a row with a training query.

    Attributes:
        id: The query's id.
        query: Its text.
        train_query: The first training query that shares the words.
        words: The first shared words, in lower case.
    """

    id: str
    query: str
    train_query: str
    words: str


@dataclass(frozen=True)
class Leakage:
    """What other data have in common with training data.

    Attributes:
        train: The name of the training data.
        other: The name of the other data.
        n: The number of words in a row that were compared.
        queries: The number of queries in the other data.
        short: The number of them with fewer than `n` words. Only equal queries are found for them.
        overlaps: The queries that share `n` words in a row with a training query, equal ones included.
        equal_queries: The ids of the queries that are a training query too, but for case and blanks.
        equal_pairs: The ids of those that have a positive in common with it too.
    """

    train: str
    other: str
    n: int
    queries: int
    short: int
    overlaps: tuple[Overlap, ...]
    equal_queries: tuple[str, ...]
    equal_pairs: tuple[str, ...]

    @property
    def found(self) -> tuple[str, ...]:
        """The ids of all queries that overlap with a training query or are equal to one."""
        return tuple(dict.fromkeys((*(overlap.id for overlap in self.overlaps), *self.equal_queries)))

    def in_words(self, examples: int = 3) -> str:
        """Returns the figures and some examples as lines of text.

        Args:
            examples: The number of overlaps to show.
        """
        lines = [
            f"{len(self.overlaps)} of {self.queries} queries of {self.other} share {self.n} words in a row with a "
            f"training query of {self.train}.",
            f"{len(self.equal_queries)} are equal to a training query, {len(self.equal_pairs)} of them with an equal "
            "passage.",
        ]
        if self.short:
            lines.append(f"{self.short} have fewer than {self.n} words; only equal queries are found for them.")
        lines += [
            f"- {shortened(overlap.query)} and {shortened(overlap.train_query)}: {overlap.words!r}"
            for overlap in self.overlaps[:examples]
        ]
        return "\n".join(lines) + "\n"


def leakage(train: TrainingData, other: TrainingData | RetrievalData, n: int = 5) -> Leakage:
    """Compares the queries of other data with those of training data.

    Words are compared without case and punctuation. In scripts without blanks between words, such as Chinese, each
    character counts as a word.

    Args:
        train: The training data.
        other: The validation or test data.
        n: The number of words in a row that count as an overlap.

    Raises:
        SettingsError: `n` is below 1.
    """
    if n < 1:
        raise SettingsError(f"n={n} must be 1 or more.")
    known: dict[_Unit, str] = {}
    positives: dict[str, set[str]] = {}
    for row in train.rows:
        if _even(row.query) not in positives:
            for words in _in_a_row(_units(row.query), n):
                known.setdefault(words, row.query)
        positives.setdefault(_even(row.query), set()).update(map(_even, row.pos))
    overlaps, equal_queries, equal_pairs, short, queries = [], [], [], 0, 0
    for id_, (query, passages) in _questions(other).items():
        queries += 1
        units = _units(query)
        short += len(units) < n
        shared = next((words for words in _in_a_row(units, n) if words in known), None)
        if shared is not None:
            overlaps.append(Overlap(id_, query, known[shared], " ".join(shared)))
        of_equal = positives.get(_even(query))
        if of_equal is not None:
            equal_queries.append(id_)
            if not of_equal.isdisjoint(map(_even, passages)):
                equal_pairs.append(id_)
    return Leakage(train.name, other.name, n, queries, short, tuple(overlaps), tuple(equal_queries), tuple(equal_pairs))


def _questions(data: TrainingData | RetrievalData) -> Mapping[str, tuple[str, tuple[str, ...]]]:
    """Returns each query and its relevant passages by id."""
    if isinstance(data, TrainingData):
        return {row.id: (row.query, row.pos) for row in data.rows}
    return {
        id_: (query, tuple(data.corpus[document] for document, grade in data.qrels[id_].items() if grade > 0))
        for id_, query in data.queries.items()
    }


def _units(text: str) -> list[str]:
    return _UNITS.findall(text.casefold())


def _in_a_row(units: list[str], n: int) -> Iterator[_Unit]:
    return zip(*(units[start:] for start in range(n)), strict=False)


def _even(text: str) -> str:
    return " ".join(text.casefold().split())
