"""How every training begins: its folders, the checks before anything is loaded, its warnings, and what is watched."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from typing_extensions import Self

from bge_integrations._optional import require
from bge_integrations.backend.checkpoint.digests import key_of
from bge_integrations.backend.guarantees.logs import get_logger
from bge_integrations.training.trainer.saving import require_free
from bge_integrations.training.trainer.work import OnLog, events_folder, launched, prepare_work, work_folder

if TYPE_CHECKING:
    from bge_integrations.training.trainer.trainer import Watch

__all__ = ["Run", "RunOptions"]

logger = get_logger(__name__)


class RunOptions(TypedDict, total=False):
    """What every training takes beside data, model, output and settings.

    Attributes:
        resume: Whether to go on where a killed run with equal data, models and settings stopped.
        show_progress: Whether to show progress bars.
        report_to: "none", or "tensorboard". Its files are in a folder beside the output whose name ends in ".runs", and
            stay there; each run has a folder of its own. Nothing is sent to anyone.
        on_log: Function that takes a step and what is logged of it.
    """

    resume: bool
    show_progress: bool
    report_to: str
    on_log: OnLog | None


@dataclass(frozen=True)
class Run:
    """A run whose output can be written."""

    output: Path
    work: Path
    events: Path | None
    resume: bool
    show_progress: bool
    on_log: OnLog | None

    @classmethod
    def of(
        cls,
        output: str | os.PathLike[str],
        *,
        resume: bool = False,
        show_progress: bool = False,
        report_to: str = "none",
        on_log: OnLog | None = None,
    ) -> Self:
        """Checks what a run needs. Nothing is written.

        Raises:
            SettingsError: The output has content, or it is to be reported to something unknown.
            MissingExtraError: accelerate or tensorboard is not installed and needed.
        """
        target = Path(output).expanduser()
        require_free(target)
        events = events_folder(report_to, target)
        require("accelerate", extra="train")
        return cls(target, work_folder(target), events, resume, show_progress, on_log)

    @property
    def is_main(self) -> bool:
        """Whether this is the first of the processes that train together."""
        return launched()[0] == 0

    def warn(self, warnings: Iterable[str]) -> None:
        """Logs warnings, in the first process."""
        for warning in warnings if self.is_main else ():
            logger.warning(warning)

    def checkpoint(self, facts: Mapping[str, object]) -> Path | None:
        """Returns the checkpoint to go on with, or `None` to start. The folder for checkpoints exists afterwards.

        Args:
            facts: All that the result depends on, as plain data.

        Raises:
            SettingsError: There is a checkpoint of another run, or none to go on with.
        """
        return prepare_work(self.work, key_of(facts), resume=self.resume)

    def watch(
        self, record: Mapping[str, Any], checkpoint: Path | None, every: int | None, patience: int | None = None
    ) -> Watch:
        """Returns what is seen and kept of the run."""
        from bge_integrations.training.trainer.trainer import Watch

        return Watch(
            work=self.work,
            output=self.output,
            record=record,
            checkpoint=checkpoint,
            show_progress=self.show_progress,
            events=self.events,
            on_log=self.on_log,
            every=every,
            patience=patience,
        )
