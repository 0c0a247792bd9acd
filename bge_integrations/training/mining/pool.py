"""The passages that negatives are taken from, and which of them a row can't have."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from bge_integrations.errors import SettingsError
from bge_integrations.training.mining.exclusions import Reason, normalised
from bge_integrations.training.rows.data import TrainingData, TrainingRow

__all__ = ["Corpus", "Documents", "Groups", "Pool", "make_pool"]

Corpus = Mapping[str, str] | Iterable[str]
"""Texts, or texts by id."""
Documents = Mapping[str, str | Iterable[str]]
"""The id of the document that a passage is from, or several ids, by the passage's text."""


@dataclass(frozen=True)
class Pool:
    """Different passages, each with a place.

    Attributes:
        texts: The candidates, then texts of rows that are no candidates.
        candidates: The number of candidates.
        places: The place of each text.
        documents: Ids of the documents that a passage is from, by place.
    """

    texts: Sequence[str]
    candidates: int
    places: Mapping[str, int]
    documents: Mapping[int, frozenset[str]]


def make_pool(data: TrainingData, corpus: Corpus | None, documents: Documents | None) -> Pool:
    """Returns the passages of some data and a corpus.

    Args:
        data: The data.
        corpus: Texts, or texts by id; `None`: all passages of the data and its corpus.
        documents: The document of a passage; `None`: not known, except from the rows.

    Raises:
        SettingsError: The corpus is a text, has something else than texts, or has none.
    """
    if corpus is None:
        given = [*data.passages(), *(data.corpus or {}).values()]
    elif isinstance(corpus, str):
        raise SettingsError("corpus is one text; give a list of texts, or texts by id.")
    else:
        given = list(corpus.values() if isinstance(corpus, Mapping) else corpus)
    wrong = next((text for text in given if not isinstance(text, str)), None)
    if wrong is not None:
        raise SettingsError(f"corpus has {wrong!r}, which is no text.")
    chosen = dict.fromkeys(text for text in given if text.strip())
    if not chosen:
        raise SettingsError("corpus has no passages; give some.")
    own = dict.fromkeys(text for row in data.rows for text in (*row.pos, *row.neg) if text not in chosen)
    texts = [*chosen, *own]
    places = {text: place for place, text in enumerate(texts)}
    found: dict[int, set[str]] = {}
    for text, ids in (documents or {}).items():
        if text in places:
            found.setdefault(places[text], set()).update([ids] if isinstance(ids, str) else ids)
    for row in data.rows:
        for text in row.pos if row.document is not None else ():
            found.setdefault(places[text], set()).add(str(row.document))
    return Pool(texts, len(chosen), places, {place: frozenset(ids) for place, ids in found.items()})


class Groups:
    """Rows with an equal query, of which each has the positives of all."""

    def __init__(self, rows: Sequence[TrainingRow], pool: Pool) -> None:
        """Joins the rows.

        Args:
            rows: The rows. Queries are equal if only case and white space differ.
            pool: The passages.
        """
        self._pool = pool
        self._positives: dict[str, dict[int, None]] = {}
        for row in rows:
            found = self._positives.setdefault(normalised(row.query), {})
            found.update((pool.places[text], None) for text in row.pos)
        self._copies = self._equal_texts()
        self._by_document: dict[str, list[int]] = {}
        for place, ids in pool.documents.items():
            for id_ in ids:
                self._by_document.setdefault(id_, []).append(place)
        self._excluded: dict[str, Mapping[int, Reason]] = {}

    def positives(self, query: str) -> list[int]:
        """Returns the places of the positives of all rows with an equal query."""
        return list(self._positives[normalised(query)])

    def excluded(self, query: str) -> Mapping[int, Reason]:
        """Returns the places that can't be negatives, as far as they are known without a look at the texts."""
        key = normalised(query)
        found = self._excluded.get(key)
        if found is None:
            positives = self._positives[key]
            reasons: dict[int, Reason] = dict.fromkeys(positives, "equal_query")
            for positive in positives:
                for copy in self._copies.get(normalised(self._pool.texts[positive]), ()):
                    reasons.setdefault(copy, "copy")
            for positive in positives:
                for id_ in self._pool.documents.get(positive, ()):
                    for place in self._by_document[id_]:
                        reasons.setdefault(place, "document")
            found = self._excluded[key] = reasons
        return found

    def _equal_texts(self) -> dict[str, list[int]]:
        texts = self._pool.texts
        found: dict[str, list[int]] = {
            normalised(texts[place]): [] for places in self._positives.values() for place in places
        }
        for place, text in enumerate(texts):
            equal = found.get(normalised(text))
            if equal is not None:
                equal.append(place)
        return found
