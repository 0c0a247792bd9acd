"""The passages that an embedding model finds for each query, for a reranker to order."""

from __future__ import annotations

import dataclasses

from bge_integrations.evaluation.cache import EvaluationCache
from bge_integrations.evaluation.data import RetrievalData
from bge_integrations.evaluation.report import RetrievalReport
from bge_integrations.evaluation.retrieval import evaluate_retrieval

__all__ = ["candidates_of", "with_candidates"]


def with_candidates(
    data: RetrievalData, searcher: object, count: int = 100, *, cache: EvaluationCache | None = None
) -> RetrievalData:
    """Returns the data with the documents that are found first for each query as its candidates.

    Args:
        data: Queries, corpus and grades.
        searcher: A `BgeEncoder` or another searcher, as for `evaluate_retrieval`.
        count: The number of documents for each query.
        cache: Keeps vectors for the next search; `None`: they are computed.

    Raises:
        SettingsError: `count` is below 1, or the searcher can't search.
    """
    return candidates_of(data, evaluate_retrieval(searcher, data, depth=count, cache=cache), count)


def candidates_of(data: RetrievalData, report: RetrievalReport, count: int) -> RetrievalData:
    """Returns the data with what was found first for each query, according to a report, as its candidates."""
    found = {query: list(report.run.get(query, {}))[:count] for query in data.queries}
    return dataclasses.replace(data, candidates=found)
