"""Contrastive training on rows of queries and passages, as a task for the trainer. Imports torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from bge_integrations.encoder import BgeEncoder
from bge_integrations.training.embedders.examples import RowExamples
from bge_integrations.training.embedders.subject import about_memory
from bge_integrations.training.machine.budget import BudgetedLoss
from bge_integrations.training.rows.batches import Collator, Epochs
from bge_integrations.training.rows.data import TrainingData
from bge_integrations.training.rows.layout import Layout
from bge_integrations.training.settings import EmbedderTraining
from bge_integrations.training.trainer.checks import row_groups
from bge_integrations.training.trainer.starting import Start
from bge_integrations.training.trainer.trainer import Task

__all__ = ["contrastive_task"]


@contextmanager
def contrastive_task(
    start: Start,
    data: TrainingData,
    chosen: EmbedderTraining,
    loss: BudgetedLoss,
    on_step: Callable[[int], None] | None = None,
) -> Iterator[Task]:
    """Gives the task, and closes the guide afterwards."""
    epochs = Epochs()
    rows = list(data.rows)
    guide = BgeEncoder(chosen.guide, on_truncation="ignore") if chosen.guide else None
    examples = RowExamples(
        start.templates, most=chosen.example_rows, query_length=chosen.query_length, seed=chosen.seed, epochs=epochs
    )
    collator = Collator(
        rows,
        start.tokenize,
        instruction=lambda row: start.templates.around(row.prompt),
        fit=start.templates.fitting,
        negatives=chosen.negatives,
        query_length=chosen.query_length,
        passage_length=chosen.passage_length,
        pad_id=start.pad_id,
        seed=chosen.seed,
        epochs=epochs,
        uses_teacher=chosen.distillation is not None,
        teacher_margin=chosen.teacher_margin,
        guide=(guide.encode_queries, guide.encode_documents) if guide else None,
        examples=examples.of if chosen.example_rows else None,
    )
    groups = row_groups(rows, same_source=chosen.same_source)
    try:
        yield Task(
            groups=list(groups.values()),
            collator=collator,
            loss=lambda model, batch: loss.by(model, [batch["queries"], batch["passages"]], Layout.of(batch["layout"])),
            epochs=epochs,
            halved=[place for place, (_, kind) in enumerate(groups) if kind.startswith("symmetric")],
            about_memory=about_memory(loss),
            about_zero="The negatives are too easy or there are none: add hard ones with mine_hard_negatives "
            "(`bge mine`), make batch_size larger, and check that rows differ in their passages.",
            on_step=on_step,
        )
    finally:
        if guide is not None:
            guide.close()
