"""Evaluation on one's own data: measures as trec_eval has them, formats, searchers, reports and comparisons."""

from __future__ import annotations

import gzip
import itertools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytrec_eval
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.documents import Document
from langchain_core.vectorstores import InMemoryVectorStore
from llama_index.core import VectorStoreIndex
from llama_index.core.schema import TextNode
from scipy import stats as scipy_stats
from sklearn import metrics as sk_metrics

from bge_integrations import BgeEncoder, BgeM3Encoder, BgeReranker
from bge_integrations.errors import BgeError, EvaluationDataError, EvaluationWarning, SettingsError
from bge_integrations.evaluation import (
    RetrievalData,
    RetrievalReport,
    compare,
    evaluate_classification,
    evaluate_pairs,
    evaluate_retrieval,
    load_retrieval_data,
)
from bge_integrations.evaluation.metrics import parse_metric, ranked
from bge_integrations.evaluation.searchers import Output
from bge_integrations.evaluation.statistics import bootstrap_interval, holm, randomization_p
from bge_integrations.langchain import BgeM3Reranker, HuggingFaceBgeEmbeddings
from bge_integrations.langchain import BgeReranker as LangChainReranker
from bge_integrations.llama_index import BgeM3Rerank, BgeRerank, HuggingFaceBgeEmbedding

_THEIRS = {"ndcg": "ndcg_cut_{}", "recall": "recall_{}", "map": "map_cut_{}", "precision": "P_{}", "hit": "success_{}"}
_CUTS = (1, 3, 10)
_CORPUS = {
    "d1": "the quick brown fox jumps over the lazy dog",
    "d2": "plants make sugar from light and water",
    "d3": "Paris is the capital of France",
    "d4": "a vector store keeps embeddings of documents",
    "d5": "北京天气很好",
    "d6": "Paris is the capital of France",
}
_QUERIES = {"q1": "a fox that jumps", "q2": "how do plants eat?", "q3": "where is Paris?"}
_QRELS = {"q1": {"d1": 2}, "q2": {"d2": 1, "d4": 0}, "q3": {"d3": 1, "d6": 1}}
_GRADES = st.dictionaries(st.integers(0, 12).map(str), st.integers(-1, 3), min_size=1).filter(
    lambda grades: any(grade > 0 for grade in grades.values())
)
_SCORES = st.dictionaries(
    st.integers(0, 12).map(str), st.sampled_from([0.0, 0.25, 0.25 + 1e-9, 0.5, -1.0]) | st.floats(-2, 2), min_size=1
)


@pytest.fixture
def data() -> RetrievalData:
    return RetrievalData(_QUERIES, _CORPUS, _QRELS, {"q1": "animals", "q2": "plants", "q3": "places"})


class TestMeasures:
    @settings(max_examples=300, deadline=None)
    @given(_GRADES, _SCORES)
    def test_equal_trec_evals(self, grades: dict[str, int], scores: dict[str, float]) -> None:
        cuts = ",".join(map(str, _CUTS))
        names = {f"{name}.{cuts}" for name in ("ndcg_cut", "recall", "map_cut", "P", "success")} | {"recip_rank"}
        expected = pytrec_eval.RelevanceEvaluator({"q": grades}, names).evaluate({"q": scores})["q"]
        ranking = ranked(scores)
        for (ours, theirs), cut in itertools.product(_THEIRS.items(), _CUTS):
            found = parse_metric(f"{ours}@{cut}").of(ranking, grades)
            assert found == pytest.approx(expected[theirs.format(cut)], abs=1e-9), (ours, cut)
        assert parse_metric("mrr@1000").of(ranking, grades) == pytest.approx(expected["recip_rank"], abs=1e-9)

    @pytest.mark.parametrize("name", ["ndcg", "ndcg@0", "ndgc@10", "ndcg@ten", ""])
    def test_unknown_ones_are_named(self, name: str) -> None:
        with pytest.raises(SettingsError, match="ndcg, recall, precision, mrr, map, hit"):
            parse_metric(name)


class TestStatistics:
    def test_the_interval_is_that_of_scipy(self) -> None:
        values = np.random.default_rng(3).normal(0.1, 1, 60)
        expected = scipy_stats.bootstrap(
            (values,), np.mean, method="percentile", n_resamples=20_000, rng=np.random.default_rng(0)
        ).confidence_interval
        assert bootstrap_interval(values.tolist()) == pytest.approx((expected.low, expected.high), abs=0.02)

    def test_the_p_value_is_that_of_all_signs(self) -> None:
        differences = [0.3, -0.1, 0.2, 0.25, 0.4, -0.05, 0.1, 0.15]
        means = [abs(np.dot(signs, differences)) for signs in itertools.product((-1, 1), repeat=len(differences))]
        exact = np.mean(np.array(means) >= abs(sum(differences)) - 1e-12)
        assert randomization_p(differences) == pytest.approx(exact, abs=0.01)
        assert randomization_p([0.0] * 5) == 1

    def test_holm(self) -> None:
        assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


def _write(folder: Path, name: str, rows: list[dict[str, Any]]) -> None:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    if name.endswith(".gz"):
        (folder / name).write_bytes(gzip.compress(text.encode()))
    else:
        (folder / name).write_text(text, encoding="utf-8")


def _beir(folder: Path, qrels: str, *, zipped: bool = False) -> Path:
    ending = ".gz" if zipped else ""
    corpus = [{"_id": id_, "title": "", "text": text} for id_, text in _CORPUS.items()]
    _write(folder, f"corpus.jsonl{ending}", corpus)
    queries = [{"_id": id_, "text": text} for id_, text in _QUERIES.items()]
    _write(folder, f"queries.jsonl{ending}", [*queries, {"_id": "train", "text": "of another split"}])
    (folder / "qrels").mkdir()
    (folder / "qrels" / "test.tsv").write_text(qrels)
    return folder


_ROWS = [(query, document, grade) for query, grades in _QRELS.items() for document, grade in grades.items()]
_TSV = "".join(f"{query}\t{document}\t{grade}\n" for query, document, grade in _ROWS)


class TestFormats:
    @pytest.mark.parametrize(
        "qrels",
        [
            pytest.param(f"query-id\tcorpus-id\tscore\n{_TSV}", id="header"),
            pytest.param(_TSV, id="no header"),
            pytest.param("".join(f"{q} 0 {d} {g}\n" for q, d, g in _ROWS), id="TREC"),
        ],
    )
    @pytest.mark.parametrize("zipped", [False, True])
    def test_beir(self, tmp_path: Path, data: RetrievalData, qrels: str, zipped: bool) -> None:
        assert load_retrieval_data(_beir(tmp_path, qrels, zipped=zipped)).digest == data.digest

    def test_flag_embedding(self, tmp_path: Path, data: RetrievalData) -> None:
        _write(tmp_path, "corpus.jsonl", [{"id": i, "title": "", "text": text} for i, text in _CORPUS.items()])
        _write(tmp_path, "dev_queries.jsonl", [{"id": i, "text": text} for i, text in _QUERIES.items()])
        _write(tmp_path, "dev_qrels.jsonl", [{"qid": q, "docid": d, "relevance": g} for q, d, g in _ROWS])
        assert load_retrieval_data(tmp_path, "dev").digest == data.digest

    def test_llama_index(self, tmp_path: Path) -> None:
        relevant = {query: [d for d, grade in grades.items() if grade] for query, grades in _QRELS.items()}
        content = {"queries": _QUERIES, "corpus": _CORPUS, "relevant_docs": relevant, "mode": "text"}
        (tmp_path / "set.json").write_text(json.dumps(content))
        found = load_retrieval_data(tmp_path / "set.json")
        assert found.qrels == {"q1": {"d1": 1}, "q2": {"d2": 1}, "q3": {"d3": 1, "d6": 1}}

    def test_query_pos_neg(self, tmp_path: Path) -> None:
        rows = [
            {"query": "one", "pos": ["a", "b"], "neg": ["c"]},
            {"query": "two", "pos": ["c"], "neg": ["a", "d"]},
        ]
        _write(tmp_path, "train.jsonl", rows)
        found = load_retrieval_data(tmp_path / "train.jsonl")
        assert sorted(found.corpus.values()) == ["a", "b", "c", "d"]
        texts = {
            found.queries[q]: {found.corpus[d]: grade for d, grade in grades.items()}
            for q, grades in found.qrels.items()
        }
        assert texts == {"one": {"a": 1, "b": 1, "c": 0}, "two": {"c": 1, "a": 0, "d": 0}}
        assert found.candidates is not None

    def test_titles_come_first(self, tmp_path: Path) -> None:
        folder = _beir(tmp_path, "q1\td1\t1\n")
        _write(folder, "corpus.jsonl", [{"_id": "d1", "title": "Foxes", "text": "jump"}])
        assert load_retrieval_data(folder).corpus == {"d1": "Foxes jump"}

    def test_saved_ones_are_read_again(self, tmp_path: Path, data: RetrievalData) -> None:
        again = load_retrieval_data(data.save(tmp_path / "saved"))
        assert (again.digest, again.groups) == (data.digest, data.groups)


class TestMistakes:
    @pytest.mark.parametrize(
        ("edit", "said"),
        [
            (
                lambda f: (f / "qrels" / "test.tsv").write_text(_TSV + "q9\td1\t1\n"),
                r"test\.tsv, line 6: q9 names a query",
            ),
            (
                lambda f: (f / "qrels" / "test.tsv").write_text(_TSV + "q1\td9\t1\n"),
                r"test\.tsv, line 6: d9 names a docu",
            ),
            (
                lambda f: (f / "qrels" / "test.tsv").write_text("q1\td1\t0\n"),
                r"line 1: q1 is a query without a relevant",
            ),
            (lambda f: (f / "qrels" / "test.tsv").write_text("q1\td1\thigh\n"), r"line 1: the grade is 'high'"),
            (lambda f: (f / "qrels" / "test.tsv").write_text("q1\td1\n"), r"line 1 has 2 columns"),
            (lambda f: (f / "qrels" / "test.tsv").write_text(_TSV + "q1\td1\t1\n"), r"line 6: 'd1' has a grade"),
            (lambda f: (f / "qrels" / "test.tsv").unlink(), r"no qrels/test\.tsv"),
            (
                lambda f: _write(f, "corpus.jsonl", [{"_id": "d1", "text": "a"}] * 2),
                r"corpus\.jsonl, line 2: the id 'd1'",
            ),
            (
                lambda f: _write(f, "corpus.jsonl", [{"_id": "d1", "text": " "}]),
                r"corpus\.jsonl, line 1: d1 has no text",
            ),
            (lambda f: _write(f, "corpus.jsonl", [{"text": "a"}]), r"line 1 has no _id or id"),
            (lambda f: _write(f, "corpus.jsonl", [{"_id": "d1", "text": 3}]), r"line 1: text is 3"),
            (lambda f: (f / "corpus.jsonl").write_text("{"), r"corpus\.jsonl, line 1 is no JSON"),
            (lambda f: (f / "corpus.jsonl").write_bytes(b"\xff\xfe"), r"can't be read as UTF-8"),
            (lambda f: (f / "corpus.jsonl").unlink(), r"no corpus\.jsonl"),
        ],
    )
    def test_name_the_file_the_line_and_the_id(self, tmp_path: Path, edit: Callable[[Path], None], said: str) -> None:
        folder = _beir(tmp_path, "q1\td1\t1\n" if "corpus" in said else _TSV)
        edit(folder)
        with pytest.raises(EvaluationDataError, match=said):
            load_retrieval_data(folder)

    def test_of_data_in_memory(self) -> None:
        with pytest.raises(EvaluationDataError, match=r"data, qrels\['q1'\]\['d9'\]: d9 names a document"):
            RetrievalData({"q1": "a"}, {"d1": "b"}, {"q1": {"d9": 1}})
        with pytest.raises(EvaluationDataError, match="There is no file or folder"):
            load_retrieval_data("nowhere")


def _expected(encoder: BgeEncoder) -> dict[str, list[str]]:
    queries, documents = encoder.encode_queries(_QUERIES.values()), encoder.encode_documents(_CORPUS.values())
    scores = dict(zip(_QUERIES, queries @ documents.T, strict=True))
    return {query: ranked(dict(zip(_CORPUS, map(float, row), strict=True))) for query, row in scores.items()}


class TestSearchers:
    def test_of_every_kind_find_the_same(self, bge_small_en: Path, data: RetrievalData) -> None:
        encoder = BgeEncoder(bge_small_en, device="cpu")
        langchain = HuggingFaceBgeEmbeddings(model_name=str(bge_small_en), model_kwargs={"device": "cpu"})
        llama = HuggingFaceBgeEmbedding(str(bge_small_en), device="cpu")
        store = InMemoryVectorStore(langchain)
        store.add_documents([Document(text, metadata={"id": id_}) for id_, text in _CORPUS.items()])
        index = VectorStoreIndex([TextNode(id_=id_, text=text) for id_, text in _CORPUS.items()], embed_model=llama)
        expected = _expected(encoder)
        # d3 and d6 have one text: which comes first is the store's choice, and one of them has no id of its own there.
        for searcher in (
            encoder,
            langchain,
            llama,
            store.as_retriever(search_kwargs={"k": 6}),
            index.as_retriever(similarity_top_k=6),
        ):
            report = evaluate_retrieval(searcher, data)
            for query, ids in expected.items():
                found = [_CORPUS[document] for document in report.run[query]]
                assert found == [_CORPUS[document] for document in ids], type(searcher)
        assert list(evaluate_retrieval(encoder, data).run["q3"]) == expected["q3"]

    def test_functions(self, data: RetrievalData) -> None:
        answers = {"a fox that jumps": ["d1"], "how do plants eat?": {"d4": 2.0, "d2": 1.0}, "where is Paris?": []}
        report = evaluate_retrieval(answers.__getitem__, data, metrics=["mrr@10", "hit@1"])
        assert report.per_query == {
            "mrr@10": {"q1": 1.0, "q2": 0.5, "q3": 0.0},
            "hit@1": {"q1": 1.0, "q2": 0.0, "q3": 0.0},
        }
        assert report.by_group("mrr@10") == {"animals": 1.0, "places": 0.0, "plants": 0.5}

    def test_identical_ids_are_dropped_before_the_cut(self) -> None:
        texts = {"a": "fox", "b": "dog"}
        own = RetrievalData(texts, texts, {"a": {"b": 1}, "b": {"a": 1}})
        vectors = lambda texts: [[float(text == "fox"), 1.0] for text in texts]  # noqa: E731

        class Embeddings:
            encode_queries = encode_documents = staticmethod(vectors)

        assert evaluate_retrieval(Embeddings(), own, metrics=["hit@1"]).metrics == {"hit@1": 0.0}
        found = evaluate_retrieval(Embeddings(), own, metrics=["hit@1"], depth=1, ignore_identical_ids=True)
        assert found.metrics == {"hit@1": 1.0}

    @settings(max_examples=60, deadline=None)
    @given(st.integers(0, 10_000), st.integers(1, 12))
    def test_blocks_and_ties_give_what_sorting_all_gives(self, seed: int, depth: int) -> None:
        generator = np.random.default_rng(seed)
        texts = {str(i): f"text {generator.integers(0, 12)}" for i in range(20)}
        table = {f"text {i}": generator.integers(0, 3, 4).astype(float) for i in range(12)}
        asked = {f"q{i}": f"query {i}" for i in range(3)}
        table |= {text: generator.integers(0, 3, 4).astype(float) for text in asked.values()}

        class Embeddings:
            @staticmethod
            def encode_queries(texts: list[str]) -> list[Any]:
                return [table[text] for text in texts]

            encode_documents = encode_queries

        own = RetrievalData(asked, texts, {query: {"0": 1} for query in asked})
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("bge_integrations.evaluation.searchers._BLOCK", 3)
            patch.setattr("bge_integrations.evaluation.ranking._SCORES_AT_ONCE", 4)
            found = evaluate_retrieval(Embeddings(), own, depth=depth, metrics=["hit@1"], similarity="dot").run
        for query, text in asked.items():
            scores = {id_: float(table[text] @ table[one]) for id_, one in texts.items()}
            assert list(found[query]) == ranked(scores, depth)

    @pytest.mark.parametrize("output", ["dense", "sparse", "colbert", "mixed"])
    def test_m3_scores_as_the_encoder_does(
        self, bge_m3: Path, data: RetrievalData, output: Output, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("bge_integrations.evaluation.m3_search._CHARACTERS", 60)  # several blocks
        m3 = BgeM3Encoder(bge_m3, device="cpu")
        weights = {"dense": (1, 0, 0), "sparse": (0, 1, 0), "colbert": (0, 0, 1), "mixed": (0.2, 0.5, 0.3)}[output]
        report = evaluate_retrieval(m3, data, output=output, weights=weights if output == "mixed" else None)
        for query, text in _QUERIES.items():
            scores = dict(zip(_CORPUS, m3.score(text, _CORPUS.values(), weights=weights), strict=True))
            expected = {id_: float(score) for id_, score in scores.items() if score > 0 or output != "sparse"}
            assert set(report.run[query]) == set(expected)
            assert report.run[query] == {id_: pytest.approx(expected[id_], abs=1e-5) for id_ in report.run[query]}
            assert list(report.run[query].values()) == sorted(report.run[query].values(), reverse=True)

    def test_retrievers_that_return_few_are_told(self, bge_small_en: Path, data: RetrievalData) -> None:
        store = InMemoryVectorStore(
            HuggingFaceBgeEmbeddings(model_name=str(bge_small_en), model_kwargs={"device": "cpu"})
        )
        store.add_documents([Document(text, metadata={"id": id_}) for id_, text in _CORPUS.items()])
        with pytest.warns(EvaluationWarning, match="at most 4 documents"):
            evaluate_retrieval(store.as_retriever(), data)
        # As many as the deepest metric looks at are enough, although `depth` is larger.
        evaluate_retrieval(store.as_retriever(), data, metrics=["ndcg@3", "recall@4"])

    def test_a_report_is_reranked(self, bge_small_en: Path, bge_reranker_base: Path, data: RetrievalData) -> None:
        found = evaluate_retrieval(BgeEncoder(bge_small_en, device="cpu"), data)
        again = evaluate_retrieval(found, data)
        assert again.run == found.run
        assert again.settings["searcher"] == found.settings["searcher"]
        assert again.tokens is None
        other = RetrievalData(_QUERIES, _CORPUS, {**_QRELS, "q1": {"d2": 1}})
        with pytest.raises(EvaluationDataError, match="other data"):
            evaluate_retrieval(found, other)

    def test_rerankers_of_every_kind_score_the_same(
        self, bge_small_en: Path, bge_reranker_base: Path, bge_m3: Path, data: RetrievalData
    ) -> None:
        found = evaluate_retrieval(BgeEncoder(bge_small_en, device="cpu"), data)
        reranker, m3 = BgeReranker(bge_reranker_base, device="cpu"), BgeM3Encoder(bge_m3, device="cpu")
        weights = (0.1, 0.2, 0.7)
        of_m3 = lambda query, texts: m3.score(query, texts, weights=weights)  # noqa: E731
        for expected, those in (
            (
                reranker.score,
                [
                    reranker,
                    LangChainReranker(model_name=str(bge_reranker_base), model_kwargs={"device": "cpu"}),
                    BgeRerank(model=str(bge_reranker_base), device="cpu"),
                ],
            ),
            (
                of_m3,
                [
                    BgeM3Reranker(model_name=str(bge_m3), device="cpu", weights=weights),
                    BgeM3Rerank(model_name=str(bge_m3), device="cpu", weights=weights),
                ],
            ),
        ):
            right = evaluate_retrieval(found, data, reranker=expected).run
            for one in those:
                run = evaluate_retrieval(found, data, reranker=one).run
                for query, scores in right.items():
                    assert run[query] == {id_: pytest.approx(scores[id_], abs=1e-5) for id_ in run[query]}, type(one)

    @pytest.mark.parametrize(
        "reranker", [3, BgeReranker, lambda *_: [1.0], lambda _, texts: [float("nan") for _ in texts]]
    )
    def test_what_can_not_rerank_is_named(self, data: RetrievalData, reranker: object) -> None:
        with pytest.raises(SettingsError, match=r"can't score texts|1 scores for 2 texts|NaN"):
            evaluate_retrieval(lambda _: ["d1", "d2"], data, reranker=reranker)

    def test_a_reranker_on_top_and_alone(
        self, bge_small_en: Path, bge_reranker_base: Path, data: RetrievalData
    ) -> None:
        reranker = BgeReranker(bge_reranker_base, device="cpu")
        on_top = evaluate_retrieval(BgeEncoder(bge_small_en, device="cpu"), data, reranker=reranker)
        scores = reranker.score(_QUERIES["q1"], _CORPUS.values())
        assert list(on_top.run["q1"]) == ranked(dict(zip(_CORPUS, map(float, scores), strict=True)))
        candidates = RetrievalData(
            _QUERIES, _CORPUS, _QRELS, candidates={"q1": ["d2", "d1"], "q2": ["d2"], "q3": ["d3"]}
        )
        alone = evaluate_retrieval(None, candidates, reranker=reranker)
        assert set(alone.run["q1"]) == {"d1", "d2"}
        with pytest.raises(SettingsError, match="needs data with candidates"):
            evaluate_retrieval(None, data, reranker=reranker)

    @pytest.mark.parametrize("searcher", [BgeEncoder, 3, lambda _: ["d99"], lambda _: [Document("unknown")]])
    def test_what_can_not_search_is_named(self, data: RetrievalData, searcher: object) -> None:
        with pytest.raises(BgeError, match=r"can't be evaluated|not in the corpus"):
            evaluate_retrieval(searcher, data)


class TestReports:
    def test_are_saved_and_read(self, bge_small_en: Path, data: RetrievalData, tmp_path: Path) -> None:
        report = evaluate_retrieval(BgeEncoder(bge_small_en, device="cpu"), data)
        report.save(tmp_path / "report.json")
        again = RetrievalReport.load(tmp_path / "report.json")
        assert again == report
        assert again.run == report.run
        assert report.tokens_per_second
        assert report.settings["searcher"]["query_instruction"].startswith("Represent this sentence")
        low, high = report.interval("ndcg@10")
        assert low <= report.metrics["ndcg@10"] <= high
        assert "| ndcg@10 |" in report.to_markdown(["ndcg@10"])
        assert report.trec_run().splitlines()[0].split()[:2] == ["q1", "Q0"]
        (tmp_path / "other.json").write_text("{}")
        with pytest.raises(EvaluationDataError, match="no report"):
            RetrievalReport.load(tmp_path / "other.json")

    def test_are_compared(self, data: RetrievalData) -> None:
        right = evaluate_retrieval(
            {text: list(_QRELS[q]) for q, text in _QUERIES.items()}.__getitem__, data, name="right"
        )
        wrong = evaluate_retrieval(lambda _: ["d5"], data, name="wrong")
        found = compare(right, wrong)
        assert (found.wins, found.losses, found.ties) == (0, 3, 0)
        assert found.difference == pytest.approx(wrong.metrics["ndcg@10"] - right.metrics["ndcg@10"])
        assert "worse" in found.in_words()
        assert len(found.worst(2)) == 2
        assert found.overlap == 0  # "wrong" finds only d5, which "right" never finds
        values = list(found.differences.values())
        assert found.detectable == pytest.approx(2.801585 * np.std(values, ddof=1) / np.sqrt(3))
        assert compare(right, right).overlap == 1
        several = compare(right, [wrong, right])
        assert several[1].p == 1
        other = RetrievalData(_QUERIES, _CORPUS, {**_QRELS, "q1": {"d2": 1}})
        with pytest.raises(EvaluationDataError, match="other data"):
            compare(right, evaluate_retrieval(lambda _: ["d1"], other))


class TestPairsAndClasses:
    def test_pairs(self, bge_small_en: Path) -> None:
        encoder = BgeEncoder(bge_small_en, device="cpu")
        pairs = list(itertools.combinations(_CORPUS.values(), 2))
        gold = [float(index % 5) for index in range(len(pairs))]
        left, right = (encoder.encode([pair[side] for pair in pairs]) for side in (0, 1))
        expected = scipy_stats.spearmanr(np.round((left * right).sum(1), 6), gold).statistic
        assert evaluate_pairs(encoder, pairs, gold).spearman == pytest.approx(expected, abs=1e-6)
        labels = [index % 2 for index in range(len(pairs))]
        precision = sk_metrics.average_precision_score(labels, np.round((left * right).sum(1), 6))
        assert evaluate_pairs(encoder, pairs, labels).average_precision == pytest.approx(precision, abs=1e-6)
        with pytest.raises(EvaluationDataError, match="All scores are equal"):
            evaluate_pairs(encoder, pairs, [1] * len(pairs))

    def test_classes(self) -> None:
        texts = [f"{label} {index}" for index in range(20) for label in ("cat", "dog")]
        labels = [text.split()[0] for text in texts]

        def embed(texts: list[str]) -> list[list[float]]:
            return [[float("cat" in text), float("dog" in text)] for text in texts]

        report = evaluate_classification(embed, (texts, labels), (["a cat", "the dog"], ["cat", "dog"]))
        assert (report.accuracy, len(report.accuracies), report.labels) == (1.0, 10, 2)
        with pytest.raises(EvaluationDataError, match="'cow' of a test text has no training text"):
            evaluate_classification(embed, (texts, labels), (["a cow"], ["cow"]))


_DATA = os.environ.get("BGE_MTEB_DATA")


@pytest.mark.skipif(_DATA is None, reason="BGE_MTEB_DATA names no folder of MTEB's data")
class TestPublishedScores:
    """Of all-MiniLM-L6-v2, in the results repository of MTEB."""

    @staticmethod
    def _rows(name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (Path(_DATA or "") / name).read_text(encoding="utf-8").splitlines()]

    def test_sts17(self, minilm: str) -> None:
        rows = self._rows("STS17-en-en/test.jsonl")
        encoder = BgeEncoder(minilm, device="cpu", on_truncation="ignore")
        report = evaluate_pairs(
            encoder, [(row["sentence1"], row["sentence2"]) for row in rows], [row["score"] for row in rows]
        )
        assert 100 * report.spearman == pytest.approx(87.5878, abs=0.02)

    def test_amazon_counterfactual(self, minilm: str) -> None:
        train, test = (self._rows(f"AmazonCounterfactualClassification/{split}.jsonl") for split in ("train", "test"))
        parts = [([row["text"] for row in rows], [row["label"] for row in rows]) for rows in (train, test)]
        encoder = BgeEncoder(minilm, device="cpu", on_truncation="ignore")
        report = evaluate_classification(encoder, *parts, samples_per_label=32)
        assert 100 * report.accuracy == pytest.approx(63.6418, abs=0.02)
