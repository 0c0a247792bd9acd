"""The best documents of every query by exact search: no index, no approximation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from bge_integrations.evaluation.metrics import ranked
from bge_integrations.evaluation.vectors import Floats

# Scores that are in memory at once, 256 MiB of them.
_SCORES_AT_ONCE = 1 << 26


class BestDocuments:
    """Keeps the best documents of each query while blocks of documents come in.

    Documents with equal texts share one vector, and so have equal scores to the last bit. The order is that of
    trec_eval: by score as float32, and by id descending where scores are equal.
    """

    def __init__(self, queries: Sequence[str], depth: int, *, ignore_identical_ids: bool) -> None:
        """Takes the queries.

        Args:
            queries: Their ids.
            depth: The number of documents to keep for each.
            ignore_identical_ids: Drop the document whose id is that of the query, before the cut.
        """
        self._queries = queries
        self._depth = depth
        self._ignores = ignore_identical_ids
        # One more, since a document can be dropped.
        self._kept = depth + ignore_identical_ids
        self._scores = np.empty((len(queries), 0), dtype=np.float32)
        self._places = np.empty((len(queries), 0), dtype=np.int64)

    def add(self, first: int, count: int, score: Callable[[slice], Floats]) -> None:
        """Looks at a block of documents.

        Args:
            first: The place of the first of them; equal scores are ordered by place.
            count: The number of documents.
            score: Returns the scores of some queries, shape [queries, documents]. -inf: not found.
        """
        step = max(1, _SCORES_AT_ONCE // max(count, 1))
        places = np.arange(first, first + count)
        rows = [slice(start, start + step) for start in range(0, len(self._queries), step)]
        parts = [self._best(some, score(some), places) for some in rows]
        self._scores, self._places = (np.concatenate(kind) for kind in zip(*parts, strict=True))

    def _best(self, rows: slice, scores: Floats, places: NDArray[np.int64]) -> tuple[Floats, NDArray[np.int64]]:
        before, known = self._scores[rows], self._places[rows]
        scores = np.concatenate([before, scores], axis=1)
        all_places = np.concatenate([known, np.broadcast_to(places, (len(scores), len(places)))], axis=1)
        keep = min(self._kept, scores.shape[1])
        chosen = np.stack([_first(row, place, keep) for row, place in zip(scores, all_places, strict=True)])
        return np.take_along_axis(scores, chosen, axis=1), np.take_along_axis(all_places, chosen, axis=1)

    def best_places(self) -> tuple[Floats, NDArray[np.int64]]:
        """Returns scores and places of the best documents, best first, both of shape [queries, documents].

        Equal scores are in the order of their places. A score of -inf: not found.
        """
        order = np.lexsort((self._places, -self._scores), axis=1)
        return np.take_along_axis(self._scores, order, axis=1), np.take_along_axis(self._places, order, axis=1)

    def found(self, documents: Sequence[Sequence[str]]) -> dict[str, dict[str, float]]:
        """Returns scores by document id, best first, for each query id.

        Args:
            documents: The ids of the documents at each place.
        """
        return {
            query: best_of(
                (
                    (id_, score)
                    for place, score in zip(places, scores, strict=True)
                    if score > -np.inf
                    for id_ in documents[place]
                ),
                query,
                self._depth,
                ignore_identical_ids=self._ignores,
            )
            for query, scores, places in zip(self._queries, self._scores, self._places, strict=True)
        }


def in_order_of_ids(corpus: Mapping[str, str]) -> tuple[list[str], list[list[str]]]:
    """Returns the different texts of a corpus, and the ids of the documents that have each.

    A text with a larger id comes first, so that of equal scores the first places are kept.
    """
    ids: dict[str, list[str]] = {}
    for document in sorted(corpus, reverse=True):
        ids.setdefault(corpus[document], []).append(document)
    return list(ids), list(ids.values())


def _first(scores: Floats, places: NDArray[np.int64], keep: int) -> NDArray[np.int64]:
    """Returns the indices of the largest scores; of equal ones at the edge, those with the smallest places."""
    if keep == len(scores):
        return np.arange(keep)
    edge = np.partition(scores, len(scores) - keep)[len(scores) - keep]
    above = np.flatnonzero(scores > edge)
    at_edge = np.flatnonzero(scores == edge)
    order = np.argsort(places[at_edge], kind="stable")
    return np.concatenate([above, at_edge[order[: keep - len(above)]]])


def best_of(
    scored: Iterable[tuple[str, float]], query: str, depth: int, *, ignore_identical_ids: bool
) -> dict[str, float]:
    """Returns the best of some scored documents, by the same order."""
    found = {
        document: float(np.float32(score))
        for document, score in scored
        if not (ignore_identical_ids and document == query)
    }
    return {document: found[document] for document in ranked(found, depth)}
