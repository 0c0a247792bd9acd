"""The published scores, and the averages that follow from them.

The tables are restated from BAAI's model card of August 2023 (https://huggingface.co/BAAI/bge-large-en, "Evaluation").
"""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path

import pytest

from bge_integrations import MODELS, find_model
from bge_integrations.catalogue.scores import (
    BENCHMARKS,
    MINILM,
    Averages,
    Metric,
    averages,
    find_benchmark,
    published_scores,
    published_source,
    scored_models,
)
from bge_integrations.errors import SettingsError

ENGLISH, CHINESE = BENCHMARKS["MTEB(eng, v1)"], BENCHMARKS["MTEB(cmn, v1)"]

METRICS: tuple[Metric, Metric] = ("card", "main")

# Average, then one column a type, in the order of the benchmark's groups.
ENGLISH_CARD = {
    "BAAI/bge-large-en": (63.98, 53.9, 46.98, 85.8, 59.48, 81.56, 32.06, 76.21),
    "BAAI/bge-base-en": (63.36, 53.0, 46.32, 85.86, 58.7, 81.84, 29.27, 75.27),
    "BAAI/bge-small-en": (62.11, 51.82, 44.31, 83.78, 57.97, 80.72, 30.53, 74.37),
    MINILM: (56.26, 41.95, 42.35, 82.37, 58.04, 78.9, 30.81, 63.05),
}
CHINESE_CARD = {
    "BAAI/bge-large-zh": (64.20, 71.53, 53.23, 78.94, 72.26, 65.11, 48.39),
    "BAAI/bge-large-zh-noinstruct": (63.53, 70.55, 50.98, 76.77, 72.49, 64.91, 50.01),
    "BAAI/bge-base-zh": (62.96, 69.53, 52.05, 77.5, 70.98, 64.91, 47.63),
    "BAAI/bge-small-zh": (58.27, 63.07, 46.87, 70.35, 67.78, 61.48, 45.09),
}

# The figures of the card come from an earlier run of MiniLM than the published ones, with other revisions of the data.
LATER_RUNS = {MINILM: {"Average": -0.16, "Clustering": -0.44, "STS": 0.05, "Classification": -0.42}}

# Pair classification by mteb's main score instead of the card's average precision of the cosine.
MAIN_SCORES = {
    "BAAI/bge-large-en": {"Average": 0.02, "PairClassification": 0.33},
    "BAAI/bge-base-en": {"Average": 0.01, "PairClassification": 0.12},
    "BAAI/bge-small-en": {"Average": 0.0, "PairClassification": 0.06},
    "BAAI/bge-large-zh": {"Average": -0.39, "PairClassification": -6.01},
    "BAAI/bge-large-zh-noinstruct": {"Average": -0.33, "PairClassification": -5.08},
    "BAAI/bge-base-zh": {"Average": -0.38, "PairClassification": -5.95},
    "BAAI/bge-small-zh": {"Average": -0.32, "PairClassification": -5.01},
}

# Accuracy and Spearman correlation of the Chinese tasks that only the averages of the v1.5 cards count, from the same
# files: STS22, AmazonReviewsClassification, MassiveIntentClassification, MassiveScenarioClassification.
FURTHER_TASKS = {
    "BAAI/bge-small-zh-v1.5": (67.7171, 35.91, 63.9543, 70.8036),
    "BAAI/bge-base-zh-v1.5": (68.0054, 40.146, 67.9321, 73.9812),
    "BAAI/bge-large-zh-v1.5": (68.9388, 41.384, 68.8433, 74.6974),
}


def row_of(means: Averages) -> dict[str, float]:
    found = {"Average": means.overall, **means.groups}
    return {name: value for name, value in found.items() if value is not None}


def card_of(model: str) -> dict[str, float]:
    benchmark = CHINESE if model in CHINESE_CARD else ENGLISH
    card = (CHINESE_CARD | ENGLISH_CARD)[model]
    return dict(zip(("Average", *benchmark.groups), card, strict=True))


def differences(model: str, means: Averages) -> dict[str, float]:
    """Returns how far the means are above the card's figures."""
    row = row_of(means)
    return {name: row[name] - figure for name, figure in card_of(model).items()}


class TestModelCard:
    @pytest.mark.parametrize("model", ENGLISH_CARD)
    def test_means_of_the_english_tasks_give_its_table(self, model: str) -> None:
        known = LATER_RUNS.get(model, {})
        for name, difference in differences(model, averages(published_scores(model), ENGLISH)).items():
            if name in known:
                assert round(difference, 2) == known[name], name
            else:
                assert abs(difference) <= 0.01, name

    @pytest.mark.parametrize("model", CHINESE_CARD)
    def test_means_of_the_chinese_tasks_give_its_table(self, model: str) -> None:
        for name, difference in differences(model, averages(published_scores(model), CHINESE)).items():
            assert abs(difference) <= 0.01, name

    @pytest.mark.parametrize("model", MAIN_SCORES)
    def test_main_scores_differ_in_pair_classification_alone(self, model: str) -> None:
        benchmark = CHINESE if model in CHINESE_CARD else ENGLISH
        card, main = (row_of(averages(published_scores(model, metric=metric), benchmark)) for metric in METRICS)
        changed = {name: round(main[name] - card[name], 2) for name in card if main[name] != card[name]}
        assert changed == MAIN_SCORES[model]

    def test_the_average_of_bge_large_en_is_another_one_by_main_scores(self) -> None:
        main = averages(published_scores("BAAI/bge-large-en", metric="main"), ENGLISH)
        assert main.overall is not None
        assert round(main.overall, 2) == 63.99
        assert card_of("BAAI/bge-large-en")["Average"] == 63.98


class TestCatalogue:
    @pytest.mark.parametrize("model", [spec.model_id for spec in MODELS if spec.mteb_average])
    def test_english_averages_follow_from_the_scores(self, model: str) -> None:
        spec, means = find_model(model), row_of(averages(published_scores(model), ENGLISH))
        assert spec is not None
        assert spec.mteb_average == pytest.approx(means["Average"], abs=0.01)
        assert spec.mteb_retrieval == pytest.approx(means["Retrieval"], abs=0.01)

    @pytest.mark.parametrize("model", [spec.model_id for spec in MODELS if spec.cmteb_average])
    def test_chinese_averages_follow_from_the_scores(self, model: str) -> None:
        """Those of the v1.5 models count 35 tasks."""
        spec, scores = find_model(model), published_scores(model)
        assert spec is not None
        figures = [scores[task] for task in CHINESE.tasks] + list(FURTHER_TASKS.get(model, ()))
        assert len(figures) == (35 if model.endswith("v1.5") else 31)
        assert spec.cmteb_average == pytest.approx(statistics.fmean(figures), abs=0.01)
        assert spec.cmteb_retrieval == pytest.approx(row_of(averages(scores, CHINESE))["Retrieval"], abs=0.01)

    def test_every_model_with_an_average_has_scores(self) -> None:
        averaged = {spec.model_id for spec in MODELS if spec.mteb_average or spec.cmteb_average}
        assert set(scored_models()) == averaged | {"BAAI/bge-m3", MINILM}


class TestScores:
    def test_tasks_in_several_languages_have_the_english_figure(self) -> None:
        scores = published_scores(MINILM)
        assert scores["STS17"] == 87.5878
        assert scores["STS22"] == 67.7112
        assert scores["AmazonReviewsClassification"] == 30.848
        assert scores["AmazonCounterfactualClassification"] == 63.6418

    def test_tasks_with_several_splits_have_the_one_of_the_cards(self) -> None:
        scores = published_scores(MINILM)
        assert scores["MSMARCO"] == 36.542  # dev; test: 63.685
        assert scores["MultilingualSentiment"] == 41.2833  # validation; test: 41.87
        assert scores["TNews"] == 20.12  # validation; the labels of test are secret
        assert scores["SciFact"] == 64.508  # test; train: 66.02

    def test_runs_of_bge_are_those_of_its_authors(self) -> None:
        """mteb's own run of the same task, with normalised vectors, gives 63.87."""
        assert published_scores("BAAI/bge-small-en-v1.5")["MTOPIntentClassification"] == 74.7469

    def test_every_figure_is_a_score_of_a_known_task(self) -> None:
        known = {*ENGLISH.tasks, *CHINESE.tasks}
        for model in scored_models():
            for metric in METRICS:
                scores = published_scores(model, metric=metric)
                assert scores.keys() <= known
                assert all(math.isfinite(score) and 0 < score < 100 for score in scores.values())

    def test_models_of_one_language_have_every_task_of_its_benchmark(self) -> None:
        for model in scored_models():
            if model.startswith("BAAI/bge-") and not model.endswith("m3"):
                benchmark = ENGLISH if "-en" in model else CHINESE
                assert published_scores(model).keys() == set(benchmark.tasks)

    def test_bge_m3_has_some_tasks_and_so_no_averages(self) -> None:
        means = averages(published_scores("BAAI/bge-m3"), ENGLISH)
        assert means.overall is None
        assert "NQ" in means.missing
        assert "SciFact" not in means.missing

    def test_the_source_is_named(self) -> None:
        source = published_source("BAAI/bge-m3")
        assert source is not None
        assert (source.repository, source.licence) == ("https://github.com/embeddings-benchmark/results", "CC0-1.0")
        assert source.commit == "f4cc6c8b365a3c779dbc708d6affe0b0355b2ddf"
        assert source.folder.startswith("results/BAAI__bge-m3/")
        assert published_source("me/model") is None

    def test_an_unknown_metric_is_refused(self) -> None:
        with pytest.raises(SettingsError, match="metric='ap' is unknown; choose 'card' or 'main'"):
            published_scores(MINILM, metric="ap")  # type: ignore[arg-type]


class TestNames:
    @pytest.mark.parametrize(
        "name", ["BAAI/bge-large-en", "bge-large-en", "BGE-Large-EN", "/models/bge-large-en/", "/a/BAAI_bge-large-en"]
    )
    def test_a_model_is_found_by_its_id_and_by_the_name_of_its_folder(self, name: str) -> None:
        assert published_scores(name) == published_scores("BAAI/bge-large-en") != {}

    def test_a_snapshot_in_the_cache_of_the_hub_is_found(self, tmp_path: Path) -> None:
        for id_ in ("BAAI/bge-small-zh-v1.5", MINILM):
            snapshot = tmp_path / f"models--{id_.replace('/', '--')}" / "snapshots" / "0123abcd"
            snapshot.mkdir(parents=True)
            assert published_scores(snapshot) == published_scores(id_) != {}

    def test_a_link_to_a_folder_is_followed(self, tmp_path: Path) -> None:
        (tmp_path / "bge-base-zh").mkdir()
        (tmp_path / "model").symlink_to(tmp_path / "bge-base-zh")
        assert published_scores(tmp_path / "model") == published_scores("BAAI/bge-base-zh") != {}

    def test_the_package_with_the_weights_of_minilm_is_found_by_its_card(self, minilm: str) -> None:
        assert published_scores(minilm) == published_scores("all-MiniLM-L6-v2") == published_scores(MINILM) != {}

    def test_a_model_made_from_another_one_has_no_scores(self, tmp_path: Path) -> None:
        tuned = tmp_path / "tuned"
        tuned.mkdir()
        (tuned / "config.json").write_text(json.dumps({"model_type": "bert", "_name_or_path": "BAAI/bge-base-en"}))
        assert find_model(tuned) is not None
        assert published_scores(tuned) == {}
        (tuned / "README.md").write_text(f"---\nbase_model: {MINILM}\n---\n\n# SentenceTransformer based on {MINILM}\n")
        assert published_scores(tuned) == {}
        (tmp_path / "bge-base-en" / "checkpoint-10").mkdir(parents=True)
        assert published_scores(tmp_path / "bge-base-en" / "checkpoint-10") == {}

    @pytest.mark.parametrize("name", ["", "/", "me/my-bge-large-en", "BAAI/bge-reranker-base", "a\0b", "x" * 5000])
    def test_other_models_have_no_scores(self, name: str) -> None:
        assert published_scores(name) == {}


class TestBenchmarks:
    def test_tasks_are_as_many_as_the_cards_count(self) -> None:
        counts = {name: {kind: len(tasks) for kind, tasks in one.groups.items()} for name, one in BENCHMARKS.items()}
        assert counts == {
            "MTEB(eng, v1)": {
                "Retrieval": 15,
                "Clustering": 11,
                "PairClassification": 3,
                "Reranking": 4,
                "STS": 10,
                "Summarization": 1,
                "Classification": 12,
            },
            "MTEB(cmn, v1)": {
                "Retrieval": 8,
                "STS": 7,
                "PairClassification": 2,
                "Classification": 6,
                "Reranking": 4,
                "Clustering": 4,
            },
        }
        assert [len(set(one.tasks)) for one in BENCHMARKS.values()] == [56, 31]

    @pytest.mark.parametrize("name", ["MTEB(eng, v1)", "MTEB(eng, classic)", "MTEB", "mteb"])
    def test_the_english_one_is_found_by_each_of_its_names(self, name: str) -> None:
        assert find_benchmark(name) is ENGLISH

    @pytest.mark.parametrize("name", ["MTEB(cmn, v1)", "MTEB(Chinese)", "CMTEB", "C-MTEB", "c-mteb"])
    def test_the_chinese_one_is_found_by_each_of_its_names(self, name: str) -> None:
        assert find_benchmark(name) is CHINESE

    def test_an_unknown_one_is_refused_with_the_choices(self) -> None:
        with pytest.raises(SettingsError) as error:
            find_benchmark("MTEB(eng, v2)")
        assert str(error.value) == (
            "benchmark='MTEB(eng, v2)' is unknown; choose one of 'MTEB(eng, v1)' (or 'MTEB(eng, classic)', 'MTEB'), "
            "'MTEB(cmn, v1)' (or 'MTEB(Chinese)', 'CMTEB', 'C-MTEB')."
        )

    @pytest.mark.parametrize("name", BENCHMARKS)
    def test_tasks_and_types_are_those_of_mteb(self, name: str) -> None:
        mteb = pytest.importorskip("mteb")
        types: dict[str, set[str]] = {}
        for task in mteb.get_benchmark(name).tasks:
            types.setdefault(task.metadata.type, set()).add(task.metadata.name)
        assert types == {kind: set(tasks) for kind, tasks in BENCHMARKS[name].groups.items()}
        for alias in set(BENCHMARKS[name].aliases) - {"C-MTEB"}:
            assert mteb.get_benchmark(alias).name == name


class TestAverages:
    def test_every_task_counts_once(self) -> None:
        scores = {task: float(number) for number, task in enumerate(CHINESE.tasks)}
        means = averages(scores | {"NQ": 100.0}, CHINESE)
        assert means.overall == 15.0
        assert (means.groups["Retrieval"], means.groups["Clustering"]) == (3.5, 28.5)
        assert means.missing == ()

    def test_a_missing_task_leaves_its_type_and_the_whole_without_a_mean(self) -> None:
        scores = dict.fromkeys(CHINESE.tasks, 50.0)
        del scores["Ocnli"]
        means = averages(scores, CHINESE)
        assert means.overall is None
        assert [kind for kind, mean in means.groups.items() if mean is None] == ["PairClassification"]
        assert means.missing == ("Ocnli",)
