"""`bge train`: fine-tunes an embedding model, and says whether it became better."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from bge_integrations.cli.terminal import plain_table, print_table, print_text
from bge_integrations.errors import SettingsError, TrainingDataError
from bge_integrations.evaluation import EvaluationCache, RetrievalData, load_retrieval_data
from bge_integrations.prepare import prepare
from bge_integrations.settings import EncoderSettings
from bge_integrations.training import EmbedderTraining, TrainingData, load_training_data, train_embedder
from bge_integrations.training.saving import RECORD, require_free, write_card
from bge_integrations.training.verdict import Verdict, held_out, judge

__all__ = ["Job", "Outcome", "print_outcome", "run_training"]

_SHARE = 0.1
_LEAST_ROWS = 50
"""Fewer rows are not split: parts of a few questions would say nothing."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What `bge train` does.

    Attributes:
        data: Path of the data.
        start: Settings with which the start is found.
        output: The folder to make.
        settings: How to train.
        validation: Path of retrieval data to choose the checkpoint by; `None`: a part of the data.
        test: Path of retrieval data to judge by; `None`: a part of the data.
        general: Path of retrieval data of another kind; `None`: none.
        prepared: Precision of a prepared folder beside the output; `None`: none.
        resume: Whether to go on where a killed run stopped.
        report_to: "none" or "tensorboard".
    """

    data: Path
    start: EncoderSettings
    output: Path
    settings: EmbedderTraining
    validation: Path | None = None
    test: Path | None = None
    general: Path | None = None
    prepared: str | None = None
    resume: bool = False
    report_to: str = "none"


@dataclass(frozen=True)
class Outcome:
    """What came of it.

    Attributes:
        output: The folder with the model.
        prepared: The prepared folder; `None`: none.
        rows: Rows that were trained on.
        steps: Steps of the optimiser.
        loss: The mean loss of the last tenth of the steps.
        verdict: The judgement; `None` without held-out questions.
    """

    output: Path
    prepared: Path | None
    rows: int
    steps: int
    loss: float
    verdict: Verdict | None

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data for JSON."""
        return {
            "output": str(self.output),
            "prepared": None if self.prepared is None else str(self.prepared),
            "rows": self.rows,
            "steps": self.steps,
            "loss": self.loss,
            "verdict": None if self.verdict is None else {**self.verdict.to_dict(), "words": self.verdict.in_words()},
        }


def run_training(job: Job, console: Console) -> Outcome:
    """Trains, judges and saves.

    Args:
        job: What to do.
        console: Where progress goes.

    Raises:
        BgeError: An option or the data is wrong, or training fails.
    """
    require_free(job.output)
    prepared = None
    if job.prepared is not None:
        prepared = job.output.with_name(f"{job.output.name}-{job.prepared}")
        require_free(prepared)
    everything = load_training_data(job.data)
    train, validation, test = _parts(job, everything)
    general = None if job.general is None else load_retrieval_data(job.general)
    if console.is_terminal:
        print_text(console, f"{len(train.rows):,} rows to train on …")
    result = train_embedder(
        train,
        job.start,
        job.output,
        settings=job.settings,
        validation=validation,
        resume=job.resume,
        show_progress=console.is_terminal,
        report_to=job.report_to,
    )
    verdict = None
    if test is not None:
        verdict = judge(job.start, result.output, test, general=general, cache=_cache())
        _note(result.output, verdict)
    if prepared is not None:
        prepare(result.output, prepared, precision=job.prepared)  # type: ignore[arg-type] # checked there
    losses = [loss for _, loss in sorted(result.losses.items())]
    last = losses[-max(1, len(losses) // 10) :]
    return Outcome(
        result.output, prepared, len(train.rows), result.steps, sum(last) / len(last) if last else float("nan"), verdict
    )


def print_outcome(outcome: Outcome, console: Console) -> None:
    """Prints what came of it."""
    print_text(console, f"{outcome.rows:,} rows, {outcome.steps:,} steps, loss {outcome.loss:.4f} at the end\n")
    verdict = outcome.verdict
    if verdict is None:
        print_text(console, "There were no held-out questions to judge by; give --test.", style="yellow")
    else:
        table = plain_table()
        for name in ("", "before", "after"):
            table.add_column(name, justify="right" if name else "left", no_wrap=True)
        for metric in ("ndcg@10", "recall@10", "mrr@10"):
            table.add_row(metric, *(f"{report.metrics[metric]:.4f}" for report in (verdict.before, verdict.after)))
        for group, (before, after) in verdict.groups.items():
            table.add_row(f"ndcg@10, {group}", f"{before:.4f}", f"{after:.4f}")
        print_table(console, table)
        print_text(console, f"\n{verdict.in_words()}\n")
    for folder in filter(None, (outcome.output, outcome.prepared)):
        print_text(console, f"use it with model_name={str(folder)!r}")


def _parts(job: Job, everything: TrainingData) -> tuple[TrainingData, RetrievalData | None, RetrievalData | None]:
    """Returns rows to train on, and data to choose and to judge by."""
    given = [None if path is None else load_retrieval_data(path) for path in (job.validation, job.test)]
    shares = [0.0 if data is not None or len(everything.rows) < _LEAST_ROWS else _SHARE for data in given]
    if not any(shares):
        return everything, given[0], given[1]
    try:
        split = everything.split(by="passage", validation=shares[0], test=shares[1], seed=job.settings.seed)
    except TrainingDataError as error:
        raise SettingsError(f"{error} Or give --validation and --test.") from error
    parts = [
        data if data is not None or part is None else held_out(part, everything)
        for data, part in zip(given, (split.validation, split.test), strict=True)
    ]
    return split.train, parts[0], parts[1]


def _note(output: Path, verdict: Verdict) -> None:
    """Writes the verdict into the folder's record and card."""
    import json

    record = json.loads((output / RECORD).read_text(encoding="utf-8"))
    record |= {"verdict": verdict.in_words(), "figures": verdict.to_dict()}
    (output / RECORD).write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    write_card(output, record)


def _cache() -> EvaluationCache | None:
    try:
        return EvaluationCache()
    except OSError:  # no home folder
        return None


def settings_of(**options: Any) -> EmbedderTraining:  # noqa: ANN401 - the fields' own types
    """Returns settings with the options that were given; the others keep their defaults."""
    known = {field.name for field in dataclasses.fields(EmbedderTraining)}
    return EmbedderTraining(**{name: value for name, value in options.items() if name in known and value is not None})
