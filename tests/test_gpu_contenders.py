"""`python -m benchmarks --device cuda`: its contenders, limits and shares, with the CPU in place of a GPU."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from benchmarks import __main__ as command
from benchmarks import gpu, shares
from benchmarks.charts import draw
from benchmarks.contenders import BASELINE, CONTENDERS, REFERENCE, by_name, choose
from benchmarks.entrants import Place
from benchmarks.profiles import PARTS, PROFILES
from benchmarks.shapes import SHAPES
from benchmarks.suite import Plan, run
from benchmarks.tables import print_results
from benchmarks.texts import TextMix
from bge_integrations.backend.engines.interface import PendingRows, TokenBatch
from bge_integrations.cli.bench.limit import products_of
from tests.fake_engine import FakeEngine

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the libraries compared, about themselves

HALVES = {
    "sentence-transformers-float16-32": 32,
    "sentence-transformers-float16-256": 256,
    "langchain-huggingface-float16-256": 256,
    "llama-index-huggingface-float16-256": 256,
}
OURS = {"bge-torch-float32", "bge-torch-bfloat16", "bge-torch-float16", "bge-llama-index-torch-float16"}


class TestContenders:
    def test_a_gpu_has_its_own(self) -> None:
        there = {contender.name for contender in choose(["*"], "cuda")}
        plain = {BASELINE, REFERENCE, "llama-index-huggingface"}
        assert there == {*HALVES, *OURS, *plain, "FlagEmbedding-float16-256"}

    def test_those_of_the_processor_stay_as_they_are(self) -> None:
        here = {contender.name for contender in choose(["*"])}
        assert not here & {*HALVES, "bge-torch-float16", "bge-llama-index-torch-float16"}
        assert {BASELINE, REFERENCE, "fastembed", "bge-openvino-int8", "bge-torch-bfloat16"} <= here

    def test_everybody_takes_part_somewhere(self) -> None:
        assert {*choose(["*"]), *choose(["*"], "cuda")} == {*CONTENDERS}

    def test_one_that_takes_part_elsewhere_is_refused(self) -> None:
        with pytest.raises(ValueError, match="no contender is called 'fastembed' on cuda"):
            choose(["fastembed"], "cuda")

    @pytest.mark.parametrize("name", HALVES)
    def test_others_compute_in_float16_with_their_batch(
        self, name: str, bge_small_en: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from sentence_transformers import SentenceTransformer

        seen: list[tuple[int, str]] = []
        encode = SentenceTransformer.encode

        def noting(self: SentenceTransformer, *given: Any, **more: Any) -> Any:  # noqa: ANN401
            seen.append((more["batch_size"], str(next(self.parameters()).dtype)))
            return encode(self, *given, **more)

        monkeypatch.setattr(SentenceTransformer, "encode", noting)
        loaded = by_name(name).load(Place(bge_small_en, bge_small_en))
        assert np.array(loaded.documents(["a fox", "a dog"])).shape == (2, 32)
        assert {*seen} == {(HALVES[name], "torch.float16")}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a run gives, with the processor instead of a card."""
    profile = dataclasses.replace(PROFILES["quick"], mixes={"mixed": (32, 8)})
    contenders = choose([BASELINE, REFERENCE + "*", "bge-*"], "cuda")
    plan = Plan(
        profile=profile,
        parts=["throughput", "latency", "limit"],
        contenders=contenders,
        workdir=tmp_path_factory.mktemp("work"),
        kind="cuda",
    )
    return run(plan, lambda _: None, lambda _: None)


@pytest.mark.slow
class TestRun:
    def test_everybody_takes_part_and_agrees(self, found: dict[str, Any]) -> None:
        tiny = found["shapes"]["tiny"]
        assert tiny["left_out"] == {}
        names = {BASELINE, REFERENCE, "sentence-transformers-float16-32", "sentence-transformers-float16-256", *OURS}
        assert set(tiny["contenders"]) == names
        assert min(one["least_cosine"] for one in tiny["contenders"].values()) > 0.999
        assert set(tiny["throughput"]["mixed"]["results"]) == names

    def test_limits_are_those_of_the_precisions_of_a_gpu(self, found: dict[str, Any]) -> None:
        part = found["shapes"]["tiny"]["limit"]
        assert list(part["peaks"]) == ["float16", "bfloat16", "float32"]
        assert set(part["mixes"]["mixed"]["achieved"]) == set(found["shapes"]["tiny"]["contenders"])

    def test_shares_are_those_of_this_package(self, found: dict[str, Any]) -> None:
        tiny = found["shapes"]["tiny"]
        assert set(tiny["shares"]) == OURS
        for name, rates in tiny["shares"].items():
            assert min(rates["products"], rates["engine"]) > 0
            assert rates["call"] == tiny["throughput"]["mixed"]["results"][name]["tokens_per_s"]

    def test_tables_and_charts_show_the_shares(self, found: dict[str, Any], tmp_path: Path) -> None:
        results = json.loads(json.dumps({**found, "device": "cuda:0"}))
        results["machine"]["devices"] = {"cuda:0": "a card"}
        console = Console(file=io.StringIO(), width=150)
        print_results(console, results)
        assert isinstance(console.file, io.StringIO)
        printed = console.file.getvalue()
        assert "a card, on which float32 is computed without TF32" in printed
        assert all(title in printed for title in shares.SHARES)
        rates = results["shapes"]["tiny"]["shares"]["bge-torch-float16"]
        assert f"{rates['engine'] / rates['products']:.0%}" in printed
        drawn = {file.stem for file in draw(results, tmp_path)}
        assert {"share-engine-alone-of-products", "share-whole-call-of-products", "throughput-mixed"} <= drawn


class TestShares:
    def test_are_ratios_of_what_was_measured(self) -> None:
        assert list(shares.shares_of({"products": 8.0, "engine": 4.0, "call": 3.0}).values()) == [0.5, 0.75, 0.375]
        assert shares.shares_of({"products": 8.0, "engine": 4.0}) == {"engine alone / products": 0.5}

    def test_products_alone_have_no_attention(self) -> None:
        shape = SHAPES["base-en"].encoder
        peaks = {product.name: 1e12 for product in products_of(shape)}
        assert shares.products_rate(shape, peaks) == pytest.approx(1e12 / (12 * 24 * 768**2))

    @pytest.mark.parametrize("parallel", [1, 2])
    def test_an_engine_alone_always_has_what_it_takes(self, parallel: int) -> None:
        flying: list[int] = []
        most: list[int] = []

        class Late:
            def result(self) -> Any:  # noqa: ANN401
                flying.pop()

        class Counting(FakeEngine):
            def submit(self, batch: TokenBatch) -> PendingRows:
                flying.append(len(batch.ids))
                most.append(len(flying))
                return Late()

        engine = Counting(batch_tokens=100, parallel_batches=parallel)
        mix = TextMix("mixed", [], [7, 9, 12])
        assert shares.sizes_for(engine) == (100,)
        assert shares.engine_rate(engine, mix, 100, seconds=0) > 0
        assert max(most) == parallel
        assert not flying

    def test_batches_hold_no_more_tokens_than_asked_for(self) -> None:
        sizes: list[int] = []

        class Noting(FakeEngine):
            def submit(self, batch: TokenBatch) -> PendingRows:
                sizes.append(batch.size)
                assert len(batch.ids) == batch.lengths.sum()
                return super().submit(batch)

        shares.engine_rate(Noting(), TextMix("mixed", [], [7, 9, 12] * 20), 100, seconds=0)
        assert 88 < min(sizes) <= max(sizes) <= 100


class TestCommand:
    @pytest.mark.parametrize("module", [command, gpu])
    def test_a_device_that_is_missing_is_said_in_one_sentence_before_any_work(
        self,
        module: Any,  # noqa: ANN401
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.setattr("sys.argv", ["benchmarks", "--device", "cuda:7"])
        monkeypatch.setattr(module, "isolate", lambda _: pytest.fail("it works already"))
        with pytest.raises(SystemExit):
            module.main()
        assert "--device cuda:7: this machine has no such device, only " in capsys.readouterr().err

    def test_a_gpu_has_a_profile_and_parts_of_its_own(self, tmp_path: Path) -> None:
        parser = command._parser()
        plan = command._plan(parser.parse_args(["--device", "cuda"]), tmp_path, "cuda:0")
        assert (plan.profile.name, plan.kind, plan.device) == ("gpu", "cuda", "cuda:0")
        assert [*plan.parts, "memory"] == [*(part for part in PARTS if part != "memory"), "memory"]
        assert {contender.name for contender in plan.contenders} == {one.name for one in choose(["*"], "cuda")}
        plan = command._plan(parser.parse_args([]), tmp_path, "cpu")
        assert (plan.profile.name, plan.kind, tuple(plan.parts)) == ("full", "cpu", PARTS)

    @pytest.mark.parametrize(
        ("arguments", "device", "said"),
        [
            (["--device", "cuda", "--parts", "memory"], "cuda:0", "leave it out on a GPU"),
            (["--device", "mps"], "mps", "--device must be cpu or cuda, not mps"),
        ],
    )
    def test_what_a_gpu_has_not_is_refused(self, arguments: list[str], device: str, said: str, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=said):
            command._plan(command._parser().parse_args(arguments), tmp_path, device)
