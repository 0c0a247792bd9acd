"""The searches that `retrieval` compares: by words, by vectors, by both, and any of them with a reranker after it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from benchmarks.fusion import reciprocal_rank_fusion

if TYPE_CHECKING:
    from bge_integrations import BgeEncoder

__all__ = ["Rerank", "Search", "by_vectors", "by_words", "fused", "make_searches", "reranked"]

Search = Callable[[str], list[int]]
"""Takes a query, returns positions of passages, best first, none twice."""

Rerank = Callable[[str, list[str]], ArrayLike]
"""Takes a query and passages, returns a score for each, the higher the better."""


def make_searches(
    passages: Sequence[str], encoder: BgeEncoder, *, depth: int, rerank: Rerank | None = None
) -> dict[str, Search]:
    """Indexes the passages for every search.

    Args:
        passages: What is searched.
        encoder: Embeds passages and queries.
        depth: Passages that a search returns at most; so many are fused, and reranked.
        rerank: Scores what each search found, in searches of its own; None for none of these.

    Returns:
        Searches by name: "BM25", "dense", "hybrid", and these with " + reranker" if there is one.
    """
    words, vectors = by_words(passages, depth), by_vectors(passages, encoder, depth)
    searches = {"BM25": words, "dense": vectors, "hybrid": fused([words, vectors], depth)}
    if rerank is not None:
        searches |= {f"{name} + reranker": reranked(search, passages, rerank) for name, search in searches.items()}
    return searches


def by_words(passages: Sequence[str], depth: int) -> Search:
    """BM25 as bm25s has it: Lucene's variant with k1 = 1.5 and b = 0.75, English stop words, no stemming.

    Passages that share no word with the query are not returned, so there may be fewer than `depth`, or none. On the
    questions of `bge_integrations.demo` a stemmer raises nDCG@10 by 0.006, more stop words raise it by 0.003, and both
    together, with names split at their underscores, by 0.013: not worth a dependency.
    """
    import bm25s

    index = bm25s.BM25()
    index.index(_tokens(list(passages)), show_progress=False)

    def search(query: str) -> list[int]:
        [tokens] = _tokens([query])
        scores = index.get_scores_from_ids(index.get_tokens_ids(tokens))
        return [position for position in _best(scores, depth) if scores[position] > 0]

    return search


def by_vectors(passages: Sequence[str], encoder: BgeEncoder, depth: int) -> Search:
    """The nearest vectors by their dot product, which is the cosine for a model that normalises; all are compared."""
    vectors = encoder.encode_documents(passages)

    def search(query: str) -> list[int]:
        [vector] = encoder.encode_queries([query])
        return _best(vectors @ vector, depth)

    return search


def fused(searches: Sequence[Search], depth: int) -> Search:
    """Runs several searches one after another and fuses their rankings (see `reciprocal_rank_fusion`)."""

    def search(query: str) -> list[int]:
        ranked = reciprocal_rank_fusion([one(query) for one in searches])
        return [position for position, _ in ranked[:depth]]

    return search


def reranked(search: Search, passages: Sequence[str], rerank: Rerank) -> Search:
    """Orders everything that a search found by the reranker's scores; of equal ones the search's order stays."""

    def search_and_rerank(query: str) -> list[int]:
        found = search(query)
        if not found:
            return []
        scores = np.asarray(rerank(query, [passages[position] for position in found]))
        return [found[place] for place in _best(scores, len(found))]

    return search_and_rerank


def _best(scores: NDArray[Any], count: int) -> list[int]:
    """Positions of the highest scores, highest first; of equal ones the first comes first."""
    best: list[int] = np.argsort(-scores, kind="stable")[:count].tolist()
    return best


def _tokens(texts: list[str]) -> list[list[str]]:
    import bm25s

    tokens: list[list[str]] = bm25s.tokenize(texts, return_ids=False, show_progress=False)
    return tokens
