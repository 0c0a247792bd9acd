"""How good a ranking is, and how sure a difference between two searches is.

All measures take the ranking of one query, best first, and the set of what is relevant, each relevant item being worth
the same. What a search did not return counts as not found, so a ranking may be shorter than `k`.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from collections.abc import Set as AbstractSet

import numpy as np

__all__ = ["bootstrap_interval", "hit_at", "ndcg_at", "recall_at", "reciprocal_rank_at"]


def ndcg_at(ranking: Sequence[Hashable], relevant: AbstractSet[Hashable], k: int = 10) -> float:
    """Normalized discounted cumulative gain: the gain of the first `k`, over the gain of the best ranking there is.

    A relevant item at rank i, counted from 1, gains 1 / log2(i + 1). Normalized cumulated gain is by Järvelin and
    Kekäläinen, "Cumulated gain-based evaluation of IR techniques", 2002, doi 10.1145/582415.582418. Their discount,
    log2(i), leaves the first two ranks alike; the one here, by Burges et al., "Learning to rank using gradient
    descent", 2005, doi 10.1145/1102351.1102363, is that of trec_eval and of published results today.

    Args:
        ranking: What was found, best first, nothing twice.
        relevant: What should be found.
        k: How many of the ranking count.

    Returns:
        0 to 1.

    Raises:
        ValueError: If nothing is relevant, or `k` is below 1.
    """
    _check(relevant, k)
    gain = math.fsum(1 / math.log2(rank + 1) for rank in _ranks(ranking, relevant, k))
    best = math.fsum(1 / math.log2(rank + 1) for rank in range(1, min(k, len(relevant)) + 1))
    return gain / best


def recall_at(ranking: Sequence[Hashable], relevant: AbstractSet[Hashable], k: int = 10) -> float:
    """Part of what is relevant that is among the first `k`; below 1 at best where more than `k` items are relevant.

    Raises:
        ValueError: If nothing is relevant, or `k` is below 1.
    """
    _check(relevant, k)
    return len(_ranks(ranking, relevant, k)) / len(relevant)


def reciprocal_rank_at(ranking: Sequence[Hashable], relevant: AbstractSet[Hashable], k: int = 10) -> float:
    """1 over the rank of the first relevant item, 0 if none is among the first `k`; its mean over queries is MRR@k.

    By Voorhees, "The TREC-8 question answering track report", 1999.

    Raises:
        ValueError: If nothing is relevant, or `k` is below 1.
    """
    _check(relevant, k)
    return 1 / min(_ranks(ranking, relevant, k), default=math.inf)


def hit_at(ranking: Sequence[Hashable], relevant: AbstractSet[Hashable], k: int = 1) -> float:
    """1 if anything relevant is among the first `k`, else 0.

    Raises:
        ValueError: If nothing is relevant, or `k` is below 1.
    """
    _check(relevant, k)
    return float(bool(_ranks(ranking, relevant, k)))


def bootstrap_interval(
    differences: Sequence[float], *, percent: float = 95, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Interval of the mean of paired differences, by the percentiles of its bootstrap distribution.

    Queries are drawn with replacement, each with the scores of both searches; by Efron and Tibshirani, "An
    Introduction to the Bootstrap", 1993, chapter 13. An interval that contains 0 means that other queries of the same
    kind might well have turned the order around.

    Args:
        differences: One search's score minus the other's, query by query.
        percent: How much of the distribution lies within.
        resamples: How often is drawn.
        seed: Of the draws, so that a run can be repeated.

    Returns:
        Its lower and its upper end.

    Raises:
        ValueError: If there is no difference.
    """
    if not differences:
        raise ValueError("an interval needs at least one difference")
    values = np.asarray(differences, dtype=np.float64)
    drawn = np.random.default_rng(seed).integers(len(values), size=(resamples, len(values)))
    tail = (100 - percent) / 2
    low, high = np.percentile(values[drawn].mean(axis=1), (tail, 100 - tail))
    return float(low), float(high)


def _ranks(ranking: Sequence[Hashable], relevant: AbstractSet[Hashable], k: int) -> list[int]:
    """Ranks, counted from 1, of the relevant ones among the first `k`."""
    return [rank for rank, item in enumerate(ranking[:k], start=1) if item in relevant]


def _check(relevant: AbstractSet[Hashable], k: int) -> None:
    if not relevant:
        raise ValueError("a ranking can't be judged where nothing is relevant")
    if k < 1:
        raise ValueError(f"k={k} leaves no ranks; give at least 1")
