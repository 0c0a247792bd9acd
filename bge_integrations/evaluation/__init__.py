"""Evaluation on one's own data: retrieval, pairs and classification, with intervals and comparisons."""

from __future__ import annotations

from bge_integrations.evaluation.classification import ClassificationReport, evaluate_classification
from bge_integrations.evaluation.comparison import Comparison, compare
from bge_integrations.evaluation.data import RetrievalData
from bge_integrations.evaluation.formats import load_retrieval_data
from bge_integrations.evaluation.pairs import PairsReport, evaluate_pairs
from bge_integrations.evaluation.report import RetrievalReport
from bge_integrations.evaluation.retrieval import evaluate_retrieval

__all__ = [
    "ClassificationReport",
    "Comparison",
    "PairsReport",
    "RetrievalData",
    "RetrievalReport",
    "compare",
    "evaluate_classification",
    "evaluate_pairs",
    "evaluate_retrieval",
    "load_retrieval_data",
]
