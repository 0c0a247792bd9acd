"""Trains a reranker on queries, positive passages and negatives."""

from __future__ import annotations

import dataclasses
import os
from typing import TYPE_CHECKING

from typing_extensions import Unpack

from bge_integrations.errors import SettingsError
from bge_integrations.evaluation.data import RetrievalData
from bge_integrations.settings import RerankerSettings
from bge_integrations.training.rows.data import TrainingData
from bge_integrations.training.settings import RerankerTraining
from bge_integrations.training.trainer.checks import reranker_advice
from bge_integrations.training.trainer.run import Run, RunOptions
from bge_integrations.training.trainer.work import (
    TrainingResult,
    about_weights,
    computed_in,
    require_figures,
    shown_name,
)

if TYPE_CHECKING:
    from bge_integrations.training.reranking.start import RerankerStart

__all__ = ["train_reranker"]


def train_reranker(
    data: TrainingData,
    model: str | os.PathLike[str] | RerankerSettings,
    output: str | os.PathLike[str],
    *,
    settings: RerankerTraining | None = None,
    validation: RetrievalData | None = None,
    **run: Unpack[RunOptions],
) -> TrainingResult:
    """Trains a cross-encoder, and writes a folder that `BgeReranker` and sentence-transformers' CrossEncoder load.

    Both give the same scores, which are logits: the folder says so to CrossEncoder. Checkpoints are in a folder beside
    the output while training runs, and are removed at its end. If a run is killed, `resume=True` goes on with the same
    batches.

    Args:
        data: Rows. Negatives near to their queries are needed: those that an embedding model finds, see
            `mine_hard_negatives`.
        model: Hub id or folder, or settings with which its files are found: a reranker that is an encoder, or any other
            encoder, such as an embedding model, which gets a new head. With a `query_instruction`, the model is trained
            and saved with it.
        output: The folder to make. It must be empty or not there.
        settings: How to train; `None`: the defaults.
        validation: Data to evaluate on while training, with candidates, see `with_candidates`. The best checkpoint
            becomes the model.
        **run: `resume`, `show_progress`, `report_to` and `on_log`; see `RunOptions`.

    Returns:
        What was trained.

    Raises:
        SettingsError: A setting is wrong, the output has content, or there is nothing to go on with.
        MissingExtraError: accelerate or tensorboard is not installed and needed.
        UnsupportedModelError: The model is a decoder, an adapter or a prepared folder.
        BgeError: The model can't be loaded.
    """
    chosen = settings or RerankerTraining()
    begun = Run.of(output, **run)
    require_figures(chosen.patience, validation)
    if validation is not None and not validation.candidates:
        raise SettingsError(
            f"validation={validation.name!r} has no candidates to order. Make them with with_candidates(validation, "
            "embedder)."
        )
    warnings = reranker_advice(data, chosen)
    from bge_integrations.training.reranking.start import open_reranker

    start_settings = RerankerSettings.of(model)
    start = open_reranker(start_settings, attention_dropout=chosen.attention_dropout, seed=chosen.seed)
    _require_room(chosen, start)
    name = shown_name(start_settings.model_name)
    if start.has_new_head:
        warnings.append(
            f"{name} is no reranker. It gets a new head, whose scores mean nothing before it is trained: that takes "
            "some thousand rows, or several epochs. A reranker, such as 'BAAI/bge-reranker-base', needs less."
        )
    chosen = dataclasses.replace(chosen, precision=computed_in(chosen.precision, start))
    begun.warn([*warnings, *about_weights(start, start_settings.model_name)])
    plain = dataclasses.asdict(chosen)
    facts = {"data": data.digest, "model": start.identity, "instruction": start.instruction, "settings": plain}
    checkpoint = begun.checkpoint({**facts, "max_length": start.max_length})
    from bge_integrations.training.reranking.scorer import PairScorer
    from bge_integrations.training.reranking.task import reranker_subject, reranker_task
    from bge_integrations.training.trainer.trainer import run_task

    record = {
        "kind": "reranker",
        "base_model": None if start.spec is None else start.spec.model_id,
        "started_from": name,
        "new_head": start.has_new_head,
        "query_instruction": start.instruction,
        "data": {"name": data.name, "rows": len(data.rows), "digest": data.digest},
        "settings": plain,
    }
    watch = begun.watch(record, checkpoint, chosen.evaluate_every, chosen.patience)
    scorer = PairScorer(start.classifier, start.encoder)
    return run_task(
        reranker_subject(start, scorer, chosen.precision, validation),
        reranker_task(start, scorer, data, chosen),
        chosen,
        watch,
    )


def _require_room(chosen: RerankerTraining, start: RerankerStart) -> None:
    """Checks the length of a pair.

    Raises:
        SettingsError: It leaves no room for the texts.
    """
    length, least = min(chosen.max_length, start.max_length), start.reader.least
    if length < least:
        raise SettingsError(
            f"max_length={length} leaves no room for a query and a passage beside special tokens and the instruction; "
            f"give at least {least}."
        )
