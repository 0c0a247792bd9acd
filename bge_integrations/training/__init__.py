"""Fine-tuning: rows of a query, positives and negatives, their formats and splits, and training on them.

A model can also be trained towards the vectors of another one, and be averaged with others. Questions to train on can
be made from documents by a chat model.
"""

from __future__ import annotations

from bge_integrations.training.distilling import distil_embedder
from bge_integrations.training.embedder import train_embedder
from bge_integrations.training.m3.unified import train_m3
from bge_integrations.training.merging import MergeResult, best_merge, merge_models
from bge_integrations.training.mining.chart import draw_mining_chart
from bge_integrations.training.mining.negatives import Mined, mine_hard_negatives
from bge_integrations.training.mining.report import MiningReport
from bge_integrations.training.queries import (
    Estimate,
    MadeQueries,
    QueryPlan,
    QueryReport,
    QuerySettings,
    QuestionKind,
    amake_queries,
    make_queries,
)
from bge_integrations.training.reranker import train_reranker
from bge_integrations.training.reranking.candidates import with_candidates
from bge_integrations.training.retromae.pretraining import pretrain_retromae
from bge_integrations.training.rows.data import Split, TrainingData, TrainingRow
from bge_integrations.training.rows.formats import load_training_data
from bge_integrations.training.rows.overlaps import Leakage, Overlap, leakage
from bge_integrations.training.rows.sampling import Drawn, draw
from bge_integrations.training.rows.teacher import score_with_teacher
from bge_integrations.training.settings import (
    DistillationTraining,
    EmbedderTraining,
    Lora,
    M3Training,
    RerankerTraining,
    RetroMaeTraining,
)
from bge_integrations.training.trainer.run import RunOptions
from bge_integrations.training.trainer.work import TrainingResult

__all__ = [
    "DistillationTraining",
    "Drawn",
    "EmbedderTraining",
    "Estimate",
    "Leakage",
    "Lora",
    "M3Training",
    "MadeQueries",
    "MergeResult",
    "Mined",
    "MiningReport",
    "Overlap",
    "QueryPlan",
    "QueryReport",
    "QuerySettings",
    "QuestionKind",
    "RerankerTraining",
    "RetroMaeTraining",
    "RunOptions",
    "Split",
    "TrainingData",
    "TrainingResult",
    "TrainingRow",
    "amake_queries",
    "best_merge",
    "distil_embedder",
    "draw",
    "draw_mining_chart",
    "leakage",
    "load_training_data",
    "make_queries",
    "merge_models",
    "mine_hard_negatives",
    "pretrain_retromae",
    "score_with_teacher",
    "train_embedder",
    "train_m3",
    "train_reranker",
    "with_candidates",
]
