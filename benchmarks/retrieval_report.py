"""Prints and draws what `retrieval` measured, from its JSON alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks.charts import DOTS_AN_INCH, STYLE, WIDTH_INCHES

__all__ = ["draw", "notes", "print_results"]

Json = Mapping[str, Any]

_MEASURES = ("ndcg@10", "recall@10", "mrr@10", "hit@1")
_HEADINGS = ("nDCG@10", "recall@10", "MRR@10", "hit@1")
_COLOURS = {
    "BM25": "#9aa3ad",
    "dense": "#2b6cb0",
    "hybrid": "#dd8a1d",
    "lexical": "#2f9e77",
    "lexical + dense": "#7a5ea8",
}
_INK = "#333333"
_WIDTH = 100  # of a table, so that no title is broken
_RERANKED = " + reranker"


def print_results(console: Console, results: Json) -> None:
    """Prints the measures of every search, nDCG by kind of question, differences, and what all that can't say."""
    console.print(_table_of_searches(results))
    console.print(f"Latencies: {results['noise']['verdict']}.\n", markup=False, highlight=False)
    console.print(_table_of_kinds(results))
    console.print(_table_of_differences(results))
    for note in notes(results):
        console.print(note, style="dim", markup=False, highlight=False)


def notes(results: Json) -> Iterator[str]:
    """Yields what has to be known of the figures before anything is concluded from them."""
    yield (
        f"{len(results['questions'])} questions, labelled by hand, on one corpus: English docstrings of Python. On "
        "other texts the order may be another one; a difference whose p is above 0.05 may be chance."
    )
    yield (
        "Most questions avoid the words of their answers on purpose, which is hard on BM25; it does not stem either. "
        "Questions of kind identifier are what it is best at. Some kinds have few questions."
    )
    if not results["is_bge"]:
        yield (
            f"{results['model']} is not a BGE model: this shows how the searches compare on its vectors, not how well "
            "a BGE model answers."
        )
    if results.get("m3") == "stand-in":
        yield (
            "The stand-in for bge-m3 is MiniLM: its lexical weights were fitted to the rarity of words in these very "
            "passages, its token vectors are its hidden states. What bge-m3 would find it does not tell."
        )
    if results["reranker"] is None:
        yield "No reranker took part, so nothing is said of reranking; name one with --reranker."


def draw(results: Json, folder: Path) -> Path:
    """Draws nDCG@10 of every search by kind of question: a bar each, and a diamond where reranking takes it.

    Args:
        results: What `benchmarks.retrieval` saved.
        folder: Where to; made if need be.

    Returns:
        The file, retrieval.png, 1800 pixels wide.
    """
    rows = ["all", *results["kinds"]]
    counts = [len(results["questions"]), *results["kinds"].values()]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_INCHES, 1.6 + 0.62 * len(rows)), dpi=DOTS_AN_INCH, layout="constrained")
        FigureCanvasAgg(figure)
        axis = figure.subplots()
        _draw_bars(axis, results["searches"], rows)
        axis.set_yticks(range(len(rows)), [f"{row} ({count})" for row, count in zip(rows, counts, strict=True)])
        axis.set_ylim(len(rows) - 0.5, -0.5)
        axis.axhline(0.5, color=_INK, linewidth=0.6)  # between the mean of all and the kinds
        axis.set_xlim(0, 1.12)  # room for the numbers
        reranker = f"; diamonds: after reranking with {results['reranker']}" if results["reranker"] else ""
        axis.set_xlabel(f"nDCG@10; in brackets: questions{reranker}")
        axis.tick_params(axis="y", length=0)
        axis.grid(axis="x", alpha=0.25)
        axis.set_axisbelow(True)
        figure.suptitle(f"Answers found by kind of question, {results['model']}", fontsize=11, fontweight="bold")
        figure.legend(loc="outside lower center", ncols=3, frameon=False)
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / "retrieval.png"
        figure.savefig(file)
    return file


def _draw_bars(axis: Any, searches: Json, rows: Sequence[str]) -> None:  # noqa: ANN401 - matplotlib's Axes
    names = [name for name in searches if not name.endswith(_RERANKED)]
    height = 0.8 / len(names)
    for number, name in enumerate(names):
        places = [row + (number - (len(names) - 1) / 2) * height for row in range(len(rows))]
        values = ends = _by_row(searches[name])
        axis.barh(places, values, height=0.92 * height, color=_COLOURS[name], label=name)
        if name + _RERANKED in searches:
            ends = _by_row(searches[name + _RERANKED])
            axis.hlines(places, values, ends, color=_INK, linewidth=1)
            axis.plot(ends, places, "D", markersize=4, color="white", markeredgecolor=_INK, clip_on=False)
        for place, value, end in zip(places, values, ends, strict=True):
            text = f"{value:.2f}" if ends is values else f"{value:.2f} to {end:.2f}"
            axis.text(max(value, end) + 0.012, place, text, va="center", fontsize=7)


def _by_row(search: Json) -> list[float]:
    """The mean of all questions, then that of each kind."""
    return [search["ndcg@10"], *search["ndcg@10_by_kind"].values()]


def _table_of_searches(results: Json) -> Table:
    reranker = f", reranker {results['reranker']}" if results["reranker"] else ""
    table = _table(
        f"{len(results['questions'])} questions, {results['passages']:,} passages, {results['model']}{reranker}, "
        f"depth {results['depth']}",
        *_HEADINGS,
        "median ms",
        "p95 ms",
    )
    for name, search in results["searches"].items():
        latency = search["latency_ms"]
        table.add_row(
            name,
            *(f"{search[measure]:.3f}" for measure in _MEASURES),
            f"{latency['p50']:.1f}",
            f"{latency['p95']:.1f}",
        )
    return table


def _table_of_kinds(results: Json) -> Table:
    headings = (f"{kind}\n({count})" for kind, count in results["kinds"].items())
    table = _table("nDCG@10 by kind of question, in brackets how many", *headings)
    for name, search in results["searches"].items():
        table.add_row(name, *(f"{search['ndcg@10_by_kind'][kind]:.3f}" for kind in results["kinds"]))
    return table


def _table_of_differences(results: Json) -> Table:
    table = _table(
        "Differences of nDCG@10, paired by question, p of a randomisation test adjusted by Holm",
        *("mean", "95 % interval", "p", "better/worse"),
    )
    for pair in results["differences"]:
        table.add_row(
            f"{pair['search']} - {pair['baseline']}",
            f"{pair['mean']:+.3f}",
            f"{pair['low']:+.3f} to {pair['high']:+.3f}",
            f"{pair['p']:.2g}",
            f"{pair['wins']}/{pair['losses']}",
        )
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(
        title=escape(title), title_justify="left", box=box.SIMPLE_HEAD, min_width=_WIDTH, padding=(0, 1, 0, 0)
    )
    table.add_column("", no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right")
    return table
