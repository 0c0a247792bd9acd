"""Fine-tunes an embedding model on queries, positive passages and negatives."""

from __future__ import annotations

import dataclasses
import os
from typing import TYPE_CHECKING

from typing_extensions import Unpack

from bge_integrations.evaluation.data import RetrievalData
from bge_integrations.settings import EncoderSettings
from bge_integrations.training.fine_tuning import Kind, Trained, fine_tune
from bge_integrations.training.machine.memory import decoder_shape
from bge_integrations.training.rows.data import TrainingData
from bge_integrations.training.settings import EmbedderTraining
from bge_integrations.training.trainer.run import Run, RunOptions
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
    **run: Unpack[RunOptions],
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
        **run: `resume`, `show_progress`, `report_to` and `on_log`; see `RunOptions`.

    Returns:
        What was trained.

    Raises:
        SettingsError: A setting is wrong, the output has content, or there is nothing to go on with.
        MissingExtraError: accelerate, peft or tensorboard is not installed and needed.
        BgeError: The model can't be loaded.
    """
    kind, chosen = Kind("vectors", _trained), settings or EmbedderTraining()
    return fine_tune(kind, data, model, chosen, validation, Run.of(output, **run))


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
