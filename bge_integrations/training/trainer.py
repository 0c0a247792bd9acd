"""Runs sentence-transformers' trainer with this package's batches and loss. Imports torch."""

from __future__ import annotations

import contextlib
import shutil
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.base.evaluation.evaluator import BaseEvaluator
from torch import Tensor
from transformers import EarlyStoppingCallback, TrainerCallback
from transformers.trainer_callback import PrinterCallback

from bge_integrations.backend.display.quiet import quiet_transformers
from bge_integrations.backend.engines.memory import is_out_of_memory
from bge_integrations.encoder import BgeEncoder
from bge_integrations.errors import DeviceMemoryError
from bge_integrations.evaluation.data import RetrievalData
from bge_integrations.evaluation.retrieval import evaluate_retrieval
from bge_integrations.training.batches import Collator, Epochs, RowBatches
from bge_integrations.training.budget import BudgetedLoss
from bge_integrations.training.callbacks import METRIC, Bar, Cards, Guard, Notes, TensorBoard
from bge_integrations.training.checks import row_groups
from bge_integrations.training.contrastive import ContrastiveLoss
from bge_integrations.training.data import TrainingData
from bge_integrations.training.gathering import process_count, process_rank
from bge_integrations.training.layout import Layout
from bge_integrations.training.saving import save_model, set_prompts, write_model
from bge_integrations.training.settings import EmbedderTraining, TrainingSettings
from bge_integrations.training.starting import Start
from bge_integrations.training.unpadded import without_padding
from bge_integrations.training.work import TrainingResult, budget_of

__all__ = ["Task", "Watch", "run_task", "run_trainer"]

_EVALUATED_TOGETHER = {"cpu": 32}
_ELSEWHERE = 256


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a model learns: rows by their numbers, how a batch is made of them, and its loss.

    Attributes:
        groups: Row numbers of each group; a batch has rows of one group.
        collator: Function from rows, `{"row": number}` each, to a batch of tensors.
        features: Function from a batch to its columns of token ids and masks, and to what the loss takes beside them.
        loss: Function from these to the loss.
        epochs: The current epoch, for the order of rows and the collator.
        halved: Places of groups whose batches have half as many rows.
    """

    groups: Sequence[Sequence[int]]
    collator: Callable[[Sequence[Mapping[str, int]]], dict[str, Any]]
    features: Callable[[dict[str, Any]], tuple[list[dict[str, Tensor]], Any]]
    loss: BudgetedLoss
    epochs: Epochs = field(default_factory=Epochs)
    halved: Collection[int] = ()


@dataclass(frozen=True, kw_only=True)
class Watch:
    """What is seen and kept of a training while it runs.

    Attributes:
        work: The folder for checkpoints. It is removed at the end.
        output: The folder for the model.
        checkpoint: The checkpoint to go on with; `None`: the start.
        every: Steps between checkpoints, and between evaluations; `None`: after each epoch.
        validation: Data to evaluate on. The best checkpoint becomes the model.
        patience: Evaluations without a better one before training stops; `None`: it does not stop early.
        show_progress: Whether to show a progress bar.
        record: Plain data about the training, for the cards of checkpoints.
        events: The folder for TensorBoard's files; `None`: none are written.
        on_log: Function that takes a step and what is logged of it.
    """

    work: Path
    output: Path
    record: Mapping[str, Any]
    checkpoint: Path | None = None
    every: int | None = None
    validation: RetrievalData | None = None
    patience: int | None = None
    show_progress: bool = False
    events: Path | None = None
    on_log: Callable[[int, dict[str, float]], None] | None = None


def run_trainer(start: Start, data: TrainingData, chosen: EmbedderTraining, watch: Watch) -> TrainingResult:
    """Trains the model of `start` on rows of queries and passages. See `train_embedder`."""
    epochs = Epochs()
    rows = list(data.rows)
    loss = ContrastiveLoss(
        start.model,
        temperature=chosen.temperature or 0.02,
        distillation=chosen.distillation,
        matryoshka_dims=chosen.matryoshka_dims,
        guide_margin=chosen.guide_margin,
        budget=budget_of(start, chosen),
    )
    guide = BgeEncoder(chosen.guide, on_truncation="ignore") if chosen.guide else None
    collator = Collator(
        rows,
        start.tokenize,
        instruction=lambda row: start.instruction if row.prompt is None else row.prompt,
        negatives=chosen.negatives,
        query_length=chosen.query_length,
        passage_length=chosen.passage_length,
        pad_id=start.pad_id,
        seed=chosen.seed,
        epochs=epochs,
        uses_teacher=chosen.distillation is not None,
        teacher_margin=chosen.teacher_margin,
        guide=(guide.encode_queries, guide.encode_documents) if guide else None,
    )
    groups = row_groups(rows, same_source=chosen.same_source)
    task = Task(
        groups=list(groups.values()),
        collator=collator,
        features=lambda batch: ([batch["queries"], batch["passages"]], Layout.of(batch["layout"])),
        loss=loss,
        epochs=epochs,
        halved=[place for place, (_, kind) in enumerate(groups) if kind.startswith("symmetric")],
    )
    try:
        return run_task(start, task, chosen, watch)
    finally:
        if guide is not None:
            guide.close()


def run_task(start: Start, task: Task, chosen: TrainingSettings, watch: Watch) -> TrainingResult:
    """Trains the model of `start` on a task, and saves it in the main process."""
    notes = Notes(watch.on_log)
    callbacks: list[TrainerCallback] = [Guard(watch.work, chosen), notes, Cards(watch.record)]
    set_prompts(start.model, start.instruction)
    validation = watch.validation
    if watch.patience is not None and validation is not None:
        callbacks.append(EarlyStoppingCallback(early_stopping_patience=watch.patience))
    trainer = _Trainer(
        model=start.model,
        args=_arguments(chosen, start, watch),
        train_dataset=Dataset.from_dict({"row": list(range(sum(map(len, task.groups))))}),
        loss=task.loss,
        evaluator=None if validation is None else _Validation(validation, start, chosen.precision),
        data_collator=task.collator,  # type: ignore[arg-type] # called with rows of the dataset, as theirs
        callbacks=callbacks,
    )
    trainer.task = task
    trainer.batches = RowBatches(
        task.groups,
        chosen.batch_size,
        seed=chosen.seed,
        epochs=task.epochs,
        halved=task.halved,
        processes=process_count(),
    )
    trainer.remove_callback(PrinterCallback)
    shown: list[Bar | TensorBoard] = [Bar()] if watch.show_progress else []
    if watch.events is not None and process_rank() == 0:
        shown.append(TensorBoard(watch.events))
    with contextlib.ExitStack() as stack:
        for one in shown:
            trainer.add_callback(one)
            stack.callback(one.close)
        stack.enter_context(_quiet())
        stack.enter_context(without_padding(start.model, start.encoder, cls_only=start.pooling == "cls"))
        stack.enter_context(_memory_told(task, start))
        trainer.train(resume_from_checkpoint=None if watch.checkpoint is None else str(watch.checkpoint))
    start.model.eval()
    steps = trainer.state.global_step
    if process_rank() == 0:
        save_model(start.model, watch.output, instruction=start.instruction, record={**watch.record, "steps": steps})
        shutil.rmtree(watch.work, ignore_errors=True)
    return TrainingResult(watch.output, steps, notes.losses, notes.validation)


class _Trainer(SentenceTransformerTrainer):
    """The library's trainer, with batches of this package.

    Attributes:
        task: What the model learns.
        batches: The batches of row numbers.
    """

    task: Task
    batches: RowBatches

    def get_batch_sampler(self, *_: object, **__: object) -> RowBatches:
        """Returns the batches."""
        return self.batches

    def collect_features(self, inputs: dict[str, Any]) -> tuple[list[dict[str, Tensor]], Any]:
        """Returns columns of token ids, and what the loss takes beside them."""
        return self.task.features(inputs)

    def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
        """Adds none: this package writes the card."""

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:  # noqa: ANN401, ARG002
        """Writes a checkpoint."""
        write_model(self.model, Path(output_dir or str(self.args.output_dir)))


def _arguments(chosen: TrainingSettings, start: Start, watch: Watch) -> SentenceTransformerTrainingArguments:
    evaluates = "no" if watch.validation is None else "steps" if watch.every else "epoch"
    steps: dict[str, Any] = {}
    if watch.every:
        steps = {"eval_steps": watch.every, "save_steps": watch.every}
    return SentenceTransformerTrainingArguments(
        output_dir=str(watch.work),
        num_train_epochs=chosen.epochs,
        max_steps=chosen.max_steps or -1,
        per_device_train_batch_size=chosen.batch_size,
        learning_rate=chosen.learning_rate,
        warmup_steps=chosen.warmup,
        weight_decay=chosen.weight_decay,
        bf16=chosen.precision == "bfloat16",
        use_cpu=start.model.device.type == "cpu",
        seed=chosen.seed,
        logging_steps=1,
        eval_strategy=evaluates,
        save_strategy="steps" if watch.every else "epoch",
        save_total_limit=2,
        load_best_model_at_end=watch.validation is not None,
        metric_for_best_model=f"eval_{METRIC}" if watch.validation is not None else None,
        # A loss of NaN would be logged as 0.
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=start.model.device.type == "cuda",
        **steps,
    )


class _Validation(BaseEvaluator):
    """Evaluates the model as it is now, and as it is used later: with the instruction, and texts cut at its limit."""

    def __init__(self, data: RetrievalData, start: Start, precision: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.primary_metric = METRIC
        self._data = data
        self._start = start
        self._is_half = precision == "bfloat16"

    def __call__(self, model: Any, output_path: Any = None, epoch: float = -1, steps: int = -1) -> dict[str, float]:  # noqa: ANN401, ARG002
        """Returns nDCG@10."""

        class Embeds:
            encode_queries = staticmethod(
                lambda texts: self._vectors(model, [f"{self._start.instruction}{text}" for text in texts])
            )
            encode_documents = staticmethod(lambda texts: self._vectors(model, texts))

        was_training, limit = model.training, model.max_seq_length
        model.eval()
        model.max_seq_length = self._start.max_length
        try:
            return evaluate_retrieval(Embeds(), self._data, metrics=[METRIC], depth=10).metrics
        finally:
            model.max_seq_length = limit
            model.train(was_training)

    def _vectors(self, model: Any, texts: list[str]) -> NDArray[np.float32]:  # noqa: ANN401
        # It encodes texts of similar length together.
        together = _EVALUATED_TOGETHER.get(model.device.type, _ELSEWHERE)
        with torch.autocast(model.device.type, torch.bfloat16, enabled=self._is_half):
            found: NDArray[np.float32] = model.encode(
                texts, prompt="", batch_size=together, convert_to_numpy=True, show_progress_bar=False
            )
        return found


@contextlib.contextmanager
def _memory_told(task: Task, start: Start) -> Iterator[None]:
    """Says what to do when memory runs out.

    Raises:
        DeviceMemoryError: It does inside the block.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        budget = task.loss.budget
        raise DeviceMemoryError(
            f"This training needs more memory than {start.model.device.type} has. Lower "
            f"tokens_in_memory={budget.tokens_in_memory} or mini_batch_tokens={budget.mini_batch_tokens}: this changes "
            "no gradient. Another program may use the memory too.",
            None,
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Holds back warnings that libraries give of their own work."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"(torch|accelerate|transformers|sentence_transformers)(\.|$)")
        with quiet_transformers():
            yield
