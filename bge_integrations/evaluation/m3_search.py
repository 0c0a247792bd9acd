"""Exact search with the outputs of bge-m3: lexical weights, token vectors, and their mixture."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bge_integrations.calls.m3 import M3Output
from bge_integrations.evaluation.data import Searched
from bge_integrations.evaluation.ranking import BestDocuments, in_order_of_ids
from bge_integrations.evaluation.vectors import Floats
from bge_integrations.m3.scores import M3Weights, mixed_pairs

if TYPE_CHECKING:
    from bge_integrations.m3 import BgeM3Encoder

# Characters of documents whose token vectors are in memory at once: at most about this many tokens of 4 KiB.
_CHARACTERS = 1 << 17


Encode = Callable[[list[str]], M3Output]
"""Function from texts to the outputs of bge-m3 that a search needs."""


def encoders(encoder: BgeM3Encoder, weights: M3Weights) -> tuple[Encode, Encode]:
    """Returns functions that compute of queries and documents only what the weights need."""
    chosen = weights.wanted
    queries, documents = (
        partial(method, dense=chosen.dense, sparse=chosen.sparse, colbert=chosen.colbert)
        for method in (encoder.encode_queries, encoder.encode_documents)
    )
    return queries, documents


@dataclass(frozen=True)
class M3Searcher:
    """Scores every query with every document, by the weighted mean of the three scores.

    Token vectors of a whole corpus do not fit into memory, so documents come block by block and are forgotten. A search
    with token vectors takes long: for a large corpus, let `reranker=` score the best documents of another search.

    Attributes:
        queries: Encodes queries.
        documents: Encodes documents.
        weights: The weights of the scores. With lexical weights alone, a document without a token of the query is not
            found.
    """

    queries: Encode
    documents: Encode
    weights: M3Weights

    def search(self, data: Searched, depth: int, *, ignore_identical_ids: bool) -> dict[str, dict[str, float]]:
        """See `searchers.Searcher.search`."""
        (found,) = search_with_each(
            self.queries, self.documents, data, depth, [self.weights], ignore_identical_ids=ignore_identical_ids
        )
        return found


def search_with_each(
    queries: Encode,
    documents: Encode,
    data: Searched,
    depth: int,
    weights: Sequence[M3Weights],
    *,
    ignore_identical_ids: bool,
) -> list[dict[str, dict[str, float]]]:
    """Searches with several weights at once, so that each text is encoded once.

    Args:
        queries: Encodes queries, with all outputs that any of the weights needs.
        documents: Encodes documents, with the same outputs.
        data: Queries and corpus.
        depth: The number of documents to return for a query.
        weights: The weights of each search.
        ignore_identical_ids: As for `searchers.Searcher.search`.

    Returns:
        What each search has found.
    """
    asked = queries(list(data.queries.values()))
    texts, ids = in_order_of_ids(data.corpus)
    bests = [BestDocuments(list(data.queries), depth, ignore_identical_ids=ignore_identical_ids) for _ in weights]
    for first, part in _blocks(texts):
        found = documents(part)
        for best, shares in zip(bests, weights, strict=True):
            best.add(first, len(part), partial(_scores_of_rows, shares, asked, found))
    return [best.found(ids) for best in bests]


def _scores_of_rows(weights: M3Weights, asked: M3Output, found: M3Output, rows: slice) -> Floats:
    """Returns the scores of some queries with all documents of a block."""
    chosen = _rows(asked, rows)
    total = np.zeros((_count(chosen), _count(found)))
    if weights.dense and chosen.dense is not None and found.dense is not None:
        total += weights.dense * (chosen.dense @ found.dense.T)
    if weights.sparse and chosen.sparse is not None and found.sparse is not None:
        total += weights.sparse * _lexical_scores(chosen.sparse, found.sparse)
    if weights.colbert and chosen.colbert is not None and found.colbert is not None:
        total += weights.colbert * _token_scores(chosen.colbert, found.colbert)
    scores: Floats = (total / (weights.dense + weights.sparse + weights.colbert)).astype(np.float32)
    if not weights.dense and not weights.colbert:
        scores[scores <= 0] = -np.inf
    return scores


def score_pairs(
    queries: Encode, documents: Encode, pairs: Sequence[tuple[str, str]], weights: M3Weights
) -> NDArray[np.float32]:
    """Scores pairs of query and document. Each different text is encoded once, documents block by block.

    Returns:
        float32, shape [pairs].
    """
    row_of = {query: row for row, query in enumerate(dict.fromkeys(query for query, _ in pairs))}
    asked = queries(list(row_of)) if row_of else M3Output()
    places: dict[str, list[int]] = {}
    for place, (_, document) in enumerate(pairs):
        places.setdefault(document, []).append(place)
    scores = np.empty(len(pairs), dtype=np.float32)
    for _, part in _blocks(list(places)):
        found = documents(part)
        owners = [(place, row) for row, document in enumerate(part) for place in places[document]]
        chosen = [place for place, _ in owners]
        ours = _rows(asked, [row_of[pairs[place][0]] for place in chosen])
        scores[chosen] = mixed_pairs(weights, ours, _rows(found, [row for _, row in owners]))
    return scores


def _count(output: M3Output) -> int:
    return next(len(part) for part in (output.dense, output.sparse, output.colbert) if part is not None)


def _blocks(texts: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    first, part, characters = 0, list[str](), 0
    for place, text in enumerate(texts):
        if part and characters + len(text) > _CHARACTERS:
            yield first, part
            first, part, characters = place, [], 0
        part.append(text)
        characters += len(text)
    if part:
        yield first, part


def _rows(output: M3Output, rows: slice | Sequence[int]) -> M3Output:
    chosen = list(range(_count(output))[rows]) if isinstance(rows, slice) else list(rows)
    return M3Output(
        None if output.dense is None else output.dense[chosen],
        None if output.sparse is None else [output.sparse[row] for row in chosen],
        None if output.colbert is None else [output.colbert[row] for row in chosen],
    )


def _lexical_scores(
    queries: Sequence[Mapping[int, float]], documents: Sequence[Mapping[int, float]]
) -> NDArray[np.float64]:
    """Returns `m3.scores.lexical_score` of all queries with all documents, shape [queries, documents]."""
    lengths = [len(document) for document in documents]
    owners = np.repeat(np.arange(len(documents)), lengths)
    tokens = np.array([token for document in documents for token in document], dtype=np.int64)
    values = np.array([value for document in documents for value in document.values()], dtype=np.float64)
    table = np.zeros(1 + max([int(tokens.max(initial=0)), *(token for query in queries for token in query)]))
    scores = np.empty((len(queries), len(documents)))
    for row, query in enumerate(queries):
        table[list(query)] = list(query.values())
        scores[row] = np.bincount(owners, weights=table[tokens] * values, minlength=len(documents))
        table[list(query)] = 0
    return scores


def _token_scores(queries: Sequence[Floats], documents: Sequence[Floats]) -> NDArray[np.float64]:
    """Returns `m3.scores.colbert_score` of all queries with all documents, shape [queries, documents]."""
    vectors = np.concatenate(list(documents))
    lengths = np.array([len(document) for document in documents])
    starts = np.cumsum(lengths) - lengths
    scores = np.empty((len(queries), len(documents)))
    for row, query in enumerate(queries):
        scores[row] = np.maximum.reduceat(query @ vectors.T, starts, axis=1).mean(axis=0)
    return scores
