"""`bge pretrain`: pre-trains an encoder on plain texts."""

from __future__ import annotations

import dataclasses
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from bge_integrations.cli.terminal import print_text
from bge_integrations.settings import EncoderSettings
from bge_integrations.training import RetroMaeTraining, pretrain_retromae
from bge_integrations.training.trainer.saving import RECORD
from bge_integrations.training.trainer.work import launched

__all__ = ["Outcome", "Plan", "print_outcome", "run_pretraining", "settings_of"]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What `bge pretrain` does."""

    data: Path
    start: EncoderSettings
    output: Path
    settings: RetroMaeTraining
    keep_head: bool = False
    resume: bool = False
    report_to: str = "none"


@dataclass(frozen=True)
class Outcome:
    """What came of it.

    Attributes:
        output: The folder with the model.
        texts: The number of texts.
        pieces: The number of pieces that they were cut into.
        tokens: Tokens of all pieces.
        steps: Steps of the optimiser.
        seconds: Time of the run.
        loss: The mean loss of the first tenth and of the last tenth of the steps.
    """

    output: Path
    texts: int
    pieces: int
    tokens: int
    steps: int
    seconds: float
    loss: tuple[float, float]

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data for JSON."""
        return {**dataclasses.asdict(self), "output": str(self.output), "loss": list(self.loss)}


def run_pretraining(plan: Plan, console: Console) -> Outcome | None:
    """Pre-trains and saves.

    Returns:
        What came of it; `None` in all processes but the first, if several train together.

    Raises:
        BgeError: An option or the data is wrong, or training fails.
    """
    begin = time.perf_counter()
    result = pretrain_retromae(
        plan.data,
        plan.start,
        plan.output,
        settings=plan.settings,
        keep_head=plan.keep_head,
        resume=plan.resume,
        show_progress=console.is_terminal,
        report_to=plan.report_to,
    )
    if launched()[0] != 0:
        return None
    data = json.loads((result.output / RECORD).read_text(encoding="utf-8"))["data"]
    losses = [loss for _, loss in sorted(result.losses.items())]
    tenth = max(1, len(losses) // 10)
    first, last = (sum(some) / tenth for some in (losses[:tenth], losses[-tenth:]))
    return Outcome(
        output=result.output,
        texts=data["rows"],
        pieces=data["pieces"],
        tokens=data["tokens"],
        steps=result.steps,
        seconds=time.perf_counter() - begin,
        loss=(first, last),
    )


def print_outcome(outcome: Outcome, console: Console) -> None:
    """Prints what came of it."""
    first, last = outcome.loss
    print_text(
        console,
        f"{outcome.texts:,} texts in {outcome.pieces:,} pieces of {outcome.tokens:,} tokens, {outcome.steps:,} steps "
        f"in {outcome.seconds:,.0f} s, loss {first:.2f} at the beginning and {last:.2f} at the end",
    )
    print_text(
        console,
        "The vectors are not useful yet: they become so by contrastive training, "
        f"`bge train ROWS --model {str(outcome.output)!r} --output FOLDER`.",
    )


def settings_of(**options: Any) -> RetroMaeTraining:  # noqa: ANN401
    """Returns settings with the options that were given; the others keep their defaults."""
    return RetroMaeTraining(**{name: value for name, value in options.items() if value is not None})
