"""The benchmarks: their arithmetic on hand-made numbers, and a small run of all of it; never how fast anything is."""

from __future__ import annotations

import dataclasses
import io
import json
import re
import shutil
import struct
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from benchmarks import cold, latency, stats, throughput
from benchmarks.charts import draw
from benchmarks.contenders import BASELINE, CONTENDERS, Contender, by_name, choose
from benchmarks.entrants import Loaded, Place
from benchmarks.fresh import FreshRun
from benchmarks.lineup import assemble, compare, reason
from benchmarks.noise import Reference, judge
from benchmarks.profiles import PARTS, PROFILES
from benchmarks.shapes import SHAPES
from benchmarks.shares import engine_rate
from benchmarks.tables import print_results
from benchmarks.texts import TextMix, enlarged, make_mix
from bge_integrations import BgeEncoder
from bge_integrations.backend.engines.architecture import EncoderShape
from bge_integrations.backend.engines.interface import PendingRows, TokenBatch
from bge_integrations.backend.engines.torch import engine as torch_engine
from bge_integrations.backend.engines.torch.encoder import UnpaddedEncoder
from bge_integrations.backend.engines.torch.engine import TorchEngine
from bge_integrations.backend.machine.cpu import usable_threads
from bge_integrations.cli.bench import BenchReport, Combination, Measured, measuring, print_report, recommend, run_bench
from bge_integrations.cli.bench import limit as limits
from bge_integrations.cli.bench import run as bench_run
from bge_integrations.errors import ModelNotFoundError, SettingsError
from bge_integrations.settings import EngineName, Precision
from tests.eager_launches import EagerLaunches, attention
from tests.fake_engine import FakeEngine

REPOSITORY = Path(__file__).parents[1]


@dataclasses.dataclass(frozen=True)
class Run:
    results: dict[str, Any]
    printed: str
    charts: Path
    json_file: Path

    @property
    def tiny(self) -> dict[str, Any]:
        measured: dict[str, Any] = self.results["shapes"]["tiny"]
        return measured


def run_command(*arguments: str) -> str:
    """Runs `python -m benchmarks` as a user does; a process of its own also keeps other libraries' warnings there."""
    command = [sys.executable, "-m", "benchmarks", *arguments]
    finished = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr[-3000:]
    return finished.stdout


@pytest.fixture(scope="module")
def quick_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("benchmarks")
    file, charts = folder / "results.json", folder / "charts"
    options = {"--profile": "quick", "--workdir": folder / "work", "--output": file, "--charts": charts}
    printed = run_command(*(str(part) for option in options.items() for part in option))
    return Run(json.loads(file.read_text(encoding="utf-8")), printed, charts, file)


@pytest.fixture(scope="module")
def mixes(minilm: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, TextMix]:
    vocabulary = tmp_path_factory.mktemp("vocabulary")
    shutil.copy(Path(minilm) / "tokenizer.json", vocabulary)  # without MiniLM's limit of 256 tokens
    return {name: make_mix(name, 300, vocabulary) for name in ("queries", "short", "mixed", "long")}


@pytest.fixture(scope="module")
def report(bge_small_en: Path) -> BenchReport:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bge_integrations.cli.bench.run._LOADING_SHARE", 1000)  # however busy the machine is
        return run_two_engines(bge_small_en)


def run_two_engines(folder: Path) -> BenchReport:
    return run_bench(
        str(folder), 2, device="cpu", engines=["torch", "sentence-transformers"], precisions=["float32", "int8"]
    )


def png_size(file: Path) -> tuple[int, int]:
    content = file.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", content[16:24])
    return width, height


class TestArithmetic:
    def test_each_turn_begins_after_a_rest(self, monkeypatch: pytest.MonkeyPatch) -> None:
        seen: list[object] = []
        monkeypatch.setattr(time, "sleep", seen.append)
        reference = Reference(0.5)
        seen.extend(reference.rested("ab"))
        reference.time()
        assert seen == [0.5, "a", 0.5, "b", 0.5]

    def test_percentile_interpolates_as_numpy_does(self) -> None:
        values = [5.0, 1.0, 4.0, 2.0]
        for percent in (0, 5, 50, 95, 100):
            assert stats.percentile(values, percent) == pytest.approx(np.percentile(values, percent))

    def test_spread_is_largest_over_smallest(self) -> None:
        assert stats.spread([2.0, 3.0, 2.5]) == 1.5

    def test_ratio_says_how_many_times_as_fast(self) -> None:
        assert stats.ratio_of_medians([1.0, 2.0, 9.0], [8.0, 6.0, 1.0]) == 3.0

    def test_token_weighted_mean_gives_the_same_attention_work(self) -> None:
        lengths = [10, 20, 70]
        assert stats.token_weighted_mean(lengths) * sum(lengths) == pytest.approx(10**2 + 20**2 + 70**2)

    def test_rounds_hold_everybody_once_in_changing_but_repeatable_order(self) -> None:
        names = list("abcdef")
        rounds = list(stats.interleaved(names, 8))
        assert [number for number, _ in rounds] == list(range(8))
        assert all(sorted(order) == names for _, order in rounds)
        assert len({tuple(order) for _, order in rounds}) > 1
        assert rounds == list(stats.interleaved(names, 8))

    def test_fewer_texts_are_whole_blocks_of_neighbours_with_the_same_lengths(self) -> None:
        lengths = [(index * 37) % 400 + 1 for index in range(400)]  # 1 to 400 in a random order
        picked = stats.representative(lengths, 64, block=8)
        chosen = sorted(lengths[index] for index in picked)
        assert len(set(picked)) == 64
        assert picked == sorted(picked)
        assert all(chosen[start + 7] - chosen[start] == 7 for start in range(0, 64, 8))
        assert sum(chosen) / 64 == pytest.approx(sum(lengths) / 400, rel=0.05)

    @pytest.mark.parametrize("count", [1, 5, 29, 30, 31, 32, 33, 99])
    def test_never_far_fewer_texts_than_asked_for(self, count: int) -> None:
        picked = stats.representative(list(range(1, 34)), count)
        assert min(count, 33) * 0.9 <= len(picked) <= 33

    def test_noise_is_called_noise(self) -> None:
        assert not judge([1.0, 1.1], [1.05, 1.2]).noisy
        assert judge([1.0, 1.3]).noisy
        assert judge([1.0, 1.0], [1.3, 1.4, 1.0]).noisy
        assert "too noisy" in judge([1.0, 1.3]).verdict

    def test_single_rounds_say_nothing_about_noise(self) -> None:
        assert judge([1.0, 1.0], [1.0, 1.0]).contender_spread is None

    def test_an_engine_alone_computes_batches_as_a_call_makes_them(self) -> None:
        computed: list[list[int]] = []

        class Engine(FakeEngine):
            def submit(self, batch: TokenBatch) -> PendingRows:
                computed.append(batch.lengths.tolist())
                return super().submit(batch)

        lengths = [8] * 128 + [64] * 64 + [512] * 16
        documents = TextMix("mixed", [""] * len(lengths), lengths)
        assert engine_rate(Engine(parallel_batches=2), documents, 1024, seconds=0) > 0
        assert len(computed) == 16  # the first time is not timed
        assert {tuple(batch) for batch in computed} == {(512,) * 2, (64,) * 16}
        assert engine_rate(Engine(), documents.take([0]), 1024, seconds=0) > 0
        assert computed[-1] == [8]

    def test_throughput_counts_tokens_of_unequal_shares(self) -> None:
        shares = {BASELINE: TextMix("mixed", ["a", "b"], [30, 20]), "other": TextMix("mixed", ["a"] * 4, [25] * 4)}
        results = throughput.summarize({BASELINE: [1.0, 2.0, 5.0], "other": [0.5, 0.5, 1.0]}, shares)
        assert results[BASELINE]["tokens_per_s"] == 25
        assert results["other"]["tokens_per_s"] == 200
        assert results["other"]["documents_per_s"] == 8
        assert results["other"]["ratio"] == 8
        assert results[BASELINE]["spread"] == 5

    def test_there_is_no_ratio_without_the_baseline(self) -> None:
        assert throughput.summarize({"a": [1.0]}, {"a": TextMix("mixed", ["a"], [5])})["a"]["ratio"] is None
        assert latency.summarize({"a": [[1.0]]})["a"]["ratio"] is None
        assert cold.summarize({"a": [FreshRun(1, 2, 3)]})["a"]["ratio"] is None

    def test_latency_is_over_all_queries_and_its_spread_over_rounds(self) -> None:
        results = latency.summarize({BASELINE: [[0.2, 0.2], [0.4, 0.4]], "other": [[0.1, 0.1], [0.1, 0.1]]})
        assert results["other"]["p50_ms"] == pytest.approx(100)
        assert results["other"]["ratio"] == pytest.approx(3)
        assert results[BASELINE]["spread"] == 2

    def test_cold_start_takes_medians(self) -> None:
        runs = {BASELINE: [FreshRun(6, 1, 500), FreshRun(8, 1, 600)], "other": [FreshRun(1, 1, 100)]}
        results = cold.summarize(runs)
        assert results[BASELINE]["median_s"] == 7
        assert results[BASELINE]["median_peak_mib"] == 550
        assert results["other"]["ratio"] == 7


class TestLimit:
    def test_flops_of_a_token_are_those_of_its_matrix_products(self) -> None:
        shape = SHAPES["small-en"].encoder
        products = sum(product.flops(1) for product in limits.products_of(shape))
        assert products == 24 * 384**2
        assert limits.flops_a_token(shape, 100) == 12 * (products + 4 * 384 * 100)
        narrow = dataclasses.replace(shape, feed_forward_size=384)
        assert limits.flops_a_token(narrow, 0) == 12 * 12 * 384**2

    def test_equal_peaks_give_peak_over_flops(self) -> None:
        shape = SHAPES["base-en"].encoder
        peaks = {product.name: 1e11 for product in limits.products_of(shape)}
        assert limits.tokens_per_second(shape, 90, peaks) == pytest.approx(1e11 / limits.flops_a_token(shape, 90))

    def test_a_slow_product_lowers_the_limit_by_its_share(self) -> None:
        shape = SHAPES["tiny"].encoder
        peaks = {product.name: 1e11 for product in limits.products_of(shape)}
        slow = {**peaks, "attention output": 0.5e11}
        seconds = shape.layers * 2 * shape.hidden_size**2 / 1e11
        expected = 1 / limits.tokens_per_second(shape, 50, peaks) + seconds
        assert 1 / limits.tokens_per_second(shape, 50, slow) == pytest.approx(expected)

    def test_the_best_of_kernels_and_rows_is_the_peak(self, monkeypatch: pytest.MonkeyPatch) -> None:
        seconds = {("torch", 10): 1.0, ("torch", 20): 1.5, ("openvino", 10): 2.0, ("openvino", 20): 1.9}
        for kernel in ("torch", "openvino"):

            def time_one(_: limits.Product, rows: int, *__: object, kernel: str = kernel) -> float:
                return seconds[kernel, rows]

            monkeypatch.setattr(limits, f"_{kernel}_seconds", time_one)
        shape = SHAPES["tiny"].encoder
        for device, precision, best in [
            ("cpu", "float32", ("torch", 20, 1.5)),
            ("cuda:0", "float16", ("torch", 20, 1.5)),
        ]:
            found = limits.measure_peaks(shape, precision, device, rows=(10, 20), seconds=0)
            for product in limits.products_of(shape):
                kernel, rows, taken = best
                assert found[product.name] == limits.Peak(product.flops(rows) / taken, kernel, rows)

    def test_a_gpu_is_waited_for_after_many_launches(self, monkeypatch: pytest.MonkeyPatch) -> None:
        waited: list[str] = []
        monkeypatch.setattr(torch.accelerator, "synchronize", waited.append)
        monkeypatch.setattr(limits, "_least_seconds", lambda work, _: (work(), 5.0)[1])
        launched: list[torch.Tensor] = []
        monkeypatch.setattr(torch.nn.functional, "linear", lambda rows, _: launched.append(rows))
        product = limits.Product("any", 8, 16)
        assert limits._torch_seconds(product, 4, "float16", "meta", 0) == pytest.approx(5 / 20)
        assert len(launched) == 20
        assert {(rows.shape, rows.dtype) for rows in launched} == {((4, 8), torch.float16)}
        assert waited == ["meta"]
        assert limits.rows_of("cuda:0") == (16384, 65536)


class TestTexts:
    def test_texts_are_distinct(self, mixes: dict[str, TextMix]) -> None:
        for mix in mixes.values():
            assert len(set(mix.texts)) == len(mix.texts) == len(mix.lengths) >= 200

    @pytest.mark.parametrize(("name", "least", "most"), [("queries", 5, 26), ("short", 25, 61), ("long", 470, 512)])
    def test_lengths_are_as_named(self, mixes: dict[str, TextMix], name: str, least: int, most: int) -> None:
        described = mixes[name].statistics()
        assert least <= described["p5"] <= described["longest"] <= most

    def test_mixed_texts_are_as_long_as_paragraphs(self, mixes: dict[str, TextMix]) -> None:
        described = mixes["mixed"].statistics()
        assert described["mean"] == pytest.approx(80, rel=0.15)
        assert described["p95"] == pytest.approx(230, rel=0.2)

    def test_no_text_is_longer_than_the_model_reads(self, minilm: str) -> None:
        assert make_mix("long", 10, Path(minilm)).statistics()["longest"] <= 256

    def test_a_mix_can_be_enlarged_by_distinct_texts(self, mixes: dict[str, TextMix], minilm: str) -> None:
        small = mixes["mixed"].take(list(range(20)))
        large = enlarged(small, 50, Path(minilm))
        assert len(set(large.texts)) == len(large.texts) == len(large.lengths) == 50
        assert all(text.split(" ", 1)[1] == small.texts[number % 20] for number, text in enumerate(large.texts))
        assert large.lengths[21] == min(small.lengths[1] + 1, 256)

    def test_a_seed_gives_the_same_texts_again(self, minilm: str) -> None:
        first, again, other = (make_mix("queries", 20, Path(minilm), seed=seed) for seed in (3, 3, 4))
        assert first == again
        assert first.texts != other.texts


class TestLineup:
    def test_who_fails_or_computes_something_else_is_left_out_with_the_reason(
        self, bge_small_en: Path, tmp_path: Path
    ) -> None:
        place = Place(bge_small_en, tmp_path)

        def fail(_: Place) -> Loaded:
            raise OSError(f"no file {tmp_path}/secret/model.bin here")

        def compute_noise(_: Place) -> Loaded:
            random = np.random.default_rng(0)
            return Loaded(lambda texts: random.standard_normal((len(texts), 32)), lambda _: random.standard_normal(32))

        entrants = [
            by_name("bge-sentence-transformers-float32"),
            Contender("broken", "float32", "", fail),
            Contender("wrong", "float32", "", compute_noise),
        ]
        lineup = assemble(entrants, place, ["a vector", "a store of vectors"], ["what is a vector?"])
        assert list(lineup.ready) == ["bge-sentence-transformers-float32"]
        assert lineup.left_out["broken"] == "OSError: no file …/model.bin here"
        assert "other vectors" in lineup.left_out["wrong"]

    def test_reasons_keep_names_and_versions(self) -> None:
        message = "No module named 'onnxruntime', needs openvino/float32 of 1.2/3"
        assert reason(ModuleNotFoundError(message)) == f"ModuleNotFoundError: {message}"

    def test_cosines_do_not_depend_on_length(self) -> None:
        expected = np.array([[1.0, 0.0], [0.0, 1.0]])
        agreement = compare(np.array([[5.0, 0.0], [1.0, 1.0]]), expected)
        assert agreement.least_cosine == pytest.approx(0.5**0.5)
        assert agreement.mean_cosine == pytest.approx((1 + 0.5**0.5) / 2)

    def test_contenders_are_chosen_by_patterns(self) -> None:
        assert {entrant.name for entrant in choose(["bge-torch-*", BASELINE])} == {
            "bge-torch-float32",
            "bge-torch-bfloat16",
            BASELINE,
        }
        with pytest.raises(ValueError, match="no contender is called 'bge-cobol'"):
            choose(["bge-cobol"])

    def test_names_in_profiles_exist(self) -> None:
        for profile in PROFILES.values():
            assert set(profile.shapes) <= set(SHAPES)
            assert {by_name(name).name for name in profile.fresh_contenders or ()} <= {e.name for e in CONTENDERS}


class TestQuickRun:
    def test_everybody_takes_part_or_says_why_not(self, quick_run: Run) -> None:
        tiny = quick_run.tiny
        assert {*tiny["contenders"], *tiny["left_out"]} == {contender.name for contender in choose(["*"])}
        assert all(tiny["left_out"].values())
        assert {BASELINE, "llama-index-huggingface", "sentence-transformers"} <= set(tiny["contenders"])
        assert {"bge-torch-float32", "bge-sentence-transformers-float32"} <= set(tiny["contenders"])

    def test_everybody_agrees_with_sentence_transformers(self, quick_run: Run) -> None:
        least = {"float32": 0.99999, "bfloat16": 0.999, "int8": 0.9}
        for contender in quick_run.tiny["contenders"].values():
            assert contender["least_cosine"] >= least[contender["precision"]]

    def test_every_part_is_there_with_a_verdict_on_noise(self, quick_run: Run) -> None:
        tiny = quick_run.tiny
        assert set(PARTS) <= set(tiny)
        for part in (tiny["latency"], tiny["cold"], tiny["limit"], *tiny["throughput"].values()):
            assert part["noise"]["noisy"] in (True, False)
            assert part["noise"]["reference_spread"] >= 1

    def test_everybody_is_compared_with_the_baseline(self, quick_run: Run) -> None:
        tiny = quick_run.tiny
        for part in (tiny["latency"], *tiny["throughput"].values()):
            assert set(part["results"]) == set(tiny["contenders"])
            assert part["results"][BASELINE]["ratio"] == pytest.approx(1)
            assert all(result["ratio"] > 0 for result in part["results"].values())

    def test_tokens_per_second_follow_from_what_was_timed(self, quick_run: Run) -> None:
        for cell in quick_run.tiny["throughput"].values():
            for result in cell["results"].values():
                assert 0 < result["texts"] <= cell["texts"]["texts"]
                assert result["tokens_per_s"] == pytest.approx(result["tokens"] / result["seconds"][0])

    def test_fresh_processes_tell_time_and_memory(self, quick_run: Run) -> None:
        part = quick_run.tiny["cold"]
        assert {*part["results"], *part["left_out"]} == set(PROFILES["quick"].fresh_contenders or ())
        for result in part["results"].values():
            assert result["median_s"] > 0
            assert result["median_peak_mib"] > 10
        for result in quick_run.tiny["memory"]["results"].values():
            assert 10 < result["rss_mib"] <= result["peak_mib"] + 1

    def test_limits_are_for_every_mix_and_precision(self, quick_run: Run) -> None:
        part = quick_run.tiny["limit"]
        assert set(part["mixes"]) == set(quick_run.tiny["throughput"])
        for mix in part["mixes"].values():
            assert set(mix["tokens_per_s"]) == {"float32", "bfloat16"}
            assert all(value > 0 for value in (*mix["tokens_per_s"].values(), *mix["achieved"].values()))
            assert "bge-openvino-int8" not in mix["achieved"]

    def test_nothing_names_the_machine_or_its_folders(self, quick_run: Run) -> None:
        text = quick_run.json_file.read_text(encoding="utf-8")
        assert str(quick_run.json_file.parent) not in text
        assert str(REPOSITORY) not in text
        assert not re.search(r'[ "](/[a-z]+){2}', text)
        assert quick_run.results["machine"]["cores"] >= 1
        assert quick_run.results["machine"]["versions"]["torch"]

    def test_charts_are_pngs_that_fit_a_page(self, quick_run: Run) -> None:
        names = {file.stem for file in quick_run.charts.iterdir()}
        assert {"throughput-mixed", "latency", "cold-start", "cold-start-memory", "memory"} <= names
        for file in quick_run.charts.iterdir():
            width, height = png_size(file)
            assert (width, height > 300) == (1800, True)

    def test_tables_show_every_part(self, quick_run: Run) -> None:
        for title in ("Throughput, mixed", "Latency of a query", "Cold start", "Memory of a process", "Noise:", "peak"):
            assert title in quick_run.printed

    def test_a_saved_run_can_be_drawn_again(self, quick_run: Run, tmp_path: Path) -> None:
        run_command("--draw", str(quick_run.json_file), "--charts", str(tmp_path / "again"))
        assert {file.name for file in (tmp_path / "again").iterdir()} == {
            file.name for file in quick_run.charts.iterdir()
        }

    def test_charts_and_tables_do_with_parts_missing(self, quick_run: Run, tmp_path: Path) -> None:
        cut = {name: value for name, value in quick_run.tiny.items() if name in ("shape", "weights", "latency")}
        results = {**quick_run.results, "shapes": {"tiny": quick_run.tiny, "other": cut, "third": cut}}
        assert all(png_size(file)[0] == 1800 for file in draw(results, tmp_path))
        print_results(Console(file=io.StringIO(), width=130), results)


def measured(engine: EngineName, precision: Precision, slowest: float, median: float, fastest: float) -> Measured:
    return Measured(
        combination=Combination(engine, precision),
        texts=10,
        documents_per_s=median,
        tokens_per_s=10 * median,
        share_of_limit=0.61,
        slowest_documents_per_s=slowest,
        fastest_documents_per_s=fastest,
        query_p50_ms=1,
        query_p95_ms=2,
        mean_cosine=0.999,
        least_cosine=0.99,
    )


class TestBenchCommand:
    def test_what_runs_is_measured_and_what_does_not_is_explained(self, report: BenchReport) -> None:
        assert {one.combination for one in report.measured} == {
            Combination("torch", "float32"),
            Combination("sentence-transformers", "float32"),
        }
        assert set(report.left_out) == {
            'engine="torch", precision="int8"',
            'engine="sentence-transformers", precision="int8"',
        }
        for one in report.measured:
            assert one.documents_per_s > 0
            assert one.slowest_documents_per_s <= one.documents_per_s <= one.fastest_documents_per_s
            assert 0 < one.query_p50_ms <= one.query_p95_ms
            assert one.least_cosine == pytest.approx(1, abs=1e-5)
            assert one.share_of_limit is not None
            assert one.share_of_limit > 0

    def test_the_limit_is_that_of_the_precision_and_the_lengths(
        self, bge_small_en: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked: list[str] = []

        def peaks(shape: EncoderShape, precision: str, device: str, **_: object) -> dict[str, limits.Peak]:
            asked.append(precision)
            assert device == "cpu"
            return {product.name: limits.Peak(1e9, "torch", 512) for product in limits.products_of(shape)}

        monkeypatch.setattr(measuring, "measure_peaks", peaks)
        rates: dict[str, dict[str, float]] = {}
        with BgeEncoder(bge_small_en, device="cpu", engine="torch") as encoder:
            shape = encoder.backend.facts.encoder
            assert shape is not None
            combinations = [Combination("torch", "float32"), Combination("openvino", "float32")]
            for combination in (*combinations, Combination("openvino", "int8")):
                found = measuring._limit(measuring.Runner(combination, encoder), np.array([10, 30]), rates)
                expected = 1e9 / limits.flops_a_token(shape, 25)
                assert found == (None if combination.precision == "int8" else pytest.approx(expected))
        assert asked == ["float32"]

    def test_graphs_of_queries_are_captured_before_anything_counts(
        self, bge_small_en: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        launches = EagerLaunches()
        monkeypatch.setattr(UnpaddedEncoder, "kernel_for", lambda *_: attention)
        monkeypatch.setattr(torch_engine, "TorchEngine", partial(TorchEngine, launches=launches))
        queries = [f"{number} " + "dog " * (number % 24) for number in range(200)]
        with BgeEncoder(bge_small_en, device="cpu", engine="torch", query_instruction="") as encoder:
            measuring._capture_graphs(measuring.Runner(Combination("torch", "float32"), encoder), queries)
            captured, asked = len(launches.captured), encoder.stats().texts
            assert captured > 1
            assert asked < 60
            for query in queries:
                encoder.encode_queries([query])
            assert len(launches.captured) == captured
        with BgeEncoder(bge_small_en, device="cpu", engine="sentence-transformers") as plain:
            measuring._capture_graphs(measuring.Runner(Combination("sentence-transformers", "float32"), plain), queries)
            assert plain.stats().texts == 0

    def test_what_there_was_no_time_to_load_is_told_from_what_can_not_run(
        self, bge_small_en: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("bge_integrations.cli.bench.run._LOADING_SHARE", 0)
        report = run_two_engines(bge_small_en)
        assert [one.combination for one in report.measured] == [Combination("torch", "float32")]
        assert report.not_loaded == (Combination("sentence-transformers", "float32"),)
        assert set(report.left_out) == {
            'engine="sentence-transformers", precision="float32"',
            'engine="torch", precision="int8"',
            'engine="sentence-transformers", precision="int8"',
        }

    def test_a_gpu_compares_what_computes_there(self, bge_small_en: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        load = bench_run._load
        monkeypatch.setattr(bench_run, "_place", lambda *_: ("cuda:0", 1))
        monkeypatch.setattr(
            bench_run, "_load", lambda model, _, combination, files: load(model, "cpu", combination, files)
        )
        monkeypatch.setattr(bench_run, "_LOADING_SHARE", 1000)  # however busy the machine is
        report = run_bench(str(bge_small_en), 2, device="cuda")
        engines: list[EngineName] = ["torch", "sentence-transformers"]
        precisions: list[Precision] = ["float32", "bfloat16", "float16"]
        assert {one.combination for one in report.measured} == {
            Combination(engine, precision) for engine in engines for precision in precisions
        }
        assert set(report.left_out) == {f'engine="openvino", precision="{precision}"' for precision in precisions}
        assert all("it runs on cpu, not on cuda:0" in reason for reason in report.left_out.values())
        assert (report.device, report.threads) == ("cuda:0", None)
        assert all(one.share_of_limit is not None for one in report.measured)
        assert report.exact is not None

    def test_float32_is_recommended_as_exact_only(self, report: BenchReport) -> None:
        assert report.exact is not None
        assert report.exact.combination == report.measured[0].combination
        assert report.lossy is None

    def test_a_report_can_be_printed_and_written_as_json(self, report: BenchReport) -> None:
        console = Console(file=io.StringIO(), width=140)
        print_report(report, console)
        assert isinstance(console.file, io.StringIO)
        printed = console.file.getvalue()
        assert report.exact is not None
        assert f"fastest exact: {report.exact.keywords}" in printed
        assert "fastest lossy: none" in printed
        assert f"on cpu with {usable_threads()} threads" in printed
        assert "left out" in printed
        assert f"{report.measured[0].share_of_limit:.0%}" in printed
        assert json.loads(json.dumps(dataclasses.asdict(report)))["device"] == "cpu"

    def test_the_fastest_of_either_kind_is_recommended(self) -> None:
        exact, lossy = recommend(
            [
                measured("torch", "float32", 9, 10, 11),
                measured("openvino", "float32", 19, 20, 21),
                measured("openvino", "int8", 39, 40, 41),
                measured("torch", "bfloat16", 29, 30, 31),
            ]
        )
        assert exact is not None
        assert lossy is not None
        assert exact.keywords == 'engine="openvino", precision="float32"'
        assert lossy.keywords == 'engine="openvino", precision="int8"'
        assert exact.uncertain_against == lossy.uncertain_against == ()

    def test_overlapping_rounds_make_the_ranking_uncertain(self) -> None:
        exact, _ = recommend([measured("openvino", "float32", 8, 12, 13), measured("torch", "float32", 9, 10, 11)])
        assert exact is not None
        assert exact.uncertain_against == (Combination("torch", "float32"),)

    def test_a_lossy_one_that_is_slower_is_not_recommended(self) -> None:
        _, lossy = recommend([measured("openvino", "float32", 19, 20, 21), measured("torch", "bfloat16", 9, 10, 11)])
        assert lossy is None

    def test_a_prepared_model_alone_can_be_recommended(self) -> None:
        exact, lossy = recommend([measured("openvino", "int8", 19, 20, 21)])
        assert exact is None
        assert lossy is not None

    def test_nothing_that_runs_is_an_error_with_the_reasons(self, bge_small_en: Path) -> None:
        bench = partial(run_bench, str(bge_small_en), 1, device="cpu")
        with pytest.raises(SettingsError, match=r"Nothing can run .*int8"):
            bench(engines=["torch"], precisions=["int8"])

    def test_a_model_that_is_not_there_is_said_once(self, tmp_path: Path) -> None:
        with pytest.raises(ModelNotFoundError):
            run_bench(str(tmp_path / "nowhere"), 1, device="cpu")

    def test_importing_it_loads_no_torch(self) -> None:
        code = "import sys, bge_integrations.cli.bench; sys.exit('torch' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
