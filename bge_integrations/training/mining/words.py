"""Search by words (BM25), as a second source of negatives."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from bge_integrations._optional import require_package
from bge_integrations.training.mining.exclusions import normalised

__all__ = ["require_words", "search_words", "terms"]

# Chinese, Japanese and Korean characters, which are written without blanks.
_IDEOGRAPHS = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003134f"
_PIECE = re.compile(rf"[{_IDEOGRAPHS}]+|[^\W{_IDEOGRAPHS}]+")
_FIRST_IDEOGRAPH = 0x3040


def require_words() -> None:
    """Checks that BM25 can be computed.

    Raises:
        MissingExtraError: bm25s is not installed.
    """
    require_package("bm25s", "bm25s")


def terms(text: str) -> list[str]:
    """Returns the words of a text in lower case. Chinese, Japanese and Korean are cut into pairs of characters."""
    found: list[str] = []
    for piece in _PIECE.findall(normalised(text)):
        if ord(piece[0]) < _FIRST_IDEOGRAPH or len(piece) == 1:
            found.append(piece)
        else:
            found.extend(piece[place : place + 2] for place in range(len(piece) - 1))
    return found


def search_words(queries: Mapping[str, Collection[int]], texts: Sequence[str], depth: int) -> dict[str, list[int]]:
    """Returns the places of the best texts by BM25 for each query, best first. All share a word with the query.

    The variant is that of bm25s: Lucene's, with k1 = 1.5 and b = 0.75. Equal scores are in the order of their places.

    Args:
        queries: For each query, the places that must not be found.
        texts: The texts.
        depth: The number of texts to find for a query.

    Raises:
        MissingExtraError: bm25s is not installed.
    """
    require_words()
    import bm25s

    tokens = [terms(text) for text in texts]
    if not any(tokens):
        return {query: [] for query in queries}
    index = bm25s.BM25()
    index.index(tokens, show_progress=False)
    found = {}
    for query, excluded in queries.items():
        ids = index.get_tokens_ids(terms(query))
        scores = np.array(index.get_scores_from_ids(ids) if ids else np.zeros(len(texts)))
        scores[[place for place in excluded if place < len(texts)]] = 0
        shared = np.flatnonzero(scores > 0)
        if len(shared) > depth:
            edge = np.partition(scores[shared], len(shared) - depth)[len(shared) - depth]
            shared = shared[scores[shared] >= edge]
        order = np.argsort(-scores[shared], kind="stable")[:depth]
        found[query] = shared[order].tolist()
    return found
