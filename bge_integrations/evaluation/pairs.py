"""Evaluates similarities of pairs of texts, by MTEB's protocol."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bge_integrations._optional import TORCH, require
from bge_integrations.backend.model.heads import unit_rows
from bge_integrations.calls.inputs import slices_of_pairs
from bge_integrations.errors import EvaluationDataError
from bge_integrations.evaluation.symmetric import embed

__all__ = ["PairsReport", "evaluate_pairs"]

# Equal texts can differ in the last bits of their cosine, by the batch that each was in; ties must stay ties.
_DIGITS = 6


@dataclass(frozen=True)
class PairsReport:
    """How well cosines agree with what people say.

    Attributes:
        pairs: The number of pairs.
        spearman: The rank correlation of cosines and scores, -1 to 1; the main score of STS.
        average_precision: The average precision of the cosine for labels 0 and 1; `None` for other scores.
    """

    pairs: int
    spearman: float
    average_precision: float | None


def evaluate_pairs(embedder: object, pairs: Sequence[tuple[str, str]], scores: Sequence[float]) -> PairsReport:
    """Compares cosines of pairs with scores or labels.

    Cosines are rounded to 6 digits, so that equal pairs of texts tie.

    Args:
        embedder: An encoder, embeddings of LangChain or LlamaIndex, or a function from texts to vectors.
        pairs: Pairs of texts.
        scores: How similar the texts of each pair are; labels 0 and 1 give the average precision too.

    Raises:
        EvaluationDataError: There are not as many scores as pairs, less than two pairs, or all scores are equal.
        InputTypeError: An element is no pair of texts.
        SettingsError: The embedder gives no vectors.
        MissingExtraError: SciPy or scikit-learn, which come with sentence-transformers, is not installed.
    """
    _, slices = slices_of_pairs(pairs, "evaluate_pairs", len(pairs) or 1)
    checked = [pair for part in slices for pair in part]
    gold = np.asarray(scores, dtype=np.float64)
    if gold.shape != (len(checked),):
        raise EvaluationDataError(f"There are {len(checked)} pairs, but {gold.size} scores; give one for each pair.")
    if not np.isfinite(gold).all():
        raise EvaluationDataError(f"scores[{int(np.argmin(np.isfinite(gold)))}] is no finite number.")
    if len(np.unique(gold)) < 2:
        raise EvaluationDataError("All scores are equal, so that no order can agree with them.")
    statistics = require("scipy.stats", extra=TORCH)
    texts = [text for pair in checked for text in pair]
    vectors = unit_rows(embed(embedder, texts))
    cosines = np.round(np.einsum("pd,pd->p", vectors[::2], vectors[1::2], dtype=np.float64), _DIGITS)
    precision = None
    if set(np.unique(gold)) == {0.0, 1.0}:
        precision = float(require("sklearn.metrics", extra=TORCH).average_precision_score(gold, cosines))
    return PairsReport(len(checked), float(statistics.spearmanr(cosines, gold).statistic), precision)
