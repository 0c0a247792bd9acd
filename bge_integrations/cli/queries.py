"""`bge make-queries`: makes questions from documents with a chat model."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import typer
from rich.console import Console

from bge_integrations.cli.evaluate.command import usual_cache
from bge_integrations.cli.llm import load_llm
from bge_integrations.cli.outputs import require_rows_file, require_writable
from bge_integrations.cli.terminal import open_console, print_json, print_text
from bge_integrations.encoder import BgeEncoder
from bge_integrations.errors import SettingsError
from bge_integrations.evaluation import RetrievalData, load_retrieval_data
from bge_integrations.settings import EncoderSettings
from bge_integrations.training.queries import Estimate, MadeQueries, QueryPlan, QuerySettings
from bge_integrations.training.queries.files import load_documents, save_passages

__all__ = ["Making", "QueriesPlan", "confirm", "make", "read_examples", "read_kinds_option"]

_ASKS_FROM = 100
"""Calls from which the command asks before it starts."""


@dataclass(frozen=True, kw_only=True)
class Making:
    """What questions are made from, and with what."""

    documents: Path
    llm: str
    start: EncoderSettings
    settings: QuerySettings
    test: Path | None = None
    characters: int = 1000
    keep: bool = True

    def test_data(self) -> RetrievalData | None:
        """Returns the questions to judge by."""
        return None if self.test is None else load_retrieval_data(self.test)

    def plan(self, encoder: BgeEncoder, part: Path, *, show_progress: bool) -> QueryPlan:
        """Reads the documents, and loads the chat model."""
        return QueryPlan(
            load_documents(self.documents, self.characters),
            load_llm(self.llm),
            encoder=encoder,
            settings=self.settings,
            test=self.test_data(),
            cache=usual_cache() if self.keep else None,
            part=part,
            show_progress=show_progress,
        )


@dataclass(frozen=True, kw_only=True)
class QueriesPlan:
    """What the command does."""

    making: Making
    output: Path
    passages: Path | None = None
    report: Path | None = None
    answers: Path | None = None
    only_estimate: bool = False
    yes: bool = False
    overwrite: bool = False
    as_json: bool = False

    def check(self) -> None:
        """Checks the files, before anything is computed.

        Raises:
            SettingsError: A file is there already, its folder does not exist, or the output has an unknown ending.
        """
        require_rows_file("--output", self.output)
        for option, file in (("--output", self.output), ("--passages", self.passages_file), ("--report", self.report)):
            if file is not None:
                require_writable(option, file, overwrite=self.overwrite)
        require_writable("--answers", self.answers_file, overwrite=True)

    @property
    def answers_file(self) -> Path:
        """The file that keeps the answers."""
        return self.answers or self.output.with_name(f"{self.output.name}.answers.jsonl")

    @property
    def passages_file(self) -> Path | None:
        """The file for the passages; `None`: they are not written."""
        documents = self.making.documents.expanduser()
        if self.passages is None and documents.is_dir() and not any(documents.glob("corpus.jsonl*")):
            return self.output.with_name(f"{self.output.name}.passages.jsonl")
        return self.passages


def make(plan: QueriesPlan) -> None:
    """Reads the documents, tells the estimate, asks, saves and prints.

    Raises:
        BgeError: An option or the documents are wrong, or a model fails. Answers are kept for the next run.
        OSError: A file can't be written.
    """
    plan.check()
    progress = open_console(stderr=True)
    with BgeEncoder.from_settings(plan.making.start) as encoder:
        ready = plan.making.plan(encoder, plan.answers_file, show_progress=progress.is_terminal)
        if plan.only_estimate:
            _print_estimate(ready.estimate, as_json=plan.as_json)
            return
        confirm(ready.estimate, progress, yes=plan.yes)
        made = ready.run()
    made.data.save(plan.output)
    if plan.passages_file is not None:
        save_passages(ready.passages.all, plan.passages_file)
    if plan.report is not None:
        plan.report.write_text(made.report.to_markdown(), encoding="utf-8")
    if plan.as_json:
        print_json({"output": str(plan.output), "answers": str(plan.answers_file), **made.report.to_dict()})
    else:
        _print(made, plan, open_console())


def confirm(estimate: Estimate, console: Console, *, yes: bool) -> None:
    """Tells what a run takes, and asks whether to start where it is much.

    Raises:
        SettingsError: Nobody can be asked.
        typer.Abort: The answer is no.
    """
    print_text(console, estimate.in_words())
    if yes or estimate.calls < _ASKS_FROM:
        return
    if not _can_ask():
        raise SettingsError(
            f"{estimate.calls:,} calls of the chat model would be made, and nobody can be asked here. Give --yes to "
            "start, or --estimate to see the estimate alone."
        )
    typer.confirm("Start?", abort=True, err=True)


def _can_ask() -> bool:
    return sys.stdin is not None and sys.stdin.isatty()


def read_kinds_option(text: str | None) -> Mapping[str, float]:
    """Returns the numbers in a text such as "question=2,several=0.5"; the default of `QuerySettings` for `None`.

    Raises:
        SettingsError: It is no such text.
    """
    if text is None:
        return QuerySettings().kinds
    kinds: dict[str, float] = {}
    for part in text.split(","):
        name, equals, number = part.partition("=")
        try:
            kinds[name.strip()] = float(number) if equals else 1.0
        except ValueError as error:
            raise SettingsError(
                f"kinds={text!r}: {part.strip()!r} is no kind with a number, such as task=1."
            ) from error
    return kinds


def read_examples(file: Path | None) -> tuple[str, ...]:
    """Returns the lines of a text file with a question on each.

    Raises:
        SettingsError: There is no such file, or it has no line.
    """
    if file is None:
        return ()
    if not file.expanduser().is_file():
        raise SettingsError(
            f"examples={str(file)!r}: there is no such file. Give a text file with a question on each line."
        )
    lines = [line.strip() for line in file.expanduser().read_text(encoding="utf-8-sig").splitlines()]
    found = tuple(dict.fromkeys(filter(None, lines)))
    if not found:
        raise SettingsError(f"examples={str(file)!r} has no questions. Give a text file with a question on each line.")
    return found


def _print_estimate(estimate: Estimate, *, as_json: bool) -> None:
    if as_json:
        print_json(estimate.to_dict())
    else:
        print_text(open_console(), estimate.in_words())


def _print(made: MadeQueries, plan: QueriesPlan, console: Console) -> None:
    for sentences in made.report.sentences():
        print_text(console, f"{sentences}\n")
    for one in made.report.refused:
        print_text(console, one.in_words(), start="- ", margin="  ")
    print_text(console, f"\nsaved: {plan.output}")
    for name, file in (("passages", plan.passages_file), ("report", plan.report), ("answers", plan.answers_file)):
        if file is not None:
            print_text(console, f"{name}: {file}")
    corpus = plan.passages_file or plan.making.documents
    model = plan.making.start.model_name
    print_text(console, f"next: `bge mine {plan.output} --model {model} --corpus {corpus} -o mined.jsonl`")
