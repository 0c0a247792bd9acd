"""What a run of MTEB found, beside published scores."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bge_integrations.catalogue.scores import BENCHMARKS, Averages, Benchmark, averages

__all__ = ["MtebReport", "TaskScore"]


@dataclass(frozen=True, kw_only=True)
class TaskScore:
    """The score of one task.

    Attributes:
        task: mteb's name of the task.
        type: mteb's type of the task.
        metric: mteb's name of the metric.
        split: Split of the data.
        main_score: Score from 0 to 100, by the rule of BAAI's model cards.
        published: Published score of this model, or `None`.
        seconds: Time that the evaluation took, in the run that computed it.
        is_resumed: Whether the score was computed by an earlier run.
        data: Digest of local data, or `None` for the official data.
        scores: Everything that mteb computed, by split, with one entry a subset.
    """

    task: str
    type: str
    metric: str
    split: str
    main_score: float
    published: float | None
    seconds: float | None
    is_resumed: bool
    data: str | None
    scores: Mapping[str, Sequence[Mapping[str, Any]]] = field(repr=False)

    @property
    def difference(self) -> float | None:
        """The score minus the published one."""
        return None if self.published is None else self.main_score - self.published


@dataclass(frozen=True, kw_only=True)
class MtebReport:
    """The scores of one model.

    Attributes:
        model: Name of the model.
        settings: How it was used: engine, precision, policy and so on.
        versions: Versions of the packages that took part.
        tasks: Scores by the task's name.
    """

    model: str
    settings: Mapping[str, Any]
    versions: Mapping[str, str]
    tasks: Mapping[str, TaskScore]

    def benchmarks(self) -> list[Benchmark]:
        """Returns the benchmarks that some of the tasks belong to."""
        return [one for one in BENCHMARKS.values() if not self.tasks.keys().isdisjoint(one.tasks)]

    def averages(self, benchmark: Benchmark) -> Averages:
        """Returns the means over the tasks of a benchmark; `None` where a task is missing."""
        return averages({name: score.main_score for name, score in self.tasks.items()}, benchmark)

    def published_averages(self, benchmark: Benchmark) -> Averages:
        """Returns the means of the published scores of the tasks that were run."""
        scores = {name: score.published for name, score in self.tasks.items() if score.published is not None}
        return averages(scores, benchmark)

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data for JSON. Scores are from 0 to 100."""
        tasks = {
            name: {
                "type": score.type,
                "metric": score.metric,
                "split": score.split,
                "main_score": score.main_score,
                "published": score.published,
                "difference": score.difference,
                "seconds": score.seconds,
                "resumed": score.is_resumed,
                "data": score.data,
            }
            for name, score in self.tasks.items()
        }
        means = {}
        for benchmark in self.benchmarks():
            measured, published = self.averages(benchmark), self.published_averages(benchmark)
            means[benchmark.name] = {
                "overall": measured.overall,
                "published_overall": published.overall,
                "groups": dict(measured.groups),
                "published_groups": dict(published.groups),
                "missing": list(measured.missing),
            }
        return {
            "model": self.model,
            "settings": dict(self.settings),
            "versions": dict(self.versions),
            "tasks": tasks,
            "averages": means,
        }

    def task_rows(self) -> Iterator[tuple[str, str, str, str, str, str]]:
        """Yields the cells of a table: task, type, measured, published, difference and seconds."""
        for name, score in self.tasks.items():
            seconds = "–" if score.seconds is None else f"{score.seconds:.0f}"
            yield name, score.type, *_cells(score.main_score, score.published), seconds

    def average_rows(self) -> Iterator[tuple[str, str, str, str, str]]:
        """Yields the cells of a table of means: benchmark and group, tasks, measured, published and difference."""
        for benchmark in self.benchmarks():
            measured, published = self.averages(benchmark), self.published_averages(benchmark)
            groups = [*benchmark.groups.items(), ("all", benchmark.tasks)]
            for kind, tasks in groups:
                done = sum(task in self.tasks for task in tasks)
                if done:
                    means = [found.overall if kind == "all" else found.groups[kind] for found in (measured, published)]
                    count = f"{done}" if done == len(tasks) else f"{done} of {len(tasks)}"
                    yield f"{benchmark.name} {kind}", count, *_cells(*means)

    def to_markdown(self) -> str:
        """Returns a table of the tasks, and one of the means. A group with a missing task has no mean."""
        shown = ", ".join(f"{name} {value}" for name, value in self.settings.items())
        lines = [f"**{self.model}**: {shown}", ""]
        lines += ["| task | type | measured | published | difference | seconds |", "|---|---|---|---|---|---|"]
        lines += [f"| {' | '.join(row)} |" for row in self.task_rows()]
        means = list(self.average_rows())
        if means:
            lines += ["", "| mean | tasks | measured | published | difference |", "|---|---|---|---|---|"]
            lines += [f"| {' | '.join(row)} |" for row in means]
        return "\n".join(lines) + "\n"


def _cells(measured: float | None, published: float | None) -> tuple[str, str, str]:
    one, other = ("–" if value is None else f"{value:.2f}" for value in (measured, published))
    return one, other, "–" if measured is None or published is None else f"{measured - published:+.2f}"
