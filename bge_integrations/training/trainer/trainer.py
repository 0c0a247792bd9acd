"""Trains a model with this package's batches and loss, by transformers' trainer. Imports torch."""

from __future__ import annotations

import contextlib
import shutil
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list  # type: ignore[import-untyped]
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from bge_integrations.backend.display.quiet import quiet_transformers
from bge_integrations.backend.engines.memory import is_out_of_memory
from bge_integrations.errors import DeviceMemoryError
from bge_integrations.training.machine.processes import process_count, process_rank, wait_for_all
from bge_integrations.training.rows.batches import Epochs, RowBatches
from bge_integrations.training.settings import TrainingSettings
from bge_integrations.training.trainer.callbacks import METRIC, Bar, Cards, Guard, Notes, Steps, TensorBoard
from bge_integrations.training.trainer.saving import write_record
from bge_integrations.training.trainer.work import OnLog, TrainingResult

__all__ = ["Subject", "Task", "Watch", "run_task"]


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model that is trained, with its files.

    Attributes:
        model: All parameters, on their device.
        device: That device.
        write: Function that writes a checkpoint's files into a folder.
        restore: Function that gives the model the weights of such a folder.
        finish: Function that writes the files of the trained model; `None`: they are those of a checkpoint.
        running: Function that gives a context in which the model is trained, and not evaluated later.
        evaluate: Function that returns figures on validation data by name. Every process calls it, and the figures of
            the first process count. `None`: there are no validation data.
    """

    model: nn.Module
    device: torch.device
    write: Callable[[Path], None]
    restore: Callable[[Path], None]
    finish: Callable[[Path], None] | None = None
    running: Callable[[], AbstractContextManager[object]] = nullcontext
    evaluate: Callable[[], dict[str, float]] | None = None


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a model learns: rows by their numbers, how a batch is made of them, and its loss.

    Attributes:
        groups: Row numbers of each group; a batch has rows of one group.
        collator: Function from rows, `{"row": number}` each, to a batch: tensors in dicts.
        loss: Function from the model and a batch on its device to the loss. With several processes, the model is the
            one that adds up gradients.
        epochs: The current epoch, for the order of rows and the collator.
        halved: Places of groups whose batches have half as many rows.
        about_memory: What to change when memory runs out.
        about_zero: What to change when the loss stays 0.
        on_step: Function that takes the number of steps of the optimiser that are done, before each step, also of a run
            that goes on; `None`: none.
    """

    groups: Sequence[Sequence[int]]
    collator: Callable[[Sequence[Mapping[str, int]]], dict[str, Any]]
    loss: Callable[[nn.Module, dict[str, Any]], Tensor]
    epochs: Epochs = field(default_factory=Epochs)
    halved: Collection[int] = ()
    about_memory: str
    about_zero: str
    on_step: Callable[[int], None] | None = None


@dataclass(frozen=True, kw_only=True)
class Watch:
    """What is seen and kept of a training while it runs.

    Attributes:
        work: The folder for checkpoints. It is removed at the end.
        output: The folder for the model.
        checkpoint: The checkpoint to go on with; `None`: the start.
        every: Steps between checkpoints, and between evaluations; `None`: after each epoch.
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
    patience: int | None = None
    show_progress: bool = False
    events: Path | None = None
    on_log: OnLog | None = None


def run_task(subject: Subject, task: Task, chosen: TrainingSettings, watch: Watch) -> TrainingResult:
    """Trains a model on a task, and saves it in the main process. Then the folder is there for all processes.

    If the model is evaluated, the best checkpoint is saved, else the last state.
    """
    notes = Notes(watch.on_log)
    callbacks: list[TrainerCallback] = [Guard(watch.work, chosen, task.about_zero), notes, Cards(watch.record)]
    if task.on_step is not None:
        callbacks.append(Steps(task.on_step))
    if watch.patience is not None and subject.evaluate is not None:
        callbacks.append(EarlyStoppingCallback(early_stopping_patience=watch.patience))
    trainer = _Trainer(subject, task, chosen, watch, callbacks)
    shown: list[Bar | TensorBoard] = [Bar()] if watch.show_progress else []
    if watch.events is not None and process_rank() == 0:
        shown.append(TensorBoard(watch.events))
    with contextlib.ExitStack() as stack:
        for one in shown:
            trainer.add_callback(one)
            stack.callback(one.close)
        stack.enter_context(_quiet())
        stack.enter_context(subject.running())
        stack.enter_context(_memory_told(task, subject.device))
        trainer.train(resume_from_checkpoint=None if watch.checkpoint is None else str(watch.checkpoint))
        # Each process has read the best checkpoint before the first one removes it.
        wait_for_all()
    subject.model.eval()
    steps = trainer.state.global_step
    if process_rank() == 0:
        (subject.finish or subject.write)(watch.output)
        write_record(watch.output, {**watch.record, "steps": steps})
        shutil.rmtree(watch.work, ignore_errors=True)
    wait_for_all()
    return TrainingResult(watch.output, steps, notes.losses, notes.validation)


class _Rows(Dataset[dict[str, int]]):
    """Numbers from 0 on. The collator knows the rows."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, row: int) -> dict[str, int]:
        return {"row": row}


class _Trainer(Trainer):
    """transformers' trainer, with the batches, the loss, the files and the figures of this package."""

    def __init__(
        self, subject: Subject, task: Task, chosen: TrainingSettings, watch: Watch, callbacks: list[TrainerCallback]
    ) -> None:
        self._subject = subject
        self._task = task
        super().__init__(
            model=subject.model,
            args=_arguments(chosen, watch, subject.device, evaluates=subject.evaluate is not None),
            # `evaluate` reads none, but the trainer evaluates only where there is one.
            eval_dataset=None if subject.evaluate is None else _Rows(0),
            callbacks=callbacks,
        )
        # Only now the processes know of each other.
        self._batches = RowBatches(
            task.groups,
            chosen.batch_size,
            seed=chosen.seed,
            epochs=task.epochs,
            halved=task.halved,
            processes=process_count(),
        )
        # The loss of a batch is a mean, and is computed here.
        self.model_accepts_loss_kwargs = False
        self.remove_callback(PrinterCallback)

    def get_train_dataloader(self) -> DataLoader[dict[str, int]]:
        """Returns the batches of this process."""
        # Batches of all processes have the right sizes already.
        self.accelerator.even_batches = False
        loader = DataLoader(
            _Rows(sum(map(len, self._task.groups))),
            batch_sampler=self._batches,
            collate_fn=self._task.collator,
            pin_memory=self.args.dataloader_pin_memory,
        )
        prepared: DataLoader[dict[str, int]] = self.accelerator.prepare(loader)
        return prepared

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *_: object, **__: object) -> Tensor:
        """Returns the loss of a batch."""
        return self._task.loss(model, inputs)

    def evaluate(self, *_: object, **__: object) -> dict[str, float]:
        """Returns the figures on the validation data, and logs them."""
        figures = self._subject.evaluate() if self._subject.evaluate is not None else {}
        found: dict[str, float] = broadcast_object_list([{f"eval_{name}": value for name, value in figures.items()}])[0]
        self.log(found)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, found)
        return found

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:  # noqa: ANN401, ARG002
        """Writes a checkpoint."""
        self._subject.write(Path(output_dir or str(self.args.output_dir)))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:  # noqa: ARG002
        """Reads a checkpoint."""
        self._subject.restore(Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        """Reads the best checkpoint."""
        self._subject.restore(Path(str(self.state.best_model_checkpoint)))


def _arguments(chosen: TrainingSettings, watch: Watch, device: torch.device, *, evaluates: bool) -> TrainingArguments:
    steps: dict[str, Any] = {}
    if watch.every:
        steps = {"eval_steps": watch.every, "save_steps": watch.every}
    found = TrainingArguments(
        output_dir=str(watch.work),
        num_train_epochs=chosen.epochs,
        max_steps=chosen.max_steps or -1,
        per_device_train_batch_size=chosen.batch_size,
        learning_rate=chosen.learning_rate,
        warmup_steps=chosen.warmup,
        weight_decay=chosen.weight_decay,
        bf16=chosen.precision == "bfloat16",
        use_cpu=device.type == "cpu",
        seed=chosen.seed,
        logging_steps=1,
        eval_strategy="no" if not evaluates else "steps" if watch.every else "epoch",
        save_strategy="steps" if watch.every else "epoch",
        save_total_limit=2,
        load_best_model_at_end=evaluates,
        metric_for_best_model=f"eval_{METRIC}" if evaluates else None,
        # A loss of NaN would be logged as 0.
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=device.type == "cuda",
        # Buffers hold positions, which never change; sending them would count as a change during the backward pass.
        ddp_broadcast_buffers=False,
        **steps,
    )
    if found.n_gpu > 1:
        # One process trains on one GPU. The trainer would divide each batch between all that it sees.
        found._n_gpu = 1
    return found


@contextlib.contextmanager
def _memory_told(task: Task, device: torch.device) -> Iterator[None]:
    """Says what to do when memory runs out.

    Raises:
        DeviceMemoryError: It does inside the block.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise DeviceMemoryError(
            f"This training needs more memory than {device.type} has. {task.about_memory} Another program may use the "
            "memory too.",
            None,
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Holds back warnings that libraries give of their own work."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"(torch|accelerate|transformers|sentence_transformers)(\.|$)")
        with quiet_transformers():
            yield
