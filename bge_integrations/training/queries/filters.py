"""Checks of questions beside each other: near-duplicates, test questions, and the round trip by the start model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bge_integrations.backend.model.heads import unit_rows
from bge_integrations.evaluation.data import RetrievalData
from bge_integrations.evaluation.searchers import VectorSearcher
from bge_integrations.evaluation.vectors import Floats, unique_vectors
from bge_integrations.training.mining.exclusions import normalised
from bge_integrations.training.mining.search import Embedders
from bge_integrations.training.queries.documents import Passage
from bge_integrations.training.queries.groups import Searchable
from bge_integrations.training.rows.data import TrainingData, TrainingRow
from bge_integrations.training.rows.overlaps import leakage

__all__ = ["Question", "Repeat", "like_test", "ranks", "repeats"]

_BLOCK = 1024
LOOKED_AT = 200
"""Passages that are found for a question, at least, so that a rejected one can say at which rank its passage is."""


@dataclass(frozen=True)
class Question:
    """A question."""

    query: str
    kind: str
    passages: tuple[int, ...]


@dataclass(frozen=True)
class Repeat:
    """An earlier text that a question is nearly the same as.

    Attributes:
        text: The earlier text.
        cosine: The cosine of both; 1 for equal texts.
    """

    text: str
    cosine: float


def like_test(
    questions: Sequence[Question], passages: Sequence[Passage], test: TrainingData | RetrievalData
) -> dict[int, str]:
    """Returns what questions share with test questions, by the question's place: five words in a row, or everything."""
    known = test if isinstance(test, TrainingData) else _as_rows(test)
    rows = [
        TrainingRow(one.query, tuple(passages[place].text for place in one.passages), id=str(number))
        for number, one in enumerate(questions)
    ]
    if not rows:
        return {}
    found = leakage(known, TrainingData(rows, "questions"))
    shared = {int(overlap.id): repr(overlap.train_query) for overlap in found.overlaps}
    everything = {**dict.fromkeys(map(int, found.equal_queries), "equal to a test question"), **shared}
    return dict(sorted(everything.items()))


def repeats(
    questions: Sequence[str], before: Sequence[str], limit: float | None, how: Embedders | None
) -> dict[int, Repeat]:
    """Returns the questions that are nearly the same as an earlier one that stays, by their place.

    Args:
        questions: The questions.
        before: Texts that count as earlier questions.
        limit: The cosine from which two are nearly the same; `None`: only equal texts are.
        how: Embeds queries; `None`: only equal texts are compared.
    """
    texts = [*before, *questions]
    found: dict[int, Repeat] = {}
    first: dict[str, str] = {}
    different: list[int] = []
    for place, text in enumerate(texts):
        earlier = first.setdefault(normalised(text), text)
        if place >= len(before) and earlier is not text:
            found[place] = Repeat(earlier, 1.0)
        else:
            different.append(place)
    if how is not None and limit is not None and different:
        vectors = unit_rows(unique_vectors(how.queries[None], [texts[place] for place in different]))
        for row, (earlier_row, cosine) in _near_rows(vectors, limit, sum(place < len(before) for place in different)):
            found[different[row]] = Repeat(texts[different[earlier_row]], cosine)
    return {place - len(before): repeat for place, repeat in sorted(found.items())}


def ranks(questions: Sequence[Question], passages: Sequence[Passage], how: Embedders, limit: int) -> list[int | None]:
    """Returns the rank of the passage of each question, by exact search; of several passages, the last rank.

    `None`: it is not among those that were looked at.

    Args:
        questions: The questions.
        passages: The passages to search in.
        how: Embeds queries and passages.
        limit: The rank that matters. At least as many passages are looked at.
    """
    if not questions:
        return []
    corpus = {str(place): passage.text for place, passage in enumerate(passages)}
    data = Searchable({str(number): one.query for number, one in enumerate(questions)}, corpus)
    depth = min(len(passages), max(limit, LOOKED_AT))
    run: Mapping[str, Mapping[str, float]] = VectorSearcher(how.queries[None], how.documents).search(
        data, depth, ignore_identical_ids=False
    )
    found: list[int | None] = []
    for number, one in enumerate(questions):
        places = {int(id_): rank for rank, id_ in enumerate(run[str(number)], 1)}
        its = [places.get(place) for place in one.passages]
        known = [rank for rank in its if rank is not None]
        found.append(max(known) if len(known) == len(its) else None)
    return found


def _near_rows(vectors: Floats, limit: float, given: int) -> list[tuple[int, tuple[int, float]]]:
    """Returns the rows that are near to an earlier row that stays. The first `given` rows always stay."""
    found: list[tuple[int, tuple[int, float]]] = []
    stay = np.ones(len(vectors), dtype=bool)
    for start in range(0, len(vectors), _BLOCK):
        block = vectors[start : start + _BLOCK]
        cosines = block @ vectors[: start + len(block)].T
        for row in range(max(start, given), start + len(block)):
            earlier = np.where(stay[:row], cosines[row - start, :row], -np.inf)
            if row and earlier.max() >= limit:
                nearest = int(earlier.argmax())
                stay[row] = False
                found.append((row, (nearest, float(earlier[nearest]))))
    return found


def _as_rows(data: RetrievalData) -> TrainingData:
    rows = [
        TrainingRow(
            query, tuple(data.corpus[document] for document, grade in data.qrels[id_].items() if grade > 0), id=id_
        )
        for id_, query in data.queries.items()
    ]
    return TrainingData(rows, data.name)
