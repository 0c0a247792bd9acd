"""What every source has in common: weights as a library loaded them, and what is known of the model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch

from bge_integrations.backend.checkpoint import Checkpoint
from bge_integrations.backend.engines import Engine, Rows
from bge_integrations.backend.facts import ModelFacts
from bge_integrations.backend.heads import Heads
from bge_integrations.backend.request import LoadRequest
from bge_integrations.backend.sources.missing_weights import require_all_weights
from bge_integrations.backend.tokenization import TextTokenizer
from bge_integrations.catalogue import ModelSpec

# RoBERTa-like position tables start after the padding index, so that many of their rows are never used.
_OFFSET_POSITIONS = ("roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "mpnet", "longformer")


class Source(ABC):
    """A checkpoint that sentence-transformers or transformers loaded.

    Attributes:
        request: What was asked for.
        checkpoint: Its files.
        spec: The catalogue's row, or None for a model that is no BGE.
        original: The library's own object.
        tokenizer: A private copy of its tokenizer.
        facts: What is known of it.
        heads: The weights on top of the encoder, where the fast engines need them.
    """

    original: Any
    tokenizer: TextTokenizer
    facts: ModelFacts
    heads: Heads
    runnable: ClassVar[str]
    """What it must be for the fast engines, in words."""

    def __init__(self, request: LoadRequest, checkpoint: Checkpoint, spec: ModelSpec | None, precision: str) -> None:
        """Loads it.

        Args:
            request: What was asked for.
            checkpoint: Its files, already vetted.
            spec: The catalogue's row, or None for a model that is no BGE.
            precision: Of the weights in memory: "float32", "bfloat16" or "float16".

        Raises:
            ModelLoadError: The files can't be read.
            UnsupportedModelError: A model of another kind.
        """
        self.request = request
        self.checkpoint = checkpoint
        self.spec = spec
        self.heads = {}
        self._load(precision)

    @abstractmethod
    def _load(self, precision: str) -> None:
        """Sets `original`, `tokenizer`, `facts` and `heads`."""

    @property
    @abstractmethod
    def transformer(self) -> torch.nn.Module:
        """The bare transformers model inside."""

    @property
    @abstractmethod
    def has_known_encoder(self) -> bool:
        """Whether the fast engines can run it: one of their encoders, and nothing after it but what they know."""

    @property
    @abstractmethod
    def rows(self) -> Rows:
        """What is needed of a fast engine."""

    def _require_all_weights(self, model: Any, *, needs_pooler: bool = False) -> None:  # noqa: ANN401
        """Refuses a transformers model of which weights are missing; see `require_all_weights`."""
        kwargs = from_pretrained_kwargs(self.request, str(model.dtype).removeprefix("torch."))
        for_model = kwargs.pop("model_kwargs")
        for name in ("processor_kwargs", "config_kwargs"):
            del kwargs[name]
        require_all_weights(
            model,
            self.request.model_name,
            self.checkpoint.transformer_folder,
            self.checkpoint.transformer_weights,
            {**kwargs, **for_model},
            needs_pooler=needs_pooler,
        )

    @abstractmethod
    def own_engine(self) -> Engine:
        """Returns an engine that calls the checkpoint's own modules."""


def from_pretrained_kwargs(request: LoadRequest, precision: str) -> dict[str, Any]:
    """Returns the keywords with which the libraries load a folder."""
    kwargs = request.transformers_kwargs.as_dicts()
    kwargs["model_kwargs"]["dtype"] = getattr(torch, precision)
    if not request.allow_pickle_weights:
        kwargs["model_kwargs"]["use_safetensors"] = True
    # Custom code may sit in another repository than the weights, so only then may files still be fetched.
    return {
        "trust_remote_code": request.trust_remote_code,
        "local_files_only": request.local_files_only or not request.trust_remote_code,
        "token": request.token,
        **kwargs,
    }


def position_capacity(checkpoint: Checkpoint) -> int | None:
    """Returns how many tokens a text may have by its positions; None where they are unbounded."""
    config = checkpoint.config
    positions = config.get("max_position_embeddings")
    if not isinstance(positions, int) or positions <= 0:
        return None
    if config.get("model_type") in _OFFSET_POSITIONS:
        positions -= int(config.get("pad_token_id") or 0) + 1
    return positions
