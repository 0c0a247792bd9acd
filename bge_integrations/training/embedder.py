"""Fine-tunes an embedding model on queries, positive passages and negatives."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from bge_integrations.evaluation.data import RetrievalData
from bge_integrations.settings import EncoderSettings
from bge_integrations.training.fine_tuning import Kind, Trained, fine_tune
from bge_integrations.training.machine.memory import decoder_shape
from bge_integrations.training.rows.data import TrainingData
from bge_integrations.training.settings import EmbedderTraining
from bge_integrations.training.trainer.work import TrainingResult, budget_of

if TYPE_CHECKING:
    from bge_integrations.training.trainer.starting import Start

__all__ = ["train_embedder"]


def train_embedder(
    data: TrainingData,
    model: str | os.PathLike[str] | EncoderSettings,
    output: str | os.PathLike[str],
    *,
    settings: EmbedderTraining | None = None,
    validation: RetrievalData | None = None,
    resume: bool = False,
    show_progress: bool = False,
    report_to: str = "none",
    on_log: Callable[[int, dict[str, float]], None] | None = None,
) -> TrainingResult:
    """Fine-tunes a model, and writes a folder that sentence-transformers and this package load.

    Checkpoints are in a folder beside the output while training runs, and are removed at its end. If a run is killed,
    `resume=True` goes on with the same batches.

    Args:
        data: Rows.
        model: Hub id or folder, or settings with which its files are found.
        output: The folder to make. It must be empty or not there.
        settings: How to train; `None`: the defaults.
        validation: Data to evaluate on while training. The best checkpoint becomes the model.
        resume: Whether to go on where a killed run with equal data and settings stopped.
        show_progress: Whether to show a progress bar.
        report_to: "none", or "tensorboard". Its files are in a folder beside the output whose name ends in ".runs", and
            stay there; each run has a folder of its own. Nothing is sent to anyone.
        on_log: Function that takes a step and what is logged of it.

    Returns:
        What was trained.

    Raises:
        SettingsError: A setting is wrong, the output has content, or there is nothing to go on with.
        MissingExtraError: accelerate, peft or tensorboard is not installed and needed.
        BgeError: The model can't be loaded.
    """
    return fine_tune(
        Kind("vectors", _trained),
        data,
        model,
        output,
        settings or EmbedderTraining(),
        validation=validation,
        resume=resume,
        show_progress=show_progress,
        report_to=report_to,
        on_log=on_log,
    )


def _trained(start: Start, chosen: EmbedderTraining, validation: RetrievalData | None) -> Trained:
    from bge_integrations.training.embedders.subject import embedder_subject
    from bge_integrations.training.losses.contrastive import ContrastiveLoss

    shape, lora = start.encoder or decoder_shape(start.model[0].auto_model.config), chosen.lora
    budget = budget_of(dataclasses.replace(start, encoder=shape), chosen)
    if lora is not None:
        from bge_integrations.training.embedders.lora import adapted_subject, add_adapter

        add_adapter(start, lora, chosen.seed)
        start = dataclasses.replace(start, encoder=None)  # the library computes adapted layers
    if start.encoder is None:
        budget = dataclasses.replace(budget, pads=True)
    loss = ContrastiveLoss(
        start.model,
        temperature=chosen.temperature or 0.02,
        distillation=chosen.distillation,
        matryoshka_dims=chosen.matryoshka_dims,
        guide_margin=chosen.guide_margin,
        budget=budget,
    )
    subject = embedder_subject(start, chosen.precision, validation)
    return Trained(subject if lora is None else adapted_subject(subject, start, lora), loss)
