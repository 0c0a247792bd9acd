"""The benchmark for GPUs, on the stand-in for one."""

from __future__ import annotations

import dataclasses
import json
import sys
import weakref
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks import gpu, gpu_models
from benchmarks.gpu_models import Race, Racer, Where
from benchmarks.shapes import DECODERS, Decoder
from bge_integrations.backend.engines.torch import engine as engines
from bge_integrations.backend.engines.torch.encoder import UnpaddedEncoder
from bge_integrations.backend.engines.torch.engine import TorchEngine
from bge_integrations.calls.m3 import M3Output
from tests.eager_launches import EagerLaunches, attention

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the libraries compared, about themselves


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes everything small."""
    for name, value in (("_MOST_TEXTS", 40), ("_PAIRS", 40), ("_TEXTS", 40), ("_RERANKER", "tiny"), ("_M3", "tiny")):
        monkeypatch.setattr(gpu, name, value)
    for name, decoder in DECODERS.items():
        monkeypatch.setitem(DECODERS, name, tiny_decoder(decoder))
    for name in ("HF_HUB_OFFLINE", "TQDM_DISABLE", "BGE_INTEGRATIONS_CACHE"):
        monkeypatch.setenv(name, "1")  # given back what they were afterwards


def tiny_decoder(decoder: Decoder) -> Decoder:
    return dataclasses.replace(decoder, width=64, inner=128, heads=4, shared_heads=2, head_size=16)


def run(file: Path, *arguments: str) -> Any:  # noqa: ANN401 - JSON
    options = ["--device", "cpu", "--seconds", "0.05", "--queries", "20", "--output", str(file)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["benchmarks.gpu", *options, "--workdir", str(file.parent), *arguments])
        gpu.main()
    return json.loads(file.read_text(encoding="utf-8"))


@pytest.mark.slow
@pytest.mark.usefixtures("tiny")
def test_encoders_are_measured_with_both_ways_of_launching(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(UnpaddedEncoder, "kernel_for", lambda *_: attention)
    launches = EagerLaunches()
    monkeypatch.setattr(engines, "TorchEngine", partial(TorchEngine, launches=launches))
    result = run(tmp_path / "gpu.json", "--parts", "encoders", "--shapes", "tiny")["encoders"]["tiny"]
    assert launches.captured
    for key in ("engine_query_ms", "query_ms"):
        assert result[key].keys() == {"graph", "plain"}
        assert all(0 < times["p50"] <= times["p95"] for times in result[key].values())
    assert result["products"].keys() == result["engine"].keys() == {"1024"}
    assert min(result["call"], result["products"]["1024"], result["engine"]["1024"]) > 0
    assert result["graphs"] == {"is_on": True, "captured": len(launches.captured), "fault": None}
    printed = capsys.readouterr().out
    assert "query, whole call, graph" in printed
    assert f"{result['engine']['1024'] / result['products']['1024']:.0%} of the products" in printed
    assert f"{result['call'] / result['engine']['1024']:.0%} of the engine" in printed
    assert f"{len(launches.captured)} kept" in printed


@pytest.mark.slow
@pytest.mark.usefixtures("tiny")
def test_rerankers_m3_and_decoders_are_measured_beside_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = run(tmp_path / "gpu.json", "--parts", "rerankers,m3,decoders")["models"]
    assert [one["unit"] for one in found] == ["pairs", *["texts"] * 4]
    for one in found:
        others = [name for name in one["results"] if name != "bge"]
        assert others
        assert "bge" in one["results"]
        assert all(name.startswith(("Flag", "BGEM3")) for name in one["left_out"])
        for result in one["results"].values():
            assert result["per_s"] > 0
            assert result["agreement"] == pytest.approx(1, abs=1e-3)
    printed = capsys.readouterr().out
    names = (one.folder_name for one in DECODERS.values())
    for title in ("bge-reranker-tiny, float32", "bge-m3's three outputs", *names):
        assert title in printed


def test_what_is_unknown_is_refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for option in ("--parts", "--shapes", "--decoders"):
        monkeypatch.setattr(sys, "argv", ["benchmarks.gpu", option, "nothing"])
        with pytest.raises(SystemExit):
            gpu.main()
        assert "'nothing' is unknown; there are" in capsys.readouterr().err


class TestRace:
    def test_who_is_wrong_or_fails_is_left_out_before_it_is_timed(self) -> None:
        asked: dict[str, list[int]] = {}

        def racer(name: str, factor: float) -> Racer:
            def load() -> gpu_models.Compute:
                def compute(items: Sequence[int]) -> list[float]:
                    asked.setdefault(name, []).append(len(items))
                    return [factor * item for item in items]

                return compute

            return Racer(name, load)

        def missing() -> gpu_models.Compute:
            raise ModuleNotFoundError("No module named 'FlagEmbedding'")

        race = Race(
            title="a race",
            unit="texts",
            items=range(100),
            reference=racer("right", 1),
            racers=[racer("right too", 1), racer("wrong", 1.5), Racer("missing", missing), racer("nan", float("nan"))],
            agreement=gpu_models._agreement_of_scores,
            least=0.9,
        )
        result = gpu_models.measure(race, 0)
        assert set(result["results"]) == {"right too"}
        assert asked["right too"] == [32, 100, 100]
        assert asked["wrong"] == asked["right"] == asked["nan"] == [32]
        assert result["left_out"] == {
            "wrong": "ValueError: other outputs than right: agreement 0.5000",
            "missing": "ModuleNotFoundError: No module named 'FlagEmbedding'",
            "nan": "ValueError: other outputs than right: agreement nan",
        }

    def test_a_model_is_gone_before_the_next_is_loaded(self) -> None:
        class Model:
            def __init__(self) -> None:
                self.itself = self  # as models of libraries

            def compute(self, items: Sequence[int]) -> Sequence[int]:
                return items

        models: list[weakref.ref[Model]] = []

        def load() -> gpu_models.Compute:
            assert all(model() is None for model in models)
            model = Model()
            models.append(weakref.ref(model))
            return model.compute

        race = Race(
            title="a race",
            unit="texts",
            items=range(4),
            reference=Racer("one", load),
            racers=[Racer("two", load), Racer("three", load)],
            agreement=lambda *_: 1.0,
            least=0.9,
        )
        assert gpu_models.measure(race, 0)["left_out"] == {}
        assert [model() for model in models] == [None] * 3


class TestAgreement:
    def test_of_scores_is_by_the_largest_error(self) -> None:
        assert gpu_models._agreement_of_scores([0.0, 1.5, 4.0], [0.0, 1.0, 5.0]) == pytest.approx(0.8)

    def test_of_m3_is_the_least_of_any_output(self) -> None:
        ones = np.ones((2, 3), dtype=np.float32)
        turned = np.array([[1, 1, 1], [1, 1, -1]], dtype=np.float32)
        right = M3Output(ones, [{1: 1.0}, {}], [ones, ones])
        assert gpu_models._agreement_of_m3(right, right) == pytest.approx(1)
        assert gpu_models._agreement_of_m3(M3Output(turned, right.sparse, right.colbert), right) == pytest.approx(1 / 3)
        assert gpu_models._agreement_of_m3(
            M3Output(ones, [{1: 1.0, 5: 1.0}, {}], right.colbert), right
        ) == pytest.approx(0.5**0.5)
        assert gpu_models._agreement_of_m3(M3Output(ones, [{}, {1: 1.0}], right.colbert), right) == 0
        assert gpu_models._agreement_of_m3(M3Output(ones, right.sparse, [ones, turned]), right) == pytest.approx(1 / 3)


def test_flag_embedding_is_asked_as_its_users_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made: list[tuple[str, dict[str, Any]]] = []
    asked: list[dict[str, Any]] = []

    class Reranker:
        def __init__(self, folder: str, **settings: Any) -> None:  # noqa: ANN401
            made.append((folder, settings))

        def compute_score(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
            return [float(len(passage)) for _, passage in pairs]

    class M3(Reranker):
        def encode(self, texts: Sequence[str], **settings: Any) -> dict[str, Any]:  # noqa: ANN401
            asked.append(settings)
            count = len(texts)
            return {
                "dense_vecs": np.ones((count, 2), dtype=np.float16),
                "lexical_weights": [{"17": np.float16(0.5)}] * count,
                "colbert_vecs": [np.ones((3, 2), dtype=np.float16)] * count,
            }

    monkeypatch.setitem(sys.modules, "FlagEmbedding", SimpleNamespace(FlagReranker=Reranker, BGEM3FlagModel=M3))
    where = Where(tmp_path, "cuda:0", "float16")
    assert gpu_models._flag_reranker(tmp_path, where)([("a", "dog")]) == [3.0]
    outputs = gpu_models._of_flag_m3(gpu_models._flag_m3(tmp_path, where)(["a", "b"]))
    assert outputs.sparse == [{17: 0.5}] * 2
    assert np.array(outputs.colbert).shape == (2, 3, 2)
    half = {"use_fp16": True, "devices": "cuda:0"}
    assert made == [(str(tmp_path), {**half, "batch_size": 256}), (str(tmp_path), half)]
    every = {"return_dense": True, "return_sparse": True, "return_colbert_vecs": True}
    assert asked == [{"batch_size": 256, "max_length": 512, **every}]
