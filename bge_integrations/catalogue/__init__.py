"""The table of BGE models, the rules that recognise one of them, and published scores."""

from bge_integrations.catalogue.models import (
    EN_INSTRUCTION,
    MODELS,
    YES_OR_NO_PROMPT,
    ZH_INSTRUCTION,
    Kind,
    ModelSpec,
    Pooling,
)
from bge_integrations.catalogue.recognition import M3_HEAD_FILES, Recognition, find_model, recognize, suggest
from bge_integrations.catalogue.scores import (
    BENCHMARKS,
    Averages,
    Benchmark,
    averages,
    find_benchmark,
    published_scores,
)

__all__ = [
    "BENCHMARKS",
    "EN_INSTRUCTION",
    "M3_HEAD_FILES",
    "MODELS",
    "YES_OR_NO_PROMPT",
    "ZH_INSTRUCTION",
    "Averages",
    "Benchmark",
    "Kind",
    "ModelSpec",
    "Pooling",
    "Recognition",
    "averages",
    "find_benchmark",
    "find_model",
    "published_scores",
    "recognize",
    "suggest",
]
