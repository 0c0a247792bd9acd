"""Draws what was measured as PNG, from the JSON alone; readable at a width of 900 pixels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from benchmarks.contenders import BASELINE, CONTENDERS
from benchmarks.memory import PAIRS
from benchmarks.shares import SHARES, shares_of

Json = Mapping[str, Any]

WIDTH_INCHES, DOTS_AN_INCH = 9.0, 200
_COLOURS = {
    "others": "#9aa3ad",
    "bge, float32": "#2b6cb0",
    "bge, bfloat16": "#2f9e77",
    "bge, float16": "#7a5195",
    "bge, int8": "#dd8a1d",
}
STYLE: dict[Any, Any] = {"font.size": 9, "axes.titlesize": 10, "axes.spines.top": False, "axes.spines.right": False}


@dataclass(frozen=True)
class _Bar:
    """A bar: what it is of, how long it is, how far it might reach, and what stands at its end."""

    label: str
    value: float
    text: str
    reach: float | None = None


@dataclass(frozen=True)
class _Panel:
    title: str
    bars: dict[str, _Bar]


def draw(results: Json, folder: Path) -> list[Path]:
    """Draws every chart that there is something for.

    Args:
        results: What `benchmarks.suite.run` returned, or its JSON.
        folder: Where to; made if need be.

    Returns:
        The files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shapes: Json = results["shapes"]
    charts: dict[str, tuple[str, str, list[_Panel]]] = {}
    for mix in dict.fromkeys(mix for measured in shapes.values() for mix in measured.get("throughput", {})):
        title = f"Throughput on {mix} texts, relative to {BASELINE} (longer is better)"
        charts[f"throughput-{mix}"] = title, "times as fast", _panels(shapes, _throughput_of(mix))
    charts["latency"] = (
        "Latency of one query: median, with a line to the 95th percentile",
        "ms",
        _panels(shapes, _latency),
    )
    charts["cold-start"] = "Cold start: from the start of a process to its first vector", "s", _panels(shapes, _cold)
    charts["cold-start-memory"] = "Peak memory of a process until its first vector", "MiB", _panels(shapes, _peak)
    for title in SHARES:
        name = "share-" + title.replace(" / ", "-of-").replace(" ", "-")
        charts[name] = f"Speed left on the way to a user: {title}", "%", _panels(shapes, _shares_of(title))
    charts["memory"] = "Resident memory with the LangChain and the LlamaIndex adapter", "MiB", _panels(shapes, _memory)
    drawn = []
    for name, (title, unit, panels) in charts.items():
        if panels:
            drawn.append(folder / f"{name}.png")
            _draw(panels, title, unit, drawn[-1])
    return drawn


def _panels(shapes: Json, bars_of: Callable[[Json], list[_Bar]]) -> list[_Panel]:
    panels = [_Panel(name, {bar.label: bar for bar in bars_of(measured)}) for name, measured in shapes.items()]
    return [panel for panel in panels if panel.bars]


def _throughput_of(mix: str) -> Callable[[Json], list[_Bar]]:
    def bars(measured: Json) -> list[_Bar]:
        results = measured.get("throughput", {}).get(mix, {}).get("results", {})
        return [
            _Bar(name, result["ratio"], f"{result['ratio']:.2f}×")
            for name, result in results.items()
            if result["ratio"] is not None
        ]

    return bars


def _shares_of(title: str) -> Callable[[Json], list[_Bar]]:
    def bars(measured: Json) -> list[_Bar]:
        found = {name: shares_of(rates) for name, rates in measured.get("shares", {}).items()}
        return [
            _Bar(name, 100 * shares[title], f"{shares[title]:.0%}") for name, shares in found.items() if title in shares
        ]

    return bars


def _latency(measured: Json) -> list[_Bar]:
    results = measured.get("latency", {}).get("results", {})
    return [
        _Bar(name, result["p50_ms"], f"{result['p50_ms']:.1f}", result["p95_ms"]) for name, result in results.items()
    ]


def _cold(measured: Json) -> list[_Bar]:
    results = measured.get("cold", {}).get("results", {})
    return [_Bar(name, result["median_s"], f"{result['median_s']:.1f}") for name, result in results.items()]


def _peak(measured: Json) -> list[_Bar]:
    results = measured.get("cold", {}).get("results", {})
    return [
        _Bar(name, result["median_peak_mib"], f"{result['median_peak_mib']:,.0f}") for name, result in results.items()
    ]


def _memory(measured: Json) -> list[_Bar]:
    results = measured.get("memory", {}).get("results", {})
    return [_Bar(label, result["rss_mib"], f"{result['rss_mib']:,.0f}") for label, result in results.items()]


def _draw(panels: Sequence[_Panel], title: str, unit: str, file: Path) -> None:
    """Draws a panel for each model, side by side, with one row for each contender through all of them."""
    order = [*(contender.name for contender in CONTENDERS), *PAIRS]
    rows = [name for name in order if any(name in panel.bars for panel in panels)]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_INCHES, 1.6 + 0.3 * len(rows)), dpi=DOTS_AN_INCH, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axis, panel in zip(axes, panels, strict=True):
            _draw_panel(axis, panel, rows, unit)
        axes[0].set_yticks(range(len(rows)), rows)
        axes[0].set_ylim(len(rows) - 0.4, -0.6)
        figure.suptitle(title, fontsize=11, fontweight="bold")
        kinds = dict.fromkeys(_kind(row) for row in rows)
        handles = [Patch(color=_COLOURS[kind], label=kind) for kind in _COLOURS if kind in kinds]
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
        figure.savefig(file)


def _draw_panel(axis: Any, panel: _Panel, rows: Sequence[str], unit: str) -> None:  # noqa: ANN401 - matplotlib's Axes
    longest = max(bar.reach or bar.value for bar in panel.bars.values())
    axis.set_title(panel.title)
    axis.set_xlabel(unit)
    axis.set_xlim(0, 1.35 * longest)  # room for the numbers
    axis.tick_params(axis="y", length=0)
    axis.grid(axis="x", alpha=0.25)
    axis.set_axisbelow(True)
    for position, row in enumerate(rows):
        bar = panel.bars.get(row)
        if bar is None:
            axis.text(0, position, " left out", va="center", color="#777777", fontsize=8)
            continue
        axis.barh(position, bar.value, height=0.72, color=_COLOURS[_kind(row)])
        if bar.reach is not None:
            axis.plot([bar.value, bar.reach], [position, position], color="#333333", linewidth=1.2)
        axis.text((bar.reach or bar.value) + 0.02 * longest, position, bar.text, va="center", fontsize=8)


def _kind(row: str) -> str:
    if not row.startswith("bge"):
        return "others"
    precision = next((contender.precision for contender in CONTENDERS if contender.name == row), "float32")
    return f"bge, {precision}"
