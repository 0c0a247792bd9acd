"""`bge mine`: adds hard negatives to training data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from bge_integrations._optional import require_package
from bge_integrations.cli.evaluate.command import usual_cache
from bge_integrations.cli.options import reranker_settings
from bge_integrations.cli.outputs import require_rows_file, require_writable
from bge_integrations.cli.terminal import open_console, plain_table, print_json, print_table, print_text
from bge_integrations.encoder import BgeEncoder
from bge_integrations.errors import SettingsError
from bge_integrations.reranker import BgeReranker
from bge_integrations.settings import EncoderSettings
from bge_integrations.training import draw_mining_chart, load_training_data, mine_hard_negatives, score_with_teacher
from bge_integrations.training.mining.choice import MiningSettings
from bge_integrations.training.mining.negatives import Mined
from bge_integrations.training.mining.words import require_words
from bge_integrations.training.rows.passages import load_passages

__all__ = ["MinePlan", "mine", "read_ranks", "run_mining"]


@dataclass(frozen=True, kw_only=True)
class MinePlan:
    """What the command does."""

    data: Path
    model: str
    output: Path
    settings: MiningSettings
    corpus: Path | None = None
    teacher: str | None = None
    teacher_precision: str = "auto"
    report: Path | None = None
    chart: Path | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    overwrite: bool = False
    keep: bool = True
    as_json: bool = False

    def check(self) -> None:
        """Checks files and packages, before anything is computed.

        Raises:
            SettingsError: A file is there already, its folder does not exist, or the output has an unknown ending.
            MissingExtraError: matplotlib or bm25s is needed, and not installed.
        """
        require_rows_file("--output", self.output)
        for option, file in (("--output", self.output), ("--report", self.report), ("--chart", self.chart)):
            if file is not None:
                require_writable(option, file, overwrite=self.overwrite)
        if self.chart is not None:
            require_package("matplotlib", "matplotlib")
        if self.settings.lexical:
            require_words()

    @property
    def part(self) -> Path:
        """The file that keeps finished rows while the command runs."""
        return self.output.with_name(f"{self.output.name}.part")


def read_ranks(text: str) -> tuple[int, int]:
    """Returns the ranks in a text such as "2-200".

    Raises:
        SettingsError: It is no such text.
    """
    first, _, last = text.partition("-")
    try:
        return int(first), int(last)
    except ValueError as error:
        raise SettingsError(f"--ranks {text} is no window of ranks; write the first and the last: 2-200.") from error


def mine(plan: MinePlan) -> None:
    """Reads the data, mines, scores, saves and prints.

    Raises:
        BgeError: An option or the data is wrong, or a model fails. Finished rows are kept for the next run.
        OSError: A file can't be written.
    """
    mined = run_mining(plan)
    if plan.as_json:
        print_json({"output": str(plan.output), "teacher": plan.teacher, **mined.report.to_dict()})
    else:
        _print(mined, plan, open_console())


def run_mining(plan: MinePlan) -> Mined:
    """Reads the data, mines, scores and saves.

    Raises:
        BgeError: As `mine`.
        OSError: A file can't be written.
    """
    plan.check()
    data = load_training_data(plan.data)
    passages, documents = (None, None) if plan.corpus is None else load_passages(plan.corpus)
    encoder_settings = EncoderSettings(model_name=plan.model, **{**plan.options, "on_truncation": "ignore"})
    teacher = None if plan.teacher is None else reranker_settings(plan.teacher, plan.options, plan.teacher_precision)
    progress = open_console(stderr=True)
    cache = usual_cache() if plan.keep else None
    with BgeEncoder.from_settings(encoder_settings) as encoder:
        mined = mine_hard_negatives(
            data,
            encoder,
            corpus=passages,
            documents=documents,
            **vars(plan.settings),
            cache=cache,
            part=plan.part if plan.keep else None,
            show_progress=progress.is_terminal,
        )
    result = mined.data
    if teacher is not None:
        with BgeReranker.from_settings(teacher) as reranker:
            result = score_with_teacher(result, reranker, cache=cache, show_progress=progress.is_terminal)
    result.save(plan.output)
    plan.part.unlink(missing_ok=True)
    if plan.report is not None:
        plan.report.write_text(mined.report.to_markdown(), encoding="utf-8")
    if plan.chart is not None:
        draw_mining_chart(mined.report, plan.chart)
    return mined


def _print(mined: Mined, plan: MinePlan, console: Console) -> None:
    for note in mined.data.notes:
        print_text(console, note)
    for sentences in mined.report.sentences():
        print_text(console, f"{sentences}\n")
    table = plain_table()
    table.add_column("relative margin")
    table.add_column("leaves out of the candidates", justify="right")
    for margin, share in mined.report.margins.items():
        table.add_row(f"{100 * margin:.0f} %", f"{100 * share:.1f} %")
    print_table(console, table)
    scored = f", with scores of {plan.teacher}" if plan.teacher else ""
    print_text(console, f"\nsaved: {plan.output}{scored}")
    for name, file in (("report", plan.report), ("chart", plan.chart)):
        if file is not None:
            print_text(console, f"{name}: {file}")
