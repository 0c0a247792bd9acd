"""OpenTelemetry metrics and spans, for applications that have loaded it; nothing at all for others.

| metric | unit | |
|---|---|---|
| `bge.texts`, `bge.texts.truncated`, `bge.texts.failed` | texts | computed, cut, and failed on |
| `bge.tokens`, `bge.tokens.padding` | tokens | computed, and computed in vain |
| `bge.batches` | batches | forward passes |
| `bge.batch.fill` | 1 | share of a batch that is no padding |
| `bge.queue.duration` | s | what the texts of a batch waited for an engine, on average |
| `bge.engine.duration` | s | what the engine took for a batch |

Every call of an encoder is a span named after its method. Attributes: `bge.model`, `bge.device`, `bge.priority`
("interactive" or "bulk") of metrics; `bge.model`, `bge.texts`, `bge.tokens`, `bge.texts.truncated` of spans.

What the application plugs into OpenTelemetry (views, exemplar filters, samplers, span processors) runs inside these
functions. An error that it raises costs no result: it is logged, the first one of a process with its traceback.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from typing import Any

from bge_integrations.backend.guarantees.logs import get_logger
from bge_integrations.backend.guarantees.signals import is_from_signal

logger = get_logger(__name__)

_COUNTERS = {
    "texts": ("bge.texts", "{text}"),
    "tokens": ("bge.tokens", "{token}"),
    "padding_tokens": ("bge.tokens.padding", "{token}"),
    "batches": ("bge.batches", "{batch}"),
    "truncated_texts": ("bge.texts.truncated", "{text}"),
    "failed_texts": ("bge.texts.failed", "{text}"),
}
# From a query on a GPU to a batch of long texts on a small CPU. The SDK's own boundaries are for milliseconds.
_SECONDS = (
    *(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0),
)
_SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
_HISTOGRAMS: dict[str, tuple[str, str, tuple[float, ...]]] = {
    "fill": ("bge.batch.fill", "1", _SHARES),
    "queue": ("bge.queue.duration", "s", _SECONDS),
    "engine": ("bge.engine.duration", "s", _SECONDS),
}
"""Name, unit and upper bounds of the buckets."""

_has_failed = threading.Event()


def record(amounts: Mapping[str, float], attributes: Mapping[str, str]) -> None:
    """Hands amounts on, named as the fields of `Statistics`."""
    # An application that collects metrics has imported it; importing it for others would cost them for nothing.
    if "opentelemetry.metrics" not in sys.modules:
        return
    for name, amount in amounts.items():
        if name in _COUNTERS:
            with _without_errors():
                _counter(name).add(amount, attributes)
    if amounts.get("batches"):
        computed = amounts["tokens"] + amounts["padding_tokens"]
        measured = {
            "fill": amounts["tokens"] / computed,
            "queue": amounts["queue_seconds"] / amounts["texts"],
            "engine": amounts["engine_seconds"],
        }
        for name, value in measured.items():
            with _without_errors():
                _histogram(name).record(value, attributes)


@contextmanager
def span(name: str, attributes: Mapping[str, str]) -> Iterator[dict[str, int]]:
    """Wraps a call in a span, which records the error that the call raises.

    Yields:
        A dictionary whose content becomes attributes of the span when the call ends.
    """
    later: dict[str, int] = {}
    if "opentelemetry.trace" not in sys.modules:
        yield later
        return
    opened, current = _opened_span(name, attributes)
    try:
        yield later
    except BaseException as error:
        _close_span(opened, current, later, error)
        raise
    _close_span(opened, current, later, None)


def _opened_span(name: str, attributes: Mapping[str, str]) -> tuple[AbstractContextManager[Any] | None, Any]:
    """Returns the context in which a span is the current one, and the span; None for both if none can be had."""
    try:
        from opentelemetry import trace

        opened = trace.get_tracer("bge_integrations").start_as_current_span(name, attributes=attributes)
        return opened, opened.__enter__()
    except Exception as error:  # whatever a sampler or a span processor raises
        if is_from_signal(error):
            raise
        _log(error)
        return None, None


def _close_span(
    opened: AbstractContextManager[Any] | None,
    current: Any,  # noqa: ANN401 - imported where the application has done so
    attributes: Mapping[str, int],
    error: BaseException | None,
) -> None:
    """Ends a span, with the error that the call raises if there is one."""
    if opened is None:
        return
    with _without_errors():
        current.set_attributes(attributes)
    with _without_errors():
        try:
            opened.__exit__(type(error) if error else None, error, error.__traceback__ if error else None)
        except BaseException as raised:
            if raised is not error:
                raise


@contextmanager
def _without_errors() -> Iterator[None]:
    """Logs an error instead of raising it."""
    try:
        yield
    except Exception as error:  # whatever a view, an exemplar filter or a span processor raises
        if is_from_signal(error):
            raise
        _log(error)


def _log(error: Exception) -> None:
    """Logs the first error of a process with its traceback, and later ones where somebody looks for them."""
    if _has_failed.is_set():
        logger.debug("OpenTelemetry, or what the application has plugged into it, raised again: %r", error)
        return
    _has_failed.set()
    logger.error(
        "OpenTelemetry, or what the application has plugged into it, raised; results are not affected", exc_info=error
    )


@cache
def _counter(name: str) -> Any:  # noqa: ANN401 - imported where the application has done so
    from opentelemetry import metrics

    return metrics.get_meter("bge_integrations").create_counter(*_COUNTERS[name])


@cache
def _histogram(name: str) -> Any:  # noqa: ANN401 - as above
    from opentelemetry import metrics

    meter = metrics.get_meter("bge_integrations")
    metric, unit, bounds = _HISTOGRAMS[name]
    try:
        return meter.create_histogram(metric, unit, explicit_bucket_boundaries_advisory=bounds)
    except TypeError:  # opentelemetry-api before 1.30 takes no boundaries
        return meter.create_histogram(metric, unit)
