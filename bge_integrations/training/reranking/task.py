"""Training of a reranker, for the trainer: what is trained, and what it learns. Imports torch."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from bge_integrations.backend.display.quiet import quiet_transformers
from bge_integrations.evaluation.data import RetrievalData
from bge_integrations.training.embedders.subject import about_memory
from bge_integrations.training.reranking.loss import GroupLoss, Groups
from bge_integrations.training.reranking.pairs import PairCollator
from bge_integrations.training.reranking.scorer import PairScorer
from bge_integrations.training.reranking.start import RerankerStart
from bge_integrations.training.reranking.validation import PairValidation
from bge_integrations.training.rows.batches import Epochs
from bge_integrations.training.rows.data import TrainingData
from bge_integrations.training.settings import RerankerTraining
from bge_integrations.training.trainer.saving import write_model
from bge_integrations.training.trainer.trainer import Subject, Task
from bge_integrations.training.trainer.work import budget_of

__all__ = ["reranker_subject", "reranker_task"]


def reranker_subject(
    start: RerankerStart, scorer: PairScorer, precision: str, validation: RetrievalData | None = None
) -> Subject:
    """Returns a reranker to be trained. Its folders are those of a CrossEncoder that gives logits, as `BgeReranker`."""
    model = start.model
    model.activation_fn = nn.Identity()
    model.prompts = {"query": start.instruction} if start.instruction else {}
    model.default_prompt_name = "query" if start.instruction else None
    return Subject(
        model=scorer,
        device=model.device,
        write=lambda folder: write_model(model, folder),
        restore=lambda folder: _restore(start, folder),
        evaluate=None
        if validation is None
        else PairValidation(validation, scorer, start, is_half=precision == "bfloat16"),
    )


def reranker_task(start: RerankerStart, scorer: PairScorer, data: TrainingData, chosen: RerankerTraining) -> Task:
    """Returns what a reranker learns from rows."""
    epochs = Epochs()
    loss = GroupLoss(scorer, budget=budget_of(start, chosen))
    collator = PairCollator(
        data.rows,
        start.reader,
        negatives=chosen.negatives,
        easy_negatives=chosen.easy_negatives,
        max_length=min(chosen.max_length, start.max_length),
        seed=chosen.seed,
        epochs=epochs,
        uses_teacher=chosen.distillation is not None,
        teacher_margin=chosen.teacher_margin,
    )
    return Task(
        groups=[range(len(data.rows))],
        collator=collator,
        loss=lambda model, batch: loss.by(model, [batch["pairs"]], Groups.of(batch["groups"])),
        epochs=epochs,
        about_memory=about_memory(loss),
        about_zero="The negatives are too easy or there are none: add hard ones with mine_hard_negatives "
        "(`bge mine`), and check that rows differ in their passages.",
    )


def _restore(start: RerankerStart, folder: Path) -> None:
    """Gives a classifier the weights of one of its own checkpoints."""
    classifier = start.classifier
    with quiet_transformers():
        saved = type(classifier).from_pretrained(str(folder), dtype=classifier.dtype, local_files_only=True)
    classifier.load_state_dict(saved.state_dict())
