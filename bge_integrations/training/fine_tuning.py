"""What the fine-tunings on queries and passages share: checks, the record, the folder for checkpoints, and the run."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bge_integrations.errors import SettingsError
from bge_integrations.evaluation.data import RetrievalData
from bge_integrations.settings import EncoderSettings, Purpose
from bge_integrations.texts import shortened
from bge_integrations.training.rows.data import TrainingData
from bge_integrations.training.settings import EmbedderTraining
from bge_integrations.training.trainer.checks import advice
from bge_integrations.training.trainer.run import Run
from bge_integrations.training.trainer.work import (
    TrainingResult,
    about_weights,
    base_model,
    computed_in,
    launched,
    require_figures,
    shown_name,
)

if TYPE_CHECKING:
    from bge_integrations.training.machine.budget import BudgetedLoss
    from bge_integrations.training.trainer.starting import Start
    from bge_integrations.training.trainer.trainer import Subject

__all__ = ["Kind", "Trained", "fine_tune"]

_LEAST_QUERY = 8
"""Tokens of a query that must fit beside its instruction."""


@dataclass(frozen=True)
class Trained:
    """What is trained, and on what loss.

    Attributes:
        subject: The model and its files.
        loss: The loss of a column of queries, a column of passages and their `Layout`.
        on_step: Function that takes the number of steps that are done, before each step; `None`: none.
    """

    subject: Subject
    loss: BudgetedLoss
    on_step: Callable[[int], None] | None = None


@dataclass(frozen=True)
class Kind:
    """A kind of fine-tuning.

    Attributes:
        purpose: What the model is loaded for.
        make: Function from the start, the settings and the validation data to what is trained.
        advice: Function from the start and the settings to warnings, each with a remedy.
    """

    purpose: Purpose
    make: Callable[[Start, Any, RetrievalData | None], Trained]
    advice: Callable[[Start, Any], list[str]] = lambda *_: []


def fine_tune(
    kind: Kind,
    data: TrainingData,
    model: str | os.PathLike[str] | EncoderSettings,
    chosen: EmbedderTraining,
    validation: RetrievalData | None,
    run: Run,
) -> TrainingResult:
    """Fine-tunes a model. See `train_embedder` for the arguments and errors."""
    require_figures(chosen.patience, validation)
    from bge_integrations.training.trainer.starting import open_start

    start_settings = EncoderSettings.of(model)
    start = open_start(start_settings, attention_dropout=chosen.attention_dropout, purpose=kind.purpose)
    chosen = _completed(chosen, start)
    _require_room(start, data, chosen)
    if chosen.example_rows and not start.templates.takes_examples:
        raise SettingsError(
            f"example_rows={chosen.example_rows} puts examples before queries, but {shown_name(start.source[0])} takes "
            "none; 'BAAI/bge-en-icl' does."
        )
    run.warn(advice(data, chosen, processes=launched()[1]))
    run.warn(about_weights(start, start_settings.model_name))
    run.warn([*_about_template(start, start_settings), *kind.advice(start, chosen)])
    facts = {
        "data": data.digest,
        "model": start.identity,
        "instruction": [start.asked.prefix, start.asked.suffix],
        "settings": chosen.as_plain(),
    }
    checkpoint = run.checkpoint(facts)
    from bge_integrations.training.embedders.task import contrastive_task
    from bge_integrations.training.trainer.trainer import run_task

    record = {
        "base_model": base_model(start),
        "started_from": shown_name(start_settings.model_name),
        "query_instruction": start.instruction,
        **({"after_query": start.asked.suffix} if start.asked.suffix else {}),
        "data": {"name": data.name, "rows": len(data.rows), "digest": data.digest},
        "settings": chosen.as_plain(),
    }
    watch = run.watch(record, checkpoint, chosen.evaluate_every, chosen.patience)
    trained = kind.make(start, chosen, validation)
    with contrastive_task(start, data, chosen, trained.loss, trained.on_step) as task:
        return run_task(trained.subject, task, chosen, watch)


def _require_room(start: Start, data: TrainingData, chosen: EmbedderTraining) -> None:
    """Checks that queries are not cut off by their instructions.

    Raises:
        SettingsError: An instruction leaves too few tokens.
    """
    limit = min(chosen.query_length, start.max_length)
    for prompt in dict.fromkeys(row.prompt for row in data.rows):
        around = start.templates.around(prompt)
        tokens = start.templates.tokens(around)
        if (around.prefix or around.suffix) and tokens + _LEAST_QUERY > limit:
            raise SettingsError(
                f"query_length={chosen.query_length} leaves {max(limit - tokens, 0)} tokens for a query beside the "
                f"instruction {shortened(around.prefix + around.suffix)}; give at least {tokens + _LEAST_QUERY}, or a "
                "shorter instruction."
            )


def _about_template(start: Start, settings: EncoderSettings) -> list[str]:
    """Returns a warning if a folder of sentence-transformers can't say what is around a query."""
    if not start.asked.suffix or not (settings.task or settings.examples):
        return []
    return [
        "A folder can't say what follows a query, so it names neither the task nor the examples. Give them again "
        "whenever you load the result."
    ]


def _completed(chosen: EmbedderTraining, start: Start) -> EmbedderTraining:
    """Returns settings with the choices that depend on the model and the machine."""
    changes: dict[str, Any] = {}
    if chosen.temperature is None:
        spec = start.spec
        is_first = spec is not None and spec.architecture == "bert" and "v1.5" not in spec.model_id
        changes["temperature"] = 0.01 if is_first else 0.02
    changes["precision"] = computed_in(chosen.precision, start)
    return dataclasses.replace(chosen, **changes)
