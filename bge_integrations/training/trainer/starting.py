"""Loads a model to train it: its own copy in float32, with the pooling that BGE models have. Imports torch."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from sentence_transformers.sentence_transformer.modules import Normalize
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from bge_integrations.backend.checkpoint.checks import locate_requested, vet
from bge_integrations.backend.checkpoint.manifest import is_prepared
from bge_integrations.backend.checkpoint.plainness import NotPlainError
from bge_integrations.backend.checkpoint.request import LoadRequest
from bge_integrations.backend.checkpoint.tensors import stored_tensors
from bge_integrations.backend.checkpoint.weights import WeightRules
from bge_integrations.backend.engines.architecture import EncoderShape
from bge_integrations.backend.model.heads import Heads
from bge_integrations.backend.torch_models import load_source
from bge_integrations.backend.torch_models.m3 import unweighted_ids
from bge_integrations.catalogue import ModelSpec
from bge_integrations.catalogue.instructions import Instruction
from bge_integrations.errors import UnsupportedModelError
from bge_integrations.settings import EncoderSettings, Purpose
from bge_integrations.training.trainer.templates import QueryTemplates
from bge_integrations.training.trainer.work import require_device

__all__ = ["Start", "is_decoder", "leave_out_attention_dropout", "open_start", "weight_kinds"]


@dataclass(frozen=True, kw_only=True)
class Start:
    """A model that training starts from.

    Attributes:
        model: A SentenceTransformer with float32 weights.
        spec: The catalogue's row; `None` for a model that is not a BGE model.
        identity: Digest of the model's files.
        max_length: Tokens that the model reads, at most.
        pad_id: Token id of padding.
        encoder: The shape of a BERT-like encoder; `None` for others.
        pooling: sentence-transformers' name of the pooling, if only pooling follows the transformer; else `None`. The
            heads of bge-m3 follow it too.
        tokenize: Function from texts and a maximum length to token ids.
        templates: What stands around queries.
        source: Its hub id with the revision that was asked for, or its folder and `None`.
        stored_in: Types of its weights in safetensors files, such as "F16".
        heads: Weights of bge-m3's heads, by the names of `backend.model.heads`; empty if it has none, or needs none.
        unweighted: Ids of tokens that have no lexical weight.
        weight_files: The files that its encoder was read from.
    """

    model: Any
    spec: ModelSpec | None
    identity: str
    max_length: int
    pad_id: int
    encoder: EncoderShape | None
    pooling: str | None
    tokenize: Callable[[list[str], int], list[list[int]]]
    templates: QueryTemplates
    source: tuple[str, str | None]
    stored_in: frozenset[str] = frozenset()
    heads: Heads = field(default_factory=dict)
    unweighted: tuple[int, ...] = ()
    weight_files: tuple[Path, ...] = ()

    @property
    def asked(self) -> Instruction:
        """The text before and after a query of a row without a prompt."""
        return self.templates.around(None)

    @property
    def instruction(self) -> str:
        """The text before a query."""
        return self.asked.prefix


def open_start(settings: EncoderSettings, *, attention_dropout: bool = False, purpose: Purpose = "vectors") -> Start:
    """Loads a model. One that no pooling was saved with, and that is no BGE model, gets what BGE models have.

    Args:
        settings: Where its files are, and on which device it is trained.
        attention_dropout: Whether dropout acts inside attention. It slows attention on the CPU and takes much memory.
        purpose: "vectors", or "m3" for the heads of bge-m3 too, if the model has them.

    Raises:
        BgeError: As `BgeEncoder`.
        UnsupportedModelError: It is a prepared folder, its pooling leaves out the instruction, or it can't have the
            heads of bge-m3.
    """
    require_device(settings.device)
    request = LoadRequest.from_settings(settings.replace(precision="float32", engine="sentence-transformers"), purpose)
    checkpoint = locate_requested(request)
    if is_prepared(checkpoint.folder):
        raise UnsupportedModelError(
            f"{settings.model_name} is a folder of `bge prepare`, which has no weights to train. Give the model that "
            "it was made from."
        )
    if purpose == "m3" and checkpoint.lacking_m3_files:
        request = dataclasses.replace(request, purpose="vectors")
    spec = vet(checkpoint, request, to_train=True)
    is_base = spec is None and checkpoint.modules is None
    if is_base and request.pooling is None:
        request = dataclasses.replace(request, pooling="last" if is_decoder(checkpoint.config) else "cls")
    source = load_source(request, checkpoint, spec, "float32")
    facts = source.facts
    if facts.pools_without_prompt:
        raise UnsupportedModelError(
            f"{settings.model_name} leaves the instruction out of its pooling, which training does not support."
        )
    if purpose == "m3" and (facts.encoder is None or facts.pooling is None):
        raise UnsupportedModelError(
            f"{settings.model_name} can't get the heads of bge-m3, which need a BERT or XLM-RoBERTa encoder with one "
            "pooling of its hidden states. Start from BAAI/bge-m3, or train the dense vectors with train_embedder."
        )
    model = source.original
    if is_base:
        model.append(Normalize())
    if not attention_dropout:
        leave_out_attention_dropout(model)
    limit = settings.max_length or facts.max_tokens
    tokenizer = model.tokenizer
    files = checkpoint.transformer_weights(WeightRules.of(request))

    def tokenize(texts: list[str], length: int) -> list[list[int]]:
        found: list[list[int]] = tokenizer(texts, truncation=True, max_length=min(length, limit))["input_ids"]
        return found

    return Start(
        model=model,
        spec=spec,
        identity=checkpoint.fingerprint,
        max_length=limit,
        pad_id=facts.pad_id,
        encoder=facts.encoder,
        pooling=facts.pooling if purpose == "vectors" else None,
        tokenize=tokenize,
        templates=QueryTemplates(
            settings=settings, spec=spec, facts=facts, tokenizer=source.tokenizer, max_length=limit
        ),
        source=_source(settings),
        heads=source.heads,
        unweighted=unweighted_ids(tokenizer),
        stored_in=weight_kinds(files),
        weight_files=tuple(files),
    )


def is_decoder(config: Mapping[str, Any]) -> bool:
    """Returns whether an architecture reads from left to right, so that only its last token has seen the whole text."""
    kind = config.get("model_type")
    return kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and kind not in MODEL_FOR_MASKED_LM_MAPPING_NAMES


def _source(settings: EncoderSettings) -> tuple[str, str | None]:
    name = os.path.expanduser(settings.model_name)
    return (os.path.abspath(name), None) if os.path.isdir(name) else (settings.model_name, settings.revision)


def weight_kinds(files: Iterable[Path]) -> frozenset[str]:
    """Returns the types of weights in safetensors files, such as "F16"."""
    try:
        tensors = stored_tensors(file for file in files if file.suffix == ".safetensors")
    except NotPlainError:  # torch has read them
        return frozenset()
    return frozenset(tensor.kind for tensor in tensors.values())


def leave_out_attention_dropout(model: torch.nn.Module) -> None:
    """Switches dropout inside attention off. The configuration that is saved stays as it is."""
    for module in model.modules():
        dropout = getattr(module, "dropout", None)
        if hasattr(module, "query") and isinstance(dropout, torch.nn.Dropout):
            dropout.p = 0.0
