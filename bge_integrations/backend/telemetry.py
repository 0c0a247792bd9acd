"""OpenTelemetry metrics and spans, for applications that have loaded it; nothing at all for others.

| metric | unit | |
|---|---|---|
| `bge.texts`, `bge.texts.truncated`, `bge.texts.failed` | texts | computed, cut, and failed on |
| `bge.tokens`, `bge.tokens.padding` | tokens | computed, and computed in vain |
| `bge.batches` | batches | forward passes |
| `bge.batch.fill` | 1 | share of a batch that is no padding |
| `bge.queue.duration` | s | what the texts of a batch waited for an engine, on average |
| `bge.engine.duration` | s | what the engine took for a batch |

Every call of an encoder is a span named after its method. Attributes: `bge.model`, `bge.device`, `bge.kind` ("query"
or "document") of metrics; `bge.model`, `bge.texts`, `bge.tokens`, `bge.texts.truncated` of spans.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

_COUNTERS = {
    "texts": ("bge.texts", "{text}"),
    "tokens": ("bge.tokens", "{token}"),
    "padding_tokens": ("bge.tokens.padding", "{token}"),
    "batches": ("bge.batches", "{batch}"),
    "truncated_texts": ("bge.texts.truncated", "{text}"),
    "failed_texts": ("bge.texts.failed", "{text}"),
}


def record(amounts: Mapping[str, float], attributes: Mapping[str, str]) -> None:
    """Hands amounts on, named as the fields of `Statistics`."""
    # An application that collects metrics has imported it; importing it for others would cost them for nothing.
    if "opentelemetry.metrics" not in sys.modules:
        return
    instruments = _instruments()
    for name, amount in amounts.items():
        if name in _COUNTERS:
            instruments[name].add(amount, attributes)
    if amounts.get("batches"):
        computed = amounts["tokens"] + amounts["padding_tokens"]
        instruments["fill"].record(amounts["tokens"] / computed, attributes)
        instruments["queue"].record(amounts["queue_seconds"] / amounts["texts"], attributes)
        instruments["engine"].record(amounts["engine_seconds"], attributes)


@contextmanager
def span(name: str, attributes: Mapping[str, str]) -> Iterator[dict[str, int]]:
    """Wraps a call in a span.

    Yields:
        A dictionary whose content becomes attributes of the span when the call ends.
    """
    later: dict[str, int] = {}
    if "opentelemetry.trace" not in sys.modules:
        yield later
        return
    from opentelemetry import trace

    with trace.get_tracer("bge_integrations").start_as_current_span(name, attributes=attributes) as current:
        try:
            yield later
        finally:
            current.set_attributes(later)


@cache
def _instruments() -> dict[str, Any]:
    from opentelemetry import metrics

    meter = metrics.get_meter("bge_integrations")
    return {
        **{name: meter.create_counter(metric, unit) for name, (metric, unit) in _COUNTERS.items()},
        "fill": meter.create_histogram("bge.batch.fill", "1"),
        "queue": meter.create_histogram("bge.queue.duration", "s"),
        "engine": meter.create_histogram("bge.engine.duration", "s"),
    }
