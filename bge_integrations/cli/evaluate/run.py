"""Runs an evaluation: every combination, then the comparisons."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bge_integrations.cli.evaluate.combinations import Combination
from bge_integrations.cli.options import reranker_settings
from bge_integrations.encoder import BgeEncoder
from bge_integrations.errors import BgeError, EvaluationDataError, SettingsError
from bge_integrations.evaluation.cache import EvaluationCache
from bge_integrations.evaluation.comparison import Comparison, compare
from bge_integrations.evaluation.data import RetrievalData
from bge_integrations.evaluation.metrics import DEFAULT_METRICS, parse_metric
from bge_integrations.evaluation.report import RetrievalReport, load_reports
from bge_integrations.evaluation.retrieval import evaluate_retrieval
from bge_integrations.m3 import BgeM3Encoder
from bge_integrations.reranker import BgeReranker
from bge_integrations.settings import EncoderSettings, ModelOptions, ModelSettings

__all__ = ["Gate", "Plan", "Results", "run_evaluation"]


@dataclass(frozen=True)
class Gate:
    """When an evaluation fails.

    Attributes:
        max_drop: The largest drop of the metric that is accepted; `None`: any.
        needs_significance: Whether a drop fails only if it is hardly chance.
    """

    max_drop: float | None = None
    needs_significance: bool = False

    def fails(self, comparison: Comparison) -> bool:
        """Returns whether a candidate has dropped too far."""
        if self.max_drop is None or -comparison.difference <= self.max_drop:
            return False
        return comparison.is_significant or not self.needs_significance


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What an evaluation runs.

    Attributes:
        combinations: What is evaluated.
        metrics: The metrics to show, the main one first.
        options: Settings of all encoders; of these, rerankers take those that concern files, engine and device.
        reranker_precision: The precision of rerankers.
        depth: The number of documents to find for a query.
        rerank_depth: The number of documents that a reranker orders.
        ignore_identical_ids: See `evaluate_retrieval`.
        baseline: A file with saved reports.
        gate: When the evaluation fails.
        cache: Keeps results between runs; `None`: everything is computed.
        show_progress: Whether to show progress bars.
        tell: Takes the name of what starts.
    """

    combinations: Sequence[Combination]
    metrics: Sequence[str]
    options: Mapping[str, Any] = field(default_factory=dict)
    reranker_precision: str = "auto"
    depth: int = 100
    rerank_depth: int = 100
    ignore_identical_ids: bool = False
    baseline: Path | None = None
    gate: Gate = Gate()
    cache: EvaluationCache | None = None
    show_progress: bool = False
    tell: Callable[[str], None] = lambda _: None


@dataclass(frozen=True)
class Results:
    """What an evaluation found.

    Attributes:
        data: The data.
        labels: Short names of models and rerankers, by what was given.
        metrics: The metrics to show, the main one first.
        runs: Reports by combination.
        comparisons: With the baseline's report of the same name, else with its first; without a baseline, with the
            first run.
        failed: The comparisons that the gate does not accept.
        error: What ended the evaluation early; `None` if it is complete.
    """

    data: RetrievalData
    labels: Mapping[str, str]
    metrics: Sequence[str]
    runs: Mapping[Combination, RetrievalReport]
    comparisons: Sequence[Comparison]
    failed: Sequence[Comparison]
    error: BgeError | None = None


def run_evaluation(data: RetrievalData, plan: Plan) -> Results:
    """Evaluates every combination. One model is in memory at a time, beside the rerankers.

    Raises:
        BgeError: The plan is wrong. It is checked before a model is loaded.
    """
    main = plan.metrics[0]
    for metric in plan.metrics:
        parse_metric(metric)
    if plan.gate.max_drop is not None and plan.baseline is None and len(plan.combinations) < 2:
        raise SettingsError("--max-drop needs something to compare with; give --baseline, or a second combination.")
    if data.candidates is None and any(one.model is None for one in plan.combinations):
        raise SettingsError(
            f"{data.name} has no candidates for a reranker alone; give --model too, or a .jsonl file with query, pos "
            "and neg."
        )
    before = _read_baseline(plan.baseline, data, main)
    runner = _Runner(data, plan)
    runs: dict[Combination, RetrievalReport] = {}
    error: BgeError | None = None
    try:
        for one in plan.combinations:
            runs[one] = runner.run(one)
    except BgeError as stopped:  # what is measured already is shown and saved
        error = stopped
    finally:
        runner.close()
    comparisons = _comparisons(list(runs.values()), before, main)
    failed = [comparison for comparison in comparisons if plan.gate.fails(comparison)]
    return Results(data, runner.labels, plan.metrics, runs, comparisons, failed, error)


class _Runner:
    """Holds the encoder of the last combinations, every reranker, and the reports that rerankers start from."""

    def __init__(self, data: RetrievalData, plan: Plan) -> None:
        self._data = data
        self._plan = plan
        self.labels = _labels(plan.combinations)
        self._names = {key: _name(key, self.labels) for one in plan.combinations for key in (one, one.searched)}
        self._encoders = {one: _encoder_settings(one, plan.options) for one in plan.combinations}
        self._rerankers = {
            one.reranker: reranker_settings(one.reranker, plan.options, plan.reranker_precision)
            for one in plan.combinations
            if one.reranker
        }
        self._open_rerankers: dict[str, BgeReranker] = {}
        self._searched: dict[Combination, RetrievalReport] = {}
        self._loaded = ExitStack()
        self._model: tuple[str | None, str] | None = None

    def run(self, one: Combination) -> RetrievalReport:
        if self._model != (one.model, one.precision):
            self._loaded.close()  # the model before leaves the memory
            self._model = one.model, one.precision
        if one.reranker and one.reranker not in self._open_rerankers:
            self._open_rerankers[one.reranker] = BgeReranker.from_settings(self._rerankers[one.reranker])
        searched = self._search(one) if one.model else None
        if one.reranker is None:
            assert searched is not None
            return searched
        return self._evaluate(one, searched, reranker=self._open_rerankers[one.reranker])

    def close(self) -> None:
        self._loaded.close()
        for reranker in self._open_rerankers.values():
            reranker.close()

    def _search(self, one: Combination) -> RetrievalReport:
        plain = one.searched
        if plain not in self._searched:
            settings = self._encoders[one]
            encoder = (
                BgeEncoder.from_settings(settings)
                if isinstance(settings, EncoderSettings)
                else BgeM3Encoder.from_settings(settings)
            )
            self._searched[plain] = self._evaluate(plain, self._loaded.enter_context(encoder), output=one.output)
        return self._searched[plain]

    def _evaluate(self, one: Combination, searcher: object | None, **how: Any) -> RetrievalReport:  # noqa: ANN401
        plan = self._plan
        plan.tell(self._names[one])
        return evaluate_retrieval(
            searcher,
            self._data,
            metrics=list(dict.fromkeys([*plan.metrics, *DEFAULT_METRICS])),
            depth=plan.depth,
            rerank_depth=plan.rerank_depth,
            ignore_identical_ids=plan.ignore_identical_ids,
            cache=plan.cache,
            show_progress=plan.show_progress,
            name=self._names[one],
            **how,
        )


def _encoder_settings(one: Combination, options: Mapping[str, Any]) -> ModelSettings | EncoderSettings:
    given = {
        **options,
        "precision": one.precision,
        "query_instruction": one.instruction,
        "on_truncation": "ignore",  # the table says how many texts are cut
    }
    name = one.model or "candidates"
    if one.output == "dense":
        return EncoderSettings(model_name=name, **given)
    return ModelSettings(model_name=name, **{key: given[key] for key in given if key in ModelOptions.__annotations__})


def _labels(combinations: Sequence[Combination]) -> dict[str, str]:
    """Returns short names of models: the last part of a folder, unless two would have the same name."""
    given = {name for one in combinations for name in (one.model, one.reranker) if name}
    short = {name: Path(name).resolve().name if Path(name).is_dir() else name for name in given}
    names = list(short.values())
    return {name: name if names.count(label) > 1 else label for name, label in short.items()}


def _name(one: Combination, labels: Mapping[str, str]) -> str:
    """Returns a report's name, equal for equal options."""
    instruction = {None: "", "": ", no instruction"}.get(one.instruction, f", instruction {one.instruction!r}")
    precision = "" if one.precision in ("auto", "float32") else f" {one.precision}"
    output = "" if one.output == "dense" else f", {one.output}"
    searched = f"{labels[one.model]}{precision}{output}{instruction}" if one.model else "candidates"
    return f"{searched} + {labels[one.reranker]}" if one.reranker else searched


def _read_baseline(file: Path | None, data: RetrievalData, metric: str) -> list[RetrievalReport]:
    if file is None:
        return []
    reports = load_reports(file)
    for report in reports:
        if report.digest != data.digest:
            raise EvaluationDataError(
                f"{file} was made with other data ({report.data}, digest {report.digest[:12]}) than {data.name} "
                f"(digest {data.digest[:12]}). Evaluate the baseline on these data again."
            )
        report.values(metric)  # raises if the metric is not there
    return reports


def _comparisons(
    reports: Sequence[RetrievalReport], baseline: Sequence[RetrievalReport], metric: str
) -> list[Comparison]:
    if not baseline:
        return compare(reports[0], reports[1:], metric) if reports else []
    by_name = {report.name: report for report in baseline}
    chosen = [by_name.get(report.name, baseline[0]) for report in reports]
    found: dict[str, Comparison] = {}
    for base in baseline:
        before = dataclasses.replace(base, name=f"the baseline {base.name}")
        candidates = [report for report, its_base in zip(reports, chosen, strict=True) if its_base is base]
        found |= {one.candidate: one for one in compare(before, candidates, metric)}
    return [found[report.name] for report in reports]
