"""BAAI's BGE embedding models for LangChain and LlamaIndex: correct, and with one model in memory.

Importing this package does not import torch or a framework. Each name is imported at its first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bge_integrations._lazy import attach

if TYPE_CHECKING:
    from bge_integrations._version import __version__
    from bge_integrations.catalogue import MODELS, ModelSpec, find_model
    from bge_integrations.encoder import BgeEncoder
    from bge_integrations.endpoint_check import check_endpoint
    from bge_integrations.errors import BgeError, PoolingWarning, TruncationWarning
    from bge_integrations.m3 import BgeM3Encoder, M3Output, M3Weights
    from bge_integrations.reranker import BgeReranker

__all__ = [
    "MODELS",
    "BgeEncoder",
    "BgeError",
    "BgeM3Encoder",
    "BgeReranker",
    "M3Output",
    "M3Weights",
    "ModelSpec",
    "PoolingWarning",
    "TruncationWarning",
    "__version__",
    "check_endpoint",
    "find_model",
]

_HOMES = {
    "BgeEncoder": "encoder",
    "BgeError": "errors",
    "BgeM3Encoder": "m3",
    "BgeReranker": "reranker",
    "M3Output": "m3",
    "M3Weights": "m3",
    "MODELS": "catalogue",
    "ModelSpec": "catalogue",
    "PoolingWarning": "errors",
    "TruncationWarning": "errors",
    "__version__": "_version",
    "check_endpoint": "endpoint_check",
    "find_model": "catalogue",
}

__getattr__, __dir__ = attach(__name__, _HOMES)
