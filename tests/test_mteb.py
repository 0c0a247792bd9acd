"""MTEB with this package's models: instructions as published, results that are never mixed up, and local data."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from bge_integrations import BgeEncoder, BgeM3Encoder, BgeReranker, find_model
from bge_integrations.cli import app
from bge_integrations.errors import BgeError, EvaluationDataError, MissingExtraError, SettingsError
from bge_integrations.evaluation import (
    evaluate_classification,
    evaluate_pairs,
    evaluate_retrieval,
    load_retrieval_data,
)
from bge_integrations.evaluation.mteb import as_mteb_model, as_mteb_reranker, as_mteb_search, decide, run_mteb
from bge_integrations.evaluation.mteb.meta import model_id
from bge_integrations.evaluation.mteb.policy import Handling, Policy, family_of
from bge_integrations.evaluation.mteb.wrappers import MtebEncoder
from bge_integrations.evaluation.searchers import Output
from bge_integrations.evaluation.vectors import Floats
from bge_integrations.langchain import HuggingFaceBgeEmbeddings
from bge_integrations.llama_index import HuggingFaceBgeEmbedding
from tests.test_package import modules_after, run_python

if sys.version_info < (3, 11):
    pytest.skip("mteb needs Python 3.11", allow_module_level=True)

import mteb

pytestmark = pytest.mark.usefixtures("kept_small_en", "kept_m3", "kept_reranker_base")

_WITH_INSTRUCTION = {
    "MTEB(eng, v1)": {
        *(
            "ClimateFEVER",
            "DBPedia",
            "FEVER",
            "FiQA2018",
            "HotpotQA",
            "MSMARCO",
            "NFCorpus",
            "NQ",
            "SCIDOCS",
            "SciFact",
        ),
        *("TRECCOVID", "Touche2020"),
        *(
            f"CQADupstack{forum}Retrieval"
            for forum in (
                *("Android", "English", "Gaming", "Gis", "Mathematica", "Physics", "Programmers", "Stats", "Tex"),
                *("Unix", "Webmasters", "Wordpress"),
            )
        ),
    },
    "MTEB(cmn, v1)": {
        *("T2Retrieval", "MMarcoRetrieval", "DuRetrieval", "CovidRetrieval", "CmedqaRetrieval", "EcomRetrieval"),
        *("MedicalRetrieval", "VideoRetrieval", "T2Reranking", "MMarcoReranking", "CMedQAv1-reranking"),
        "CMedQAv2-reranking",
    },
}
_SENTENCES = [
    "the quick brown fox jumps over the lazy dog",
    "plants make sugar from light and water",
    "Paris is the capital of France",
    "a vector store keeps embeddings of documents",
    "the dog sleeps in the sun",
    "leaves are green in the light",
    "France is a country in Europe",
    "an index finds documents by their embeddings",
]
_FOX, _PLANT, _PARIS, _STORE = _SENTENCES[:4]


def _tasks(benchmark: str) -> Iterator[Any]:
    """The tasks of a benchmark, with the parts of an aggregate instead of it."""
    for task in mteb.get_benchmark(benchmark).tasks:
        yield from getattr(task, "tasks", None) or [task]


def _handlings(model: str, benchmark: str, policy: Policy = "published") -> dict[str, Handling]:
    family = family_of(find_model(model))
    return {
        task.metadata.name: decide(policy, family, task.metadata.name, task.metadata.type) for task in _tasks(benchmark)
    }


class TestPolicies:
    @pytest.mark.parametrize(
        ("model", "whole", "normalize"),
        [
            ("BAAI/bge-small-en", "MTEB(eng, v1)", False),
            ("BAAI/bge-large-en-v1.5", "MTEB(eng, v1)", False),
            ("BAAI/bge-base-zh", "MTEB(cmn, v1)", True),
            ("BAAI/bge-small-zh-v1.5", "MTEB(cmn, v1)", True),
        ],
    )
    def test_the_published_tasks_have_the_instruction_and_no_others(
        self, model: str, whole: str, normalize: bool
    ) -> None:
        found = _handlings(model, whole)
        assert {name for name, handling in found.items() if handling.query == "query"} == _WITH_INSTRUCTION[whole]
        assert {handling.query for handling in found.values()} == {"query", "bare"}
        assert {handling.normalize for handling in found.values()} == {normalize}
        assert {(handling.document, handling.other) for handling in found.values()} == {("document", "symmetric")}

    @pytest.mark.parametrize("model", ["BAAI/bge-m3", "BAAI/bge-large-zh-noinstruct", "someone/model"])
    def test_other_models_are_used_as_their_files_say(self, model: str) -> None:
        assert set(_handlings(model, "MTEB(cmn, v1)").values()) == {Handling()}

    @pytest.mark.parametrize("model", ["BAAI/bge-multilingual-gemma2", "BAAI/bge-en-icl", "BAAI/bge-code-v1"])
    def test_instruct_models_get_the_task_on_all_but_documents(self, model: str) -> None:
        expected = Handling("query", "bare", "query", takes_task=True)
        assert set(_handlings(model, "MTEB(eng, v1)").values()) == {expected}

    def test_llm_embedder_has_its_instructions_where_something_is_searched(self) -> None:
        found = _handlings("BAAI/llm-embedder", "MTEB(eng, v1)")
        assert found["SciFact"] == found["SciDocsRR"] == Handling("query", "document", "symmetric")
        assert found["STS12"].of(None) == "symmetric"

    def test_always_and_never(self) -> None:
        found = _handlings("BAAI/bge-small-en", "MTEB(eng, v1)", "always")
        assert {found[name].of("query") for name in ("ArguAna", "SciDocsRR", "SciFact")} == {"query"}
        found = _handlings("BAAI/bge-multilingual-gemma2", "MTEB(eng, v1)", "never")
        assert set(found.values()) == {Handling("bare", "bare", "bare")}

    def test_an_unknown_retrieval_task_counts_as_a_usual_one(self) -> None:
        assert decide("published", "english", "MyOwn", "Retrieval").query == "query"
        assert decide("published", "english", "NanoArguAnaRetrieval", "Retrieval").query == "bare"


def _encoded(model: MtebEncoder, texts: list[str], task: str, prompt_type: str | None = None) -> Floats:
    metadata = mteb.get_task(task).metadata
    return model.encode(
        [{"text": texts[:2]}, {"text": texts[2:]}],
        task_metadata=metadata,
        hf_split="test",
        hf_subset="default",
        prompt_type=prompt_type,
        batch_size=2,
    )


class TestModel:
    def test_vectors_are_those_of_the_published_runs(self, bge_small_en: Path) -> None:
        raw = BgeEncoder(bge_small_en, normalize=False)
        model = as_mteb_model(BgeEncoder(bge_small_en))
        asked, bare = raw.encode_queries(_SENTENCES), raw.encode(_SENTENCES)
        for task, prompt_type, expected in (
            ("SciFact", "query", asked),
            ("ArguAna", "query", bare),
            ("AskUbuntuDupQuestions", "query", bare),
            ("SciFact", "document", bare),
            ("STS12", None, bare),
        ):
            np.testing.assert_allclose(_encoded(model, _SENTENCES, task, prompt_type), expected, atol=1e-6)
        assert not np.allclose(asked, bare, atol=1e-2)

    def test_chinese_vectors_are_normalised(self, bge_small_zh: Path) -> None:
        encoder = BgeEncoder(bge_small_zh, normalize="checkpoint")
        found = _encoded(as_mteb_model(encoder), _SENTENCES, "T2Reranking", "query")
        np.testing.assert_allclose(found, encoder.encode_queries(_SENTENCES), atol=1e-6)
        assert np.allclose(np.linalg.norm(found, axis=1), 1)

    def test_other_policies(self, bge_small_en: Path) -> None:
        encoder = BgeEncoder(bge_small_en)
        always, never = as_mteb_model(encoder, "always"), as_mteb_model(encoder, "never")
        asked, bare = encoder.encode_queries(_SENTENCES), encoder.encode(_SENTENCES)
        np.testing.assert_allclose(_encoded(always, _SENTENCES, "ArguAna", "query"), asked, atol=1e-6)
        np.testing.assert_allclose(_encoded(never, _SENTENCES, "SciFact", "query"), bare, atol=1e-6)

    def test_the_users_own_instruction_goes_first(self, bge_small_en: Path) -> None:
        own = BgeEncoder(bge_small_en, query_instruction="search: ")
        found = _encoded(as_mteb_model(own, "always"), _SENTENCES, "SciFact", "query")
        np.testing.assert_allclose(found, own.encode_queries(_SENTENCES), atol=1e-6)

    def test_an_instruct_model_reads_the_description_of_the_task(
        self, bge_small_en: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = as_mteb_model(BgeEncoder(bge_small_en))
        monkeypatch.setattr(model, "family", "instruct")
        tasks: list[str | None] = []
        plain = model.encoder

        def variant(task: str | None, normalize: bool | None, is_bare: bool) -> BgeEncoder:
            assert not (task and is_bare)
            tasks.append(task)
            return plain

        monkeypatch.setattr(model, "_variant", variant)
        _encoded(model, _SENTENCES, "SciFact", "query")
        _encoded(model, _SENTENCES, "SciFact", "document")
        _encoded(model, _SENTENCES, "STS12")
        assert tasks == [
            "Given a scientific claim, retrieve documents that support or refute the claim",
            None,
            "Retrieve semantically similar text.",
        ]

    def test_nothing_is_loaded_twice(self, bge_small_en: Path) -> None:
        encoder = BgeEncoder(bge_small_en)
        model = as_mteb_model(encoder)
        before = encoder.stats().texts
        found = _encoded(model, [_FOX, _PLANT, _FOX, _FOX], "STS12")
        assert encoder.stats().texts == before + 2
        assert found[0].tobytes() == found[2].tobytes() == found[3].tobytes()

    def test_adapters_and_m3_are_taken_by_the_encoder_that_they_hold(self, bge_small_en: Path, bge_m3: Path) -> None:
        expected = _encoded(as_mteb_model(BgeEncoder(bge_small_en)), _SENTENCES, "SciFact", "query")
        for adapter in (
            HuggingFaceBgeEmbeddings(model_name=str(bge_small_en)),
            HuggingFaceBgeEmbedding(model_name=str(bge_small_en)),
        ):
            np.testing.assert_array_equal(_encoded(as_mteb_model(adapter), _SENTENCES, "SciFact", "query"), expected)
        m3 = BgeM3Encoder(bge_m3)
        found = _encoded(as_mteb_model(m3), _SENTENCES, "T2Retrieval", "query")
        expected = np.asarray(m3.encode_queries(_SENTENCES).dense)
        np.testing.assert_allclose(found, expected, atol=1e-6)

    @pytest.mark.parametrize("wrong", [len, "BAAI/bge-small-en", BgeEncoder, None])
    def test_anything_else_is_refused(self, wrong: object) -> None:
        with pytest.raises(SettingsError, match="holds no BgeEncoder"):
            as_mteb_model(wrong)
        with pytest.raises(SettingsError, match="holds no BgeReranker"):
            as_mteb_reranker(wrong)
        with pytest.raises(SettingsError, match="give a BgeM3Encoder"):
            as_mteb_search(wrong)  # type: ignore[arg-type]

    def test_an_unknown_policy_or_output_is_named(self, bge_small_en: Path, bge_m3: Path) -> None:
        with pytest.raises(SettingsError, match=r"policy='often' is unknown.*'published', 'always', 'never'"):
            as_mteb_model(BgeEncoder(bge_small_en), "often")  # type: ignore[arg-type]
        with pytest.raises(SettingsError, match=r"output='best' is unknown.*'mixed'"):
            as_mteb_search(BgeM3Encoder(bge_m3), "best")  # type: ignore[arg-type]


class TestDescription:
    def test_it_has_the_facts_of_the_model(self, bge_small_en: Path) -> None:
        encoder = BgeEncoder(bge_small_en)
        meta = as_mteb_model(encoder).mteb_model_meta
        assert (meta.name, meta.revision) == ("BAAI/bge-small-en-v1.5", encoder.backend.identity[:40])
        assert (meta.embed_dim, meta.max_tokens) == (encoder.dimension, encoder.max_length)
        assert (meta.languages, meta.license, meta.framework) == (["eng-Latn"], "mit", ["OpenVINO"])
        assert (meta.similarity_fn_name.value, meta.use_instructions) == ("cosine", True)
        again = mteb.models.ModelMeta.model_validate(meta.model_dump())  # mteb's own checks
        assert again.experiment_name == meta.experiment_name

    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("BAAI/bge-m3", "BAAI/bge-m3"),
            ("me/bge-small-en", "me/bge-small-en"),
            ("bge-small-en", "BAAI/bge-small-en"),
            ("{folder}/bge-base-en", "BAAI/bge-base-en"),
            ("{folder}/my model", "local/my-model"),
            ("{folder}/tuned/checkpoint-500", "local/tuned-checkpoint-500"),
            ("{folder}/models--me--tuned/snapshots/0123", "me/tuned"),
        ],
    )
    def test_names_have_an_organisation_and_no_path(self, tmp_path: Path, name: str, expected: str) -> None:
        made = name.format(folder=tmp_path)
        if made != name:
            Path(made).mkdir(parents=True)
        assert model_id(made) == expected

    def test_no_two_variants_share_a_folder(self, bge_small_en: Path, bge_m3: Path, bge_reranker_base: Path) -> None:
        encoders: list[tuple[BgeEncoder, Any]] = [
            (BgeEncoder(bge_small_en), "published"),
            (BgeEncoder(bge_small_en), "always"),
            (BgeEncoder(bge_small_en), "never"),
            (BgeEncoder(bge_small_en, query_instruction="search: "), "published"),
            (BgeEncoder(bge_small_en, engine="torch"), "published"),
            (BgeEncoder(bge_small_en, engine="torch", precision="bfloat16"), "published"),
            (BgeEncoder(bge_small_en, max_length=32), "published"),
            (BgeEncoder(bge_small_en, normalize=False), "never"),
            (BgeEncoder(bge_small_en, truncate_dim=8), "published"),
        ]
        models: list[Any] = [as_mteb_model(encoder, policy) for encoder, policy in encoders]
        m3 = BgeM3Encoder(bge_m3)
        models += [as_mteb_search(m3, output) for output in ("dense", "sparse", "colbert", "mixed")]
        models += [as_mteb_model(m3), as_mteb_reranker(BgeReranker(bge_reranker_base))]
        models += [as_mteb_reranker(BgeReranker(bge_reranker_base, query_instruction="search: "))]
        cache = mteb.ResultCache("results")
        paths = {cache.get_task_result_path("STS12", model.mteb_model_meta) for model in models}
        assert len(paths) == len(models)


def _write(file: Path, rows: list[dict[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


_PAIRS = [(one, other) for one in _SENTENCES[:4] for other in _SENTENCES[4:]]
_SCORES = [float(score) for score in (5, 1, 0, 2, 0, 4, 1, 0, 1, 0, 5, 2, 0, 1, 0, 4)]
_LABELS = [int(score > 3) for score in _SCORES]
_CLASSED = [(f"{text} {number}", label) for number in range(6) for label, text in enumerate(_SENTENCES[:4])]
_QUERIES = {"q1": "a fox that jumps", "q2": "what do plants make?", "q3": "where is Paris?"}
_QRELS = {"q1": {"d0": 1}, "q2": {"d1": 1, "d5": 1}, "q3": {"d2": 1}}
_CANDIDATES = {"q1": ["d0", "d4"], "q2": ["d1", "d2", "d3"], "q3": ["d2", "d6", "d7"]}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one small task of each type."""
    folder = tmp_path_factory.mktemp("data")
    pairs = [{"sentence1": one, "sentence2": other} for one, other in _PAIRS]
    _write(
        folder / "STS12" / "test.jsonl", [{**pair, "score": score} for pair, score in zip(pairs, _SCORES, strict=True)]
    )
    _write(folder / "STS17-en-en" / "test.jsonl", [{**pair, "score": 1.0 * n} for n, pair in enumerate(pairs)])
    _write(
        folder / "Ocnli" / "validation.jsonl", [{**pair, "label": n} for pair, n in zip(pairs, _LABELS, strict=True)]
    )
    rows = [{"text": text, "label": label} for text, label in _CLASSED]
    _write(folder / "EmotionClassification" / "train.jsonl", rows[:16])
    _write(folder / "EmotionClassification" / "test.jsonl", rows[16:])
    sets = [{"sentences": [text for text, _ in _CLASSED], "labels": [str(label) for _, label in _CLASSED]}] * 2
    _write(folder / "TwentyNewsgroupsClustering" / "test.jsonl", sets)
    summary = {"text": _FOX, "human_summaries": [_PLANT, _FOX], "machine_summaries": _SENTENCES[2:6]}
    _write(folder / "SummEval" / "test.jsonl", [{**summary, "relevance": [1.0, 2.0, 3.0, 4.0]}] * 2)
    for task in ("SciFact", "AskUbuntuDupQuestions"):
        _write(folder / task / "corpus.jsonl", [{"_id": f"d{n}", "text": text} for n, text in enumerate(_SENTENCES)])
        _write(folder / task / "queries.jsonl", [{"_id": id_, "text": text} for id_, text in _QUERIES.items()])
        (folder / task / "qrels").mkdir()
        lines = [
            f"{query}\t{document}\t{grade}\n" for query, graded in _QRELS.items() for document, grade in graded.items()
        ]
        (folder / task / "qrels" / "test.tsv").write_text("".join(lines))
    candidates = [{"_id": query, "candidates": documents} for query, documents in _CANDIDATES.items()]
    _write(folder / "AskUbuntuDupQuestions" / "candidates.jsonl", candidates)
    (folder / "_published").mkdir()
    (folder / "SomethingElse").mkdir()
    return folder


class _Loaded(SimpleNamespace):
    report: Any
    folder: Path
    told: list[str]


@pytest.fixture(scope="module")
def run(bge_small_en: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> _Loaded:
    """All tasks of the folder, once."""
    folder, told = tmp_path_factory.mktemp("results"), list[str]()
    model = as_mteb_model(BgeEncoder(bge_small_en))
    return _Loaded(report=run_mteb(model, data=data, results=folder, tell=told.append), folder=folder, told=told)


class TestRuns:
    def test_all_tasks_of_the_folder_are_run(self, run: _Loaded) -> None:
        assert set(run.report.tasks) == {
            *("STS12", "STS17", "Ocnli", "EmotionClassification", "TwentyNewsgroupsClustering", "SummEval"),
            *("SciFact", "AskUbuntuDupQuestions"),
        }
        assert all(-100 <= score.main_score <= 100 for score in run.report.tasks.values())
        assert len(run.told) == 8
        assert run.told[0].endswith("(1 of 8)")

    def test_scores_are_those_of_this_package(self, run: _Loaded, bge_small_en: Path, data: Path) -> None:
        """They are computed by different code."""
        tasks, raw = run.report.tasks, BgeEncoder(bge_small_en, normalize=False)
        assert tasks["STS12"].main_score == pytest.approx(100 * evaluate_pairs(raw, _PAIRS, _SCORES).spearman, abs=1e-2)
        precision = evaluate_pairs(raw, _PAIRS, _LABELS).average_precision
        assert tasks["Ocnli"].main_score == pytest.approx(100 * (precision or 0), abs=1e-2)
        train, test = (([text for text, _ in part], [n for _, n in part]) for part in (_CLASSED[:16], _CLASSED[16:]))
        accuracy = evaluate_classification(raw, train, test, samples_per_label=16).accuracy
        assert tasks["EmotionClassification"].main_score == pytest.approx(100 * accuracy, abs=1e-2)
        found = evaluate_retrieval(raw, load_retrieval_data(data / "SciFact"), metrics=["ndcg@10", "map@3", "mrr@10"])
        (scores,) = tasks["SciFact"].scores["test"]
        for ours, theirs in (("ndcg@10", "ndcg_at_10"), ("map@3", "map_at_3"), ("mrr@10", "mrr_at_10")):
            assert scores[theirs] == pytest.approx(found.metrics[ours], abs=1e-5), ours

    def test_only_candidates_are_ranked(self, run: _Loaded, bge_small_en: Path) -> None:
        raw = BgeEncoder(bge_small_en)
        ranks = []
        for query, candidates in _CANDIDATES.items():
            vectors = raw.encode([_SENTENCES[int(document[1:])] for document in candidates])
            order = np.argsort(-(vectors @ raw.encode([_QUERIES[query]])[0]))
            (place,) = (place for place, n in enumerate(order) if _QRELS[query].get(candidates[n]))
            # q2 has a relevant document that is no candidate.
            ranks.append(1 / (place + 1) / len(_QRELS[query]))
        assert run.report.tasks["AskUbuntuDupQuestions"].main_score == pytest.approx(100 * np.mean(ranks), abs=1e-3)

    def test_the_card_decides_on_metric_and_split(self, run: _Loaded) -> None:
        assert (run.report.tasks["Ocnli"].metric, run.report.tasks["Ocnli"].split) == ("cosine_ap", "validation")
        assert [entry["hf_subset"] for entry in run.report.tasks["STS17"].scores["test"]] == ["en-en"]

    def test_published_scores_stand_beside(self, run: _Loaded) -> None:
        score = run.report.tasks["SciFact"]
        assert score.published == pytest.approx(71.3, abs=5)
        assert score.difference == pytest.approx(score.main_score - score.published)

    def test_a_second_run_computes_nothing(self, run: _Loaded, bge_small_en: Path, data: Path) -> None:
        encoder = BgeEncoder(bge_small_en)
        before = encoder.stats().texts
        again = run_mteb(as_mteb_model(encoder), data=data, results=run.folder)
        assert encoder.stats().texts == before
        assert all(score.is_resumed for score in again.tasks.values())
        for name, score in again.tasks.items():
            assert score.main_score == pytest.approx(run.report.tasks[name].main_score, abs=1e-3)

    def test_other_policies_instructions_and_data_are_not_taken_from_it(
        self, run: _Loaded, bge_small_en: Path, data: Path, tmp_path: Path
    ) -> None:
        changed = tmp_path / "changed"
        rows = [json.loads(line) for line in (data / "STS12" / "test.jsonl").read_text(encoding="utf-8").splitlines()]
        _write(changed / "STS12" / "test.jsonl", [{**row, "score": 5 - row["score"]} for row in rows])
        encoder = BgeEncoder(bge_small_en)
        published = as_mteb_model(encoder)
        for model, source, resumed in (
            (published, data, True),
            (as_mteb_model(encoder, "always"), data, False),
            (as_mteb_model(BgeEncoder(bge_small_en, query_instruction="search: ")), data, False),
            (published, changed, False),
            (published, changed, True),
            (published, data, True),
        ):
            report = run_mteb(model, tasks=["STS12"], data=source, results=run.folder)
            assert report.tasks["STS12"].is_resumed is resumed
            sign = -1 if source == changed else 1
            assert report.tasks["STS12"].main_score == pytest.approx(
                sign * run.report.tasks["STS12"].main_score, abs=1e-3
            )

    def test_a_result_of_other_official_data_is_computed_again(
        self, run: _Loaded, bge_small_en: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """mteb alone would take it."""
        from datasets import Dataset, DatasetDict

        def load(task: Any, **_: object) -> None:  # noqa: ANN401 - mteb's AbsTask
            rows = [{"sentence1": one, "sentence2": other, "score": 0.1 * n} for n, (one, other) in enumerate(_PAIRS)]
            task.dataset, task.data_loaded = {"default": DatasetDict(test=Dataset.from_list(rows))}, True

        monkeypatch.setattr(type(mteb.get_task("STS12")), "load_data", load)
        model = as_mteb_model(BgeEncoder(bge_small_en))
        assert not run_mteb(model, tasks=["STS12"], results=tmp_path).tasks["STS12"].is_resumed
        assert run_mteb(model, tasks=["STS12"], results=tmp_path).tasks["STS12"].is_resumed
        (file,) = tmp_path.rglob("STS12.json")
        file.write_text(file.read_text().replace(mteb.get_task("STS12").metadata.revision, "before"))
        assert not run_mteb(model, tasks=["STS12"], results=tmp_path).tasks["STS12"].is_resumed

    def test_rerankers_and_m3(self, bge_reranker_base: Path, bge_m3: Path, data: Path, tmp_path: Path) -> None:
        reranker = BgeReranker(bge_reranker_base)
        m3 = BgeM3Encoder(bge_m3)
        scorers: dict[Any, Any] = {as_mteb_reranker(reranker): reranker.score}
        weights = {"dense": (1, 0, 0), "sparse": (0, 1, 0), "colbert": (0, 0, 1), "mixed": None}
        for output, shares in weights.items():
            model = as_mteb_search(m3, output)  # type: ignore[arg-type]
            scorers[model] = lambda query, texts, shares=shares: m3.score(query, texts, weights=shares)
        for model, score in scorers.items():
            expected = []
            for query, candidates in _CANDIDATES.items():
                found = score(_QUERIES[query], [_SENTENCES[int(document[1:])] for document in candidates])
                ranked = [id_ for _, id_ in sorted(zip(found, candidates, strict=True), reverse=True)]
                (place,) = (place for place, id_ in enumerate(ranked) if id_ in _QRELS[query])
                expected.append(1 / (place + 1) / len(_QRELS[query]))
            report = run_mteb(model, tasks=["AskUbuntuDupQuestions"], data=data, results=tmp_path)
            measured = report.tasks["AskUbuntuDupQuestions"].main_score
            assert measured == pytest.approx(100 * np.mean(expected), abs=1e-3)

    @pytest.mark.parametrize("output", ["dense", "sparse", "colbert", "mixed"])
    def test_m3_searches_a_corpus(self, bge_m3: Path, data: Path, tmp_path: Path, output: Output) -> None:
        m3 = BgeM3Encoder(bge_m3)
        report = run_mteb(as_mteb_search(m3, output), tasks=["SciFact"], data=data, results=tmp_path)
        found = evaluate_retrieval(m3, load_retrieval_data(data / "SciFact"), metrics=["ndcg@10"], output=output)
        assert report.tasks["SciFact"].main_score == pytest.approx(100 * found.metrics["ndcg@10"], abs=1e-3)

    def test_a_reranker_alone_can_not_run_other_tasks(
        self, bge_reranker_base: Path, data: Path, tmp_path: Path
    ) -> None:
        with pytest.raises(EvaluationDataError, match="STS12 can't be run with this model"):
            run_mteb(as_mteb_reranker(BgeReranker(bge_reranker_base)), tasks=["STS12"], data=data, results=tmp_path)


def _sts_line(**changes: object) -> dict[str, Any]:
    return {"sentence1": _FOX, "sentence2": _PLANT, "score": 1.0, **changes}


class TestLocalData:
    @pytest.mark.parametrize(
        ("task", "files", "message"),
        [
            ("STS12", {"test": [_sts_line(), _sts_line(score="1")]}, r"test\.jsonl, line 2: score is '1'; write a num"),
            ("STS12", {"test": [_sts_line(sentence2=None)]}, r"line 1: sentence2 is a NoneType; write a text"),
            ("STS12", {"test": [{"query": _FOX}]}, r"The line has the keys 'query'"),
            ("STS12", {"test": [_sts_line()]}, r"has 1 rows; write at least 2"),
            ("STS12", {"dev": [_sts_line()]}, r"STS12 has no test\.jsonl"),
            ("Ocnli", {"validation": [_sts_line(label=2)]}, r"validation\.jsonl, line 1: label is 2; write 0 or 1"),
            (
                "EmotionClassification",
                {"test": [{"text": _FOX, "label": 1}] * 2},
                r"EmotionClassification has no train\.jsonl",
            ),
            (
                "EmotionClassification",
                {"train": [{"text": _FOX, "label": n} for n in (0, 1)], "test": [{"text": _FOX, "label": "0"}] * 2},
                r"the label '0' of test\.jsonl has no training row.*both as numbers",
            ),
            ("EmotionClassification", {"train": [], "test": [{"text": _FOX, "label": True}]}, r"label is True"),
            (
                "TwentyNewsgroupsClustering",
                {"test": [{"sentences": [_FOX, _PLANT], "labels": [1]}]},
                r"line 1: labels must be a list of 2",
            ),
            (
                "SummEval",
                {"test": [{"text": _FOX, "human_summaries": _FOX}]},
                r"human_summaries must be a list of text",
            ),
            ("SciFact", {"test": [{"text": _FOX}]}, r"SciFact has no corpus\.jsonl"),
        ],
    )
    def test_wrong_rows_are_named_with_their_line(
        self, bge_small_en: Path, tmp_path: Path, task: str, files: Mapping[str, list[dict[str, Any]]], message: str
    ) -> None:
        for split, rows in files.items():
            _write(tmp_path / task / f"{split}.jsonl", rows)
        with pytest.raises(EvaluationDataError, match=message):
            run_mteb(as_mteb_model(BgeEncoder(bge_small_en)), data=tmp_path, results=tmp_path / "results")

    @pytest.mark.parametrize(
        ("rows", "message"),
        [
            (None, r"has no candidates\.jsonl, which a reranking task needs"),
            ([{"_id": "q1", "candidates": ["d0", "d99"]}], r"line 1: the candidate 'd99' is not in the corpus"),
            ([{"_id": "q1", "candidates": ["d0"]}], r"has no candidates for the query 'q2'"),
        ],
    )
    def test_candidates_are_checked(
        self, bge_small_en: Path, data: Path, tmp_path: Path, rows: list[dict[str, Any]] | None, message: str
    ) -> None:
        (tmp_path / "AskUbuntuDupQuestions" / "qrels").mkdir(parents=True)
        for name in ("corpus.jsonl", "queries.jsonl", "qrels/test.tsv"):
            (tmp_path / "AskUbuntuDupQuestions" / name).write_text((data / "AskUbuntuDupQuestions" / name).read_text())
        if rows is not None:
            _write(tmp_path / "AskUbuntuDupQuestions" / "candidates.jsonl", rows)
        with pytest.raises(EvaluationDataError, match=message):
            run_mteb(as_mteb_model(BgeEncoder(bge_small_en)), data=tmp_path, results=tmp_path / "results")

    def test_a_split_with_another_name_may_be_called_test(self, bge_small_zh: Path, tmp_path: Path) -> None:
        _write(
            tmp_path / "AFQMC" / "test.jsonl", [_sts_line(score=n, sentence1=text) for n, text in enumerate(_SENTENCES)]
        )
        report = run_mteb(as_mteb_model(BgeEncoder(bge_small_zh)), data=tmp_path, results=tmp_path / "results")
        assert report.tasks["AFQMC"].split == "validation"

    def test_an_aggregate_needs_all_its_parts(self, bge_small_en: Path, data: Path, tmp_path: Path) -> None:
        names = sorted(name for name in _WITH_INSTRUCTION["MTEB(eng, v1)"] if name.startswith("CQADupstack"))
        model = as_mteb_model(BgeEncoder(bge_small_en))
        for name in names[:-1]:
            (tmp_path / name).symlink_to(data / "SciFact")
        with pytest.raises(EvaluationDataError, match=f"has no folder {names[-1]}, which CQADupstackRetrieval needs"):
            run_mteb(model, tasks=["CQADupstackRetrieval"], data=tmp_path, results=tmp_path / "results")
        (tmp_path / names[-1]).symlink_to(data / "SciFact")
        chosen = ["CQADupstackRetrieval", names[0]]
        report = run_mteb(model, tasks=chosen, data=tmp_path, results=tmp_path / "results")
        assert report.tasks["CQADupstackRetrieval"].main_score == pytest.approx(report.tasks[names[0]].main_score)


def _bge(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["mteb", *map(str, arguments)])


class TestCommand:
    def test_json(self, run: _Loaded, bge_small_en: Path, data: Path) -> None:
        done = _bge(bge_small_en, "--data", data, "--tasks", "STS12, SciFact", "-o", run.folder, "--json")
        assert done.exit_code == 0, done.output
        content = json.loads(done.stdout)
        assert list(content["tasks"]) == ["STS12", "SciFact"]
        for name, task in content["tasks"].items():
            assert task["main_score"] == pytest.approx(run.report.tasks[name].main_score, abs=1e-3)
            assert task["difference"] == pytest.approx(task["main_score"] - task["published"])
            assert task["resumed"]
            assert task["seconds"] > 0
        means = content["averages"]["MTEB(eng, v1)"]
        assert (means["overall"], means["groups"]["STS"], len(means["missing"])) == (None, None, 54)
        assert content["settings"]["policy"] == "published"
        assert "SciFact (2 of 2)" in done.stderr

    def test_table_and_markdown(self, run: _Loaded, bge_small_en: Path, data: Path) -> None:
        plain = _bge(bge_small_en, "--data", data, "-o", run.folder)
        assert "SummEval" in plain.stdout
        assert "MTEB(eng, v1) STS" in plain.stdout
        assert "2 of 10" in plain.stdout
        assert "A mean needs all tasks of its group." in plain.stdout
        shown = _bge(bge_small_en, "--data", data, "-o", run.folder, "--markdown").stdout
        assert "| SummEval | Summarization |" in shown
        (line,) = [line for line in shown.splitlines() if line.startswith("| MTEB(eng, v1) Summarization | 1 |")]
        assert line.split("|")[3].strip() == f"{run.report.tasks['SummEval'].main_score:.2f}"

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--tasks", "STS12,STS13"], "has no folder STS13, which STS13 needs"),
            (["--tasks", "NoSuchTask"], "tasks='NoSuchTask' is no task of mteb"),
            (["--tasks", "STS12", "--benchmark", "MTEB(cmn, v1)"], "tasks='STS12' is not in MTEB(cmn, v1)"),
            (["--benchmark", "MTEB(xx)"], "MTEB(xx)"),
            (["--policy", "often"], "policy='often' is unknown"),
            (["--tasks", ","], "tasks is empty"),
        ],
    )
    def test_wrong_options_are_named_before_the_model_is_loaded(
        self, data: Path, tmp_path: Path, options: list[str], message: str
    ) -> None:
        done = _bge(tmp_path / "no-such-model", "--data", data, "-o", tmp_path, *options)
        assert isinstance(done.exception, BgeError)
        assert message in str(done.exception)
        assert not list(tmp_path.rglob("*.json"))

    def test_a_folder_without_tasks_is_named(self, bge_small_en: Path, tmp_path: Path) -> None:
        model = as_mteb_model(BgeEncoder(bge_small_en))
        with pytest.raises(EvaluationDataError, match="has no folder with the name of a task"):
            run_mteb(model, data=tmp_path)
        with pytest.raises(EvaluationDataError, match=r"can't be read.*one folder a task"):
            run_mteb(model, data=tmp_path / "nowhere")

    def test_without_a_hub_the_error_names_the_task_and_the_way_out(self, bge_small_en: Path, tmp_path: Path) -> None:
        done = _bge(bge_small_en, "--tasks", "BIOSSES", "-o", tmp_path)
        assert isinstance(done.exception, EvaluationDataError)
        assert "BIOSSES: its data can't be loaded from the hub" in str(done.exception)
        assert "give a folder with local data" in str(done.exception)

    def test_python_3_10_is_told_what_mteb_needs(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("bge_integrations.evaluation.mteb.library.sys", SimpleNamespace(version_info=(3, 10, 4)))
        done = _bge("some-model")
        assert isinstance(done.exception, MissingExtraError)
        assert "mteb needs Python 3.11 or newer, and this is Python 3.10." in str(done.exception)


class TestImports:
    def test_mteb_is_imported_for_a_run_only(self) -> None:
        loaded = modules_after("import bge_integrations.evaluation.mteb, bge_integrations.cli")
        assert not loaded & {"mteb", "datasets", "polars"}

    def test_without_mteb_the_error_says_what_to_install(self) -> None:
        code = """
from bge_integrations.evaluation.mteb.library import import_mteb
try:
    import_mteb()
except ImportError as error:
    sys.stdout.write(f"{type(error).__name__}: {error}")
"""
        said = run_python(code, without={"mteb"})
        assert said == "MissingExtraError: mteb is not installed. Install it with: pip install 'bge-integrations[mteb]'"


_DATA = os.environ.get("BGE_MTEB_DATA")


@pytest.mark.skipif(_DATA is None, reason="BGE_MTEB_DATA names no folder of MTEB's data")
def test_minilm_has_its_published_score(minilm: str, tmp_path: Path) -> None:
    encoder = BgeEncoder(minilm, device="cpu", on_truncation="ignore")
    report = run_mteb(as_mteb_model(encoder), tasks=["STS17"], data=_DATA, results=tmp_path)
    assert report.tasks["STS17"].published == pytest.approx(87.5878, abs=1e-3)
    assert report.tasks["STS17"].main_score == pytest.approx(87.5878, abs=0.02)
