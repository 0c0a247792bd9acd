"""The numbers of a server, for Prometheus. No number and no label holds anything of a text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from bge_integrations.calls.handle import ModelHandle
from bge_integrations.calls.lengths import LengthCounts

if TYPE_CHECKING:
    from bge_integrations.server.limits import Admission

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)

_ABOUT_MODELS = {
    "batches": "Forward passes.",
    "padding_tokens": "Padding tokens, computed in addition to the tokens of texts.",
    "failed_texts": "Texts on which the engine failed even when they were alone in a batch.",
    "queue_seconds": "Waiting time for an engine in seconds, summed over texts.",
    "engine_seconds": "Computing time in seconds, summed over engines.",
}


class Metrics:
    """The numbers of one server. Each server has its own registry."""

    def __init__(self, admission: Admission) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "bge_requests", "Requests by route and status.", ["route", "status"], registry=self._registry
        )
        self.seconds = Histogram(
            "bge_request_seconds",
            "Time from the headers of a request to the end of its answer.",
            ["route"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._texts = Counter(
            "bge_texts", "Computed texts by side; pairs of rerankers.", ["side"], registry=self._registry
        )
        self._tokens = Counter(
            "bge_tokens", "Tokens of computed texts, after cutting.", ["side"], registry=self._registry
        )
        self._cut = Counter("bge_truncated_texts", "Texts that were cut.", ["side"], registry=self._registry)
        in_progress = Gauge("bge_requests_in_progress", "Requests in progress.", registry=self._registry)
        in_progress.set_function(lambda: admission.requests)
        texts = Gauge("bge_texts_in_progress", "Texts in progress, by queue.", ["queue"], registry=self._registry)
        for queue in ("interactive", "bulk"):
            texts.labels(queue).set_function(partial(admission.texts.__getitem__, queue))
        buffered = Gauge("bge_buffered_bytes", "Bytes of the bodies in memory.", registry=self._registry)
        buffered.set_function(lambda: admission.buffered)
        self._models = _OfModels()
        self._registry.register(self._models)
        ProcessCollector(registry=self._registry)

    def watch(self, use: str, handle: ModelHandle[Any]) -> None:
        """Adds the statistics of a model."""
        self._models.handles[use] = handle

    def count(self, side: str, counts: LengthCounts) -> None:
        """Counts computed texts."""
        self._texts.labels(side).inc(counts.items)
        self._tokens.labels(side).inc(counts.tokens)
        self._cut.labels(side).inc(counts.cut)

    def text(self) -> tuple[bytes, str]:
        """Returns the numbers in Prometheus's text format, and its content type."""
        return generate_latest(self._registry), CONTENT_TYPE_LATEST


class _OfModels(Collector):
    """Reads the statistics of models when they are asked for."""

    def __init__(self) -> None:
        self.handles: dict[str, ModelHandle[Any]] = {}

    def collect(self) -> Iterator[Metric]:
        found = {use: asdict(handle.stats()) for use, handle in self.handles.items()}
        for name, about in _ABOUT_MODELS.items():
            family = CounterMetricFamily(f"bge_model_{name}", about, labels=["model"])
            for use, values in found.items():
                family.add_metric([use], values[name])
            yield family
