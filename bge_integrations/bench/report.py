"""Prints what a run of the bench found out."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bge_integrations.bench.results import BenchReport

__all__ = ["print_report"]


def print_report(report: BenchReport, console: Console) -> None:
    """Prints a table of what was measured, what was left out and why, and the settings to use."""
    console.print(
        f"{report.model} on {report.device}: {report.rounds} rounds in {report.seconds:.0f} s, docstrings of "
        f"{report.mean_tokens:.0f} tokens on average",
        markup=False,
        highlight=False,
    )
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("engine", no_wrap=True)
    table.add_column("precision", no_wrap=True)
    for column in ("documents/s", "tokens/s", "query p50 ms", "p95 ms", "mean cosine", "least cosine", "spread"):
        table.add_column(column, justify="right")
    for one in report.measured:
        cosines = (f"{value:.6f}" if value is not None else "–" for value in (one.mean_cosine, one.least_cosine))
        table.add_row(
            one.combination.engine,
            one.combination.precision,
            f"{one.documents_per_s:,.1f}",
            f"{one.tokens_per_s:,.0f}",
            f"{one.query_p50_ms:.1f}",
            f"{one.query_p95_ms:.1f}",
            *cosines,
            f"{one.spread:.2f}",
        )
    console.print(table)
    for keywords, why in report.left_out.items():
        console.print(f"left out: {keywords}: {why}", style="yellow", markup=False, highlight=False, soft_wrap=True)
    _print_recommendations(report, console)


def _print_recommendations(report: BenchReport, console: Console) -> None:
    cosines = {one.combination: one.mean_cosine for one in report.measured}
    for kind, recommendation in (("exact", report.exact), ("lossy", report.lossy)):
        if recommendation is None:
            console.print(f"fastest {kind}: none" + (" is faster than the exact one" if kind == "lossy" else " ran"))
            continue
        cosine = cosines[recommendation.combination]
        agreement = f" (mean cosine {cosine:.6f})" if kind == "lossy" and cosine is not None else ""
        console.print(f"fastest {kind}: [bold]{escape(recommendation.keywords)}[/]{agreement}", highlight=False)
        for other in recommendation.uncertain_against:
            console.print(f"  may be as fast: {other.keywords}; their rounds overlap", style="yellow", markup=False)
    if report.is_noisy:
        console.print("Rounds differ a lot: something else keeps the machine busy. Run it again.", style="yellow")
