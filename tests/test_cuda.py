"""Graphs, kernels and batches on a card. `python -m benchmarks.gpu` has the figures."""

from __future__ import annotations

import copy
import importlib.util
import logging
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from bge_integrations import BgeEncoder
from bge_integrations.backend.engines.architecture import describe_encoder
from bge_integrations.backend.engines.interface import GraphState, Rows
from bge_integrations.backend.engines.torch import graphs
from bge_integrations.backend.engines.torch.encoder import Inputs
from bge_integrations.backend.engines.torch.engine import TorchEngine
from bge_integrations.backend.engines.torch.graphs import Bucket
from bge_integrations.backend.engines.torch.kernel_choice import attention_kernel, check, fastest_operations
from bge_integrations.backend.engines.torch.operations import TorchOperations
from tests.test_engines import SHAPES, Shape, batch_of, cosines, random_model, reference

pytestmark = pytest.mark.gpu

SIZES = ([2], [24], [5, 9, 2], [40, 40, 7], [24] * 8, [17, 30, 12] * 20, [500], [16])
HALVES = ("float16", "bfloat16")


def engine_of(shape: Shape, precision: str, rows: Rows = "cls") -> TorchEngine:
    model = copy.deepcopy(random_model(shape)).to("cuda", getattr(torch, precision))
    described = describe_encoder(model)
    assert described is not None
    return TorchEngine(model, described, rows=rows)


@pytest.mark.parametrize("rows", ["cls", "tokens"])
@pytest.mark.parametrize("precision", HALVES)
@pytest.mark.parametrize("shape", SHAPES[:6], ids=str)
def test_replays_have_the_bits_of_plain_launches(
    shape: Shape, precision: str, rows: Rows, caplog: pytest.LogCaptureFixture
) -> None:
    engine, model = engine_of(shape, precision, rows), random_model(shape)
    cache, encoder = engine.graphs, engine._encoder
    assert cache is not None
    for lengths in SIZES:
        for seed in range(4):
            batch = batch_of(lengths, seed=seed)
            found = engine.submit(batch).result()
            if seed < 2:
                continue
            bucket = Bucket.of(batch)
            assert bucket is not None
            assert bucket in cache._graphs
            numbers = torch.from_numpy(bucket.filled(batch, encoder.shape)).cuda()
            plain = encoder.rows(Inputs.of(numbers, bucket.tokens, bucket.longest)).float().cpu().numpy()
            np.testing.assert_array_equal(found, plain[: len(found)])
            assert cosines(found, reference(model, batch, encoder.shape.pad_id, rows)).min() >= 0.9995
    assert cache.is_on
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    engine.close()


@pytest.mark.parametrize("precision", HALVES)
def test_batches_of_all_sizes_in_flight_are_right(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "_MOST_GRAPHS", 4)  # so that graphs are released while others run
    engine, model = engine_of(SHAPES[0], precision), random_model(SHAPES[0])
    rng = np.random.default_rng(0)
    batches = [batch_of(sorted(rng.integers(2, 100, rng.integers(1, 40)))[::-1], seed=seed) for seed in range(150)]
    for _ in range(2):
        pending = [engine.submit(batch) for batch in batches]
        for batch, one in zip(batches, pending, strict=True):
            assert cosines(one.result(), reference(model, batch, 0, "cls")).min() >= 0.9995
    assert engine.graphs is not None
    assert engine.graphs.is_on


def _reserved() -> int:
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    return torch.cuda.memory_reserved()


def test_closing_gives_the_memory_of_graphs_back() -> None:
    engine = engine_of(SHAPES[0], "float16")
    engine.submit(batch_of([24])).result()  # by plain launches, whose products keep a workspace
    before = _reserved()
    for lengths in SIZES:
        for _ in range(3):
            engine.submit(batch_of(lengths)).result()
    assert _reserved() > before
    engine.close()
    assert _reserved() <= before + (4 << 20)
    assert engine.submit(batch_of([24])).result().shape == (1, 384)


def test_graphs_are_captured_while_another_thread_uses_the_card() -> None:
    engine, model = engine_of(SHAPES[0], "float16"), random_model(SHAPES[0])
    ended = threading.Event()
    rounds: list[float] = []

    def disturb() -> None:
        while not ended.is_set():  # allocations, launches, copies and waits of all kinds
            rows = torch.randn(64 + len(rounds) % 1000, 512).pin_memory().to("cuda", non_blocking=True)
            rounds.append(float((rows @ rows.T).sum()))

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        for lengths in SIZES:
            for seed in range(4):
                batch = batch_of(lengths, seed=seed)
                assert cosines(engine.submit(batch).result(), reference(model, batch, 0, "cls")).min() >= 0.9995
    finally:
        ended.set()
        thread.join()
    assert rounds
    assert np.isfinite(rounds).all()
    assert engine.graphs is not None
    assert engine.graphs.state == GraphState(is_on=True, captured=len(engine.graphs._graphs), fault=None)
    assert len(engine.graphs._graphs) > 4


def test_the_attention_kernel_works_for_the_head_sizes_of_all_models() -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    if torch.cuda.get_device_capability(device) < (8, 0):
        pytest.skip("the kernel needs a card from Ampere on")
    for precision in HALVES:
        for head_size in (8, 16, 32, 64, 96, 128):
            assert attention_kernel(device, getattr(torch, precision), head_size) is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("width", [64, 384, 512, 768, 1024])
def test_kernels_agree_with_float64(width: int, dtype: torch.dtype) -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    check(TorchOperations(), device, dtype, width)
    if importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed")
    assert type(fastest_operations(device, dtype, width)).__name__ == "TritonOperations"


def test_a_query_is_answered_by_a_graph_from_the_third_time_on(
    bge_small_en: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with BgeEncoder(bge_small_en, device="cuda") as encoder, BgeEncoder(bge_small_en, device="cpu") as on_cpu:
        engine = encoder.backend.engine
        assert isinstance(engine, TorchEngine)
        assert engine.graphs is not None
        texts = [f"the {number} lazy foxes" for number in range(200)]
        times, found = [], []
        for text in texts:
            start = time.perf_counter()
            found.append(encoder.encode_queries([text])[0])
            times.append(time.perf_counter() - start)
        assert engine.graphs._graphs
        assert encoder.stats().graphs == GraphState(is_on=True, captured=len(engine.graphs._graphs), fault=None)
        assert cosines(np.stack(found), on_cpu.encode_queries(texts)).min() >= 0.9995
        with capsys.disabled():
            print(f"\na query of a tiny model: p50 {1000 * float(np.median(times)):.2f} ms")  # noqa: T201
