"""The BGE models, and how one of them is recognised. Imports nothing of the rest of the package."""

from bge_integrations.catalogue.models import (
    EN_INSTRUCTION,
    MODELS,
    YES_OR_NO_PROMPT,
    ZH_INSTRUCTION,
    Kind,
    ModelSpec,
    Pooling,
)
from bge_integrations.catalogue.recognition import find_model

__all__ = [
    "EN_INSTRUCTION",
    "MODELS",
    "YES_OR_NO_PROMPT",
    "ZH_INSTRUCTION",
    "Kind",
    "ModelSpec",
    "Pooling",
    "find_model",
]
