"""The searches that `retrieval` compares: by words, weights or vectors, fused, and any of them with a reranker."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from benchmarks.fusion import reciprocal_rank_fusion

if TYPE_CHECKING:
    from bge_integrations import BgeEncoder, BgeM3Encoder

__all__ = [
    "Rerank",
    "Search",
    "by_lexical_weights",
    "by_vectors",
    "by_words",
    "fused",
    "make_searches",
    "reranked",
    "token_vectors",
]

Search = Callable[[str], list[int]]
"""Takes a query, returns positions of passages, best first, none twice."""

Rerank = Callable[[str, list[str]], ArrayLike]
"""Takes a query and passages, returns a score for each, the higher the better."""


def make_searches(
    passages: Sequence[str],
    encoder: BgeEncoder,
    *,
    depth: int,
    rerank: Rerank | None = None,
    m3: BgeM3Encoder | None = None,
) -> dict[str, Search]:
    """Indexes the passages for every search.

    Args:
        passages: What is searched.
        encoder: Embeds passages and queries.
        depth: Passages that a search returns at most; so many are fused, and reranked.
        rerank: Scores what each search found, in searches of its own; None for none of these.
        m3: Gives lexical weights, for two more searches; None for none of these.

    Returns:
        Searches by name: "BM25", "dense", "hybrid" of both, with `m3` "lexical" and "lexical + dense", and all of these
        with " + reranker" if there is one.
    """
    words, vectors = by_words(passages, depth), by_vectors(passages, encoder, depth)
    searches = {"BM25": words, "dense": vectors, "hybrid": fused([words, vectors], depth)}
    if m3 is not None:
        searches["lexical"] = by_lexical_weights(passages, m3, depth)
        searches["lexical + dense"] = fused([searches["lexical"], vectors], depth)
    if rerank is not None:
        searches |= {f"{name} + reranker": reranked(search, passages, rerank) for name, search in searches.items()}
    return searches


def by_words(passages: Sequence[str], depth: int) -> Search:
    """BM25 as bm25s has it: Lucene's variant with k1 = 1.5 and b = 0.75, English stop words, no stemming.

    Passages that share no word with the query are not returned, so there may be fewer than `depth`, or none. On the
    labelled questions a stemmer raises nDCG@10 by 0.006, more stop words raise it by 0.003, and both together, with
    names split at their underscores, by 0.013: not worth a dependency.
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


def by_lexical_weights(passages: Sequence[str], m3: BgeM3Encoder, depth: int) -> Search:
    """The greatest sums of products of lexical weights; passages that share no token are not returned."""
    postings: dict[int, list[tuple[int, float]]] = {}
    for position, weights in enumerate(m3.encode_documents(passages, dense=False, colbert=False).sparse or []):
        for token, weight in weights.items():
            postings.setdefault(token, []).append((position, weight))

    def search(query: str) -> list[int]:
        scores = np.zeros(len(passages))
        for weights in m3.encode_queries([query], dense=False, colbert=False).sparse or []:
            for token, weight in weights.items():
                for position, other in postings.get(token, ()):
                    scores[position] += weight * other
        return [position for position in _best(scores, depth) if scores[position] > 0]

    return search


def token_vectors(passages: Sequence[str], m3: BgeM3Encoder) -> Rerank:
    """Reranks by token vectors, those of the passages computed once, as a store of them would keep them."""
    from bge_integrations.m3 import colbert_score

    of_passages = m3.encode_documents(passages, dense=False, sparse=False).colbert or []
    by_text = dict(zip(passages, of_passages, strict=True))

    def rerank(query: str, found: list[str]) -> list[float]:
        (of_query,) = m3.encode_queries([query], dense=False, sparse=False).colbert or []
        return [colbert_score(of_query, by_text[text]) for text in found]

    return rerank


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
