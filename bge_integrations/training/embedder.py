"""Fine-tunes an embedding model on queries, positive passages and negatives."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bge_integrations._optional import require
from bge_integrations.backend.checkpoint.digests import key_of
from bge_integrations.backend.guarantees.logs import get_logger
from bge_integrations.errors import SettingsError
from bge_integrations.evaluation.data import RetrievalData
from bge_integrations.settings import EncoderSettings
from bge_integrations.training.checks import advice
from bge_integrations.training.data import TrainingData
from bge_integrations.training.saving import require_free
from bge_integrations.training.settings import EmbedderTraining
from bge_integrations.training.work import (
    TrainingResult,
    about_weights,
    base_model,
    computed_in,
    events_folder,
    launched,
    prepare_work,
    shown_name,
    work_folder,
)

if TYPE_CHECKING:
    from bge_integrations.training.starting import Start

__all__ = ["train_embedder"]

logger = get_logger(__name__)


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
        MissingExtraError: accelerate or tensorboard is not installed and needed.
        BgeError: The model can't be loaded.
    """
    chosen = settings or EmbedderTraining()
    target = Path(output).expanduser()
    require_free(target)
    if chosen.patience is not None and validation is None:
        raise SettingsError(
            f"patience={chosen.patience} stops training by figures on validation data, and there are none. Give "
            "validation, or leave patience out."
        )
    events = events_folder(report_to, target)
    require("accelerate", extra="train")
    from bge_integrations.training.starting import open_start

    start_settings = model if isinstance(model, EncoderSettings) else EncoderSettings(model_name=os.fspath(model))
    start = open_start(start_settings, attention_dropout=chosen.attention_dropout)
    chosen = _completed(chosen, start)
    rank, processes = launched()
    for warning in [*advice(data, chosen, processes=processes), *about_weights(start, start_settings.model_name)]:
        if rank == 0:
            logger.warning(warning)
    work = work_folder(target)
    key = key_of({"data": data.digest, "model": start.identity, "settings": _plain(chosen)})
    checkpoint = prepare_work(work, key, resume=resume)
    from bge_integrations.training.contrastive_task import contrastive_task
    from bge_integrations.training.embedder_subject import embedder_subject
    from bge_integrations.training.trainer import Watch, run_task

    record = {
        "base_model": base_model(start),
        "started_from": shown_name(start_settings.model_name),
        "query_instruction": start.instruction,
        "data": {"name": data.name, "rows": len(data.rows), "digest": data.digest},
        "settings": _plain(chosen),
    }
    watch = Watch(
        work=work,
        output=target,
        record=record,
        checkpoint=checkpoint,
        every=chosen.evaluate_every,
        patience=chosen.patience,
        show_progress=show_progress,
        events=events,
        on_log=on_log,
    )
    with contrastive_task(start, data, chosen) as task:
        return run_task(embedder_subject(start, chosen.precision, validation), task, chosen, watch)


def _completed(chosen: EmbedderTraining, start: Start) -> EmbedderTraining:
    """Returns settings with the choices that depend on the model and the machine."""
    changes: dict[str, Any] = {}
    if chosen.temperature is None:
        is_first = start.spec is not None and "v1.5" not in start.spec.model_id
        changes["temperature"] = 0.01 if is_first else 0.02
    changes["precision"] = computed_in(chosen.precision, start)
    return dataclasses.replace(chosen, **changes)


def _plain(chosen: EmbedderTraining) -> dict[str, Any]:
    return {**dataclasses.asdict(chosen), "matryoshka_dims": list(chosen.matryoshka_dims)}
