"""`bge train`: trains an embedding model or a reranker, and says whether it became better."""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from bge_integrations.cli.evaluate.command import usual_cache
from bge_integrations.cli.terminal import plain_table, print_table, print_text
from bge_integrations.cli.train_options import Settings
from bge_integrations.encoder import BgeEncoder
from bge_integrations.errors import SettingsError, TrainingDataError
from bge_integrations.evaluation import RetrievalData, load_retrieval_data
from bge_integrations.prepare import prepare
from bge_integrations.settings import EncoderSettings, ModelSettings, Purpose, RerankerSettings
from bge_integrations.training import (
    DistillationTraining,
    EmbedderTraining,
    M3Training,
    MergeResult,
    RerankerTraining,
    TrainingData,
    TrainingResult,
    best_merge,
    distil_embedder,
    load_training_data,
    train_embedder,
    train_m3,
    train_reranker,
    with_candidates,
)
from bge_integrations.training.m3.verdict import judge_m3
from bge_integrations.training.reranking.verdict import RerankerVerdict, judge_reranker
from bge_integrations.training.trainer.saving import RECORD, require_free, write_record
from bge_integrations.training.trainer.work import launched
from bge_integrations.training.verdict import Verdict, held_out, judge

__all__ = ["Job", "Outcome", "print_outcome", "run_training"]

_SHARE = 0.1
_LEAST_ROWS = 50
"""Fewer rows are not split: parts of a few questions would say nothing."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What `bge train` does."""

    data: Path
    start: EncoderSettings
    output: Path
    settings: Settings
    validation: Path | None = None
    test: Path | None = None
    general: Path | None = None
    prepared: str | None = None
    resume: bool = False
    report_to: str = "none"
    distil_from: str | None = None
    merge: tuple[float, ...] = ()
    embedder: EncoderSettings | None = None
    candidates: int = 100

    @property
    def start_of_reranker(self) -> RerankerSettings:
        """Settings with which the start of a reranker is found."""
        shared = {field.name: getattr(self.start, field.name) for field in dataclasses.fields(ModelSettings)}
        return RerankerSettings(**shared)


@dataclass(frozen=True)
class Outcome:
    """What came of it.

    Attributes:
        output: The folder with the model.
        prepared: The prepared folder; `None`: none.
        rows: Rows that were trained on.
        steps: Steps of the optimiser.
        seconds: Time of the training; 0 if an earlier run trained.
        loss: The mean loss of the last tenth of the steps; `None` if an earlier run trained.
        validation: nDCG@10 on the validation data by step.
        verdict: The judgement; `None` without held-out questions.
        merged: What merging found; `None` without it.
    """

    output: Path
    prepared: Path | None
    rows: int
    steps: int
    seconds: float
    loss: float | None
    validation: Mapping[int, float]
    verdict: Verdict | None
    merged: MergeResult | None = None

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data for JSON."""
        return {
            "output": str(self.output),
            "prepared": None if self.prepared is None else str(self.prepared),
            "rows": self.rows,
            "steps": self.steps,
            "seconds": self.seconds,
            "loss": self.loss,
            "validation": {str(step): figure for step, figure in self.validation.items()},
            "merged": None
            if self.merged is None
            else {"share": self.merged.share, "figures": {f"{k:g}": v for k, v in self.merged.figures.items()}},
            "verdict": None if self.verdict is None else {**self.verdict.to_dict(), "words": self.verdict.in_words()},
        }


def run_training(job: Job, console: Console) -> Outcome | None:
    """Trains, judges and saves.

    Returns:
        What came of it; `None` in all processes but the first, if several train together.

    Raises:
        BgeError: An option or the data is wrong, or training fails.
    """
    # A finished run whose verdict was killed goes on with the verdict.
    is_finished = job.resume and (job.output / RECORD).is_file()
    if not is_finished:
        require_free(job.output)
    prepared = None
    if job.prepared is not None:
        prepared = job.output.with_name(f"{job.output.name}-{job.prepared}")
        require_free(prepared)
    everything = load_training_data(job.data)
    train, validation, test = _parts(job, everything)
    general = None if job.general is None else load_retrieval_data(job.general)
    is_first = launched()[0] == 0
    if is_first and console.is_terminal:
        print_text(console, f"{len(train.rows):,} rows to train on …")
    lora = job.settings.lora if isinstance(job.settings, EmbedderTraining) else None
    asked = "--merge" if job.merge else "--prepare" if job.prepared is not None else None
    if asked is not None and lora is not None and not lora.merge:
        raise SettingsError(f"{asked} needs whole weights, and --lora saves an adapter alone; add --lora-merge.")
    if job.merge and validation is None:
        raise SettingsError("--merge chooses a share on the validation data, and there are none; give --validation.")
    trained = job.output.with_name(f"{job.output.name}.tuned") if job.merge else job.output
    # A finished run whose merging was killed goes on with the merging.
    begin = time.perf_counter()
    is_trained = is_finished or (job.resume and (trained / RECORD).is_file())
    result = None if is_trained else _train(job, train, validation, trained, console)
    seconds = 0.0 if result is None else time.perf_counter() - begin
    if not is_first:
        return None
    merged = None
    if job.merge and validation is not None and not is_finished:
        device = job.start.device if isinstance(job.start.device, str) else None
        merged = best_merge(job.start.model_name, trained, job.merge, validation, job.output, device=device)
        shutil.rmtree(trained)
    verdict = None
    if test is not None:
        verdict = _judge(job, test, general)
        _note(job.output, verdict)
    if prepared is not None:
        purpose: Purpose | None = "m3" if isinstance(job.settings, M3Training) else None
        prepare(job.output, prepared, precision=job.prepared, purpose=purpose)  # type: ignore[arg-type] # checked there
    losses = [] if result is None else [loss for _, loss in sorted(result.losses.items())]
    last = losses[-max(1, len(losses) // 10) :]
    return Outcome(
        output=job.output,
        prepared=prepared,
        rows=len(train.rows),
        steps=0 if result is None else result.steps,
        seconds=seconds,
        loss=sum(last) / len(last) if last else None,
        validation={} if result is None else result.validation,
        verdict=verdict,
        merged=merged,
    )


def _judge(job: Job, test: RetrievalData, general: RetrievalData | None) -> Verdict:
    if job.embedder is None:
        if isinstance(job.settings, M3Training):
            return judge_m3(job.start, job.output, test, general=general)
        return judge(job.start, job.output, test, general=general, cache=usual_cache())
    record = json.loads((job.output / RECORD).read_text(encoding="utf-8"))
    return judge_reranker(
        job.output,
        test,
        job.embedder,
        start=None if record["new_head"] else job.start_of_reranker,
        candidates=job.candidates,
        general=general,
        cache=usual_cache(),
    )


def _train(
    job: Job, train: TrainingData, validation: RetrievalData | None, output: Path, console: Console
) -> TrainingResult:
    if isinstance(job.settings, DistillationTraining):
        return distil_embedder(
            train.passages(),
            job.distil_from,
            job.start,
            output,
            settings=job.settings,
            queries=list(dict.fromkeys(row.query for row in train.rows)),
            cache=usual_cache(),
            resume=job.resume,
            show_progress=console.is_terminal,
            report_to=job.report_to,
        )
    watched: dict[str, Any] = {"resume": job.resume, "show_progress": console.is_terminal, "report_to": job.report_to}
    if isinstance(job.settings, RerankerTraining):
        if validation is not None and job.embedder is not None:
            with BgeEncoder.from_settings(job.embedder) as encoder:
                validation = with_candidates(validation, encoder, job.candidates, cache=usual_cache())
        return train_reranker(
            train, job.start_of_reranker, output, settings=job.settings, validation=validation, **watched
        )
    if isinstance(job.settings, M3Training):
        return train_m3(train, job.start, output, settings=job.settings, validation=validation, **watched)
    return train_embedder(train, job.start, output, settings=job.settings, validation=validation, **watched)


def print_outcome(outcome: Outcome, console: Console) -> None:
    """Prints what came of it."""
    loss = "" if outcome.loss is None else f", loss {outcome.loss:.4f} at the end"
    print_text(console, f"{outcome.rows:,} rows, {outcome.steps:,} steps in {outcome.seconds:,.0f} s{loss}")
    if outcome.validation:
        # The first of equal ones is kept.
        best = max(outcome.validation, key=lambda step: outcome.validation[step])
        figures = ", ".join(f"{figure:.4f} (step {step:,})" for step, figure in sorted(outcome.validation.items()))
        print_text(console, f"ndcg@10 on the validation data: {figures}; the model is that of step {best:,}")
    print_text(console, "")
    verdict = outcome.verdict
    if verdict is None:
        print_text(console, "There were no held-out questions to judge by; give --test.", style="yellow")
    else:
        table = plain_table()
        for name in ("", *(("embedder", "reranked") if isinstance(verdict, RerankerVerdict) else ("before", "after"))):
            table.add_column(name, justify="right" if name else "left", no_wrap=True)
        for metric in ("ndcg@10", "recall@10", "mrr@10"):
            table.add_row(metric, *(f"{report.metrics[metric]:.4f}" for report in (verdict.before, verdict.after)))
        for group, (before, after) in verdict.groups.items():
            table.add_row(f"ndcg@10, {group}", f"{before:.4f}", f"{after:.4f}")
        print_table(console, table)
        if outcome.merged is not None:
            figures = ", ".join(f"{share:g}: {figure:.4f}" for share, figure in outcome.merged.figures.items())
            print_text(
                console,
                f"\nmerged with its start: a share of {outcome.merged.share:g} is the best on the validation data "
                f"(ndcg@10 by share {figures})",
            )
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
    record = json.loads((output / RECORD).read_text(encoding="utf-8"))
    record |= {"verdict": verdict.in_words(), "figures": verdict.to_dict()}
    write_record(output, record)
