"""Scores of a reranker for the positives and negatives of training data."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from bge_integrations.calls.progress import Progress
from bge_integrations.errors import SettingsError
from bge_integrations.evaluation.cache import EvaluationCache
from bge_integrations.evaluation.held import held_by
from bge_integrations.evaluation.reranking import kept_scores
from bge_integrations.texts import kind_of
from bge_integrations.training.rows.data import TrainingData, TrainingRow

__all__ = ["doubted_negatives", "score_with_teacher"]


def score_with_teacher(
    data: TrainingData, reranker: object, *, cache: EvaluationCache | None = None, show_progress: bool = False
) -> TrainingData:
    """Returns the data with a reranker's scores for every positive and negative, for distillation.

    The scores are logits, of which training takes the softmax over a row. Each different pair of query and passage is
    scored once. Rows' prompts are instructions of embedders, so that the reranker does not read them. Scores that rows
    have are replaced.

    Args:
        data: The data.
        reranker: A `BgeReranker`, also inside an adapter of this package.
        cache: Keeps scores on disk while they are computed, so that an interrupted run can go on; `None`: nothing is
            kept.
        show_progress: Whether to show a progress bar.

    Raises:
        SettingsError: It is no reranker, it returns probabilities (`normalize=True`), or a score is not finite.
        BgeError: Scoring fails.
    """
    held: Any = held_by(reranker) or reranker
    if isinstance(held, type) or not hasattr(held, "score_pairs"):
        raise SettingsError(
            f"reranker={reranker!r} is {kind_of(reranker)}, which can't score pairs of texts. Give a BgeReranker."
        )
    if getattr(getattr(held, "settings", None), "normalize", False):
        raise SettingsError(
            "The reranker returns probabilities, but a teacher's scores must be logits. Make it with normalize=False."
        )
    score = held.score_pairs
    if cache is not None and hasattr(held, "cache_namespace"):
        score = kept_scores(score, held.cache_namespace(), cache)
    pairs = list(dict.fromkeys((row.query, text) for row in data.rows for text in (*row.pos, *row.neg)))
    with Progress(len(pairs), shown=show_progress, unit="pair", title="Scoring") as progress, progress.whole():
        scores = np.asarray(score(pairs), dtype=np.float32)
    if scores.shape != (len(pairs),) or not np.isfinite(scores).all():
        raise SettingsError(
            f"reranker={reranker!r} gave scores of shape {scores.shape} for {len(pairs)} pairs, or NaN or infinity; "
            "return a finite number for each pair."
        )
    by_pair = dict(zip(pairs, scores.tolist(), strict=True))

    def scored(row: TrainingRow) -> TrainingRow:
        positives, negatives = (tuple(by_pair[row.query, text] for text in texts) for texts in (row.pos, row.neg))
        return dataclasses.replace(row, pos_scores=positives, neg_scores=negatives)

    return dataclasses.replace(data, rows=[scored(row) for row in data.rows])


def doubted_negatives(row: TrainingRow, margin: float) -> frozenset[str]:
    """Returns the negatives of a row that a teacher takes for answers.

    Args:
        row: A row; without scores, none of its negatives is doubted.
        margin: A negative is doubted if its score is above that of the lowest positive less this.
    """
    if row.pos_scores is None or row.neg_scores is None:
        return frozenset()
    limit = min(row.pos_scores) - margin
    return frozenset(text for text, score in zip(row.neg, row.neg_scores, strict=True) if score > limit)
