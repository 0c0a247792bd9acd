"""Compares two searchers on the same queries."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, overload

from bge_integrations.errors import EvaluationDataError
from bge_integrations.evaluation.report import RetrievalReport
from bge_integrations.evaluation.statistics import (
    Interval,
    bootstrap_interval,
    detectable_difference,
    holm,
    randomization_p,
)

__all__ = ["Comparison", "compare"]

_OVERLAP_DEPTH = 10
_SIGNIFICANT = 0.05


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """How a candidate differs from a baseline, query by query.

    Attributes:
        baseline: The baseline's name.
        candidate: The candidate's name.
        metric: What is compared.
        before: The baseline's mean.
        after: The candidate's mean.
        interval: The 95 % bootstrap interval of the mean difference.
        p: The p value of a two-sided paired randomisation test, adjusted by Holm if several candidates were compared.
        wins: Queries where the candidate is better.
        losses: Queries where it is worse.
        ties: Queries where both are equal.
        detectable: The mean difference that so many queries would show in four of five cases.
        overlap: The mean part of the first 10 documents that both found.
        differences: The difference by query id, the worst first.
    """

    baseline: str
    candidate: str
    metric: str
    before: float
    after: float
    interval: Interval
    p: float
    wins: int
    losses: int
    ties: int
    detectable: float
    overlap: float
    differences: Mapping[str, float]

    @property
    def difference(self) -> float:
        """The candidate's mean less the baseline's."""
        return self.after - self.before

    @property
    def is_significant(self) -> bool:
        """Whether p is below 0.05."""
        return self.p < _SIGNIFICANT

    def worst(self, count: int = 10) -> list[tuple[str, float]]:
        """Returns the queries that lost most, worst first, with their differences; no query that won."""
        return [(query, value) for query, value in self.differences.items() if value < 0][:count]

    def in_words(self) -> str:
        """Says what the comparison found, in a few sentences."""
        verdict = "better" if self.difference > 0 else "worse" if self.difference < 0 else "equal"
        low, high = self.interval
        chance = "is hardly chance" if self.is_significant else "can be chance"
        if not self.wins and not self.losses:
            return f"{self.candidate} and {self.baseline} are equal on every query ({self.metric} {self.after:.4f})."
        return (
            f"{self.candidate} is {verdict} than {self.baseline} by {abs(self.difference):.4f} {self.metric} "
            f"({self.before:.4f} to {self.after:.4f}; 95 % interval {low:+.4f} to {high:+.4f}; queries won: "
            f"{self.wins}, lost: {self.losses}, equal: {self.ties}). That {chance} (p = {self.p:.2g}). "
            f"These queries can show a difference of about {self.detectable:.4f}."
        )

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data for JSON."""
        return {**asdict(self), "difference": self.difference, "is_significant": self.is_significant}


@overload
def compare(baseline: RetrievalReport, candidate: RetrievalReport, metric: str = "ndcg@10") -> Comparison: ...


@overload
def compare(
    baseline: RetrievalReport, candidate: Sequence[RetrievalReport], metric: str = "ndcg@10"
) -> list[Comparison]: ...


def compare(
    baseline: RetrievalReport,
    candidate: RetrievalReport | Sequence[RetrievalReport],
    metric: str = "ndcg@10",
) -> Comparison | list[Comparison]:
    """Compares one or several candidates with a baseline.

    Args:
        baseline: What was before.
        candidate: What comes after; several get p values adjusted by Holm.
        metric: What is compared.

    Returns:
        A comparison, or one for each candidate.

    Raises:
        EvaluationDataError: The reports are of different data.
        SettingsError: A report does not have the metric.
    """
    if isinstance(candidate, RetrievalReport):
        return _compare(baseline, candidate, metric)
    found = [_compare(baseline, one, metric) for one in candidate]
    adjusted = holm([one.p for one in found])
    return [replace(one, p=p) for one, p in zip(found, adjusted, strict=True)]


def _compare(baseline: RetrievalReport, candidate: RetrievalReport, metric: str) -> Comparison:
    if baseline.digest != candidate.digest:
        raise EvaluationDataError(
            f"{candidate.name} was evaluated on other data ({candidate.data}, digest {candidate.digest[:12]}) than "
            f"{baseline.name} ({baseline.data}, digest {baseline.digest[:12]}). Evaluate both on the same data."
        )
    before, after = (
        dict(zip(report.per_query.get(metric, ()), report.values(metric), strict=True))
        for report in (baseline, candidate)
    )
    differences = {query: after[query] - before[query] for query in before}
    values = list(differences.values())
    return Comparison(
        baseline=baseline.name,
        candidate=candidate.name,
        metric=metric,
        before=statistics.fmean(before.values()),
        after=statistics.fmean(after.values()),
        interval=bootstrap_interval(values),
        p=randomization_p(values),
        wins=sum(value > 0 for value in values),
        losses=sum(value < 0 for value in values),
        ties=sum(value == 0 for value in values),
        detectable=detectable_difference(values),
        overlap=statistics.fmean(
            _overlap(baseline.run.get(query, {}), candidate.run.get(query, {})) for query in before
        ),
        differences=dict(sorted(differences.items(), key=lambda item: item[1])),
    )


def _overlap(one: Mapping[str, float], other: Mapping[str, float]) -> float:
    first, second = (set(list(found)[:_OVERLAP_DEPTH]) for found in (one, other))
    return len(first & second) / max(len(first), len(second), 1)
