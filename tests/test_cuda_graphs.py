"""Graphs of launches, on a stand-in for a GPU: what is captured, when, and what happens if it fails."""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some

from bge_integrations import BgeEncoder
from bge_integrations.backend.engines.architecture import describe_encoder
from bge_integrations.backend.engines.interface import GraphState, Rows, TokenBatch
from bge_integrations.backend.engines.torch import engine as engines
from bge_integrations.backend.engines.torch import graphs
from bge_integrations.backend.engines.torch.encoder import UnpaddedEncoder, packed
from bge_integrations.backend.engines.torch.engine import TorchEngine
from bge_integrations.backend.engines.torch.graphs import Bucket
from bge_integrations.backend.engines.torch.launches import CudaLaunches
from bge_integrations.backend.engines.torch.operations import TorchOperations
from bge_integrations.backend.scheduler import EngineSlot, Meter, Scheduler
from tests.eager_launches import EagerLaunches, attention
from tests.test_engines import Shape, batch_of, random_model, reference

SHAPE = Shape("own", hidden_size=32, heads=2, layers=2)
ROBERTA = Shape("roberta", "roberta", hidden_size=32, heads=2, layers=2)


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> EagerLaunches:
    monkeypatch.setattr(UnpaddedEncoder, "kernel_for", lambda *_: attention)
    return EagerLaunches()


MakeEngine = Callable[..., TorchEngine]


@pytest.fixture
def make_engine(launches: EagerLaunches) -> MakeEngine:
    def make(rows: Rows = "cls", shape: Shape = SHAPE) -> TorchEngine:
        model = copy.deepcopy(random_model(shape))
        described = describe_encoder(model)
        assert described is not None
        return TorchEngine(model, described, rows=rows, launches=launches)

    return make


def compute(engine: TorchEngine, *lengths: int, seed: int = 0) -> Any:  # noqa: ANN401
    return engine.submit(batch_of(list(lengths), seed=seed)).result()


class TestBuckets:
    @given(some.lists(some.integers(1, 600), min_size=1, max_size=300))
    def test_hold_their_batches_and_texts_that_are_not_empty(self, lengths: list[int]) -> None:
        batch = batch_of(lengths)
        bucket = Bucket.of(batch)
        if bucket is None:
            assert sum(lengths) > 1024 or len(lengths) > 128
            return
        assert bucket.tokens <= graphs._MOST_TOKENS
        described = describe_encoder(random_model(SHAPE))
        assert described is not None
        filled = bucket.filled(batch, described)
        assert len(filled) == bucket.numbers
        ends = filled[2 * bucket.tokens :]
        assert len(ends) == bucket.texts + 1
        sizes = np.diff(ends)
        assert sizes[: len(lengths)].tolist() == lengths
        assert ends[-1] == bucket.tokens
        assert 1 <= sizes.min() <= sizes.max() <= bucket.longest
        # What the batch itself gives is there unchanged. The filling is in all tables.
        alone, tokens = packed(batch, described), sum(lengths)
        assert not filled[tokens : bucket.tokens].any()
        assert not filled[bucket.tokens + tokens : 2 * bucket.tokens].any()
        np.testing.assert_array_equal(filled[:tokens], alone[:tokens])
        np.testing.assert_array_equal(filled[bucket.tokens : bucket.tokens + tokens], alone[tokens : 2 * tokens])

    def test_are_few_for_queries(self) -> None:
        rng = np.random.default_rng(0)
        queries = [batch_of([int(length)]) for length in rng.integers(8, 40, 1000)]
        assert {Bucket.of(query) for query in queries} == {
            Bucket(1, 16, 16),
            Bucket(1, 32, 32),
            Bucket(2, 16, 16),
            Bucket(2, 32, 32),
            Bucket(2, 48, 64),
        }

    def test_waste_little(self) -> None:
        rng = np.random.default_rng(0)
        for count in (1, 3, 8, 30, 64):
            batch = batch_of(rng.integers(16, 32, count).tolist())
            bucket = Bucket.of(batch)
            assert bucket is not None
            assert bucket.tokens <= 1.5 * len(batch.ids) + 16

    @pytest.mark.parametrize("lengths", [[512] * 5, [8] * 257, [2000, 100], [0, 5]])
    def test_are_not_there_for_what_plain_launches_do_faster(self, lengths: list[int]) -> None:
        assert Bucket.of(batch_of(lengths)) is None


@pytest.mark.parametrize("shape", [SHAPE, ROBERTA], ids=str)
@pytest.mark.parametrize("rows", ["cls", "tokens"])
def test_replays_give_what_transformers_gives(
    make_engine: MakeEngine, launches: EagerLaunches, rows: Rows, shape: Shape
) -> None:
    engine, model = make_engine(rows, shape), random_model(shape)
    described = describe_encoder(model)
    assert described is not None
    for lengths in ([24], [5, 9, 2], [40, 40, 7], [17] * 8):
        for seed in range(4):
            batch = batch_of(lengths, seed=seed)
            found = engine.submit(batch).result()
            assert found.dtype == np.float32
            np.testing.assert_allclose(found, reference(model, batch, described.pad_id, rows), atol=2e-5)
    assert len(launches.captured) == 4
    assert [graph.replays for graph in launches.captured] == [3] * 4  # the first time plain launches computed it


def test_types_of_pairs_reach_the_graph(launches: EagerLaunches) -> None:
    model = copy.deepcopy(random_model(SHAPE))
    described = describe_encoder(model, reads_pairs=True)
    assert described is not None
    engine = TorchEngine(model, described, rows="cls", launches=launches)
    ids = np.arange(5, 25, dtype=np.int32)
    pairs = TokenBatch(ids, np.array([12, 8]), first_lengths=np.array([4, 5]))
    singles = TokenBatch(ids, np.array([12, 8]))
    plain = [engine.submit(batch).result() for batch in (pairs, singles)]
    replayed = [engine.submit(batch).result() for batch in (pairs, singles)]
    assert launches.captured[0].replays == 3
    np.testing.assert_allclose(replayed[0], plain[0], atol=1e-6)
    np.testing.assert_allclose(replayed[1], plain[1], atol=1e-6)
    assert np.abs(replayed[0] - replayed[1]).max() > 1e-3


def test_batches_in_flight_do_not_disturb_each_other(make_engine: MakeEngine, launches: EagerLaunches) -> None:
    engine = make_engine()
    compute(engine, 24)
    batches = [batch_of([24], seed=seed) for seed in range(6)]
    pending = [engine.submit(batch) for batch in batches]
    for batch, one in zip(batches, pending, strict=True):
        np.testing.assert_allclose(one.result(), reference(random_model(SHAPE), batch, 0, "cls"), atol=2e-5)
    kept = engine.submit(batches[0]).result()
    before = kept.copy()
    compute(engine, 24, seed=9)
    np.testing.assert_array_equal(kept, before)
    assert launches.fetched == {True: 1, False: 8}


def test_large_batches_never_become_graphs(make_engine: MakeEngine, launches: EagerLaunches) -> None:
    engine = make_engine()
    for _ in range(3):
        compute(engine, *[120] * 20)
    assert not launches.captured
    assert launches.fetched == {True: 3, False: 0}


def test_a_size_that_comes_once_is_not_captured(make_engine: MakeEngine, launches: EagerLaunches) -> None:
    engine = make_engine()
    for lengths in ([10], [30], [100], [10, 10, 10]):
        compute(engine, *lengths)
    assert not launches.captured


class TestLimits:
    def test_the_least_recently_used_graph_goes_first(
        self, make_engine: MakeEngine, launches: EagerLaunches, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(graphs, "_MOST_GRAPHS", 2)
        engine = make_engine()
        for length in (10, 10, 30, 30, 10, 100, 100):
            compute(engine, length)
        assert [graph.is_released for graph in launches.captured] == [False, True, False]
        before = launches.captured[0].replays
        compute(engine, 10)
        assert launches.captured[0].replays == before + 1
        # A size that was released is captured again when it comes twice more.
        compute(engine, 30)
        assert len(launches.captured) == 3
        compute(engine, 30)
        assert len(launches.captured) == 4
        assert len(launches.alive) == 2

    def test_all_graphs_go_when_their_memory_is_used_up(
        self, make_engine: MakeEngine, launches: EagerLaunches, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(graphs, "_MOST_GRAPH_BYTES", 2500)
        engine = make_engine()
        for length in (10, 10, 30, 30, 100, 100):
            compute(engine, length)
        assert launches.graph_bytes == 3000
        np.testing.assert_allclose(
            [compute(engine, 200)[0], compute(engine, 200)[0]],
            np.repeat(reference(random_model(SHAPE), batch_of([200]), 0, "cls"), 2, axis=0),
            atol=2e-5,
        )
        assert len(launches.alive) == 1
        assert launches.pools == 2
        assert launches.graph_bytes == 1000


def _out_of_memory() -> NoReturn:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")


def _broken(*_: object) -> NoReturn:
    raise RuntimeError("CUDA error: operation not permitted when stream is capturing")


class TestFailures:
    def test_too_little_memory_for_a_graph_costs_nothing_but_the_graph(
        self, make_engine: MakeEngine, launches: EagerLaunches, caplog: pytest.LogCaptureFixture
    ) -> None:
        engine = make_engine()
        launches.trouble = _out_of_memory
        expected = reference(random_model(SHAPE), batch_of([24]), 0, "cls")
        for _ in range(4):
            np.testing.assert_allclose(compute(engine, 24), expected, atol=2e-5)
        launches.trouble = lambda: None
        compute(engine, 24)
        assert not launches.captured  # this size stays without one
        assert launches.pools == 2  # torch takes no further graph into a pool without one
        for _ in range(2):
            compute(engine, 100)
        assert len(launches.captured) == 1  # others do not
        assert not [record for record in caplog.records if record.levelno >= logging.WARNING]

    @pytest.mark.parametrize("dtype", [torch.int32, torch.float32], ids=["of the batch", "of its rows"])
    def test_too_little_pinned_memory_loses_no_batch(
        self, make_engine: MakeEngine, launches: EagerLaunches, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
    ) -> None:
        engine, pinned = make_engine(), launches.pinned
        failed: list[int] = []
        expected = reference(random_model(SHAPE), batch_of([24]), 0, "cls")

        def scarce(numbers: int, kind: torch.dtype) -> torch.Tensor:
            if numbers and kind == dtype and not failed:
                failed.append(numbers)
                _out_of_memory()
            return pinned(numbers, kind)

        np.testing.assert_allclose(compute(engine, 24), expected, atol=2e-5)
        monkeypatch.setattr(launches, "pinned", scarce)
        for _ in range(4):
            np.testing.assert_allclose(compute(engine, 24), expected, atol=2e-5)
        assert len(failed) == 1
        assert launches.captured[0].replays >= 3

    @pytest.mark.parametrize("how", ["capture", "bits", "filling"])
    def test_any_other_fault_switches_graphs_off_with_one_warning(
        self,
        make_engine: MakeEngine,
        launches: EagerLaunches,
        caplog: pytest.LogCaptureFixture,
        monkeypatch: pytest.MonkeyPatch,
        how: str,
    ) -> None:
        engine = make_engine()
        for _ in range(2):
            compute(engine, 100)
        expected = reference(random_model(SHAPE), batch_of([24]), 0, "cls")
        if how == "capture":
            launches.trouble = _broken
        elif how == "bits":
            launches.spoil = lambda rows: torch.nextafter(rows, rows + 1)
        else:
            cache = engine.graphs
            assert cache is not None
            right = cache._compute
            monkeypatch.setattr(cache, "_compute", lambda inputs: right(inputs) * (-1 if len(inputs.ids) == 32 else 1))
        for _ in range(4):
            np.testing.assert_allclose(compute(engine, 24), expected, atol=2e-5)
            np.testing.assert_allclose(compute(engine, 100)[0], compute(engine, 100)[0], atol=2e-5)
        warned = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
        assert len(warned) == 1
        assert "plain launches compute small batches from now on" in warned[0]
        reasons = {"capture": "not permitted", "bits": "other bits than plain", "filling": "least cosine -1.0000"}
        assert reasons[how] in warned[0]
        assert engine.graphs is not None
        state = engine.graphs.state
        assert (state.is_on, state.captured) == (False, 0)
        assert reasons[how] in (state.fault or "")
        assert not launches.alive

    def test_a_device_that_does_nothing_any_more_fails_the_batch_and_not_the_engine(
        self, make_engine: MakeEngine, launches: EagerLaunches, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        engine = make_engine()
        for _ in range(2):
            compute(engine, 100)
        monkeypatch.setattr(launches.captured[0], "release", _broken)
        launches.trouble = _broken
        for _ in range(3):
            compute(engine, 24)
        assert engine.graphs is not None
        assert not engine.graphs.is_on


class TestEnd:
    def test_closing_releases_all_graphs_and_later_batches_are_right(
        self, make_engine: MakeEngine, launches: EagerLaunches
    ) -> None:
        engine = make_engine()
        for length in (10, 10, 100, 100):
            compute(engine, length)
        engine.close()
        engine.close()
        assert not launches.alive
        expected = reference(random_model(SHAPE), batch_of([10]), 0, "cls")
        for _ in range(3):
            np.testing.assert_allclose(compute(engine, 10), expected, atol=2e-5)
        assert len(launches.captured) == 2

    def test_a_device_that_does_nothing_any_more_is_no_error_of_closing(
        self, make_engine: MakeEngine, launches: EagerLaunches, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        engine = make_engine()
        for _ in range(2):
            compute(engine, 10)
        monkeypatch.setattr(launches.captured[0], "release", _broken)
        engine.close()
        assert engine.graphs is not None
        assert not engine.graphs.is_on

    def test_a_scheduler_closes_its_engine(self, make_engine: MakeEngine, launches: EagerLaunches) -> None:
        engine = make_engine()
        for _ in range(2):
            compute(engine, 10)
        Scheduler([EngineSlot(lambda: engine, engine, stop=engine.close)], Meter("a model", "cuda")).close()
        assert not launches.alive

    def test_the_engine_of_a_loaded_model_is_closed_with_it(
        self, bge_small_en: Path, launches: EagerLaunches, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(engines, "TorchEngine", partial(TorchEngine, launches=launches))
        with BgeEncoder(bge_small_en, device="cpu", engine="torch", precision="float32") as encoder:
            assert encoder.stats().graphs == GraphState(is_on=True, captured=0, fault=None)
            vectors = [encoder.encode_queries(["lazy fox"]) for _ in range(3)]
            assert len(launches.alive) == 1
            assert encoder.stats().graphs == GraphState(is_on=True, captured=1, fault=None)
            assert encoder.stats().texts == 3
        np.testing.assert_allclose(vectors[2], vectors[0], atol=1e-6)
        assert len(launches.captured) == 1
        assert not launches.alive

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks here")
    @pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
    def test_a_forked_child_uses_and_frees_no_graph(self, make_engine: MakeEngine, launches: EagerLaunches) -> None:
        engine = make_engine()
        for _ in range(2):
            compute(engine, 10)
        scheduler = Scheduler([EngineSlot(lambda: engine, engine, stop=engine.close)], Meter("a model", "cuda"))
        child = os.fork()
        if not child:
            try:
                setattr(launches, "stream", _broken)  # noqa: B010 - torch refuses to select a stream in a child
                scheduler.close()
                is_on = engine.graphs is None or engine.graphs.is_on
                os._exit(2 * is_on + (len(launches.alive) != 1))
            finally:
                os._exit(4)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert len(launches.alive) == 1
        compute(engine, 10)
        assert launches.captured[0].replays == 2
        scheduler.close()


class TestCaptures:
    @pytest.fixture
    def told(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """What torch's allocator is told."""
        told: list[str] = []
        monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 0)
        for name in ("endAllocateToPool", "releasePool"):
            monkeypatch.setattr(torch._C, f"_cuda_{name}", lambda *_, name=name: told.append(name), raising=False)
        return told

    @staticmethod
    def _capture(monkeypatch: pytest.MonkeyPatch, work: Callable[[], torch.Tensor], at_the_end: Exception) -> None:
        @contextmanager
        def capture(*_: object, **__: object) -> Iterator[None]:
            try:
                yield
            finally:
                raise at_the_end

        monkeypatch.setattr(torch.cuda, "graph", capture)
        launches: Any = object.__new__(CudaLaunches)  # without streams
        launches.device, launches._compute, launches._pool = torch.device("cuda", 0), None, (0, 1)
        launches.capture(work)

    def test_that_fail_raise_the_error_of_the_work_and_leave_no_half_open_capture(
        self, monkeypatch: pytest.MonkeyPatch, told: list[str]
    ) -> None:
        end = RuntimeError("operation failed due to a previous error during capture")
        with pytest.raises(RuntimeError, match="not permitted when stream is capturing"):
            self._capture(monkeypatch, _broken, end)
        assert told == ["endAllocateToPool", "releasePool"]
        with pytest.raises(RuntimeError, match="previous error during capture"):
            self._capture(monkeypatch, lambda: torch.zeros(1), end)

    def test_that_have_told_the_allocator_do_not_tell_it_again(
        self, monkeypatch: pytest.MonkeyPatch, told: list[str]
    ) -> None:
        monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", _broken)
        with pytest.raises(torch.OutOfMemoryError):
            self._capture(monkeypatch, _out_of_memory, RuntimeError("the end"))
        assert not told


def test_models_on_the_cpu_have_no_graphs(bge_small_en: Path) -> None:
    with BgeEncoder(bge_small_en, device="cpu", engine="torch") as encoder:
        engine = encoder.backend.engine
        assert isinstance(engine, TorchEngine)
        assert engine.graphs is None
        assert encoder.stats().graphs is None
        assert engine._launches is None
        assert type(engine._encoder.operations) is TorchOperations
