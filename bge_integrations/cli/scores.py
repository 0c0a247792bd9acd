"""Prints the tables of `bge models --scores`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from bge_integrations.catalogue import MODELS
from bge_integrations.catalogue.scores import (
    BENCHMARKS,
    Averages,
    Benchmark,
    averages,
    published_scores,
    published_source,
)
from bge_integrations.cli.terminal import plain_table, print_table, print_text

__all__ = ["described_scores", "print_scores"]

_HEADINGS = {
    "Retrieval": "retrieval",
    "Clustering": "clusters",
    "PairClassification": "pairs",
    "Reranking": "rerank",
    "STS": "STS",
    "Summarization": "summary",
    "Classification": "classes",
}
"""Short names of mteb's types of task, so that a table fits 100 columns."""

_METRICS = (
    "0 to 100: nDCG@10 (retrieval), V-measure (clusters), average precision of the cosine (pairs), MAP (rerank), "
    "Spearman correlation (STS, summary), accuracy (classes)"
)


def print_scores(console: Console, models: Sequence[str]) -> None:
    """Prints a table of averages for each benchmark, one line a model, and notes on them below.

    A model without a score for every task of a benchmark is named in the notes.
    """
    incomplete: dict[str, list[str]] = {}
    for benchmark in BENCHMARKS.values():
        found = {model: averages(published_scores(model), benchmark) for model in models}
        for model, means in found.items():
            if means.overall is None and len(means.missing) < len(benchmark.tasks):
                tasks = len(benchmark.tasks) - len(means.missing)
                incomplete.setdefault(model, []).append(f"{tasks} of {len(benchmark.tasks)} in {benchmark.name}")
        complete = {model: means for model, means in found.items() if means.overall is not None}
        if complete:
            _print_benchmark(console, benchmark, complete)
    _print_notes(console, models, incomplete)


def described_scores(models: Sequence[str]) -> dict[str, Any]:
    """Returns every figure as plain data for JSON."""
    return {
        "benchmarks": {
            name: {"aliases": benchmark.aliases, "groups": benchmark.groups} for name, benchmark in BENCHMARKS.items()
        },
        "models": {model: _described(model) for model in models},
    }


def _described(model: str) -> dict[str, Any]:
    scores, source = published_scores(model), published_source(model)
    return {
        "source": dataclasses.asdict(source) if source else None,
        "averages": {
            name: dataclasses.asdict(averages(scores, benchmark))
            for name, benchmark in BENCHMARKS.items()
            if not scores.keys().isdisjoint(benchmark.tasks)
        },
        "scores": scores,
        "main_scores": published_scores(model, metric="main"),
    }


def _print_benchmark(console: Console, benchmark: Benchmark, means: Mapping[str, Averages]) -> None:
    """Prints one table. A console that is too narrow for it gets names without their organisations."""
    print_text(console, f"{benchmark.name}: {len(benchmark.tasks)} tasks", style="bold")
    table = _table(benchmark, means)
    if console.measure(table, options=console.options.update_width(1000)).maximum > console.width:
        table = _table(benchmark, {model.rpartition("/")[2]: found for model, found in means.items()})
    print_table(console, table)
    print_text(console, "")


def _table(benchmark: Benchmark, means: Mapping[str, Averages]) -> Table:
    table = plain_table()
    table.add_column("model", no_wrap=True)
    for heading in ("mean", *(_HEADINGS[kind] for kind in benchmark.groups)):
        table.add_column(heading, no_wrap=True, justify="right")
    for model, found in means.items():
        cells = (found.overall, *(found.groups[kind] for kind in benchmark.groups))
        table.add_row(model, *(f"{value:.2f}" for value in cells))
    return table


def _print_notes(console: Console, models: Sequence[str], incomplete: Mapping[str, Sequence[str]]) -> None:
    if not models:
        print_text(console, "none of these models has published scores here")
        return
    print_text(console, _METRICS)
    print_text(console, "mean: of all tasks, each counted once; each task: `bge models --scores --json`")
    of_cards = [spec.cmteb_average for spec in MODELS if spec.name.endswith("-zh-v1.5") and spec.model_id in models]
    if of_cards:
        means = ", ".join(f"{average:.2f}" for average in of_cards)
        print_text(console, f"mean in the cards of the Chinese v1.5 models, which count 35 tasks: {means}")
    for model, parts in incomplete.items():
        print_text(console, f"tasks with published scores of {model}: {', '.join(parts)}")
    sources = [source for model in models if (source := published_source(model))]
    for repository, licence in dict.fromkeys((source.repository, source.licence) for source in sources):
        print_text(console, f"source: {repository}, {licence}")
