"""What an operator sees: counts, OpenTelemetry where it is used, logging, and nothing on standard output."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from bge_integrations import BgeEncoder, BgeM3Encoder, BgeReranker
from bge_integrations.backend.engines.interface import TokenBatch
from bge_integrations.errors import EngineFailedError
from tests.checkpoints_of_pairs import make_m3, make_reranker
from tests.conftest import MakeCheckpoint

TEXTS = ["fox", "dog " * 10, "fox", "cat " * 90]  # one repeated, one of 92 tokens where 64 are read


@pytest.fixture
def encoder(make: MakeCheckpoint) -> BgeEncoder:
    return BgeEncoder(make("bge-small-en"), device="cpu", on_truncation="ignore", query_instruction="")


class TestStats:
    def test_count_what_was_computed(self, encoder: BgeEncoder) -> None:
        assert encoder.stats().texts == 0
        assert encoder.stats().batch_fill == 1
        encoder.encode_documents(TEXTS)
        stats = encoder.stats()
        assert (stats.texts, stats.tokens, stats.truncated_texts, stats.failed_texts) == (3, 3 + 12 + 64, 1, 0)
        assert stats.batches >= 1
        assert stats.padding_tokens == 3 * 64 - stats.tokens
        assert stats.batch_fill == pytest.approx(stats.tokens / (3 * 64))
        assert stats.engine_seconds > 0
        assert stats.queue_seconds >= 0

    def test_are_those_of_the_model_whoever_uses_it(self, encoder: BgeEncoder) -> None:
        other = BgeEncoder(encoder.settings.model_name, device="cpu", query_instruction="find: ")
        other.encode_queries(["fox"])
        assert encoder.stats() == other.stats()
        assert encoder.stats().texts == 1

    def test_count_texts_that_the_engine_fails_on(self, encoder: BgeEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
        def failing(_: TokenBatch) -> Any:  # noqa: ANN401
            raise ValueError("engine trouble")

        monkeypatch.setattr(encoder.backend.engine, "submit", failing)
        with pytest.raises(EngineFailedError):
            encoder.encode_documents(["fox"])
        assert encoder.stats().failed_texts == 1
        assert encoder.stats().texts == 0


@pytest.fixture(scope="module")
def exported() -> tuple[InMemoryMetricReader, InMemorySpanExporter]:
    reader, exporter = InMemoryMetricReader(), InMemorySpanExporter()
    tracing = TracerProvider()
    tracing.add_span_processor(SimpleSpanProcessor(exporter))
    metrics.set_meter_provider(MeterProvider([reader]))
    trace.set_tracer_provider(tracing)
    return reader, exporter


def _points(reader: InMemoryMetricReader, model: str) -> dict[str, list[Any]]:
    data = reader.get_metrics_data()
    found: dict[str, list[Any]] = {}
    for resource in data.resource_metrics if data else []:
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                points = [point for point in metric.data.data_points if (point.attributes or {})["bge.model"] == model]
                found.setdefault(metric.name, []).extend(points)
    return found


class TestOpenTelemetry:
    def test_metrics_say_what_the_statistics_say(
        self, encoder: BgeEncoder, exported: tuple[InMemoryMetricReader, InMemorySpanExporter]
    ) -> None:
        encoder.encode_documents(TEXTS)
        encoder.encode_queries(["fox"])
        points, stats = _points(exported[0], encoder.settings.model_name), encoder.stats()
        assert sum(point.value for point in points["bge.texts"]) == stats.texts
        assert sum(point.value for point in points["bge.tokens"]) == stats.tokens
        assert sum(point.value for point in points["bge.tokens.padding"]) == stats.padding_tokens
        assert sum(point.value for point in points["bge.texts.truncated"]) == 1
        assert {point.attributes["bge.priority"] for point in points["bge.texts"]} == {"interactive", "bulk"}
        assert {point.attributes["bge.device"] for point in points["bge.texts"]} == {"cpu"}
        assert sum(point.count for point in points["bge.batch.fill"]) == stats.batches
        assert sum(point.sum for point in points["bge.engine.duration"]) == pytest.approx(stats.engine_seconds)
        assert sum(point.count for point in points["bge.queue.duration"]) == stats.batches

    def test_every_call_is_a_span(
        self, encoder: BgeEncoder, exported: tuple[InMemoryMetricReader, InMemorySpanExporter]
    ) -> None:
        exporter = exported[1]
        exporter.clear()
        encoder.encode_documents(TEXTS)
        with pytest.raises(TypeError):
            encoder.encode_queries([None])  # type: ignore[list-item]
        good, bad = exporter.get_finished_spans()
        assert good.name == "bge.encode_documents"
        assert dict(good.attributes or {}) == {
            "bge.model": encoder.settings.model_name,
            "bge.texts": 4,
            "bge.tokens": 3 + 12 + 3 + 64,
            "bge.texts.truncated": 1,
        }
        assert bad.name == "bge.encode_queries"
        assert not bad.status.is_ok

    def test_a_call_that_encodes_two_sides_or_in_slices_is_one_span(
        self,
        tmp_path: Path,
        exported: tuple[InMemoryMetricReader, InMemorySpanExporter],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr("bge_integrations.m3.encoder._PAIRS_A_SLICE", 2)
        monkeypatch.setattr("bge_integrations.calls.call.ITEMS_A_SLICE", 2)
        m3 = BgeM3Encoder(make_m3(tmp_path / "bge-m3"), device="cpu", on_truncation="ignore")
        reranker = BgeReranker(make_reranker(tmp_path / "ours"), device="cpu", on_truncation="ignore")
        passages = ["dog"] * 4 + ["cat " * 90]
        pairs = [("fox", passage) for passage in passages]
        exporter = exported[1]
        for model, one_query, many_queries in ((m3, 1 + 5, 2 * 5), (reranker, 5, 5)):
            exporter.clear()
            model.score("fox", passages)
            asyncio.run(model.ascore("fox", passages))
            model.score_pairs(pairs)
            asyncio.run(model.ascore_pairs(iter(pairs)))
            spans = exporter.get_finished_spans()
            assert [span.name for span in spans] == ["bge.score", "bge.ascore", "bge.score_pairs", "bge.ascore_pairs"]
            counts = [dict(span.attributes or {}) for span in spans]
            assert [count["bge.texts"] for count in counts] == [one_query] * 2 + [many_queries] * 2
            assert {count["bge.texts.truncated"] for count in counts} == {1}
            assert len({count["bge.tokens"] for count in counts[:2]}) == 1
            assert {count["bge.model"] for count in counts} == {model.settings.model_name}


def test_nothing_is_imported_for_applications_without_telemetry_and_nothing_printed(bge_small_en: Path) -> None:
    script = (
        "import sys; from bge_integrations import BgeEncoder;"
        "encoder = BgeEncoder(sys.argv[1], device='cpu'); encoder.encode_documents(['fox']);"
        "assert not any(name.startswith('opentelemetry') for name in sys.modules), 'imported'"
    )
    BgeEncoder(bge_small_en, device="cpu")  # so that the graph is there already
    done = subprocess.run(
        [sys.executable, "-c", script, str(bge_small_en)], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_logging_is_the_packages_own(encoder: BgeEncoder, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        encoder.encode_documents(["fox"])
    assert {record.name.split(".")[0] for record in caplog.records} <= {"bge_integrations", "asyncio", "filelock"}
