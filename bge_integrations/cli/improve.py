"""`bge improve`: from documents to a better model: questions, a split, hard negatives, training, and a verdict."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from rich.console import Console

from bge_integrations.cli.mine import MinePlan, run_mining
from bge_integrations.cli.parts import Parts, divide
from bge_integrations.cli.queries import Making, confirm
from bge_integrations.cli.terminal import print_text
from bge_integrations.cli.train import Job, Outcome, print_outcome, run_training
from bge_integrations.encoder import BgeEncoder
from bge_integrations.errors import SettingsError
from bge_integrations.training import EmbedderTraining, TrainingData
from bge_integrations.training.mining.choice import MiningSettings
from bge_integrations.training.prose import counted, escaped
from bge_integrations.training.queries import MadeQueries
from bge_integrations.training.queries.documents import hashed
from bge_integrations.training.queries.files import save_passages
from bge_integrations.training.trainer.saving import RECORD, require_free
from bge_integrations.training.trainer.work import checkpoints, launched, require_device, work_folder
from bge_integrations.training.verdict import Verdict

__all__ = ["ImprovePlan", "Improved", "improve", "print_improved"]

REPORT = "improvement.md"
"""File in the output with the report."""


@dataclass(frozen=True, kw_only=True)
class ImprovePlan:
    """What the command does."""

    making: Making
    output: Path
    mining: MiningSettings
    training: EmbedderTraining
    general: Path | None = None
    resume: bool = False
    yes: bool = False

    @property
    def work(self) -> Path:
        """The folder beside the output with the answers, the questions and the negatives."""
        return self.output.with_name(f"{self.output.name}.work")

    @property
    def is_trained(self) -> bool:
        """Whether an earlier run has made the model."""
        return self.resume and (self.output / RECORD).is_file()

    @property
    def has_begun(self) -> bool:
        """Whether an earlier run has begun to train, so that the questions must stay what they are."""
        return self.is_trained or (self.resume and bool(checkpoints(work_folder(self.output))))

    def check(self) -> None:
        """Checks the folders, before anything is computed.

        Raises:
            SettingsError: There is something in them already, and the run is not to go on; there are several processes;
                or no process can train on the device.
        """
        if launched()[1] > 1:
            raise SettingsError(
                "bge improve runs in one process, so that nothing is asked twice. For several GPUs, run `bge "
                "make-queries` and `bge mine`, and then `bge train` with torchrun."
            )
        require_device(self.making.start.device)
        if not self.is_trained:
            require_free(self.output)
        if self.work.exists() and not self.resume:
            raise SettingsError(
                f"{self.work} has files of an earlier run; go on with resume=True, or remove the folder. Answers of "
                "the chat model are in it, which are used again."
            )
        if not self.output.absolute().parent.is_dir():
            raise SettingsError(f"output={str(self.output)!r}: there is no folder {self.output.absolute().parent}.")


@dataclass(frozen=True)
class Improved:
    """What came of it."""

    made: MadeQueries
    parts: Parts
    outcome: Outcome
    own_test: bool
    report: Path

    def in_words(self) -> str:
        """Says whether the model is better, and how far that can be trusted."""
        return about_verdict(self.outcome.verdict, own_test=self.own_test)

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data for JSON."""
        return {
            "questions": self.made.report.to_dict(),
            "divided": self.parts.words,
            "shared": self.parts.shared,
            "training": self.outcome.to_dict(),
            "words": self.in_words(),
            "report": str(self.report),
        }


def about_verdict(verdict: Verdict | None, *, own_test: bool) -> str:
    """Returns what a verdict means, in words."""
    if verdict is None:
        return "There is no verdict, since there were no questions to judge by."
    found = verdict.comparison
    if found.is_significant and found.difference > 0:
        said = "The model is shown to be better on these questions."
    elif found.is_significant:
        said = "The model is worse on these questions. Keep the start."
    else:
        said = (
            "The model is not shown to be better: the difference can be chance. Keep the start, or make more questions."
        )
    if own_test:
        return said
    return (
        f"{said} The questions were made by the chat model that made those of the training, so they flatter the "
        "trained model. Questions of users say more: give them as --test."
    )


def improve(plan: ImprovePlan, console: Console) -> Improved:
    """Runs all of it.

    Raises:
        BgeError: An option or the documents are wrong, or a model fails. What is finished is kept in the work folder.
        OSError: A file can't be written.
    """
    plan.check()
    made = _make(plan, console)
    parts = divide(made.data, plan.making.test_data())
    if console.is_terminal:
        print_text(console, f"{counted(len(made.data.rows), 'question')}. {parts.words}")
    _require_equal(plan, parts.train)
    mining_report = _mine(plan, made, parts.train)
    outcome = run_training(_job(plan, parts), console)
    assert outcome is not None  # this is the only process
    own_test = plan.making.test is not None
    report = plan.output / REPORT
    improved = Improved(made, parts, outcome, own_test, report)
    report.write_text(_to_markdown(improved, mining_report), encoding="utf-8")
    return improved


def print_improved(improved: Improved, console: Console) -> None:
    """Prints what came of it."""
    for sentences in improved.made.report.sentences():
        print_text(console, f"{sentences}\n")
    print_text(console, f"{improved.parts.words}\n")
    print_outcome(improved.outcome, console)
    print_text(console, f"\n{improved.in_words()}\n", style="bold")
    print_text(console, f"report: {improved.report}")


def _make(plan: ImprovePlan, console: Console) -> MadeQueries:
    """Makes the questions. Kept answers are used again, so that only what is missing is asked."""
    is_new = not plan.work.exists()
    plan.work.mkdir(exist_ok=True)
    try:
        with BgeEncoder.from_settings(plan.making.start) as encoder:
            ready = plan.making.plan(encoder, plan.work / "answers.jsonl", show_progress=console.is_terminal)
            if not plan.has_begun:
                confirm(ready.estimate, console, yes=plan.yes)
            made = ready.run(asks=not plan.has_begun)
    finally:
        if is_new and not any(plan.work.iterdir()):  # nothing was asked
            plan.work.rmdir()
    save_passages(ready.passages.all, plan.work / "passages.jsonl")
    made.data.save(plan.work / "questions.jsonl")
    (plan.work / "questions.md").write_text(made.report.to_markdown(), encoding="utf-8")
    return made


def _mine(plan: ImprovePlan, made: MadeQueries, train: TrainingData) -> str:
    """Mines negatives for the training part among all passages, and returns the report as Markdown."""
    mined, report, note = (plan.work / name for name in ("mined.jsonl", "mined.md", "mined.json"))
    start, settings = plan.making.start, asdict(plan.mining)
    with BgeEncoder.from_settings(start) as encoder:
        names = [encoder.cache_namespace(role) for role in ("query", "document")]
    passages = hashed(*(made.data.corpus or {}).values(), json.dumps(dict(made.documents)))
    key = hashed(*names, json.dumps(settings), train.digest, passages)
    if note.exists() and json.loads(note.read_text(encoding="utf-8")) == {"key": key}:
        return report.read_text(encoding="utf-8")
    note.unlink(missing_ok=True)
    file = plan.work / "train.jsonl"
    train.save(file)
    options = {one.name: getattr(start, one.name) for one in fields(start) if one.name != "model_name"}
    run_mining(
        MinePlan(
            data=file,
            model=start.model_name,
            output=mined,
            settings=plan.mining,
            corpus=plan.work / "passages.jsonl",
            report=report,
            options=options,
            overwrite=True,
            keep=plan.making.keep,
        )
    )
    note.write_text(json.dumps({"key": key}), encoding="utf-8")
    return report.read_text(encoding="utf-8")


def _require_equal(plan: ImprovePlan, train: TrainingData) -> None:
    """Checks that a model of an earlier run is of these questions, or notes what the new one is of.

    Otherwise a model would be judged by questions about passages that it was trained on.

    Raises:
        SettingsError: It is of other questions.
    """
    note = plan.work / "training.json"
    content = {"train": train.digest, "settings": asdict(plan.training)}
    plain = json.loads(json.dumps(content))
    if plan.is_trained and not (note.exists() and json.loads(note.read_text(encoding="utf-8")) == plain):
        raise SettingsError(
            f"{plan.output} was trained on other questions or with other settings, so it can't be judged by these. "
            "Name another folder, or remove it to train again."
        )
    note.write_text(json.dumps(plain), encoding="utf-8")


def _job(plan: ImprovePlan, parts: Parts) -> Job:
    folders = {"validation": parts.validation, "test": parts.test}
    saved = {name: None if data is None else data.save(plan.work / name) for name, data in folders.items()}
    return Job(
        data=plan.work / "mined.jsonl",
        start=plan.making.start,
        output=plan.output,
        settings=plan.training,
        validation=saved["validation"],
        test=saved["test"] or plan.making.test,
        general=plan.general,
        resume=plan.has_begun,
    )


def _to_markdown(improved: Improved, mining_report: str) -> str:
    outcome, verdict = improved.outcome, improved.outcome.verdict
    parts = ["# From documents to a model", improved.in_words(), "## The verdict"]
    if verdict is not None:
        rows = [
            f"| {metric} | {verdict.before.metrics[metric]:.4f} | {verdict.after.metrics[metric]:.4f} |"
            for metric in ("ndcg@10", "recall@10", "mrr@10")
        ]
        rows += [
            f"| ndcg@10, {group} | {before:.4f} | {after:.4f} |" for group, (before, after) in verdict.groups.items()
        ]
        parts += ["\n".join(["| | before | after |", "|---|---|---|", *rows]), verdict.in_words()]
    parts += [
        "## The training",
        f"{improved.parts.words} {counted(outcome.rows, 'row')}, {counted(outcome.steps, 'step')}"
        + (f", {outcome.seconds:,.0f} s." if outcome.steps else " in this run: an earlier one trained."),
    ]
    if improved.parts.shared:
        parts += [
            "## What the questions of the verdict share with those of the training",
            escaped(improved.parts.shared),
        ]
    parts += [_below(improved.made.report.to_markdown()), _below(mining_report)]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _below(markdown: str) -> str:
    """Returns Markdown with each heading one level lower."""
    return "\n".join(f"#{line}" if line.startswith("#") else line for line in markdown.splitlines())
