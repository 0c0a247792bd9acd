"""Prints, writes and draws what `growth` measured, from its JSON alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from rich.console import Console

from benchmarks.charts import DOTS_AN_INCH, STYLE, WIDTH_INCHES
from benchmarks.table_parts import make_table

__all__ = ["draw", "print_results", "write_markdown"]

Json = Mapping[str, Any]

_COLOURS = ("#2b6cb0", "#dd8a1d", "#2f9e77")
_INK = "#777777"
_MANY_TICKS = 1000
_ABOUT_CLOCK = "Other programs used the machine at the same time, so times by the clock are left out."


@dataclass(frozen=True)
class _Report:
    """A table of numbers.

    Attributes:
        title: The title.
        columns: The headings.
        rows: The cells.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def print_results(console: Console, results: Json) -> None:
    """Prints a table for each part, and the exponents."""
    for report in _reports(results):
        table = make_table(report.title, *report.columns[1:])
        table.columns[0].header = report.columns[0]
        for row in report.rows:
            table.add_row(*row)
        console.print(table)


def write_markdown(results: Json, file: Path) -> None:
    """Writes the same tables as Markdown."""
    lines = [
        "# How cost grows",
        "",
        f"Measured by `python -m benchmarks.growth` on {results['machine']['processor']}, "
        f"{results['machine']['cores']} cores, with models of random weights. Times are processor time of all cores. "
        + (_ABOUT_CLOCK if _is_busy(results) else ""),
        "",
        "![Time against texts, length and threads, and memory against texts](growth.png)",
    ]
    for report in _reports(results):
        lines += ["", f"## {report.title}", "", _line(report.columns)]
        lines += [_line(["---:" if number else "---" for number in range(len(report.columns))])]
        lines += map(_line, report.rows)
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _reports(results: Json) -> Iterator[_Report]:
    if rows := results.get("texts"):
        ways = list(rows[0]["ways"])
        yield _Report(
            "Number of texts, two layers of width 64",
            ["texts", *(f"{way}, {unit}" for way in ways for unit in ("s", "µs a text"))],
            [[f"{row['texts']:,}", *(cell for way in ways for cell in _time_cells(row, way))] for row in rows],
        )
    if rows := results.get("length"):
        yield _Report(
            f"Length of one text, {results['shape']}",
            ["tokens", "ms", "µs a token", "GFLOP a second", "ms by the clock"],
            [_length_cells(results, row) for row in rows],
        )
    if rows := results.get("threads"):
        yield _Report(
            "Threads that ask one query after the other, two layers of width 64",
            ["threads", "ms a query", "queries/s by the clock", "95th percentile, ms by the clock"],
            [
                [
                    str(row["threads"]),
                    f"{row['processor_ms']:.2f}",
                    _by_clock(results, f"{row['per_s']:,.0f}"),
                    _by_clock(results, f"{row['p95_ms']:.1f}"),
                ]
                for row in rows
            ],
        )
    if rows := results.get("memory"):
        ways = list(rows[0]["ways"])
        yield _Report(
            "Memory of encode_documents on a generator, MiB more than before; in brackets resident at most",
            ["texts", *ways],
            [
                [
                    f"{row['texts']:,}",
                    *(f"{row['ways'][way]['own_mib']:.0f} ({row['ways'][way]['resident_mib']:.0f})" for way in ways),
                ]
                for row in rows
            ],
        )
    yield _Report("Growth", ["line", "exponent, or bytes"], [[name, f"{value:.2f}"] for name, value in _fits(results)])


def _fits(results: Json) -> list[tuple[str, float]]:
    return list(results["fits"].items())


def _time_cells(row: Json, way: str) -> list[str]:
    found = row["ways"].get(way)
    if found is None:
        return ["–", "–"]
    return [f"{found['processor_median']:.3g}", f"{found['processor_median'] / row['texts'] * 1e6:,.0f}"]


def _length_cells(results: Json, row: Json) -> list[str]:
    found = row["ways"]["one text"]
    used = found["processor_median"]
    return [
        f"{row['tokens']:,}",
        f"{used * 1e3:,.1f}",
        f"{used / row['tokens'] * 1e6:,.0f}",
        f"{row['flops'] / used / 1e9:,.0f}",
        _by_clock(results, f"{found['median'] * 1e3:,.1f}"),
    ]


def _is_busy(results: Json) -> bool:
    return (results["load"] or 0) > 1


def _by_clock(results: Json, cell: str) -> str:
    """Returns a cell with a time by the clock, which says nothing of a busy machine."""
    return "–" if _is_busy(results) else cell


@dataclass(frozen=True)
class _Panel:
    """A chart with logarithmic axes.

    Attributes:
        title: The title.
        across: Label of the axis of sizes.
        up: Label of the axis of values.
        lines: Points by label.
        guide: Exponent of a thin line to compare with, through the last point of the first line; `None`: no line.
    """

    title: str
    across: str
    up: str
    lines: Mapping[str, Sequence[tuple[float, float]]]
    guide: float | None = None


def draw(results: Json, file: Path) -> None:
    """Draws a panel for each part, as PNG."""
    panels = list(_panels(results))
    with mpl.rc_context(STYLE):
        height = 0.3 + 2.9 * -(-len(panels) // 2)
        figure = Figure(figsize=(WIDTH_INCHES, height), dpi=DOTS_AN_INCH, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(-(-len(panels) // 2), 2, squeeze=False).flatten()
        for axis, panel in zip(axes, panels, strict=False):
            _draw_panel(axis, panel)
        for axis in axes[len(panels) :]:
            axis.set_visible(False)
        figure.savefig(file)


def _panels(results: Json) -> Iterator[_Panel]:
    if rows := results.get("texts"):
        lines = {
            way: [(row["texts"], row["ways"][way]["processor_median"]) for row in rows if way in row["ways"]]
            for way in rows[0]["ways"]
        }
        yield _Panel("Time against the number of texts", "texts", "processor s", lines, 1)
    if rows := results.get("length"):
        found = [(row["tokens"], row["ways"]["one text"]["processor_median"] * 1e3) for row in rows]
        per_flop = found[-1][1] / rows[-1]["flops"]
        lines = {"measured": found, "by arithmetic": [(row["tokens"], row["flops"] * per_flop) for row in rows]}
        yield _Panel(f"Time against length, {results['shape']}", "tokens of one text", "processor ms", lines)
    if rows := results.get("threads"):
        lines = {"processor time": [(row["threads"], row["processor_ms"]) for row in rows]}
        if not _is_busy(results):
            lines["by the clock"] = [(row["threads"], 1000 / row["per_s"]) for row in rows]
        yield _Panel("Time of a query against threads", "threads that ask", "ms a query", lines)
    if rows := results.get("memory"):
        lines = {way: [(row["texts"], max(row["ways"][way]["own_mib"], 1)) for row in rows] for way in rows[0]["ways"]}
        yield _Panel("Memory against the number of texts", "texts of a generator", "MiB more than before", lines)


def _draw_panel(axis: Any, panel: _Panel) -> None:  # noqa: ANN401 - matplotlib's Axes
    axis.set_title(panel.title, fontweight="bold")
    axis.set_xlabel(panel.across)
    axis.set_ylabel(panel.up)
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.grid(which="major", alpha=0.25)
    sizes = sorted({size for points in panel.lines.values() for size, _ in points})
    axis.set_xticks(sizes, [_short(size) for size in sizes])
    axis.tick_params(axis="x", labelsize=8)
    axis.minorticks_off()
    for (label, points), colour in zip(panel.lines.items(), _COLOURS, strict=False):
        axis.plot(*zip(*points, strict=True), "o-", markersize=3.5, linewidth=1.4, color=colour, label=label)
    if panel.guide is not None:
        (last, value), *_ = reversed(next(iter(panel.lines.values())))
        first = next(iter(panel.lines.values()))[0][0]
        ends = [value * (size / last) ** panel.guide for size in (first, last)]
        axis.plot([first, last], ends, "--", linewidth=0.8, color=_INK, label="proportional")
    values = [value for points in panel.lines.values() for _, value in points]
    low, high = min(values) / 2, max(values) * 2
    axis.yaxis.set_major_locator(LogLocator(subs=(1.0,) if high / low > _MANY_TICKS else (1.0, 2.0, 5.0)))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axis.yaxis.set_minor_locator(NullLocator())
    axis.set_ylim(low, high)
    axis.legend(frameon=False, fontsize=8)


def _short(size: float) -> str:
    if size >= 1_000_000:
        return f"{size / 1_000_000:g}M"
    return f"{size / 1000:g}k" if size >= 10_000 else f"{size:g}"
