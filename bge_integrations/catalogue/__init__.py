"""The table of BGE models, and the rules that recognise one of them."""

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

__all__ = [
    "EN_INSTRUCTION",
    "M3_HEAD_FILES",
    "MODELS",
    "YES_OR_NO_PROMPT",
    "ZH_INSTRUCTION",
    "Kind",
    "ModelSpec",
    "Pooling",
    "Recognition",
    "find_model",
    "recognize",
    "suggest",
]
