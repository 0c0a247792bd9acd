"""The command: reads the data, runs every combination, and shows, saves and draws what was found."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import typer

from bge_integrations._optional import require_package
from bge_integrations.cli.evaluate.printing import as_json, print_results, to_markdown
from bge_integrations.cli.evaluate.run import Plan, Results, run_evaluation
from bge_integrations.cli.terminal import open_console, print_json, print_text
from bge_integrations.errors import SettingsError
from bge_integrations.evaluation import EvaluationCache, draw_chart, load_retrieval_data, save_reports

__all__ = ["Shown", "evaluate", "usual_cache"]


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What becomes of the results."""

    style: Literal["table", "json", "markdown"] = "table"
    worst: int = 0
    save: Path | None = None
    chart: Path | None = None

    def check(self) -> None:
        """Checks that the files can be written, before anything is computed.

        Raises:
            SettingsError: A file's folder does not exist.
            MissingExtraError: A picture is wanted, and matplotlib is not installed.
        """
        for option, file in (("--save", self.save), ("--chart", self.chart)):
            if file is not None and not file.absolute().parent.is_dir():
                raise SettingsError(f"{option} {file}: there is no folder {file.absolute().parent}. Make it first.")
        if self.chart is not None:
            require_package("matplotlib", "matplotlib")

    def show(self, results: Results) -> None:
        """Saves, draws and prints."""
        reports = list(results.runs.values())
        if reports and self.save is not None:
            save_reports(reports, self.save)
        if reports and self.chart is not None:
            draw_chart(reports, self.chart, results.metrics[0])
        if self.style == "json" and results.error is None:
            print_json(as_json(results))
        elif self.style == "markdown" and reports:
            typer.echo(to_markdown(results), nl=False)
        elif self.style == "table" and reports:
            print_results(results, open_console(), worst=self.worst)


def evaluate(path: Path, split: str, plan: Plan, shown: Shown, *, keep: bool) -> bool:
    """Evaluates, and shows what was found.

    Returns:
        Whether no run has dropped too far.

    Raises:
        BgeError: An option or the data is wrong, or a model fails. What was measured before is shown and saved.
    """
    shown.check()
    data = load_retrieval_data(path, split)
    progress = open_console(stderr=True)
    plan = dataclasses.replace(
        plan,
        cache=usual_cache() if keep else None,
        show_progress=progress.is_terminal,
        tell=lambda text: print_text(progress, f"{text} …") if progress.is_terminal else None,
    )
    results = run_evaluation(data, plan)
    shown.show(results)
    if results.error is not None:
        raise results.error
    for comparison in results.failed:
        drop = f"{comparison.candidate} drops by {-comparison.difference:.4f} {comparison.metric}"
        print_text(progress, f"bge: {drop}, more than {plan.gate.max_drop}", style="red")
    return not results.failed


def usual_cache() -> EvaluationCache | None:
    """Returns the cache in its usual folder, or `None` if there is no home folder."""
    try:
        return EvaluationCache()
    except OSError:
        return None
