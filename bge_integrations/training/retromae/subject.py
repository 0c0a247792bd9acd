"""A model as what is pre-trained: its parts, and its files. Imports torch."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling

from bge_integrations.backend.display.quiet import quiet_transformers
from bge_integrations.backend.engines.architecture import ARCHITECTURES, WORDS
from bge_integrations.backend.guarantees.logs import get_logger
from bge_integrations.errors import UnsupportedModelError
from bge_integrations.training.embedders.unpadded import without_padding
from bge_integrations.training.machine.memory import Budget
from bge_integrations.training.retromae.head import NAMES, MlmHead, stored_head
from bge_integrations.training.retromae.model import RetroMae
from bge_integrations.training.settings import RetroMaeTraining
from bge_integrations.training.trainer.saving import set_prompts, write_model
from bge_integrations.training.trainer.starting import Start
from bge_integrations.training.trainer.trainer import Subject

__all__ = ["build_model", "retromae_subject"]

logger = get_logger(__name__)

_FURTHER = "retromae.safetensors"
"""File of a checkpoint with the head and the decoder."""


def build_model(start: Start, chosen: RetroMaeTraining, budget: Budget, name: str, *, warns: bool) -> RetroMae:
    """Puts an encoder, its head and a new decoder together. The head is the checkpoint's own if it has one.

    Raises:
        UnsupportedModelError: It is no encoder of BERT's or XLM-RoBERTa's kind.
    """
    if start.encoder is None:
        raise UnsupportedModelError(
            f"{name} can't be pre-trained: its encoder is not a plain BERT or XLM-RoBERTa. Take one of these kinds."
        )
    encoder = start.model[0].auto_model
    config, table = encoder.config, encoder.get_parameter(WORDS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(chosen.seed)
        head = MlmHead(
            width=start.encoder.hidden_size,
            words=len(table),
            norm_eps=start.encoder.norm_eps,
            spread=config.initializer_range,
        )
        model = RetroMae(start.model[0], start.encoder, head, decoder_masking=chosen.decoder_masking, budget=budget)
    stored = stored_head(start.weight_files, NAMES[config.model_type])
    fits = {key: value.shape for key, value in head.state_dict().items()}
    if {key: value.shape for key, value in stored.items()} == fits:
        head.load_state_dict(stored)
    elif warns:
        logger.warning(
            f"{name} has no head of masked language modelling, as most embedders: a new one is trained. Its first "
            "steps have a high loss. A checkpoint with its own head, such as the one that the embedder was made from, "
            "needs fewer steps."
        )
    model.to(start.model.device)
    return model


def retromae_subject(model: RetroMae, start: Start, *, keep_head: bool) -> Subject:
    """Returns a model that is pre-trained. Its folders have CLS pooling, normalisation and its instruction."""
    transformer = model.transformer
    pooling = Pooling(transformer.get_embedding_dimension(), "cls")
    embedder = SentenceTransformer(modules=[transformer, pooling, Normalize()], device=str(start.model.device))
    set_prompts(embedder, start.asked)

    def write(folder: Path) -> None:
        write_model(embedder, folder)
        further = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("transformer.")}
        save_file({name: tensor.cpu().contiguous() for name, tensor in further.items()}, folder / _FURTHER)

    def restore(folder: Path) -> None:
        own = load_file(folder / "model.safetensors")
        transformer.auto_model.load_state_dict(own)
        model.load_state_dict(load_file(folder / _FURTHER), strict=False)

    def finish(folder: Path) -> None:
        write_model(embedder, folder)
        if keep_head:
            _write_with_head(model, folder)

    return Subject(
        model=model,
        device=start.model.device,
        write=write,
        restore=restore,
        finish=finish,
        running=lambda: without_padding(embedder, start.encoder, cls_only=False),
    )


def _write_with_head(model: RetroMae, folder: Path) -> None:
    """Replaces the encoder's files by those of the encoder with its head. They can be read as both."""
    encoder = model.transformer.auto_model
    config = copy.deepcopy(encoder.config)
    config.tie_word_embeddings = True
    names, prefix = NAMES[config.model_type], ARCHITECTURES[config.model_type].prefix
    weights = {f"{prefix}{name}": tensor for name, tensor in encoder.state_dict().items()}
    weights |= {names.stored(name): tensor for name, tensor in model.head.state_dict().items()}
    kind: Any = getattr(transformers, names.model_class)
    with quiet_transformers(), torch.device("meta"):
        whole = kind(config)
    with quiet_transformers():
        whole.save_pretrained(str(folder), state_dict=weights)
