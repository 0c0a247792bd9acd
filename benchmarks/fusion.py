"""One ranking out of several."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import TypeVar

__all__ = ["RRF_K", "reciprocal_rank_fusion"]

Item = TypeVar("Item", bound=Hashable)

RRF_K = 60
"""What Cormack, Clarke and Büttcher chose; the larger, the less the first ranks stand out."""


def reciprocal_rank_fusion(rankings: Sequence[Sequence[Item]], k: float = RRF_K) -> list[tuple[Item, float]]:
    """Fuses rankings by rank alone, so that scores of different searches need not be comparable.

    An item's score is the sum of 1 / (k + rank) over the rankings that have it, ranks counted from 1. By Cormack,
    Clarke and Büttcher, "Reciprocal rank fusion outperforms Condorcet and individual rank learning methods", 2009,
    doi 10.1145/1571941.1572114.

    Args:
        rankings: Each best first, nothing twice in one of them; of any lengths.
        k: Not negative.

    Returns:
        Every item with its score, best first. Of equal ones, that comes first which an earlier ranking has, and within
        a ranking that with the better rank.

    Raises:
        ValueError: If `k` is negative.
    """
    if k < 0:
        raise ValueError(f"k={k} is negative")
    parts: dict[Item, list[float]] = {}
    for ranking in rankings:
        for rank, item in enumerate(ranking, start=1):
            parts.setdefault(item, []).append(1 / (k + rank))
    # Rounded once, so that equal ranks give equal scores whichever rankings they are in; the sort is stable.
    scores = {item: math.fsum(values) for item, values in parts.items()}
    return sorted(scores.items(), key=lambda scored: -scored[1])
