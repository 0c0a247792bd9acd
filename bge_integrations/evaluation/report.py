"""What an evaluation found: plain data that is saved, shown and compared."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bge_integrations.errors import EvaluationDataError, SettingsError
from bge_integrations.evaluation.statistics import Interval, bootstrap_interval

__all__ = ["RetrievalReport", "load_reports", "save_reports"]

_FORMAT = 1
_RUN_TAG = "bge-integrations"


@dataclass(frozen=True, kw_only=True)
class RetrievalReport:
    """What a searcher found in some data.

    Attributes:
        name: The searcher's name.
        data: The data's name.
        digest: The data's digest; reports of different data can't be compared.
        depth: The number of documents that were looked at for a query.
        per_query: By metric, and by query id, a number from 0 to 1.
        groups: A group's name by query id; empty without groups.
        run: By query id, the documents found, best first, with their scores.
        settings: What the searcher was: its settings, instruction, reranker and so on.
        versions: Of the packages that took part.
        seconds: How long the search took, embedding included.
        tokens: Tokens that a model read; `None` where that is not known.
        truncated: Texts that were longer than the model reads; `None` where that is not known.
    """

    name: str
    data: str
    digest: str
    depth: int
    per_query: Mapping[str, Mapping[str, float]]
    groups: Mapping[str, str] = field(default_factory=dict)
    run: Mapping[str, Mapping[str, float]] = field(default_factory=dict, repr=False)
    settings: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    tokens: int | None = None
    truncated: int | None = None

    @property
    def metrics(self) -> dict[str, float]:
        """The mean of each metric over all queries."""
        return {metric: statistics.fmean(values.values()) for metric, values in self.per_query.items()}

    @property
    def tokens_per_second(self) -> float | None:
        """Tokens that a model read in a second; `None` where that is not known."""
        return self.tokens / self.seconds if self.tokens and self.seconds else None

    def values(self, metric: str, group: str | None = None) -> list[float]:
        """Returns a metric's values, one a query.

        Args:
            metric: The metric.
            group: Only the queries of this group; `None`: all queries.

        Raises:
            SettingsError: The metric was not computed.
        """
        if metric not in self.per_query:
            raise SettingsError(
                f"metric={metric!r} was not computed for {self.name}; it has {', '.join(self.per_query)}."
            )
        values = self.per_query[metric].items()
        return [value for query, value in values if group is None or self.groups.get(query) == group]

    def interval(self, metric: str, *, percent: float = 95, group: str | None = None) -> Interval:
        """Returns the bootstrap interval of a metric's mean.

        Args:
            metric: The metric.
            percent: The part of the distribution that lies within.
            group: As for `values`.

        Raises:
            SettingsError: The metric was not computed.
            ValueError: The group has no query.
        """
        return bootstrap_interval(self.values(metric, group), percent=percent)

    def by_group(self, metric: str) -> dict[str, float]:
        """Returns the mean of a metric over the queries of each group."""
        groups = sorted(set(self.groups.values()))
        return {group: statistics.fmean(self.values(metric, group)) for group in groups}

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data for JSON, from which `from_dict` makes an equal report."""
        return {"format": _FORMAT, **asdict(self), "metrics": self.metrics}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> RetrievalReport:
        """Makes a report of what `to_dict` returned.

        Raises:
            EvaluationDataError: It is no report, or one of another version.
        """
        if content.get("format") != _FORMAT:
            raise EvaluationDataError(f"This is no report of format {_FORMAT}: format is {content.get('format')!r}.")
        try:
            return cls(**{key: value for key, value in content.items() if key not in ("format", "metrics")})
        except TypeError as error:
            raise EvaluationDataError(f"This is no report: {error}.") from error

    def save(self, file: str | os.PathLike[str]) -> None:
        """Writes JSON.

        Raises:
            OSError: The file can't be written.
        """
        save_reports([self], file)

    @classmethod
    def load(cls, file: str | os.PathLike[str]) -> RetrievalReport:
        """Reads what `save` wrote.

        Raises:
            EvaluationDataError: The file can't be read, or holds no report.
        """
        reports = load_reports(file)
        if len(reports) != 1:
            raise EvaluationDataError(f"{os.fspath(file)} has {len(reports)} reports; read them with load_reports.")
        return reports[0]

    def trec_run(self) -> str:
        """Returns the run in trec_eval's format: query, Q0, document, rank, score and tag a line."""
        return "".join(
            f"{query} Q0 {document} {rank} {score:.9g} {_RUN_TAG}\n"
            for query, found in self.run.items()
            for rank, (document, score) in enumerate(found.items(), start=1)
        )

    def to_markdown(self, metrics: Sequence[str] | None = None) -> str:
        """Returns a table of the means with their 95 % intervals, and of each group if there are groups.

        Args:
            metrics: The metrics to show; `None`: all.
        """
        shown = list(metrics or self.per_query)
        lines = [f"**{self.name}** on {self.data}: {len(next(iter(self.per_query.values())))} queries", ""]
        lines += ["| metric | mean | 95 % interval |", "|---|---|---|"]
        for metric in shown:
            low, high = self.interval(metric)
            lines.append(f"| {metric} | {self.metrics[metric]:.4f} | {low:.4f} – {high:.4f} |")
        if self.groups:
            lines += ["", f"| group | {' | '.join(shown)} |", f"|---|{'---|' * len(shown)}"]
            means = [self.by_group(metric) for metric in shown]
            lines += [f"| {group} | {' | '.join(f'{one[group]:.4f}' for one in means)} |" for group in means[0]]
        return "\n".join(lines) + "\n"


def save_reports(reports: Sequence[RetrievalReport], file: str | os.PathLike[str]) -> None:
    """Writes reports as JSON. A file that is there is replaced when all is written.

    Raises:
        OSError: The file can't be written.
    """
    target = Path(file)
    content = {"format": _FORMAT, "reports": [report.to_dict() for report in reports]}
    unfinished = target.with_name(f"{target.name}.unfinished")
    unfinished.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    unfinished.replace(target)


def load_reports(file: str | os.PathLike[str]) -> list[RetrievalReport]:
    """Reads what `save_reports` or `RetrievalReport.save` wrote.

    Raises:
        EvaluationDataError: The file can't be read, or holds no reports.
    """
    place = os.fspath(file)
    try:
        content = json.loads(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EvaluationDataError(f"{place} is no report that can be read: {error}.") from error
    reports = content.get("reports") if isinstance(content, dict) else None
    if not isinstance(reports, list) or not reports or not all(isinstance(report, dict) for report in reports):
        raise EvaluationDataError(f"{place} is no report. Give a file that an evaluation has saved.")
    return [RetrievalReport.from_dict(report) for report in reports]
