"""Draws what mining found: the scores of positives and negatives, and the distance of candidates to the positive."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from bge_integrations._optional import require_package
from bge_integrations.errors import SettingsError
from bge_integrations.training.mining.choice import DISTANCE_STEP
from bge_integrations.training.mining.histogram import Histogram
from bge_integrations.training.mining.report import MiningReport

__all__ = ["draw_mining_chart"]

_WIDTH_INCHES, _HEIGHT_INCHES, _DOTS_AN_INCH = 9.0, 3.6, 200
_POSITIVE, _NEGATIVE, _MARGIN, _CANDIDATE = "#2b6cb0", "#dd8a1d", "#b83a4b", "#6b7785"
_LEAST_DISTANCE = -0.5
"""Where the picture of distances begins. What is nearer is in its first bar."""
_STYLE: dict[Any, Any] = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}


def draw_mining_chart(report: MiningReport, file: str | os.PathLike[str]) -> Path:
    """Draws two histograms: scores of positives and negatives, and how far candidates are below the lowest positive.

    Args:
        report: The report.
        file: The picture; its ending chooses the format, such as .png or .svg.

    Returns:
        The file. A PNG is 1800 pixels wide.

    Raises:
        SettingsError: matplotlib does not know the file's ending.
        MissingExtraError: matplotlib is not installed.
        OSError: The file can't be written.
    """
    require_package("matplotlib", "matplotlib")
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    target = Path(file)
    percent = FuncFormatter(lambda share, _: f"{100 * share:.3g} %")
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH_INCHES, _HEIGHT_INCHES), dpi=_DOTS_AN_INCH, layout="constrained")
        FigureCanvasAgg(figure)
        if target.suffix.lstrip(".").lower() not in figure.canvas.get_supported_filetypes():
            raise SettingsError(f"file={os.fspath(file)!r} has an ending that matplotlib does not know; use .png.")
        scores, distances = figure.subplots(1, 2)
        _draw(scores, report.positives, _POSITIVE, "positives", 1)
        _draw(scores, report.negatives, _NEGATIVE, "negatives", 1)
        scores.set_xlabel("score (cosine with the query)")
        _draw(distances, _clipped(report.distances), _CANDIDATE, "candidates", 2)
        margin = report.settings["relative_margin"]
        if margin is not None:
            share = report.distances.share_below(margin)
            distances.axvline(
                margin,
                color=_MARGIN,
                linewidth=1.2,
                label=f"margin of {100 * margin:.3g} %: leaves out {100 * share:.1f} %",
            )
        is_clipped = report.distances.share_below(_LEAST_DISTANCE) > 0
        distances.set_xlabel(
            "distance below the lowest positive, as a share of its score"
            + ("\n(the first bar has all that are nearer)" if is_clipped else "")
        )
        distances.xaxis.set_major_formatter(percent)
        for axis in (scores, distances):
            axis.yaxis.set_major_formatter(percent)
            axis.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False)  # above the axes
            axis.grid(axis="y", alpha=0.25)
            axis.set_axisbelow(True)
        figure.suptitle(f"Hard negatives of {report.data}, by {report.model}", fontsize=11, fontweight="bold")
        target.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(target)
    return target


def _clipped(histogram: Histogram) -> Histogram:
    least = round(_LEAST_DISTANCE / DISTANCE_STEP)
    counts: dict[int, int] = {}
    for number, count in histogram.counts.items():
        counts[max(number, least)] = counts.get(max(number, least), 0) + count
    return Histogram(histogram.step, counts, histogram.quantiles)


def _draw(axis: Any, histogram: Histogram, colour: str, label: str, joined: int) -> None:  # noqa: ANN401 - Axes
    """Draws shares; `joined` bins become one bar."""
    shares: dict[int, float] = {}
    for number, count in histogram.counts.items():
        shares[number // joined] = shares.get(number // joined, 0) + count / histogram.total
    width = histogram.step * joined
    axis.bar(
        [number * width for number in shares],
        list(shares.values()),
        width=width,
        align="edge",
        color=colour,
        alpha=0.65,
        label=label,
    )
