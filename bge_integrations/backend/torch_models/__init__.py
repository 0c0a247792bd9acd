"""Checkpoints as sentence-transformers and transformers load them, with one class for each kind of model.

`load_source` imports torch, and only the class that is needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bge_integrations._optional import TORCH, require
from bge_integrations.backend.checkpoint.files import Checkpoint
from bge_integrations.backend.checkpoint.request import LoadRequest
from bge_integrations.catalogue import ModelSpec

if TYPE_CHECKING:
    from bge_integrations.backend.torch_models.base import Source

__all__ = ["load_source"]


def load_source(request: LoadRequest, checkpoint: Checkpoint, spec: ModelSpec | None, precision: str) -> Source:
    """Loads a checkpoint for the purpose of a request.

    Raises:
        MissingExtraError: A library that loads it is not installed.
        ModelLoadError: The files can't be read.
        UnsupportedModelError: The model is of another kind.
    """
    for library in ("torch", "transformers"):
        require(library, extra=TORCH)
    is_decoder = request.purpose == "scores" and checkpoint.is_decoder
    if not is_decoder:
        require("sentence_transformers", extra=TORCH)
    kind: type[Source]
    if request.purpose == "m3":
        from bge_integrations.backend.torch_models.m3 import M3Source as kind
    elif request.purpose == "vectors":
        from bge_integrations.backend.torch_models.embedder import VectorSource as kind
    elif is_decoder:
        from bge_integrations.backend.torch_models.decoder_reranker import DecoderScoreSource as kind
    else:
        from bge_integrations.backend.torch_models.reranker import ScoreSource as kind
    return kind(request, checkpoint, spec, precision)
