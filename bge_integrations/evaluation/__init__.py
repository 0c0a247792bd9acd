"""Evaluation on one's own data: retrieval, pairs and classification, with intervals and comparisons."""

from __future__ import annotations

from bge_integrations.evaluation.cache import EvaluationCache
from bge_integrations.evaluation.chart import draw_chart
from bge_integrations.evaluation.classification import ClassificationReport, evaluate_classification
from bge_integrations.evaluation.comparison import Comparison, compare
from bge_integrations.evaluation.data import RetrievalData
from bge_integrations.evaluation.formats import load_retrieval_data
from bge_integrations.evaluation.pairs import PairsReport, evaluate_pairs
from bge_integrations.evaluation.report import RetrievalReport, load_reports, save_reports
from bge_integrations.evaluation.retrieval import evaluate_retrieval

__all__ = [
    "ClassificationReport",
    "Comparison",
    "EvaluationCache",
    "PairsReport",
    "RetrievalData",
    "RetrievalReport",
    "compare",
    "draw_chart",
    "evaluate_classification",
    "evaluate_pairs",
    "evaluate_retrieval",
    "load_reports",
    "load_retrieval_data",
    "save_reports",
]
