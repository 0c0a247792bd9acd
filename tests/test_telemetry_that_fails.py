"""What an application plugs into OpenTelemetry, and into logging, may raise: it costs no result and no thread."""

from __future__ import annotations

import asyncio
import logging
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import AlwaysOnExemplarFilter, MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.metrics.view import View
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, Sampler

from bge_integrations import BgeEncoder
from bge_integrations.backend.engines.interface import TokenBatch
from bge_integrations.backend.guarantees.logs import get_logger
from bge_integrations.backend.scheduler import telemetry
from bge_integrations.calls.progress import warn_user
from bge_integrations.errors import EngineFailedError, InputTypeError

_LONG = 30.0
TEXTS = ["fox", "dog " * 10, "cat " * 90]


class _Trouble(RuntimeError):
    pass


def _fail(*_: object, **__: object) -> Any:  # noqa: ANN401
    raise _Trouble("not the result's business")


class _FailingView(View):
    def _match(self, instrument: object) -> bool:
        raise _Trouble


class _FailingFilter(AlwaysOnExemplarFilter):
    should_sample = _fail


class _FailingMeterProvider(MeterProvider):
    get_meter = _fail


class _MeterWithoutInstruments(MeterProvider):
    def get_meter(self, *_: object, **__: object) -> Any:  # noqa: ANN401
        class Meter:
            create_counter = create_histogram = _fail

        return Meter()


class _MeterThatCountsNothing(MeterProvider):
    def get_meter(self, *_: object, **__: object) -> Any:  # noqa: ANN401
        class Instrument:
            add = record = _fail

        class Meter:
            def create_counter(self, *_: object, **__: object) -> Instrument:
                return Instrument()

            create_histogram = create_counter

        return Meter()


class _FailsAtTheStart(SpanProcessor):
    on_start = _fail


class _FailsAtTheEnd(SpanProcessor):
    on_end = _fail


class _FailingSampler(Sampler):
    should_sample = _fail

    def get_description(self) -> str:
        return "fails"


def _tracing(*processors: SpanProcessor, sampler: Sampler = ALWAYS_ON) -> TracerProvider:
    provider = TracerProvider(sampler=sampler)
    for processor in processors:
        provider.add_span_processor(processor)
    return provider


class _FailingTracerProvider(TracerProvider):
    get_tracer = _fail


METERS: dict[str, Callable[[], MeterProvider]] = {
    "view": lambda: MeterProvider([InMemoryMetricReader()], views=[_FailingView(instrument_name="*")]),
    "exemplar filter": lambda: MeterProvider([InMemoryMetricReader()], exemplar_filter=_FailingFilter()),
    "provider": _FailingMeterProvider,
    "instruments": _MeterWithoutInstruments,
    "amounts": _MeterThatCountsNothing,
}
TRACERS: dict[str, Callable[[], TracerProvider]] = {
    "sampler": lambda: _tracing(sampler=_FailingSampler()),
    "start of a span": lambda: _tracing(_FailsAtTheStart()),
    "end of a span": lambda: _tracing(_FailsAtTheEnd()),
    "provider": _FailingTracerProvider,
}


@pytest.fixture(autouse=True)
def _afresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Telemetry as in a process that has not met any yet."""

    def forget() -> None:
        telemetry._has_failed.clear()
        telemetry._counter.cache_clear()
        telemetry._histogram.cache_clear()

    forget()
    yield
    monkeypatch.undo()
    forget()


@pytest.fixture
def encoder(bge_small_en: Path) -> BgeEncoder:
    return BgeEncoder(bge_small_en, device="cpu", on_truncation="ignore")


def _use_meters(monkeypatch: pytest.MonkeyPatch, provider: MeterProvider) -> None:
    monkeypatch.setattr(metrics, "get_meter", provider.get_meter)


def _use_tracers(monkeypatch: pytest.MonkeyPatch, provider: TracerProvider) -> None:
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)


def _require_one_traceback(caplog: pytest.LogCaptureFixture) -> None:
    (record,) = (record for record in caplog.records if record.levelno >= logging.WARNING)
    assert record.name == telemetry.__name__
    assert record.exc_info
    assert record.exc_info[0] is _Trouble


@pytest.mark.parametrize("what", METERS)
def test_meters_that_raise_cost_nobody_a_vector(
    what: str, encoder: BgeEncoder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = encoder.encode_documents(TEXTS)
    before = encoder.stats()
    telemetry._counter.cache_clear()
    telemetry._histogram.cache_clear()
    _use_meters(monkeypatch, METERS[what]())
    (thread,) = encoder.backend.scheduler.threads

    async def several() -> list[Any]:
        return await asyncio.gather(*(encoder.aencode_documents(TEXTS) for _ in range(3)))

    assert np.array_equal(encoder.encode_documents(TEXTS), expected)
    for found in asyncio.run(several()):
        np.testing.assert_allclose(found, expected, atol=1e-6)
    assert encoder.backend.scheduler.threads == [thread]
    assert thread is not None
    assert thread.is_alive()
    assert encoder.stats().texts == before.texts + 4 * len(TEXTS)
    _require_one_traceback(caplog)


def test_one_metric_that_raises_leaves_the_others(encoder: BgeEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    class Choosy(_FailingView):
        def _match(self, instrument: Any) -> bool:  # noqa: ANN401
            if instrument.name == "bge.texts":
                raise _Trouble
            return False

    reader = InMemoryMetricReader()
    _use_meters(monkeypatch, MeterProvider([reader], views=[Choosy(instrument_name="*")]))
    encoder.encode_documents(TEXTS)
    data = reader.get_metrics_data()
    assert data
    seen = {metric.name for metric in data.resource_metrics[0].scope_metrics[0].metrics}
    assert {"bge.tokens", "bge.batches", "bge.batch.fill", "bge.queue.duration", "bge.engine.duration"} <= seen


@pytest.mark.parametrize("what", TRACERS)
def test_spans_that_raise_change_neither_results_nor_errors(
    what: str, encoder: BgeEncoder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = encoder.encode_documents(TEXTS)
    _use_tracers(monkeypatch, TRACERS[what]())
    assert np.array_equal(encoder.encode_documents(TEXTS), expected)
    assert np.array_equal(asyncio.run(encoder.aencode_documents(TEXTS)), expected)
    with pytest.raises(InputTypeError):
        encoder.encode_documents([None])  # type: ignore[list-item]
    with pytest.raises(InputTypeError):
        asyncio.run(encoder.aencode_documents([None]))  # type: ignore[list-item]
    assert trace.get_current_span() is trace.INVALID_SPAN
    _require_one_traceback(caplog)


def test_a_calls_own_error_is_recorded_on_its_span_and_no_error_of_the_caller(
    encoder: BgeEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    exporter = InMemorySpanExporter()
    _use_tracers(monkeypatch, _tracing(SimpleSpanProcessor(exporter)))

    def failing(_: TokenBatch) -> Any:  # noqa: ANN401
        raise _Trouble

    try:
        raise KeyError("being handled")
    except KeyError:
        encoder.encode_documents(["fox"])
    with monkeypatch.context() as patched:
        patched.setattr(encoder.backend.engine, "submit", failing)
        with pytest.raises(EngineFailedError):
            encoder.encode_documents(["fox"])
    good, bad = exporter.get_finished_spans()
    assert good.status.is_unset
    assert not good.events
    assert not bad.status.is_ok
    assert [(event.attributes or {})["exception.type"] for event in bad.events] == [
        f"{EngineFailedError.__module__}.{EngineFailedError.__qualname__}"
    ]


class _SlowSpans(SpanProcessor):
    def on_start(self, *_: object, **__: object) -> None:
        time.sleep(_LONG)


class _SlowHandler(logging.Handler):
    def handle(self, _: logging.LogRecord) -> bool:
        time.sleep(_LONG)
        return True


class _Alarm:
    def __call__(self, *_: object) -> None:
        raise TimeoutError("the user's")


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no timers that send signals")
@pytest.mark.filterwarnings("always")
@pytest.mark.parametrize("what", ["spans", "log", "warnings"])
@pytest.mark.parametrize(
    "handler", [_Alarm(), _Alarm().__call__, partial(_Alarm())], ids=["object", "method", "partial"]
)
def test_what_a_signal_handler_raises_is_not_swallowed(
    what: str, handler: Callable[..., None], encoder: BgeEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warnings, "showwarning", lambda *_: time.sleep(_LONG))
    monkeypatch.setattr(logging.getLogger(__name__), "handlers", [_SlowHandler()])
    calls: dict[str, Callable[[], object]] = {
        "spans": lambda: encoder.encode_documents(TEXTS),
        "log": lambda: get_logger(__name__).warning("slow"),
        "warnings": lambda: warn_user("slow", UserWarning),
    }
    if what == "spans":
        _use_tracers(monkeypatch, _tracing(_SlowSpans()))
    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        with pytest.raises(TimeoutError, match="the user's"):
            calls[what]()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_buckets_tell_milliseconds_and_shares_apart(encoder: BgeEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = InMemoryMetricReader()
    _use_meters(monkeypatch, MeterProvider([reader]))
    encoder.encode_documents(TEXTS)
    data = reader.get_metrics_data()
    assert data
    bounds = {
        metric.name: metric.data.data_points[0].explicit_bounds
        for metric in data.resource_metrics[0].scope_metrics[0].metrics
        if hasattr(metric.data.data_points[0], "explicit_bounds")
    }
    assert set(bounds) == {"bge.batch.fill", "bge.queue.duration", "bge.engine.duration"}
    for name, found in bounds.items():
        assert list(found) == sorted(found)
        if name == "bge.batch.fill":
            assert all(0 < bound < 1 for bound in found)
        else:
            assert found[0] <= 0.001
            assert found[-1] >= 60
            assert sum(bound < 1 for bound in found) >= 8


def test_an_older_opentelemetry_without_buckets_still_counts(
    encoder: BgeEncoder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    reader = InMemoryMetricReader()
    meter = MeterProvider([reader]).get_meter("bge_integrations")

    class Older:
        create_counter = meter.create_counter

        def create_histogram(self, name: str, unit: str = "", description: str = "") -> metrics.Histogram:
            return meter.create_histogram(name, unit, description)

    monkeypatch.setattr(metrics, "get_meter", lambda _: Older())
    encoder.encode_documents(TEXTS)
    data = reader.get_metrics_data()
    assert data
    assert "bge.engine.duration" in {metric.name for metric in data.resource_metrics[0].scope_metrics[0].metrics}
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


class TestLogging:
    def test_a_handler_that_raises_costs_no_vector_and_no_thread(
        self, encoder: BgeEncoder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A batch that fails is logged in the engine's thread, and its halves are computed all the same."""
        expected = encoder.encode_documents(TEXTS)
        submit = encoder.backend.engine.submit

        class Raising(logging.Handler):
            calls = 0

            def handle(self, record: logging.LogRecord) -> bool:
                self.calls += 1
                raise _Trouble

        def failing_once(batch: TokenBatch) -> Any:  # noqa: ANN401
            monkeypatch.setattr(encoder.backend.engine, "submit", submit)
            raise _Trouble

        handler = Raising()
        (thread,) = encoder.backend.scheduler.threads
        monkeypatch.setattr(encoder.backend.engine, "submit", failing_once)
        logging.getLogger("bge_integrations").addHandler(handler)
        try:
            np.testing.assert_allclose(encoder.encode_documents(TEXTS), expected, atol=1e-6)
        finally:
            logging.getLogger("bge_integrations").removeHandler(handler)
        assert handler.calls
        assert encoder.backend.scheduler.threads == [thread]

    def test_a_record_names_the_line_that_wrote_it(self, caplog: pytest.LogCaptureFixture) -> None:
        telemetry._log(_Trouble())
        (record,) = caplog.records
        assert (record.name, record.funcName, Path(record.pathname).name) == (
            "bge_integrations.backend.scheduler.telemetry",
            "_log",
            "telemetry.py",
        )
