"""Training data: rows of a query, positives and negatives; formats, splits, leakage, and what is drawn in an epoch."""

from __future__ import annotations

from bge_integrations.training.data import Split, TrainingData, TrainingRow
from bge_integrations.training.formats import load_training_data
from bge_integrations.training.overlaps import Leakage, Overlap, leakage
from bge_integrations.training.sampling import Drawn, draw

__all__ = [
    "Drawn",
    "Leakage",
    "Overlap",
    "Split",
    "TrainingData",
    "TrainingRow",
    "draw",
    "leakage",
    "load_training_data",
]
