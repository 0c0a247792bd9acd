"""Draws reports: the mean of a metric with its interval, for all queries and for each group."""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bge_integrations._optional import require_package
from bge_integrations.errors import SettingsError
from bge_integrations.evaluation.report import RetrievalReport

__all__ = ["draw_chart"]

_WIDTH_INCHES, _DOTS_AN_INCH = 9.0, 200
_COLOURS = ("#2b6cb0", "#dd8a1d", "#2f9e77", "#7a5ea8", "#b83a4b", "#6b7785")
_STYLE: dict[Any, Any] = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
_SPREAD = 0.62
"""The part of a row that the dots of several reports share."""


def draw_chart(
    reports: RetrievalReport | Sequence[RetrievalReport],
    file: str | os.PathLike[str],
    metric: str = "ndcg@10",
) -> Path:
    """Draws a dot for the mean of each report and a line for its 95 % bootstrap interval, with a row for each group.

    Args:
        reports: One or several reports of the same data.
        file: The picture; its ending chooses the format, such as .png or .svg.
        metric: The metric.

    Returns:
        The file. A PNG is 1800 pixels wide.

    Raises:
        SettingsError: There is no report, a report lacks the metric, or matplotlib does not know the file's ending.
        MissingExtraError: matplotlib is not installed.
        OSError: The file can't be written.
    """
    them = [reports] if isinstance(reports, RetrievalReport) else list(reports)
    if not them:
        raise SettingsError("reports is empty; give at least one.")
    require_package("matplotlib", "matplotlib")
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    target = Path(file)
    groups: list[str | None] = [None, *sorted({group for report in them for group in report.groups.values()})]
    with mpl.rc_context(_STYLE):
        height = 1.3 + len(groups) * max(0.34, 0.2 * len(them)) + 0.18 * ((len(them) + 1) // 2)
        figure = Figure(figsize=(_WIDTH_INCHES, height), dpi=_DOTS_AN_INCH, layout="constrained")
        FigureCanvasAgg(figure)
        if target.suffix.lstrip(".").lower() not in figure.canvas.get_supported_filetypes():
            raise SettingsError(f"file={os.fspath(file)!r} has an ending that matplotlib does not know; use .png.")
        axis = figure.subplots()
        for number, report in enumerate(them):
            offset = 0.0 if len(them) == 1 else _SPREAD * (number / (len(them) - 1) - 0.5)
            _draw_report(axis, report, metric, groups, offset, _COLOURS[number % len(_COLOURS)])
        axis.set_yticks(range(len(groups)), [_label(them[0], metric, group) for group in groups])
        axis.set_ylim(len(groups) - 0.5, -0.5)
        if len(groups) > 1:
            axis.axhline(0.5, color="#333333", linewidth=0.6)  # between the mean of all and the groups
        axis.tick_params(axis="y", length=0)
        axis.grid(axis="x", alpha=0.25)
        axis.set_axisbelow(True)
        axis.set_xlabel(f"{metric}, mean and 95 % bootstrap interval; in brackets: queries")
        figure.suptitle(f"{metric} on {them[0].data}", fontsize=11, fontweight="bold")
        figure.legend(
            loc="outside lower center", ncols=1 if max(len(one.name) for one in them) > 50 else 2, frameon=False
        )
        target.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(target)
    return target


def _draw_report(
    axis: Any,  # noqa: ANN401 - matplotlib's Axes
    report: RetrievalReport,
    metric: str,
    groups: Sequence[str | None],
    offset: float,
    colour: str,
) -> None:
    for row, group in enumerate(groups):
        values = report.values(metric, group)
        if not values:
            continue
        mean, (low, high) = statistics.fmean(values), report.interval(metric, group=group)
        label = report.name if row == 0 else None
        axis.plot([low, high], [row + offset] * 2, color=colour, linewidth=1.6, alpha=0.6, solid_capstyle="butt")
        axis.plot([mean], [row + offset], "o", color=colour, markersize=5, label=label)
        axis.annotate(
            f"{mean:.3f}", (high, row + offset), xytext=(4, 0), textcoords="offset points", va="center", fontsize=7
        )


def _label(report: RetrievalReport, metric: str, group: str | None) -> str:
    return f"{'all' if group is None else group} ({len(report.values(metric, group))})"
