"""Runs and prints `bge mteb`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Console

from bge_integrations.cli.terminal import plain_table, print_table, print_text

if TYPE_CHECKING:
    from bge_integrations.evaluation.mteb import MtebReport

__all__ = ["names_in", "print_mteb", "run"]


def names_in(text: str | None) -> list[str] | None:
    """Returns the names in a text that separates them by commas, or `None` for no text."""
    return None if text is None else [name for part in text.split(",") if (name := part.strip())]


def run(
    model: str,
    progress: Console,
    *,
    benchmark: str | None,
    tasks: str | None,
    data: str | None,
    policy: str,
    results: str | None,
    **settings: Any,  # noqa: ANN401 - the settings' own types
) -> MtebReport:
    """Loads a model, and runs tasks with it. Progress goes to a console."""
    from bge_integrations.evaluation.mteb import as_mteb_model, run_mteb
    from bge_integrations.evaluation.mteb.policy import read_policy
    from bge_integrations.evaluation.mteb.run import choose_tasks

    # Everything that can be wrong without a model is found before one is loaded.
    chosen, names = read_policy(policy), names_in(tasks)
    choose_tasks(model, benchmark=benchmark, tasks=names, data=data)
    from bge_integrations.encoder import BgeEncoder

    # Benchmarks have texts over the limit, and cut them without a word. A warning for each call would be noise.
    with BgeEncoder(model, on_truncation="ignore", show_progress=progress.is_terminal, **settings) as encoder:
        return run_mteb(
            as_mteb_model(encoder, chosen),
            benchmark=benchmark,
            tasks=names,
            data=data,
            results=results,
            tell=lambda text: print_text(progress, f"{text} …"),
        )


def print_mteb(report: MtebReport, console: Console) -> None:
    """Prints the scores of the tasks, and below them the means of the benchmarks."""
    print_text(
        console, ", ".join(f"{name} {value}" for name, value in report.settings.items()), start=f"{report.model}: "
    )
    table = plain_table()
    for name in ("task", "type", "measured", "published", "difference", "seconds"):
        table.add_column(name, no_wrap=True, justify="left" if name in ("task", "type") else "right")
    for row in report.task_rows():
        table.add_row(*row)
    print_table(console, table)
    rows = list(report.average_rows())
    if rows:
        table = plain_table()
        for name in ("mean", "tasks", "measured", "published", "difference"):
            table.add_column(name, no_wrap=True, justify="left" if name == "mean" else "right")
        for cells in rows:
            table.add_row(*cells)
        print_text(console, "")
        print_table(console, table)
        if any(" of " in cells[1] for cells in rows):
            print_text(console, "A mean needs all tasks of its group.")
