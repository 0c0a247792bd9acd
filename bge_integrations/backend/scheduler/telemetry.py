"""OpenTelemetry metrics and spans, only in applications that have imported OpenTelemetry.

| metric | unit | |
|---|---|---|
| `bge.texts`, `bge.texts.truncated`, `bge.texts.failed` | texts | computed, truncated, and failed texts |
| `bge.tokens`, `bge.tokens.padding` | tokens | tokens of texts, and padding tokens |
| `bge.batches` | batches | forward passes |
| `bge.batch.fill` | 1 | share of a batch that is not padding |
| `bge.queue.duration` | s | mean waiting time of the texts of a batch |
| `bge.engine.duration` | s | computing time of a batch |

Every call of an encoder is a span named after its method. Attributes: `bge.model`, `bge.device`, `bge.priority`
("interactive" or "bulk") of metrics; `bge.model`, `bge.texts`, `bge.tokens`, `bge.texts.truncated` of spans.

The application's own OpenTelemetry code (views, exemplar filters, samplers, span processors) runs inside these
functions. Its errors are logged and never reach a call. The first error of a process is logged with its traceback.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
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
# From a query on a GPU to a batch of long texts on a small CPU. The SDK's default boundaries suit milliseconds.
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
    """Records amounts, named after the fields of `Statistics`."""
    # An application that collects metrics has imported it. For others an import here would only cost time.
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


def span(name: str, attributes: Mapping[str, str]) -> AbstractContextManager[dict[str, int]]:
    """Wraps a call in a span, which records an error of the call.

    Returns:
        A context manager, which gives a dictionary. Its content becomes attributes of the span when the call ends.
    """
    if "opentelemetry.trace" not in sys.modules:
        return nullcontext({})
    return _recorded_span(name, attributes)


@contextmanager
def _recorded_span(name: str, attributes: Mapping[str, str]) -> Iterator[dict[str, int]]:
    later: dict[str, int] = {}
    opened, current = _opened_span(name, attributes)
    try:
        yield later
    except BaseException as error:
        _close_span(opened, current, later, error)
        raise
    _close_span(opened, current, later, None)


def _opened_span(name: str, attributes: Mapping[str, str]) -> tuple[AbstractContextManager[Any] | None, Any]:
    """Returns the context of a new current span, and the span. Both are `None` if OpenTelemetry raises."""
    try:
        from opentelemetry import trace

        opened = trace.get_tracer("bge_integrations").start_as_current_span(name, attributes=attributes)
        return opened, opened.__enter__()
    except Exception as error:  # a sampler or a span processor may raise any error
        if is_from_signal(error):
            raise
        _log(error)
        return None, None


def _close_span(
    opened: AbstractContextManager[Any] | None,
    current: Any,  # noqa: ANN401 - OpenTelemetry is an optional import
    attributes: Mapping[str, int],
    error: BaseException | None,
) -> None:
    """Ends a span, with the call's error if it raised one."""
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
    except Exception as error:  # a view, an exemplar filter or a span processor may raise any error
        if is_from_signal(error):
            raise
        _log(error)


def _log(error: Exception) -> None:
    """Logs the first error of a process with its traceback, and later errors at debug level."""
    if _has_failed.is_set():
        logger.debug("OpenTelemetry, or a plug-in of the application, raised again: %r", error)
        return
    _has_failed.set()
    logger.error("OpenTelemetry, or a plug-in of the application, raised; results are not affected", exc_info=error)


@cache
def _counter(name: str) -> Any:  # noqa: ANN401 - OpenTelemetry is an optional import
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
