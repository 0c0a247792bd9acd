"""What happens beside the steps of a training: notes, checks, the progress bar and logs. Imports torch."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm
from transformers import TrainerCallback

from bge_integrations.backend.display.bars import steady
from bge_integrations.backend.guarantees.logs import get_logger
from bge_integrations.errors import SettingsError
from bge_integrations.training.settings import TrainingSettings
from bge_integrations.training.trainer.saving import write_record
from bge_integrations.training.trainer.work import checkpoints

__all__ = ["METRIC", "Bar", "Cards", "Guard", "Notes", "Steps", "TensorBoard"]

logger = get_logger(__name__)

METRIC = "ndcg@10"

_ZERO = 1e-6
_ZEROS = 10
"""Steps in a row with a loss of at most `_ZERO`, after which nothing is learnt."""
_SHOWN = 10
"""Steps whose mean loss is shown."""


class _OfLogs(TrainerCallback):
    """Looks at what is logged of a step."""

    def take(self, step: int, logs: Mapping[str, Any], *, is_main: bool) -> None:
        """Takes what is logged.

        Args:
            step: The step.
            logs: Loss, learning rate and norm of the gradient of a step, or the figures of an evaluation.
            is_main: Whether this process speaks for all.
        """
        raise NotImplementedError

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:  # noqa: ANN401, ARG002
        """See `TrainerCallback`."""
        self.take(state.global_step, logs or {}, is_main=state.is_world_process_zero)


class Notes(_OfLogs):
    """Keeps what is logged.

    Attributes:
        losses: Loss by step.
        validation: nDCG@10 by step.
    """

    def __init__(self, on_log: Callable[[int, dict[str, float]], None] | None) -> None:
        """Takes a function of the user's that gets everything too."""
        self.losses: dict[int, float] = {}
        self.validation: dict[int, float] = {}
        self._on_log = on_log

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ANN401, ARG002
        """Keeps what was logged before the checkpoint that training goes on with."""
        for logs in state.log_history:
            self._keep(logs["step"], logs)

    def take(self, step: int, logs: Mapping[str, Any], *, is_main: bool) -> None:  # noqa: ARG002
        """Keeps a loss or a figure, and hands it on."""
        self._keep(step, logs)
        if self._on_log is not None:
            self._on_log(step, dict(logs))

    def _keep(self, step: int, logs: Mapping[str, Any]) -> None:
        if "loss" in logs:
            self.losses[step] = float(logs["loss"])
        if f"eval_{METRIC}" in logs:
            self.validation[step] = float(logs[f"eval_{METRIC}"])


class Guard(_OfLogs):
    """Stops a training whose loss is no finite number, and warns of a loss that stays 0.

    A step is logged before its checkpoint is written, in every process, and with the loss of all processes. So no
    checkpoint has weights of NaN, and no process waits for another one.
    """

    def __init__(self, work: Path, settings: TrainingSettings, about_zero: str) -> None:
        """Takes what the messages name."""
        self._work = work
        self._settings = settings
        self._about_zero = about_zero
        self._zeros = 0

    def take(self, step: int, logs: Mapping[str, Any], *, is_main: bool) -> None:
        """Checks a step.

        Raises:
            SettingsError: Its loss or its gradient is NaN or infinite.
        """
        for name, what in (("loss", "loss"), ("grad_norm", "gradient")):
            if name in logs and not math.isfinite(logs[name]):
                raise SettingsError(self._about(step, what, logs[name]))
        if "loss" not in logs:
            return
        self._zeros = self._zeros + 1 if logs["loss"] <= _ZERO else 0
        if self._zeros == _ZEROS and is_main:
            logger.warning(
                f"The loss has been 0 for {_ZEROS} steps, up to step {step}: nothing is learnt. {self._about_zero}"
            )

    def _about(self, step: int, what: str, value: float) -> str:
        changes = [f"Lower learning_rate ({self._settings.learning_rate:g} now)"]
        if self._settings.precision != "float32":
            changes.append('set precision="float32"')
        changes.append("check that the model is not damaged")
        found = checkpoints(self._work)
        kept = (
            f"The checkpoint {found[-1]} is from before, and is kept: go on from it as the model of another training, "
            f"or remove {self._work} to start again."
            if found
            else "There was no checkpoint yet."
        )
        return f"The {what} is {value:g} at step {step}, so training has stopped. {'; or '.join(changes)}. {kept}"


class Cards(TrainerCallback):
    """Writes record and card into each checkpoint, so that it is known for what it is and keeps its instruction."""

    def __init__(self, record: Mapping[str, Any]) -> None:
        """Takes the record of the training."""
        self._record = record

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ANN401, ARG002
        """Writes them."""
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if state.is_world_process_zero and folder.is_dir():
            write_record(folder, {**self._record, "steps": state.global_step})


class Steps(TrainerCallback):
    """Tells what is trained how many steps are done."""

    def __init__(self, tell: Callable[[int], None]) -> None:
        """Takes a function of the number of steps."""
        self._tell = tell

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ANN401, ARG002
        """Tells it."""
        self._tell(state.global_step)


class Bar(_OfLogs):
    """The progress bar: steps, time, the loss, and nDCG@10 of each evaluation on a line of its own."""

    def __init__(self) -> None:
        """Makes no bar yet."""
        self._bar: Any = None
        self._losses: deque[float] = deque(maxlen=_SHOWN)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ANN401, ARG002
        """Shows the bar."""
        if state.is_world_process_zero:
            self._bar = steady(tqdm)(
                total=state.max_steps, initial=state.global_step, unit="step", desc="Training", dynamic_ncols=True
            )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ANN401, ARG002
        """Moves the bar."""
        if self._bar is not None:
            self._bar.update(state.global_step - self._bar.n)
            self._tell(control)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ANN401, ARG002
        """Says that an evaluation begins."""
        if self._bar is not None:
            self._tell(control)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ANN401, ARG002
        """Says that training goes on."""
        if self._bar is not None:
            self._bar.set_description("Training")

    def take(self, step: int, logs: Mapping[str, Any], *, is_main: bool) -> None:  # noqa: ARG002
        """Shows a loss or a figure."""
        if self._bar is None:
            return
        if "loss" in logs:
            self._losses.append(float(logs["loss"]))
            self._bar.set_postfix_str(f"loss {sum(self._losses) / len(self._losses):.4f}")
        if f"eval_{METRIC}" in logs:
            figure = f"step {step:,}: {METRIC} {logs[f'eval_{METRIC}']:.4f} on the validation data"
            if not self._bar.disable:
                self._bar.write(figure, file=self._bar.fp)

    def _tell(self, control: Any) -> None:  # noqa: ANN401 - transformers' TrainerControl
        if control.should_evaluate:
            self._bar.set_description("Evaluating")

    def close(self) -> None:
        """Leaves the bar as it is."""
        if self._bar is not None:
            self._bar.close()


class TensorBoard(_OfLogs):
    """Writes event files for TensorBoard, with the names that transformers' own trainer gives."""

    def __init__(self, folder: Path) -> None:
        """Opens the files of this run, in the main process only."""
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder))

    def take(self, step: int, logs: Mapping[str, Any], *, is_main: bool) -> None:  # noqa: ARG002
        """Writes figures of a step."""
        for name in ("loss", "learning_rate", "grad_norm"):
            if name in logs:
                self._writer.add_scalar(f"train/{name}", float(logs[name]), step)
        if f"eval_{METRIC}" in logs:
            self._writer.add_scalar(f"eval/{METRIC}", float(logs[f"eval_{METRIC}"]), step)
        self._writer.flush()

    def close(self) -> None:
        """Closes the files."""
        self._writer.close()
