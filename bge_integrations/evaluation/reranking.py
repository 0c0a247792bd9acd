"""Orders found documents again by a reranker's scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from bge_integrations.calls.progress import Progress
from bge_integrations.errors import SettingsError
from bge_integrations.evaluation import m3_search
from bge_integrations.evaluation.cache import EvaluationCache
from bge_integrations.evaluation.data import RetrievalData
from bge_integrations.evaluation.held import held_by
from bge_integrations.evaluation.ranking import best_of
from bge_integrations.m3.scores import M3Weights
from bge_integrations.texts import kind_of

__all__ = ["kept_scores", "reranked"]

Pair = tuple[str, str]
ScorePairs = Callable[[list[Pair]], Sequence[float]]


def reranked(
    run: Mapping[str, Mapping[str, float]],
    data: RetrievalData,
    reranker: object,
    depth: int,
    *,
    cache: EvaluationCache | None = None,
    show_progress: bool = False,
) -> dict[str, dict[str, float]]:
    """Orders the first documents of every query by the reranker's scores. The others stay behind them.

    Args:
        run: By query id the scores of the documents found, best first.
        data: Queries and corpus.
        reranker: See `evaluate_retrieval`.
        depth: The number of documents to score.
        cache: Keeps the scores of a `BgeReranker`; `None`: nothing is kept.
        show_progress: Whether to show a progress bar.

    Raises:
        SettingsError: It is no reranker, or does not return a finite score for each text.
    """
    score = _score_pairs(reranker, cache)
    chosen = {query: list(found)[:depth] for query, found in run.items()}
    pairs = {
        (data.queries[query], data.corpus[document]): None
        for query, documents in chosen.items()
        for document in documents
    }
    with Progress(len(pairs), shown=show_progress, unit="pair", title="Reranking") as progress, progress.whole():
        scores = np.asarray(score(list(pairs)), dtype=np.float32)
    if scores.shape != (len(pairs),) or not np.isfinite(scores).all():
        raise SettingsError(
            f"reranker={reranker!r} gave scores of shape {scores.shape} for {len(pairs)} pairs, or NaN or infinity; "
            "return a finite number for each text."
        )
    by_pair = dict(zip(pairs, scores.tolist(), strict=True))
    ordered: dict[str, dict[str, float]] = {}
    for query, documents in chosen.items():
        scored = ((document, by_pair[data.queries[query], data.corpus[document]]) for document in documents)
        first = best_of(scored, query, depth, ignore_identical_ids=False)
        least = min(first.values(), default=0.0)
        rest = list(run[query])[depth:]
        ordered[query] = {**first, **{document: least - 1 - place for place, document in enumerate(rest)}}
    return ordered


def _score_pairs(reranker: object, cache: EvaluationCache | None) -> ScorePairs:
    held: Any = held_by(reranker)
    if hasattr(held, "dense_encoder"):  # bge-m3, or an adapter with weights of its own
        weights = M3Weights.read(getattr(reranker, "weights", None))
        return lambda pairs: m3_search.score_pairs(*m3_search.encoders(held, weights), pairs, weights).tolist()
    if hasattr(held, "score_pairs"):
        return held.score_pairs if cache is None else kept_scores(held.score_pairs, held.cache_namespace(), cache)
    if isinstance(reranker, type) or not callable(reranker):
        raise SettingsError(
            f"reranker={reranker!r} is {kind_of(reranker)}, which can't score texts. Give a BgeReranker, a "
            "BgeM3Encoder, or a function that takes a query and a list of texts and returns their scores."
        )
    return lambda pairs: _query_by_query(reranker, pairs)


def kept_scores(score: ScorePairs, namespace: str, cache: EvaluationCache) -> ScorePairs:
    """Returns a function that scores only pairs without a kept score.

    Args:
        score: Function from pairs, no pair twice, to their scores.
        namespace: As for `EvaluationCache.vectors`.
        cache: The cache.
    """

    def kept(pairs: list[Pair]) -> list[float]:
        # A blank line before the passage can't be mistaken: the length of the query is part of the key.
        by_key = {f"{len(query)} {query} {passage}": (query, passage) for query, passage in pairs}

        def compute(keys: list[str]) -> list[bytes]:
            return [np.float32(found).tobytes() for found in score([by_key[key] for key in keys])]

        return [float(np.frombuffer(row, "<f4")[0]) for row in cache.results(namespace, list(by_key), compute)]

    return kept


def _query_by_query(score: Callable[[str, list[str]], Any], pairs: Sequence[Pair]) -> list[float]:
    by_query: dict[str, list[str]] = {}
    for query, passage in pairs:
        by_query.setdefault(query, []).append(passage)
    scores: dict[Pair, float] = {}
    for query, passages in by_query.items():
        found = [float(value) for value in score(query, passages)]
        if len(found) != len(passages):
            raise SettingsError(f"The reranker gave {len(found)} scores for {len(passages)} texts; give one for each.")
        scores.update(zip(((query, passage) for passage in passages), found, strict=True))
    return [scores[pair] for pair in pairs]
