"""Measures of a ranking, with the semantics of trec_eval.

- A score is a float32. Documents of equal score are ordered by their ids, descending, compared as texts.
- A grade of 1 or more is relevant. nDCG gains the grade itself, and its ideal ranking is that of all judged documents.
- Recall and MAP divide by all relevant documents, also where a cut leaves room for fewer.

`trec_eval` leaves a query out of the mean if the run has no document for it; here such a query counts as 0.

Sources: https://github.com/usnistgov/trec_eval (`m_ndcg_cut.c`, `m_map_cut.c`, `m_recall.c`, `m_recip_rank.c`). The
discount log2(rank + 1) is from Burges et al. 2005, https://doi.org/10.1145/1102351.1102363.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bge_integrations.errors import SettingsError

__all__ = ["DEFAULT_METRICS", "Metric", "parse_metric", "ranked"]

DEFAULT_METRICS = (
    *("ndcg@1", "ndcg@3", "ndcg@5", "ndcg@10", "ndcg@100"),
    *("recall@1", "recall@3", "recall@5", "recall@10", "recall@100"),
    *("mrr@10", "map@100", "hit@1", "hit@3", "hit@5", "hit@10"),
)
"""What is computed unless other metrics are named."""

Measure = Callable[[Sequence[int], Sequence[int]], float]
"""Takes the grades of the ranked documents, best first and cut at k, and all positive grades of the query."""


@dataclass(frozen=True)
class Metric:
    """A measure of rankings, cut at a depth."""

    name: str
    depth: int
    measure: Measure

    def of(self, ranking: Sequence[str], judged: Mapping[str, int]) -> float:
        """Measures the ranking of one query.

        Args:
            ranking: Document ids, best first, no id twice.
            judged: Grades by document id.

        Returns:
            A number from 0 to 1.
        """
        grades = [max(judged.get(document, 0), 0) for document in ranking[: self.depth]]
        return self.measure(grades, [grade for grade in judged.values() if grade > 0])


def ranked(scores: Mapping[str, float], depth: int | None = None) -> list[str]:
    """Returns document ids, best first: by score as float32, and by id descending where scores are equal.

    Args:
        scores: Scores by document id.
        depth: The number of documents to return; `None`: all.
    """
    ordered = sorted(((float(np.float32(score)), document) for document, score in scores.items()), reverse=True)
    return [document for _, document in ordered[:depth]]


def parse_metric(name: str) -> Metric:
    """Returns a metric by its name: `ndcg`, `recall`, `precision`, `mrr`, `map` or `hit`, each with `@k`.

    Raises:
        SettingsError: There is no such metric.
    """
    match = re.fullmatch(r"([a-z]+)@([1-9]\d*)", name)
    if match is None or match[1] not in _MEASURES:
        raise SettingsError(
            f"metric={name!r} is unknown; write one of {', '.join(_MEASURES)} with a cut, such as 'ndcg@10'."
        )
    depth = int(match[2])
    measure = _MEASURES[match[1]]
    return Metric(name, depth, lambda grades, relevant: measure(grades, relevant, depth))


def _gain(grades: Sequence[int]) -> float:
    return math.fsum(grade / math.log2(rank + 1) for rank, grade in enumerate(grades, start=1))


def _ndcg(grades: Sequence[int], relevant: Sequence[int], depth: int) -> float:
    best = _gain(sorted(relevant, reverse=True)[:depth])
    return _gain(grades) / best if best else 0.0


def _recall(grades: Sequence[int], relevant: Sequence[int], _: int) -> float:
    return sum(grade > 0 for grade in grades) / len(relevant) if relevant else 0.0


def _precision(grades: Sequence[int], _: Sequence[int], depth: int) -> float:
    return sum(grade > 0 for grade in grades) / depth


def _reciprocal_rank(grades: Sequence[int], _: Sequence[int], __: int) -> float:
    return next((1 / rank for rank, grade in enumerate(grades, start=1) if grade > 0), 0.0)


def _average_precision(grades: Sequence[int], relevant: Sequence[int], _: int) -> float:
    ranks = [rank for rank, grade in enumerate(grades, start=1) if grade > 0]
    return math.fsum(found / rank for found, rank in enumerate(ranks, start=1)) / len(relevant) if relevant else 0.0


def _hit(grades: Sequence[int], _: Sequence[int], __: int) -> float:
    return float(any(grade > 0 for grade in grades))


_MEASURES: Mapping[str, Callable[[Sequence[int], Sequence[int], int], float]] = {
    "ndcg": _ndcg,
    "recall": _recall,
    "precision": _precision,
    "mrr": _reciprocal_rank,
    "map": _average_precision,
    "hit": _hit,
}
