"""`bge evaluate`: every combination, comparisons, gates, what is kept between runs, and the chart."""

from __future__ import annotations

import json
import logging
import os
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from bge_integrations import BgeEncoder, BgeM3Encoder, BgeReranker
from bge_integrations.cli import app
from bge_integrations.cli.measuring import evaluate
from bge_integrations.cli.wording import in_options, options_of
from bge_integrations.errors import BgeError, EvaluationDataError, SettingsError
from bge_integrations.evaluation import (
    EvaluationCache,
    RetrievalData,
    draw_chart,
    evaluate_retrieval,
    load_reports,
    load_retrieval_data,
)
from bge_integrations.evaluation.vectors import Floats

_CORPUS = {
    "d1": "the quick brown fox jumps over the lazy dog",
    "d2": "plants make sugar from light and water",
    "d3": "Paris is the capital of France",
    "d4": "a vector store keeps embeddings of documents",
    "d5": "Berlin is the capital of Germany",
}
_QUERIES = {"q1": "a fox that jumps", "q2": "how do plants eat?", "q3": "where is Paris?", "q4": "Berlin"}
_QRELS = {"q1": {"d1": 1}, "q2": {"d2": 1}, "q3": {"d3": 2, "d5": 1}, "q4": {"d5": 1}}
_GROUPS = {"q1": "nature", "q2": "nature", "q3": "places", "q4": "places"}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return RetrievalData(_QUERIES, _CORPUS, _QRELS, _GROUPS, name="small").save(tmp_path / "small")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of results for each test, beside the graphs of this run."""
    folder = tmp_path / "kept"
    monkeypatch.setattr("bge_integrations.evaluation.cache.cache_root", lambda: folder)
    return folder / "evaluation"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["evaluate", *map(str, arguments)])


def as_json(*arguments: object) -> dict[str, Any]:
    done = run(*arguments, "--json")
    assert done.exit_code == 0, done.output
    content: dict[str, Any] = json.loads(done.stdout)
    return content


@pytest.mark.usefixtures("kept_small_en", "kept_reranker_base")
class TestCommand:
    def test_every_combination_is_measured(self, data: Path, bge_small_en: Path, bge_reranker_base: Path) -> None:
        found = as_json(
            data,
            *("--model", bge_small_en, "--precision", "float32,bfloat16", "--instruction", "default"),
            *("--instruction", "none", "--reranker", "none", "--reranker", bge_reranker_base, "--device", "cpu"),
        )
        loaded = load_retrieval_data(data)
        assert found["data"] == {
            "name": "small",
            "digest": loaded.digest,
            "queries": 4,
            "documents": 5,
            "groups": ["nature", "places"],
        }
        assert len(found["runs"]) == 8
        assert [one["precision"] for one in found["runs"]] == ["float32"] * 4 + ["bfloat16"] * 4
        assert len({one["name"] for one in found["runs"]}) == 8
        assert len(found["comparisons"]) == 7
        assert {one["baseline"] for one in found["comparisons"]} == {"bge-small-en-v1.5"}
        reranker = BgeReranker(bge_reranker_base, device="cpu")
        for one in found["runs"][:4]:
            instruction = None if one["instruction"] else ""
            encoder = BgeEncoder(bge_small_en, device="cpu", query_instruction=instruction)
            expected = evaluate_retrieval(encoder, loaded, depth=100, reranker=reranker if one["reranker"] else None)
            assert one["metrics"] == pytest.approx(expected.metrics)
            assert one["interval"] == pytest.approx(list(expected.interval("ndcg@10")))
            assert one["groups"] == pytest.approx(expected.by_group("ndcg@10"))

    def test_the_table_says_what_was_found(self, data: Path, bge_small_en: Path, tmp_path: Path) -> None:
        arguments = (
            data,
            "--model",
            bge_small_en,
            "--instruction",
            "default",
            "--instruction",
            "x: ",
            "--device",
            "cpu",
        )
        said = run(*arguments, "--metric", "mrr@10,hit@1", "--worst", "2").output
        assert "small: 4 queries, 5 documents" in said
        assert "mrr@10" in said
        assert "'x: '" in said
        assert "nature (2)" in said
        assert "bge-small-en-v1.5, instruction 'x: '" in said
        assert "These queries can show" in said or "equal on every query" in said
        written = run(*arguments, "--markdown").output
        assert written.startswith("**small**: 4 queries, 5 documents\n\n| model | precision | instruction | ndcg@10 |")
        assert "\n- bge-small-en-v1.5, instruction 'x: '" in written

    def test_a_second_run_computes_nothing(self, data: Path, bge_small_en: Path, bge_reranker_base: Path) -> None:
        arguments = (data, "--model", bge_small_en, "--reranker", "none", "--reranker", bge_reranker_base)
        first, second = as_json(*arguments, "--device", "cpu"), as_json(*arguments, "--device", "cpu")
        assert all(one["tokens"] > 0 for one in first["runs"])
        assert [one["tokens"] for one in second["runs"]] == [0, 0]
        assert [one["metrics"] for one in second["runs"]] == [one["metrics"] for one in first["runs"]]
        assert second["runs"][0]["truncated"] == 0
        fresh = as_json(*arguments, "--device", "cpu", "--no-cache")
        assert all(one["tokens"] > 0 for one in fresh["runs"])
        assert "kept" in run(*arguments, "--device", "cpu").output

    def test_a_drop_ends_with_1(self, data: Path, bge_small_en: Path, tmp_path: Path) -> None:
        saved = tmp_path / "old.json"
        assert run(data, "--model", bge_small_en, "--device", "cpu", "--save", saved).exit_code == 0
        (report,) = load_reports(saved)
        content = json.loads(saved.read_text(encoding="utf-8"))
        per_query = content["reports"][0]["per_query"]["ndcg@10"]
        per_query.update({query: min(1.0, value + 0.5) for query, value in per_query.items()})
        better = tmp_path / "better.json"
        better.write_text(json.dumps(content), encoding="utf-8")
        arguments = (data, "--model", bge_small_en, "--device", "cpu", "--baseline")
        equal = run(*arguments, saved, "--max-drop", "0")
        assert equal.exit_code == 0, equal.output
        assert "equal on every query" in equal.output
        done = run(*arguments, better, "--max-drop", "0.01")
        drop = report.metrics["ndcg@10"] - load_reports(better)[0].metrics["ndcg@10"]
        assert drop < -0.01
        assert done.exit_code == 1
        assert f"drops by {-drop:.4f} ndcg@10, more than 0.01" in done.output
        assert run(*arguments, better).exit_code == 0
        assert run(*arguments, better, "--max-drop", "1").exit_code == 0
        # Four queries can't show that it is no chance.
        assert run(*arguments, better, "--max-drop", "0.01", "--significant").exit_code == 0

    def test_rows_are_compared_with_the_row_of_their_name(self, data: Path, bge_small_en: Path, tmp_path: Path) -> None:
        saved = tmp_path / "old.json"
        arguments = (data, "--model", bge_small_en, "--device", "cpu", "--instruction", "none", "--instruction", "x: ")
        as_json(*arguments, "--save", saved)
        found = as_json(*arguments, "--baseline", saved)["comparisons"]
        assert [one["baseline"] for one in found] == [f"the baseline {one['candidate']}" for one in found]
        assert [one["difference"] for one in found] == [0, 0]
        other = as_json(*arguments[:5], "--instruction", "y: ", "--baseline", saved)["comparisons"]
        assert other[0]["baseline"] == "the baseline bge-small-en-v1.5, no instruction"

    def test_a_reranker_alone_orders_candidates(self, tmp_path: Path, bge_reranker_base: Path) -> None:
        file = tmp_path / "tuning.jsonl"
        query, texts = _QUERIES["q1"], [_CORPUS["d1"], _CORPUS["d2"], _CORPUS["d3"]]
        file.write_text(json.dumps({"query": query, "pos": texts[:1], "neg": texts[1:]}), encoding="utf-8")
        (found,) = as_json(file, "--reranker", bge_reranker_base, "--device", "cpu")["runs"]
        scores = BgeReranker(bge_reranker_base, device="cpu").score(query, texts)
        assert found["model"] is None
        assert found["metrics"]["mrr@10"] == pytest.approx(1 / (1 + int((scores > scores[0]).sum())))

    def test_m3_by_its_outputs(self, data: Path, bge_m3: Path) -> None:
        found = as_json(data, "--model", bge_m3, "--output", "dense,sparse,colbert,mixed", "--device", "cpu")
        assert [one["output"] for one in found["runs"]] == ["dense", "sparse", "colbert", "mixed"]
        m3, loaded = BgeM3Encoder(bge_m3, device="cpu"), load_retrieval_data(data)
        for one in found["runs"]:
            assert one["metrics"] == pytest.approx(
                evaluate_retrieval(m3, loaded, output=one["output"], depth=100).metrics
            )

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            ([], "No model is named"),
            (["--model", "M", "--metric", "ndcg"], "--metric ndcg is unknown"),
            (["--model", "M", "--precision", "int3"], "--precision int3"),
            (["--model", "M", "--output", "all"], "--output all is unknown"),
            (["--model", "M", "--max-drop", "0.1"], "--max-drop needs something to compare with"),
            (["--model", "M", "--save", "nowhere/new.json"], "there is no folder"),
            (["--model", "M", "--baseline", "missing.json"], "missing.json is no report"),
            (["--model", "M", "--split", "dev"], "It has grades for: test"),
            (["--reranker", "R"], "small has no candidates"),
        ],
    )
    def test_wrong_options_end_before_a_model_is_loaded(
        self, data: Path, arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("bge_integrations.calls.handle.registry.acquire", None)
        done = run(data, *arguments)
        assert isinstance(done.exception, BgeError)
        assert said in in_options(str(done.exception), options_of(evaluate))

    def test_a_baseline_of_other_data_is_refused(self, data: Path, bge_small_en: Path, tmp_path: Path) -> None:
        saved = tmp_path / "old.json"
        assert run(data, "--model", bge_small_en, "--device", "cpu", "--save", saved).exit_code == 0
        other = RetrievalData(_QUERIES, _CORPUS, {**_QRELS, "q1": {"d2": 1}}, name="other").save(tmp_path / "other")
        done = run(other, "--model", bge_small_en, "--baseline", saved)
        assert isinstance(done.exception, EvaluationDataError)
        assert "was made with other data (small" in str(done.exception)

    def test_what_is_measured_is_saved_when_a_later_model_fails(
        self, data: Path, bge_small_en: Path, tmp_path: Path
    ) -> None:
        saved = tmp_path / "new.json"
        done = run(data, "--model", bge_small_en, "--model", tmp_path / "missing", "--device", "cpu", "--save", saved)
        assert done.exit_code != 0
        assert "ndcg@10" in done.output
        assert [report.name for report in load_reports(saved)] == ["bge-small-en-v1.5"]


class TestCache:
    def test_vectors_and_weights_come_back_bit_for_bit(self, own_cache: Path) -> None:
        cache, calls = EvaluationCache(), []
        vectors = {text: np.random.default_rng(place).random(5, dtype=np.float32) for place, text in enumerate("abc")}

        def embed(texts: list[str]) -> list[Floats]:
            calls.append(texts)
            return [vectors[text] for text in texts]

        kept = cache.vectors("name", embed)
        assert np.array_equal(kept(["a", "b"]), [vectors["a"], vectors["b"]])
        assert np.array_equal(kept(["b", "c", "a"]), [vectors["b"], vectors["c"], vectors["a"]])
        assert calls == [["a", "b"], ["c"]]
        assert np.array_equal(cache.vectors("other", embed)(["a"]), [vectors["a"]])
        weights = {"a": {7: 0.25, 3: 0.1}, "b": {}}
        lexical = cache.weights("sparse", lambda texts: [weights[text] for text in texts])
        lexical(["a", "b"])
        again = cache.weights("sparse", lambda _: [])(["b", "a"])
        assert again == [{}, {7: 0.25, 3: float(np.float32(0.1))}]

    def test_what_was_computed_is_kept_when_the_run_ends_early(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("bge_integrations.evaluation.cache._TEXTS_A_SLICE", 2)
        cache = EvaluationCache()

        def fails(texts: list[str]) -> list[list[float]]:
            if "d" in texts:
                raise KeyboardInterrupt
            return [[1.0]] * len(texts)

        with pytest.raises(KeyboardInterrupt):
            cache.vectors("name", fails)(["a", "b", "c", "d"])
        again = cache.vectors("name", lambda texts: [[2.0]] * len(texts))(["a", "b", "c"])
        assert again.tolist() == [[1.0], [1.0], [2.0]]

    @pytest.mark.parametrize("trouble", ["damaged", "locked", "no folder"])
    def test_trouble_costs_only_time(
        self, own_cache: Path, trouble: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        cache = EvaluationCache()
        if trouble == "no folder":
            own_cache.parent.mkdir()
            own_cache.write_text("a file")
        else:
            cache.vectors("name", lambda texts: [[1.0]] * len(texts))(["a"])
        (file,) = [*own_cache.glob("*")] if own_cache.is_dir() else [own_cache]
        monkeypatch.setattr("bge_integrations.evaluation.cache._PATIENCE_S", 0.01)
        with caplog.at_level(logging.WARNING), sqlite3.connect(":memory:" if trouble != "locked" else file) as lock:
            if trouble == "damaged":
                file.write_bytes(b"no database" * 1000)
            if trouble == "locked":
                lock.execute("BEGIN EXCLUSIVE")
            assert cache.vectors("name", lambda texts: [[2.0]] * len(texts))(["a", "b"]).tolist() == [[2.0], [2.0]]
        lock.close()
        assert str(file) in caplog.text
        if trouble == "damaged":
            assert cache.vectors("name", lambda _: [])(["a", "b"]).tolist() == [[2.0], [2.0]]

    def test_the_limit_removes_what_was_used_least_recently(
        self, own_cache: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        cache = EvaluationCache()
        for name in ("first", "second", "third"):
            cache.vectors(name, lambda texts: [[1.0] * 1000] * len(texts))(["a"])
        for age, name in enumerate(("second", "third", "first")):
            os.utime(own_cache / f"{name}.sqlite", (1e9 - age, 1e9 - age))
        size = cache.files()[0].size
        monkeypatch.setenv("BGE_INTEGRATIONS_CACHE_LIMIT", str(3 * size))
        cache.vectors("fourth", lambda texts: [[1.0] * 1000] * len(texts))(["a"])
        assert {file.path.stem for file in cache.files()} == {"second", "third", "fourth"}

    def test_settings_of_encoders_and_rerankers_are_kept_apart(
        self, bge_small_en: Path, bge_reranker_base: Path, data: Path
    ) -> None:
        loaded, cache = load_retrieval_data(data), EvaluationCache()
        for options in ({}, {"query_instruction": ""}, {"max_length": 14}):
            encoder = BgeEncoder(bge_small_en, device="cpu", on_truncation="ignore", **options)
            found = evaluate_retrieval(encoder, loaded, cache=cache)
            fresh = evaluate_retrieval(encoder, loaded)
            assert found.run == fresh.run
            assert found.truncated == fresh.truncated
        names = {
            BgeReranker(bge_reranker_base, device="cpu", **options).cache_namespace()
            for options in ({}, {"normalize": True}, {"query_instruction": "x"}, {"max_length": 20})
        }
        assert len(names) == 4

    def test_the_command_lists_and_clears_it(self, data: Path, bge_small_en: Path, own_cache: Path) -> None:
        as_json(data, "--model", bge_small_en, "--device", "cpu")
        listed = json.loads(CliRunner().invoke(app, ["cache", "--json"]).stdout)["evaluation"]
        assert {Path(entry["file"]).parent for entry in listed} == {own_cache}
        assert len(listed) == 2
        assert "2 files of `bge evaluate`" in " ".join(CliRunner().invoke(app, ["cache"]).output.split())
        CliRunner().invoke(app, ["cache", "clear", "bge-small-en"])
        assert len(list(own_cache.iterdir())) == 2
        CliRunner().invoke(app, ["cache", "clear", str(bge_small_en)])
        assert not list(own_cache.iterdir())


class TestChart:
    def test_draws_reports_and_groups(self, data: Path, tmp_path: Path) -> None:
        loaded = load_retrieval_data(data)
        reports = [
            evaluate_retrieval(dict.fromkeys(_QUERIES.values(), ids).__getitem__, loaded, name=name)
            for name, ids in (("one", ["d1", "d2"]), ("two", ["d3", "d5"]))
        ]
        png, svg = (draw_chart(reports, tmp_path / "made" / name) for name in ("chart.png", "chart.svg"))
        assert png.read_bytes().startswith(b"\x89PNG")
        assert svg.stat().st_size > 1000
        assert draw_chart(reports[0], tmp_path / "one.png", "mrr@10").is_file()
        with pytest.raises(SettingsError, match="ending that matplotlib does not know"):
            draw_chart(reports, tmp_path / "chart.doc")
        with pytest.raises(SettingsError, match="was not computed for one"):
            draw_chart(reports, tmp_path / "chart.png", "ndcg@7")
        with pytest.raises(SettingsError, match="reports is empty"):
            draw_chart([], tmp_path / "chart.png")
