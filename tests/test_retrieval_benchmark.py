"""The comparison of searches: its fusion on hand-made rankings, its reranking, and a small run of it.

Its measures are those of `bge_integrations.evaluation`; see `test_evaluation.py`.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import struct
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytrec_eval
from numpy.typing import NDArray

import bge_integrations
from benchmarks.docstrings.corpus import collect
from benchmarks.fusion import reciprocal_rank_fusion
from benchmarks.questions import QUESTIONS
from benchmarks.questions.written import written_rows
from benchmarks.retrieval import METRICS, as_data, differences, main, report_of, run, select_entries, spread_out
from benchmarks.retrieval_report import draw, notes
from benchmarks.searches import by_vectors, by_words, fused, make_searches, reranked
from bge_integrations import BgeEncoder
from bge_integrations.errors import EvaluationDataError
from bge_integrations.evaluation import RetrievalData, RetrievalReport
from bge_integrations.training import TrainingData, leakage

REPOSITORY = Path(__file__).parents[1]
PLAIN, RERANKED = ("BM25", "dense", "hybrid"), ("BM25 + reranker", "dense + reranker", "hybrid + reranker")
PASSAGES = (
    "a dog sleeps in the sun",
    "the quick fox jumps over a lazy dog",
    "vectors are compared by their cosine",
    "a fox is quick",
)


def longest_first(query: str, passages: list[str]) -> list[int]:
    """A reranker whose order nobody else would come up with."""
    return [len(passage) for passage in passages]


def trec_evals_ndcg(ranking: Sequence[str], answers: Collection[str]) -> float:
    evaluator = pytrec_eval.RelevanceEvaluator({"q": dict.fromkeys(answers, 1)}, {"ndcg_cut.10"})
    found = evaluator.evaluate({"q": {name: -float(place) for place, name in enumerate(ranking)}})
    return float(found["q"]["ndcg_cut_10"]) if found else 0.0


def png_size(file: Path) -> tuple[int, int]:
    content = file.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", content[16:24])
    return width, height


class TestFusion:
    def test_scores_are_those_computed_by_hand(self) -> None:
        ranked = reciprocal_rank_fusion([["a", "b", "c"], ["c", "a", "d"]])
        assert [item for item, _ in ranked] == ["a", "c", "b", "d"]
        expected = [1 / 61 + 1 / 62, 1 / 63 + 1 / 61, 1 / 62, 1 / 63]
        assert [score for _, score in ranked] == pytest.approx(expected, abs=1e-15)

    def test_of_equal_scores_the_earlier_ranking_and_the_better_rank_come_first(self) -> None:
        ranked = reciprocal_rank_fusion([["a", "b"], ["c", "d"]])
        assert [item for item, _ in ranked] == ["a", "c", "b", "d"]
        assert ranked[0][1] == ranked[1][1] == 1 / 61
        assert [item for item, _ in reciprocal_rank_fusion([["a", "b"], ["b", "a"]])] == ["a", "b"]

    def test_equal_ranks_are_equal_whichever_rankings_they_are_in(self) -> None:
        one, two, three = ["a", "b", "c"], ["b", "c", "a"], ["c", "a", "b"]
        assert len({score for _, score in reciprocal_rank_fusion([one, two, three], k=0.3)}) == 1

    def test_a_smaller_k_lets_the_first_rank_win(self) -> None:
        rankings = [["a", "b", "c"], ["d", "b", "c"]]
        assert reciprocal_rank_fusion(rankings)[0][0] == "b"
        assert reciprocal_rank_fusion(rankings, k=0)[0] == ("a", 1.0)

    def test_one_ranking_keeps_its_order_and_none_gives_nothing(self) -> None:
        assert [item for item, _ in reciprocal_rank_fusion([["b", "a"], []])] == ["b", "a"]
        assert reciprocal_rank_fusion([]) == []

    def test_a_negative_k_is_refused(self) -> None:
        with pytest.raises(ValueError, match="k=-1"):
            reciprocal_rank_fusion([["a"]], k=-1)


class TestSearches:
    def test_words_are_scored_as_by_lucenes_bm25(self) -> None:
        """Against the formula of Kamphuis et al. 2020, and without what shares no word with the query."""
        documents = [
            [word for word in passage.split() if word not in {"a", "in", "the", "are", "by", "their", "is"}]
            for passage in PASSAGES
        ]
        mean = sum(map(len, documents)) / len(documents)

        def score(words: list[str], query: str) -> float:
            total = 0.0
            for word in query.split():
                containing = sum(word in document for document in documents)
                weight = np.log1p((len(documents) - containing + 0.5) / (containing + 0.5))
                count = words.count(word)
                total += weight * count / (count + 1.5 * (1 - 0.75 + 0.75 * len(words) / mean))
            return total

        scores = [score(document, "quick dog") for document in documents]
        expected = [index for index in np.argsort(-np.array(scores)).tolist() if scores[index] > 0]
        assert set(expected) == {0, 1, 3}
        assert by_words(PASSAGES, 10)("Quick dog?") == expected
        assert by_words(PASSAGES, 1)("quick dog") == expected[:1]

    @pytest.mark.parametrize("query", ["", "?", "the", "zebra", "把列表随机打乱"])
    def test_words_that_no_passage_has_find_nothing(self, query: str) -> None:
        assert by_words(PASSAGES, 10)(query) == []

    def test_vectors_find_the_nearest(self, bge_small_en: Path) -> None:
        encoder = BgeEncoder(bge_small_en, query_instruction="")
        search = by_vectors(PASSAGES, encoder, 2)
        for position, passage in enumerate(PASSAGES):
            found = search(passage)
            assert found[0] == position
            assert len(found) == 2

    def test_hybrid_search_fuses_both_and_keeps_to_the_depth(self) -> None:
        search = fused([lambda _: [0, 1, 2], lambda _: [2, 0, 3]], 3)
        assert search("anything") == [0, 2, 1]

    def test_a_reranker_decides_the_order_of_what_was_found(self) -> None:
        found = [3, 0, 1]
        assert reranked(lambda _: found, PASSAGES, longest_first)("quick") == [1, 0, 3]
        assert found == [3, 0, 1]

    def test_a_reranker_is_given_the_query_and_the_passages_in_the_order_found(self) -> None:
        asked: list[tuple[str, list[str]]] = []

        def rerank(query: str, passages: list[str]) -> NDArray[np.float32]:
            asked.append((query, passages))
            return np.zeros(len(passages), dtype=np.float32)

        assert reranked(lambda _: [2, 0], PASSAGES, rerank)("what?") == [2, 0]
        assert asked == [("what?", [PASSAGES[2], PASSAGES[0]])]

    def test_a_reranker_is_not_bothered_with_nothing(self) -> None:
        def rerank(query: str, passages: list[str]) -> list[float]:
            raise AssertionError("nothing was found")

        assert reranked(lambda _: [], PASSAGES, rerank)("what?") == []

    def test_every_search_is_there_with_and_without_a_reranker(self, bge_small_en: Path) -> None:
        encoder = BgeEncoder(bge_small_en)
        assert tuple(make_searches(PASSAGES, encoder, depth=3)) == PLAIN
        searches = make_searches(PASSAGES, encoder, depth=3, rerank=longest_first)
        assert tuple(searches) == (*PLAIN, *RERANKED)
        for name in PLAIN:
            plain, changed = searches[name]("the quick dog"), searches[f"{name} + reranker"]("the quick dog")
            assert changed == sorted(plain, key=lambda position: -len(PASSAGES[position]))
        assert searches["BM25"]("fox sleeps") == [0, 3, 1]
        assert searches["BM25 + reranker"]("fox sleeps") == [1, 0, 3]


@dataclass(frozen=True)
class Run:
    results: dict[str, Any]
    printed: str
    file: Path
    chart: Path


def run_command(folder: Path, *arguments: str) -> Run:
    """Runs the command on six questions, and on those passages alone that answer some labelled question."""
    file, charts = folder / "results" / "retrieval.json", folder / "charts"
    options = ["--questions", "6", "--limit", "1", "--output", str(file), "--charts", str(charts), *arguments]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        main(options)
    return Run(json.loads(file.read_text(encoding="utf-8")), printed.getvalue(), file, charts / "retrieval.png")


@pytest.fixture(scope="module")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run_command(tmp_path_factory.mktemp("retrieval"))


@pytest.mark.slow
def test_bge_m3_searches_by_its_weights_and_reranks_by_its_token_vectors(tmp_path: Path) -> None:
    run = run_command(tmp_path, "--m3", "stand-in")
    searches = run.results["searches"]
    assert set(searches) == {
        f"{name}{suffix}" for name in (*PLAIN, "lexical", "lexical + dense") for suffix in ("", " + reranker")
    }
    assert run.results["reranker"] == "token vectors of stand-in"
    assert searches["lexical"]["ndcg@10"] > 0.3
    assert searches["lexical"]["rankings"] != searches["BM25"]["rankings"]
    assert searches["dense + reranker"]["rankings"] != searches["dense"]["rankings"]
    assert ("lexical + dense", "dense") in {(pair["search"], pair["baseline"]) for pair in run.results["differences"]}
    assert "stand-in for bge-m3 is MiniLM" in run.printed
    assert run.chart.is_file()


class TestSmallRun:
    def test_every_search_is_measured_on_every_question(self, small_run: Run) -> None:
        results = small_run.results
        assert len(results["questions"]) == sum(results["kinds"].values()) == 6
        assert tuple(results["searches"]) == PLAIN
        for search in results["searches"].values():
            assert all(0 <= search[measure] <= 1 for measure in METRICS)
            assert set(search["ndcg@10_by_kind"]) == set(results["kinds"])
            assert 0 < search["latency_ms"]["p50"] <= search["latency_ms"]["p95"]
            assert len(search["rankings"]) == 6

    def test_the_measures_follow_from_the_rankings_that_were_saved(self, small_run: Run) -> None:
        questions = small_run.results["questions"]
        for search in small_run.results["searches"].values():
            first = [ranking[:1] for ranking in search["rankings"]]
            hits = [bool(set(q["answers"]) & set(names)) for q, names in zip(questions, first, strict=True)]
            assert search["hit@1"] == pytest.approx(sum(hits) / 6)
            ranked = zip(questions, search["rankings"], strict=True)
            scores = [trec_evals_ndcg(names, q["answers"]) for q, names in ranked]
            low, high = search["ndcg@10_interval"]
            assert low <= search["ndcg@10"] <= high
            assert search["ndcg@10"] == pytest.approx(sum(scores) / 6)
            for kind, mean in search["ndcg@10_by_kind"].items():
                of_kind = [score for q, score in zip(questions, scores, strict=True) if q["kind"] == kind]
                assert mean == pytest.approx(sum(of_kind) / len(of_kind))

    def test_real_weights_find_most_answers_among_few_passages(self, small_run: Run) -> None:
        assert small_run.results["searches"]["dense"]["recall@10"] > 0.5
        assert "all-MiniLM-L6-v2" in small_run.results["model"]

    def test_hybrid_search_is_compared_with_either_part(self, small_run: Run) -> None:
        searches = small_run.results["searches"]
        for pair, baseline in zip(small_run.results["differences"], ("dense", "BM25"), strict=True):
            assert (pair["search"], pair["baseline"]) == ("hybrid", baseline)
            assert pair["mean"] == pytest.approx(searches["hybrid"]["ndcg@10"] - searches[baseline]["ndcg@10"])
            assert pair["low"] <= pair["mean"] <= pair["high"]
            assert pair["wins"] + pair["losses"] + pair["ties"] == 6
            assert 0 < pair["p"] <= 1

    def test_tables_show_the_figures_and_what_they_can_not_say(self, small_run: Run) -> None:
        printed = " ".join(small_run.printed.split())
        for name, search in small_run.results["searches"].items():
            assert re.search(f"{name} +{search['ndcg@10']:.3f}", printed)
        for kind in small_run.results["kinds"]:
            assert kind in printed
        assert small_run.results["noise"]["verdict"] in printed
        assert "is not a BGE model" in printed
        assert "nothing is said of reranking" in printed

    def test_nothing_names_the_machine_or_its_folders(self, small_run: Run) -> None:
        text = small_run.file.read_text(encoding="utf-8")
        assert str(small_run.file.parent) not in text
        assert str(REPOSITORY) not in text
        assert small_run.results["machine"]["versions"]["bm25s"]

    def test_the_chart_is_a_png_that_fits_a_page(self, small_run: Run) -> None:
        width, height = png_size(small_run.chart)
        assert width == 1800
        assert height > 600

    def test_options_that_leave_nothing_to_measure_are_refused(self, capsys: pytest.CaptureFixture[str]) -> None:
        for options in (["--questions", "0"], ["--questions", "100000"], ["--depth", "9"]):
            with pytest.raises(SystemExit):
                main(options)
            assert f"{options[0]} must be" in capsys.readouterr().err


class TestReranking:
    @pytest.mark.slow
    def test_one_that_knows_the_answers_puts_them_first(self, minilm: str) -> None:
        entries, questions = select_entries(collect(), 1), spread_out(QUESTIONS, 6)
        names = {entry.text: entry.name for entry in entries}
        answers = {question.text: question.answers for question in questions}

        def rerank(query: str, passages: list[str]) -> list[float]:
            return [float(names[passage] in answers[query]) for passage in passages]

        encoder = BgeEncoder(minilm)
        results = run(entries, questions, encoder, depth=50, rerank=rerank)
        for plain, changed in zip(PLAIN, RERANKED, strict=True):
            before, after = results["searches"][plain], results["searches"][changed]
            assert before["ndcg@10"] < after["ndcg@10"]
            for question, old, new in zip(questions, before["rankings"], after["rankings"], strict=True):
                right = [name in question.answers for name in new]
                assert right == sorted(right, reverse=True)
                assert sum(right) >= sum(name in question.answers for name in old)
        pairs = [(pair["search"], pair["baseline"]) for pair in results["differences"]]
        assert pairs == [("hybrid", "dense"), ("hybrid", "BM25"), *zip(RERANKED, PLAIN, strict=True)]

    @pytest.mark.filterwarnings("ignore::bge_integrations.TruncationWarning")  # the tiny model reads 64 tokens
    def test_the_command_loads_the_reranker_named(
        self, tmp_path: Path, bge_small_en: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        loaded = []

        class Reranker:
            def __init__(self, model_name: str) -> None:
                loaded.append(model_name)

            def score(self, query: str, passages: list[str]) -> NDArray[np.float32]:
                return np.array(longest_first(query, passages), dtype=np.float32)

        monkeypatch.setattr(bge_integrations, "BgeReranker", Reranker, raising=False)
        (tmp_path / "bge-reranker-base").mkdir()
        named = str(tmp_path / "bge-reranker-base")
        finished = run_command(tmp_path, "--reranker", named, "--model", str(bge_small_en), "--depth", "10")
        assert loaded == [named]
        assert finished.results["reranker"] == "bge-reranker-base"
        assert finished.results["model"] == "bge-small-en-v1.5"
        assert not any("not a BGE model" in note or "No reranker" in note for note in notes(finished.results))
        lengths = {entry.name: len(entry.text) for entry in collect()}
        for name in RERANKED:
            for ranking in finished.results["searches"][name]["rankings"]:
                ordered = [lengths[answer] for answer in ranking]
                assert ordered == sorted(ordered, reverse=True)
        assert png_size(finished.chart)[0] == 1800

    def test_its_gain_is_drawn(self, small_run: Run, tmp_path: Path) -> None:
        searches = small_run.results["searches"]
        moved = {f"{name} + reranker": search for name, search in searches.items()}
        with_gain = {**small_run.results, "searches": {**searches, **moved}}
        plain, changed = draw(small_run.results, tmp_path / "plain"), draw(with_gain, tmp_path / "changed")
        assert plain.read_bytes() != changed.read_bytes()


def by_hand(name: str, *scores: float) -> RetrievalReport:
    """A report with the nDCG of each question."""
    per_query = {"ndcg@10": {f"q{number}": score for number, score in enumerate(scores)}}
    return RetrievalReport(name=name, data="data", digest="0", depth=10, per_query=per_query)


class TestDifferences:
    def test_they_are_those_of_the_same_question(self) -> None:
        reports = [by_hand("BM25", 0.0, 1.0), by_hand("dense", 1.0, 0.0), by_hand("hybrid", 1.0, 0.5)]
        [with_dense, with_words] = differences({report.name: report for report in reports})
        assert (with_dense["mean"], with_words["mean"]) == (0.25, 0.25)
        assert (with_dense["low"], with_dense["high"]) == (0.0, 0.5)
        assert (with_words["low"], with_words["high"]) == (-0.5, 1.0)
        assert [with_dense[count] for count in ("wins", "losses", "ties")] == [1, 0, 1]

    def test_several_comparisons_raise_p(self) -> None:
        """Of two equal p values, each is doubled by Holm's method."""
        better, worse = by_hand("hybrid", *[0.5] * 12), [0.0] * 12
        alone, _ = differences({"hybrid": better, "dense": by_hand("dense", *worse), "BM25": better})
        both = differences({"hybrid": better, "dense": by_hand("dense", *worse), "BM25": by_hand("BM25", *worse)})
        assert [pair["p"] for pair in both] == [alone["p"]] * 2
        assert alone["p"] == pytest.approx(2 * 2**-11, abs=0.002)


class TestData:
    def test_names_are_ids_and_kinds_are_groups(self) -> None:
        entries, questions = select_entries(collect(), 1), spread_out(QUESTIONS, 6)
        data = as_data(entries, questions)
        assert list(data.queries.values()) == [question.text for question in questions]
        assert data.corpus == {entry.name: entry.text for entry in entries}
        assert data.groups is not None
        for id_, question in zip(data.queries, questions, strict=True):
            assert data.groups[id_] == question.kind
            assert data.qrels[id_] == dict.fromkeys(question.answers, 1)

    def test_passages_without_the_answers_are_refused(self) -> None:
        with pytest.raises(EvaluationDataError, match="names a document that is not in the corpus"):
            as_data(collect()[:1], QUESTIONS)

    def test_what_a_search_has_found_is_evaluated(self) -> None:
        questions = spread_out(QUESTIONS, 6)
        data = as_data(select_entries(collect(), 1), questions)
        first = questions[0]
        found: dict[str, list[str]] = {question.text: [] for question in questions}
        report = report_of("search", data, {**found, first.text: sorted(first.answers)}, seconds=2.5)
        assert report.per_query["hit@1"] == {id_: float(id_ == "q1") for id_ in data.queries}
        assert report.metrics["ndcg@10"] == pytest.approx(1 / 6)
        assert (report.name, report.seconds) == ("search", 2.5)


def test_few_questions_are_still_of_several_kinds() -> None:
    picked = spread_out(QUESTIONS, 6)
    assert len({question.text for question in picked}) == 6
    assert len({question.kind for question in picked}) >= 4
    assert spread_out(QUESTIONS, len(QUESTIONS)) == list(QUESTIONS)


def test_questions_to_train_on_have_nothing_of_the_labelled_ones() -> None:
    corpus = {entry.name: entry.text for entry in collect()}
    rows = written_rows(corpus)
    # Each version of Python lacks some.
    assert len(rows) > 1200
    answers = {corpus[name] for question in QUESTIONS for name in question.answers if name in corpus}
    assert not answers & {text for row in rows for text in row.pos}
    labelled = RetrievalData(
        {str(number): question.text for number, question in enumerate(QUESTIONS)},
        {"passage": "a passage"},
        {str(number): {"passage": 1} for number in range(len(QUESTIONS))},
    )
    found = leakage(TrainingData(rows, "written"), labelled)
    assert found.overlaps == ()
