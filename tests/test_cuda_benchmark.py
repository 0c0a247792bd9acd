"""The benchmark for GPUs, on the stand-in for one."""

from __future__ import annotations

from argparse import Namespace
from functools import partial
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks import gpu
from benchmarks.shapes import SHAPES
from bge_integrations.backend.engines.torch import engine as engines
from bge_integrations.backend.engines.torch.encoder import UnpaddedEncoder
from bge_integrations.backend.engines.torch.engine import TorchEngine
from tests.eager_launches import EagerLaunches, attention


@pytest.mark.slow
def test_it_measures_both_ways_of_launching(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(UnpaddedEncoder, "kernel_for", lambda *_: attention)
    monkeypatch.setattr(gpu, "_MOST_TEXTS", 40)
    launches = EagerLaunches()
    monkeypatch.setattr(engines, "TorchEngine", partial(TorchEngine, launches=launches))
    options = Namespace(device="cpu", precision="float32", seconds=0.1, queries=20)
    result = gpu.measure(SHAPES["tiny"], tmp_path, options)
    assert launches.captured
    for key in ("engine_query_ms", "query_ms"):
        assert result[key].keys() == {"graph", "plain"}
        assert all(0 < times["p50"] <= times["p95"] for times in result[key].values())
    assert result["products"].keys() == result["engine"].keys() == {1024}
    assert min(result["call"], result["products"][1024], result["engine"][1024]) > 0
    console = Console(width=100, record=True)
    gpu._print(console, "tiny", result)
    assert "query, whole call, graph" in console.export_text()
