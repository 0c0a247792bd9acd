"""Chooses the combinations to recommend."""

from __future__ import annotations

from collections.abc import Sequence

from bge_integrations.cli.bench.results import Measured, Recommendation

__all__ = ["recommend"]


def recommend(measured: Sequence[Measured]) -> tuple[Recommendation | None, Recommendation | None]:
    """Returns the fastest exact combination, and the fastest lossy one if it is faster than that."""
    ranked = sorted(measured, key=lambda one: -one.documents_per_s)
    exact = [one for one in ranked if one.combination.is_exact]
    lossy = [one for one in ranked if not one.combination.is_exact]
    if exact and lossy and lossy[0].documents_per_s <= exact[0].documents_per_s:
        lossy = []
    return (
        _fastest(exact[0], exact[1:]) if exact else None,
        _fastest(lossy[0], [*lossy[1:], *exact]) if lossy else None,
    )


def _fastest(best: Measured, others: Sequence[Measured]) -> Recommendation:
    doubtful = tuple(other.combination for other in others if not best.is_surely_faster_than(other))
    return Recommendation(combination=best.combination, keywords=best.combination.keywords, uncertain_against=doubtful)
