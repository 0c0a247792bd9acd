"""Prints the report of `bge bench`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from bge_integrations.cli.bench.results import BenchReport, Measured
from bge_integrations.cli.terminal import print_table, print_text

__all__ = ["print_report"]

_KINDS = {"exact": True, "lossy": False}
"""Kinds of combinations, and whether they compute in float32."""


def print_report(report: BenchReport, console: Console) -> None:
    """Prints the measurements, the combinations that were left out with the reasons, and the settings to use."""
    threads = "" if report.threads is None else f" with {report.threads} threads"
    print_text(
        console,
        f"{report.model} on {report.device}{threads}: {report.rounds} rounds in {report.seconds:.0f} s, docstrings of "
        f"{report.mean_tokens:.0f} tokens on average\n",
    )
    print_table(console, _speeds(report.measured))
    print_text(console, "\np50, p95: the latency of one query at a time, the median and the 95th percentile")
    print_text(console, "spread: the fastest round over the slowest; 1.00 is perfectly steady")
    print_text(
        console,
        "\nshare: tokens/s as a part of what this machine's matrix products allow in that precision. It can exceed "
        "100%, since engines skip a part of the last layer\ncosine: agreement of the document vectors with those of "
        "float32\n",
    )
    print_table(console, _shares(report.measured))
    print_text(console, "")
    for reason in dict.fromkeys(report.left_out.values()):
        print_text(console, f"left out: {reason}", style="yellow", margin="  ")
        for keywords in (keywords for keywords, other in report.left_out.items() if other == reason):
            print_text(console, keywords, style="yellow", start="  ")
    for kind, is_exact in _KINDS.items():
        _print_recommendation(console, report, kind, is_exact=is_exact)
    if report.is_noisy:
        print_text(console, "Rounds differ a lot: something else keeps the machine busy. Run it again.", style="yellow")


def _speeds(measured: Sequence[Measured]) -> Table:
    rows = (
        (
            f"{one.documents_per_s:,.1f}",
            f"{one.tokens_per_s:,.0f}",
            f"{one.query_p50_ms:.1f}",
            f"{one.query_p95_ms:.1f}",
            f"{one.spread:.2f}",
        )
        for one in measured
    )
    return _table(measured, ("docs/s", "tokens/s", "p50 ms", "p95 ms", "spread"), rows)


def _shares(measured: Sequence[Measured]) -> Table:
    rows = (
        (_or_dash(one.share_of_limit, ".0%"), _or_dash(one.mean_cosine, ".6f"), _or_dash(one.least_cosine, ".6f"))
        for one in measured
    )
    return _table(measured, ("share", "mean cosine", "least cosine"), rows)


def _or_dash(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _table(measured: Sequence[Measured], columns: Sequence[str], rows: Iterable[tuple[str, ...]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for column in ("engine", "precision"):
        table.add_column(column, no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for one, row in zip(measured, rows, strict=True):
        table.add_row(one.combination.engine, one.combination.precision, *row)
    return table


def _print_recommendation(console: Console, report: BenchReport, kind: str, *, is_exact: bool) -> None:
    """Prints the fastest combination of a kind. It never calls an unmeasured combination slower."""
    recommendation = report.exact if is_exact else report.lossy
    are_measured = any(one.combination.is_exact == is_exact for one in report.measured)
    are_unknown = any(one.is_exact == is_exact for one in report.not_loaded)
    of_those = " (of those measured)" if are_unknown else ""
    start = f"fastest {kind}: "
    if recommendation is not None:
        cosine = {one.combination: one.mean_cosine for one in report.measured}[recommendation.combination]
        agreement = "" if is_exact or cosine is None else f" (mean cosine {cosine:.6f})"
        print_text(console, f"{recommendation.keywords}{agreement}{of_those}", style="bold", start=start, margin="  ")
        for other in recommendation.uncertain_against:
            print_text(console, f"may be as fast: {other.keywords}; their rounds overlap", style="yellow", start="  ")
    elif are_measured:
        print_text(console, f"none is faster than the exact one{of_those}", start=start, margin="  ")
    else:
        why = "not known, there was no time to load any" if are_unknown else "none ran"
        print_text(console, why, start=start, margin="  ")
