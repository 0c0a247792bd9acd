"""A checkpoint as sentence-transformers loads it: the weights, and what is known of the model. Imports torch."""

from __future__ import annotations

import sys
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling

from bge_integrations.backend.architecture import describe_encoder
from bge_integrations.backend.checkpoint import Checkpoint
from bge_integrations.backend.engines import Rows
from bge_integrations.backend.facts import ModelFacts
from bge_integrations.backend.pooling import NAMES_OF_CATALOGUE, TOKEN_POOLINGS
from bge_integrations.backend.request import LoadRequest
from bge_integrations.backend.tokenization import TextTokenizer
from bge_integrations.catalogue import ModelSpec
from bge_integrations.errors import ModelLoadError, UnsupportedModelError

_POOLING_MODES = {"cls": "cls", "last_token": "lasttoken"}
# RoBERTa-like position tables start after the padding index, so that many of their rows are never used.
_OFFSET_POSITIONS = ("roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "mpnet", "longformer")


class Source:
    """A model as sentence-transformers loaded it.

    Attributes:
        request: What was asked for.
        checkpoint: Its files.
        spec: The catalogue's row, or None for a model that is no BGE.
        sentence_transformer: The model.
        tokenizer: A private copy of its tokenizer.
        facts: What is known of it.
    """

    def __init__(self, request: LoadRequest, checkpoint: Checkpoint, spec: ModelSpec | None, precision: str) -> None:
        """Loads it.

        Args:
            request: What was asked for.
            checkpoint: Its files, already vetted.
            spec: The catalogue's row, or None for a model that is no BGE.
            precision: Of the weights in memory: "float32", "bfloat16" or "float16".

        Raises:
            ModelLoadError: The files can't be read.
            UnsupportedModelError: Not made of a text transformer and a pooling.
        """
        self.request = request
        self.checkpoint = checkpoint
        self.spec = spec
        self.sentence_transformer = _load(request, checkpoint, spec, precision)
        self.tokenizer = TextTokenizer.copy_of(self.sentence_transformer.tokenizer)
        self.facts = _facts(self.sentence_transformer, self.tokenizer, checkpoint, spec)

    @property
    def transformer(self) -> torch.nn.Module:
        """The transformers model inside."""
        return _transformer_of(self.sentence_transformer)

    @property
    def has_known_encoder(self) -> bool:
        """Whether the fast engines can run it: one of their encoders, and nothing after it but a pooling they know."""
        return self.facts.encoder is not None and self.facts.pooling is not None

    @property
    def rows(self) -> Rows:
        """What its pooling needs of an engine."""
        return "cls" if self.facts.pooling == "cls" else "tokens"

    @property
    def modules(self) -> list[torch.nn.Module]:
        """Its modules without a closing normalisation."""
        modules = list(self.sentence_transformer)
        return modules[:-1] if self.facts.normalizes else modules


def _load(request: LoadRequest, checkpoint: Checkpoint, spec: ModelSpec | None, precision: str) -> SentenceTransformer:
    kwargs = request.transformers_kwargs.as_dicts()
    kwargs["model_kwargs"]["dtype"] = getattr(torch, precision)
    if not request.allow_pickle_weights:
        kwargs["model_kwargs"]["use_safetensors"] = True
    # Custom code may sit in another repository than the weights, so only then may files still be fetched.
    common: dict[str, Any] = {
        "trust_remote_code": request.trust_remote_code,
        "local_files_only": request.local_files_only or not request.trust_remote_code,
        "token": request.token,
        **kwargs,
    }
    folder = str(checkpoint.folder)
    try:
        if spec is None or checkpoint.modules is not None:
            model = SentenceTransformer(folder, device=request.device, **common)
        else:
            transformer = Transformer.load(folder, **common)
            pooling = Pooling(transformer.get_embedding_dimension(), NAMES_OF_CATALOGUE[spec.pooling or "cls"])
            model = SentenceTransformer(modules=[transformer, pooling, Normalize()], device=request.device)
    except Exception as error:  # loaders of four libraries raise whatever they like at a damaged checkpoint
        raise ModelLoadError(f"{request.model_name} can't be loaded from {folder}: {error}") from error
    model.eval()
    if not isinstance(model[0], Transformer) or not any(isinstance(module, Pooling) for module in model):
        raise UnsupportedModelError(
            f"{request.model_name} is made of {', '.join(type(module).__name__ for module in model)}; only models with "
            "a text transformer and a pooling can be run."
        )
    return model


def _facts(
    model: SentenceTransformer, tokenizer: TextTokenizer, checkpoint: Checkpoint, spec: ModelSpec | None
) -> ModelFacts:
    modules = list(model)
    positions = _position_capacity(checkpoint)
    limits = [model.max_seq_length, positions, spec.max_tokens if spec else None]
    known = [int(limit) for limit in limits if limit]
    return ModelFacts(
        dimension=int(model.get_embedding_dimension() or 0),
        max_tokens=min(known) if known else sys.maxsize,
        positions=positions,
        normalizes=isinstance(modules[-1], Normalize),
        pooling=_plain_pooling(modules),
        pools_without_prompt=any(isinstance(m, Pooling) and not m.include_prompt for m in modules),
        prompts={name: text or "" for name, text in model.prompts.items()},
        default_prompt_name=model.default_prompt_name,
        pad_id=tokenizer.pad_id,
        truncation_side=tokenizer.truncation_side,
        encoder=describe_encoder(_transformer_of(model)),
    )


def _transformer_of(model: SentenceTransformer) -> torch.nn.Module:
    transformer: Any = model[0]
    inside: torch.nn.Module = transformer.auto_model
    return inside


def _plain_pooling(modules: list[torch.nn.Module]) -> str | None:
    """Returns the pooling of a model that is nothing but transformer, one pooling and perhaps a normalisation."""
    between = modules[1:-1] if isinstance(modules[-1], Normalize) else modules[1:]
    if len(between) != 1 or not isinstance(between[0], Pooling):
        return None
    mode = between[0].pooling_mode
    modes = (mode,) if isinstance(mode, str) else tuple(mode)
    return modes[0] if len(modes) == 1 and modes[0] in ("cls", *TOKEN_POOLINGS) else None


def _position_capacity(checkpoint: Checkpoint) -> int | None:
    config = checkpoint.config
    positions = config.get("max_position_embeddings")
    if not isinstance(positions, int) or positions <= 0:
        return None
    if config.get("model_type") in _OFFSET_POSITIONS:
        positions -= int(config.get("pad_token_id") or 0) + 1
    return positions
