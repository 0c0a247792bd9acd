"""Hard negatives: what is never one, ranks and margins, what is kept of an interrupted run, and a teacher's scores."""

from __future__ import annotations

import dataclasses
import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from bge_integrations import BgeEncoder, BgeM3Encoder, BgeReranker
from bge_integrations.cli import app
from bge_integrations.cli.tuning import mine as mine_command
from bge_integrations.cli.wording import in_options, options_of
from bge_integrations.errors import BgeError, MissingExtraError, SettingsError, TrainingDataError
from bge_integrations.evaluation import EvaluationCache
from bge_integrations.evaluation.vectors import Floats
from bge_integrations.training import (
    Mined,
    TrainingData,
    TrainingRow,
    draw_mining_chart,
    load_training_data,
    mine_hard_negatives,
    score_with_teacher,
)
from bge_integrations.training.mining import choice as choice_module
from bge_integrations.training.mining import negatives as mining_module
from bge_integrations.training.mining import search as search_module
from bge_integrations.training.mining.choice import MiningSettings
from bge_integrations.training.mining.exclusions import contains, normalised, overlap
from bge_integrations.training.mining.report import MARGINS
from bge_integrations.training.mining.words import terms
from bge_integrations.training.rows.passages import load_passages
from tests.conftest import MakeCheckpoint

FOX = "the quick brown fox jumps over the lazy dog and runs into the dark forest, where an old owl watches it all night"


class Cosines:
    """An encoder-like object: the cosine of each query with each passage is what a table says."""

    def __init__(self, table: Mapping[str, Sequence[float]], queries: Sequence[str]) -> None:
        self.table = table
        self.queries = queries
        self.embedded: list[str] = []

    def encode_queries(self, texts: list[str]) -> Floats:
        return np.eye(len(self.queries), len(self.queries) + 1, dtype=np.float32)[
            [self.queries.index(text) for text in texts]
        ]

    def encode_documents(self, texts: list[str]) -> Floats:
        self.embedded += texts
        rows = [[*self.table[text], np.sqrt(1 - sum(score**2 for score in self.table[text]))] for text in texts]
        return np.array(rows, dtype=np.float32)

    def cache_namespace(self, role: str) -> str:
        return f"cosines_{role}"


def mine(rows: TrainingRow | list[TrainingRow], table: Mapping[str, float | Sequence[float]], **options: Any) -> Mined:  # noqa: ANN401
    """Mines with all ranks and no margin, unless other ones are given. Passages of the table are the corpus."""
    rows = [rows] if isinstance(rows, TrainingRow) else rows
    queries = list(dict.fromkeys(row.query for row in rows))
    scores = {text: [score] if isinstance(score, (int, float)) else score for text, score in table.items()}
    chosen: dict[str, Any] = {"corpus": list(table), "ranks": (1, 200), "relative_margin": None, **options}
    return mine_hard_negatives(TrainingData(rows), Cosines(scores, queries), **chosen)


def negatives(mined: Mined) -> list[tuple[str, ...]]:
    return [row.neg for row in mined.data.rows]


ROW = TrainingRow("q", ("positive",))
TABLE = {"positive": 0.8, "a": 0.7, "b": 0.6, "c": 0.5, "d": 0.4, "e": -0.2}


class TestExclusions:
    def test_the_nearest_are_taken_and_the_positive_has_no_rank(self) -> None:
        assert negatives(mine(ROW, TABLE, count=2)) == [("a", "b")]
        assert negatives(mine(ROW, TABLE, count=2, ranks=(1, 1))) == [("a",)]
        assert negatives(mine(ROW, TABLE, count=2, ranks=(2, 200))) == [("b", "c")]
        assert negatives(mine(ROW, TABLE, count=9, ranks=(2, 4))) == [("b", "c", "d")]

    def test_positives_of_an_equal_query_are_no_negatives(self) -> None:
        rows = [ROW, TrainingRow("  Q ", ("a",)), TrainingRow("other", ("b",))]
        table = {text: (score, score, 0.1) for text, score in {**TABLE, "positive": 0.6, "e": 0.1}.items()}
        mined = mine(rows, table, count=9)
        assert negatives(mined)[:2] == [("b", "c", "d", "e")] * 2
        assert set(negatives(mined)[2]) == {"positive", "a", "c", "d", "e"}
        assert mined.report.left_out == {"equal_query": 2}

    @pytest.mark.parametrize("copy", ["POSITIVE", " positive\n", "ｐｏｓｉｔｉｖｅ"])
    def test_copies_of_a_positive_are_no_negatives(self, copy: str) -> None:
        mined = mine(ROW, {**TABLE, copy: 0.75}, count=2)
        assert negatives(mined) == [("a", "b")]
        assert mined.report.left_out["copy"] == 1

    def test_near_duplicates_of_a_positive_are_no_negatives(self) -> None:
        near, far = FOX.replace("lazy", "lasy"), f"{FOX[:60]} and then something else happens to the fox and the dog"
        mined = mine(TrainingRow("q", (FOX,)), {FOX: 0.8, near: 0.79, far: 0.7, "c": 0.5})
        assert negatives(mined) == [(far, "c")]
        assert mined.report.left_out == {"near_duplicate": 1}

    def test_passages_that_contain_a_positive_or_are_in_it_are_no_negatives(self) -> None:
        row = TrainingRow("q", ("the art of cooking",))
        table = {
            "the art of cooking": 0.8,
            "Read The Art of  Cooking!": 0.7,
            "cooking": 0.6,
            "the party": 0.5,
            "art": 0.4,
        }
        mined = mine(row, table)
        assert negatives(mined) == [("the party",)]
        assert mined.report.left_out == {"contains": 3}

    def test_passages_of_the_document_of_a_positive_are_no_negatives(self) -> None:
        documents = {"positive": "1", "a": "1", "b": ("2", "1"), "c": "2"}
        mined = mine(ROW, TABLE, documents=documents, count=2)
        assert negatives(mined) == [("c", "d")]
        assert mined.report.left_out == {"document": 2}
        rows = [dataclasses.replace(ROW, document="book"), TrainingRow("other", ("a",), document="book")]
        found = negatives(mine(rows, {text: (score, 0.1) for text, score in TABLE.items()}, count=9))
        assert "a" not in found[0]
        assert "positive" not in found[1]
        assert negatives(mine(ROW, TABLE, documents={"a": "1", "c": "2"}, count=2)) == [("a", "b")]

    def test_ranks_are_counted_after_exclusions_and_before_margins(self) -> None:
        table = {"positive": 0.5, "POSITIVE": 0.9, "a": 0.8, "b": 0.4, "c": 0.3}
        assert negatives(mine(ROW, table, ranks=(2, 2))) == [("b",)]
        assert negatives(mine(ROW, table, ranks=(1, 2), relative_margin=0.0)) == [("b",)]

    def test_the_nearest_passages_left_out_are_reported_with_the_reason(self) -> None:
        table = {**TABLE, "Positive": 0.82, "b": 0.79}
        sample = mine(ROW, table, ranks=(2, 200), relative_margin=0.05).report.samples[0]
        shown = [(text, round(score, 4), reason) for text, score, reason in sample.left_out]
        assert shown == [("Positive", 0.82, "copy"), ("b", 0.79, "rank")]
        assert [(text, rank) for text, _, rank, _ in sample.negatives][:2] == [("a", 2), ("c", 3)]


class TestMargins:
    @pytest.mark.parametrize(
        ("positive", "margins", "limit"),
        [
            (0.8, {"relative_margin": 0.05}, 0.76),
            (-0.4, {"relative_margin": 0.05}, -0.42),
            (0.0, {"relative_margin": 0.05}, 0.0),
            (0.8, {"relative_margin": 0.0}, 0.8),
            (0.8, {"relative_margin": None, "absolute_margin": 0.1}, 0.7),
            (0.8, {"relative_margin": 0.05, "absolute_margin": 0.02}, 0.76),
            (0.8, {"relative_margin": 0.05, "absolute_margin": 0.3}, 0.5),
            (0.8, {"relative_margin": None}, np.inf),
        ],
    )
    def test_limit(self, positive: float, margins: dict[str, float | None], limit: float) -> None:
        assert MiningSettings(**margins).limit(positive) == pytest.approx(limit)  # type: ignore[arg-type]

    def test_what_is_too_near_is_left_out(self) -> None:
        mined = mine(ROW, {**TABLE, "near": 0.761, "less near": 0.759}, relative_margin=0.05, count=2)
        assert negatives(mined) == [("less near", "a")]
        assert mined.report.left_out == {"margin": 1}
        assert mined.report.candidates == 7
        assert mined.report.distances.share_below(0.05) == pytest.approx(1 / 7)

    def test_margins_hold_for_negative_scores(self) -> None:
        mined = mine(ROW, {"positive": -0.4, "a": -0.41, "b": -0.43}, relative_margin=0.05)
        assert negatives(mined) == [("b",)]

    def test_the_lowest_positive_counts(self) -> None:
        row = TrainingRow("q", ("positive", "second"))
        assert negatives(mine(row, {**TABLE, "second": 0.55}, relative_margin=0.05)) == [("c", "d", "e")]


class TestRows:
    def test_given_negatives_stay_first_and_are_not_repeated(self) -> None:
        row = dataclasses.replace(ROW, neg=("d", "b"))
        mined = mine(row, TABLE, count=4)
        assert negatives(mined) == [("d", "b", "a", "c")]
        assert (mined.report.given, mined.report.asked, mined.report.found) == (2, 2, 2)
        assert negatives(mine(row, TABLE, count=1)) == [("d", "b")]
        assert negatives(mine(dataclasses.replace(ROW, neg=("A",)), {**TABLE, "A": 0.1}, count=2)) == [("A", "b")]

    def test_a_row_with_too_few_keeps_what_there_is(self) -> None:
        rows = [ROW, TrainingRow("second", ("b",)), TrainingRow("third", ("c",))]
        table = {
            "positive": (0.5, 0.1, 0.2),
            "a": (0.7, 0.2, 0.3),
            "b": (0.6, 0.5, 0.4),
            "c": (0.4, 0.3, 0.1),
            "d": (0.1, 0.4, 0.5),
        }
        mined = mine(rows, table, count=3, relative_margin=0.05)
        assert negatives(mined) == [("c", "d"), ("d", "c", "a"), ()]
        report = mined.report
        assert (report.rows, report.short, report.empty, report.doubtful) == (3, 2, 1, 1)
        assert (report.asked, report.found, report.left_out) == (9, 5, {"margin": 6})
        assert "2 rows have fewer negatives than 3, 1 of them none." in report.in_words()
        assert "In 1 row, more than half of the candidates are too near" in report.in_words()

    def test_no_negative_stands_twice(self) -> None:
        mined = mine(ROW, {**TABLE, "A": 0.69, "a ": 0.68}, count=9)
        assert negatives(mined) == [("a", "b", "c", "d", "e")]
        drawn = mine(ROW, {**TABLE, "A": 0.69, "a ": 0.68}, count=9, sampling="random")
        assert sorted(negatives(drawn)[0]) == ["a", "b", "c", "d", "e"]

    def test_a_draw_depends_on_the_seed_and_the_texts_alone(self) -> None:
        table = {"positive": (0.9, 0.1), **{f"p{number}": (0.8 - number / 100, 0.0) for number in range(40)}}
        rows = [ROW, TrainingRow("other", ("p0",))]
        options: dict[str, Any] = {"count": 5, "sampling": "random", "ranks": (3, 30)}
        first, again, other = (negatives(mine(rows, table, seed=seed, **options)) for seed in (0, 0, 1))
        assert first == again != other
        assert len(set(first[0])) == 5
        assert set(first[0]) <= {f"p{number}" for number in range(2, 30)}
        scores = [table[text][0] for text in first[0]]
        assert scores == sorted(scores, reverse=True)
        swapped = mine(rows[::-1], {text: pair[::-1] for text, pair in reversed(table.items())}, seed=0, **options)
        assert negatives(swapped)[1] == first[0]

    def test_a_single_text_as_positive_is_one_passage(self, tmp_path: Path) -> None:
        file = tmp_path / "data.jsonl"
        file.write_text(json.dumps({"query": "q", "pos": "positive"}) + "\n", encoding="utf-8")
        (row,) = load_training_data(file).rows
        mined = mine(row, {**TABLE, "p": 0.9}, count=1)
        assert mined.data.rows[0].pos == ("positive",)
        assert negatives(mined) == [("p",)]

    def test_rows_with_new_negatives_lose_a_teachers_scores(self) -> None:
        row = TrainingRow("q", ("positive",), ("a",), (2.0,), (1.0,))
        assert mine(row, TABLE, count=1).data.rows[0].neg_scores == (1.0,)
        mined = mine(row, TABLE, count=2)
        assert (mined.data.rows[0].pos_scores, mined.data.rows[0].neg_scores) == (None, None)
        assert mined.report.without_scores == 1

    def test_everything_else_of_a_row_stays(self) -> None:
        row = TrainingRow("q", ("positive",), id="7", document="d", source="s", type="only_1neg")
        (found,) = mine(row, TABLE, count=1).data.rows
        assert dataclasses.replace(found, neg=()) == row


class TestPassages:
    def test_without_a_corpus_all_passages_of_the_data_are_taken(self) -> None:
        rows = [ROW, TrainingRow("other", ("a",), ("b",))]
        table = {"positive": (0.9, 0.1), "a": (0.5, 0.6), "b": (0.3, 0.4), "c": (0.2, 0.2)}
        encoder = Cosines(table, ["q", "other"])
        options: dict[str, Any] = {"ranks": (1, 9), "relative_margin": None}
        found = mine_hard_negatives(TrainingData(rows), encoder, **options)
        assert negatives(found) == [("a", "b"), ("b", "positive")]
        found = mine_hard_negatives(TrainingData(rows, corpus={"1": "c"}), encoder, **options)
        assert negatives(found) == [("a", "b", "c"), ("b", "c", "positive")]
        assert found.report.passages == 4

    def test_only_passages_of_a_given_corpus_are_taken(self) -> None:
        rows = [ROW, TrainingRow("other", ("a",), ("b",))]
        table = {"positive": (0.9, 0.1), "a": (0.5, 0.6), "b": (0.3, 0.4), "c": (0.2, 0.2), "d": (0.4, 0.3)}
        for corpus in (["c", "d"], {"1": "c", "2": "d"}, (text for text in ("c", "d", "c", " "))):
            mined = mine(rows, table, corpus=corpus)
            assert negatives(mined) == [("d", "c"), ("b", "d", "c")]
            assert mined.report.passages == 2

    def test_each_different_text_is_embedded_once(self) -> None:
        rows = [TrainingRow("q", ("positive",), ("a",)), TrainingRow("q", ("b",), ("a",))]
        encoder = Cosines({text: [score] for text, score in TABLE.items()}, ["q"])
        mine_hard_negatives(TrainingData(rows), encoder, corpus=["a", "b", "a", "positive"])
        assert sorted(encoder.embedded) == ["a", "b", "positive"]

    def test_blocks_and_chunks_change_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        generator = np.random.default_rng(0)
        table = {f"passage {number}": tuple(generator.uniform(-0.4, 0.4, 5)) for number in range(40)}
        rows = [TrainingRow(f"q{number}", (f"passage {number}", "own")) for number in range(5)]
        whole = mine(rows, {**table, "own": (0.3,) * 5}, corpus=list(table), relative_margin=0.05)
        monkeypatch.setattr(search_module, "_BLOCK", 7)
        monkeypatch.setattr(mining_module, "CHUNK", 2)
        parts = mine(rows, {**table, "own": (0.3,) * 5}, corpus=list(table), relative_margin=0.05)
        assert negatives(parts) == negatives(whole)
        assert parts.report.left_out == whole.report.left_out
        for number, row in enumerate(rows):
            limit = min(table[row.pos[0]][number], 0.3)
            limit -= 0.05 * abs(limit)
            order = sorted(table, key=lambda text: -table[text][number])
            allowed = [text for text in order if table[text][number] <= limit and text != row.pos[0]]
            assert negatives(whole)[number] == tuple(allowed[:7])


@pytest.fixture
def texts() -> list[str]:
    words = ["fox", "dog", "owl", "river", "stone", "cloud", "market", "engine", "violin", "lemon", "winter", "copper"]
    return [f"{first} near the {second}" for first in words for second in words[::4] if first != second]


@pytest.mark.usefixtures("kept_small_en")
class TestModels:
    def test_vectors_are_those_of_the_encoder_with_its_instruction(self, bge_small_en: Path, texts: list[str]) -> None:
        encoder = BgeEncoder(bge_small_en, device="cpu")
        rows = [TrainingRow(text.replace(" near the", ""), (text,)) for text in texts[:6]]
        mined = mine_hard_negatives(TrainingData(rows), encoder, corpus=texts, ranks=(2, 30), count=4)
        scores = encoder.encode_queries([row.query for row in rows]) @ encoder.encode_documents(texts).T
        assert mined.report.empty < 6
        for number, row in enumerate(rows):
            positive = scores[number][texts.index(row.pos[0])]
            ranked = [place for place in np.argsort(-scores[number]) if texts[place] != row.pos[0]][1:30]
            allowed = [place for place in ranked if scores[number][place] <= positive - 0.05 * abs(positive)][:4]
            found = mined.data.rows[number].neg
            assert [scores[number][texts.index(text)] for text in found] == pytest.approx(
                scores[number][allowed], abs=1e-6
            )

    def test_a_row_is_searched_with_its_own_prompt(self, bge_small_en: Path, texts: list[str]) -> None:
        encoder = BgeEncoder(bge_small_en, device="cpu")
        rows = [TrainingRow("a fox", (texts[0],), prompt=prompt) for prompt in (None, "", "weather forecast: ")]
        report = mine_hard_negatives(TrainingData(rows), encoder, corpus=texts, relative_margin=None).report
        scores = {sample.row: sample.positives[0][1] for sample in report.samples}
        passage = encoder.encode_documents([texts[0]])[0]
        expected = [
            encoder.encode_queries(["a fox"])[0] @ passage,
            encoder.encode(["a fox"])[0] @ passage,
            encoder.encode(["weather forecast: a fox"])[0] @ passage,
        ]
        assert list(scores.values()) == pytest.approx(expected, abs=1e-5)
        assert len({round(score, 4) for score in expected}) == 3

    def test_a_second_run_embeds_nothing(self, bge_small_en: Path, texts: list[str], tmp_path: Path) -> None:
        encoder, cache = BgeEncoder(bge_small_en, device="cpu"), EvaluationCache(tmp_path)
        data = TrainingData([TrainingRow("a fox", (texts[0],))])
        first = mine_hard_negatives(data, encoder, corpus=texts, cache=cache)
        before = encoder.stats().tokens
        second = mine_hard_negatives(data, encoder, corpus=texts, cache=cache)
        assert encoder.stats().tokens == before
        assert negatives(second) == negatives(first)

    def test_models_of_one_name_do_not_share_what_is_kept(
        self, make: MakeCheckpoint, texts: list[str], tmp_path: Path
    ) -> None:
        cache = EvaluationCache(tmp_path / "kept")
        data = TrainingData([TrainingRow("a fox", (texts[0],))])
        options: dict[str, Any] = {"corpus": texts, "relative_margin": None, "ranks": (1, 50)}
        found = []
        for seed in (0, 1):
            encoder = BgeEncoder(make(f"{seed}/bge-small-en", modules=("cls", "normalize"), seed=seed), device="cpu")
            fresh = mine_hard_negatives(data, encoder, **options)
            kept = mine_hard_negatives(data, encoder, cache=cache, part=tmp_path / "part", **options)
            assert negatives(kept) == negatives(fresh)
            found.append(negatives(fresh))
        assert found[0] != found[1]

    def test_embeddings_of_frameworks_and_bge_m3_are_encoders(
        self, bge_small_en: Path, bge_m3: Path, texts: list[str]
    ) -> None:
        from bge_integrations.langchain import HuggingFaceBgeEmbeddings

        data = TrainingData([TrainingRow("a fox", (texts[0],))])
        options: dict[str, Any] = {"corpus": texts, "relative_margin": None}
        embeddings = HuggingFaceBgeEmbeddings(model_name=str(bge_small_en), model_kwargs={"device": "cpu"})
        expected = mine_hard_negatives(data, BgeEncoder(bge_small_en, device="cpu"), **options)
        assert negatives(mine_hard_negatives(data, embeddings, **options)) == negatives(expected)
        with BgeM3Encoder(bge_m3, device="cpu") as m3:
            expected = mine_hard_negatives(data, m3.dense_encoder(), **options)
            assert negatives(mine_hard_negatives(data, m3, **options)) == negatives(expected)


class TestWords:
    def test_every_second_negative_is_found_by_words(self) -> None:
        row = TrainingRow("how do foxes jump", ("they bend their legs",))
        table = {"they bend their legs": 0.8, "a": 0.7, "b": 0.6, "c": 0.5, "foxes jump": 0.1, "do foxes eat": 0.2}
        mined = mine(row, {**table, "foxes of a zoo": 0.79}, count=4, relative_margin=0.05, lexical=True)
        assert negatives(mined) == [("a", "b", "do foxes eat", "foxes jump")]
        assert mined.report.sources == {"vectors": 2, "words": 2}
        assert "(2 by words)" in mined.report.in_words()
        mined = mine(row, table, count=5, lexical=True)
        assert sorted(negatives(mined)[0]) == sorted(set(table) - {"they bend their legs"})

    def test_the_window_holds_for_words_too(self) -> None:
        row = TrainingRow("fox", ("positive",))
        table = {"positive": 0.8, "fox fox fox": 0.1, "fox fox other": 0.2, "fox and other things": 0.3, "none": 0.4}
        mined = mine(row, table, count=9, ranks=(3, 3), lexical=True)
        assert sorted(negatives(mined)[0]) == ["fox and other things", "fox fox other"]

    def test_terms(self) -> None:
        assert terms("The fox's 2 DOGS") == ["the", "fox", "s", "2", "dogs"]
        assert terms("向量数据库 ok 猫") == ["向量", "量数", "数据", "据库", "ok", "猫"]

    def test_without_bm25s_the_error_names_the_package(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(__import__("sys").modules, "bm25s", None)
        with pytest.raises(MissingExtraError, match="pip install bm25s"):
            mine(ROW, TABLE, lexical=True)


SEVEN_ROWS = tuple(TrainingRow(f"q{number}", (f"p{number}",)) for number in range(7))
SEVEN_SCORES = {
    f"p{number}": tuple(0.3 - 0.01 * ((number * 3 + query * 5) % 11) for query in range(7)) for number in range(20)
}


class TestInterruption:
    @pytest.fixture
    def choices(self, monkeypatch: pytest.MonkeyPatch) -> list[int]:
        """The rows for which negatives are chosen. The fifth choice interrupts the run."""
        monkeypatch.setattr(mining_module, "CHUNK", 2)
        chosen: list[int] = []
        choose = choice_module.Chooser.choose

        def counted(chooser: Any, number: int, *rest: Any) -> Any:  # noqa: ANN401
            chosen.append(number)
            if len(chosen) == 5:
                raise KeyboardInterrupt
            return choose(chooser, number, *rest)

        monkeypatch.setattr(choice_module.Chooser, "choose", counted)
        return chosen

    def test_an_interrupted_run_goes_on(self, choices: list[int], tmp_path: Path) -> None:
        part = tmp_path / "part.jsonl"
        rows, options = list(SEVEN_ROWS), {"count": 3, "sampling": "random", "part": part}
        with pytest.raises(KeyboardInterrupt):
            mine(rows, SEVEN_SCORES, **options)
        with part.open("a", encoding="utf-8") as file:
            file.write('{"row": 4, "posi')  # as a killed process leaves it
        resumed = mine(rows, SEVEN_SCORES, **options)
        assert choices == [0, 1, 2, 3, 4, 4, 5, 6]
        whole = mine(rows, SEVEN_SCORES, **{**options, "part": None})
        assert negatives(resumed) == negatives(whole)
        assert dataclasses.replace(resumed.report, seconds=0) == dataclasses.replace(whole.report, seconds=0)
        del choices[:4]
        mine(rows, SEVEN_SCORES, **options)
        assert choices[-7:] == list(range(7))  # nothing is chosen again

    @pytest.mark.parametrize(
        "change",
        [
            {"seed": 1},
            {"count": 4},
            {"documents": {"p3": "x"}},
            {"corpus": [f"p{number}" for number in range(19)]},
            {"ranks": (2, 200)},
            {"data": TrainingRow("q6", ("p6",), ("p7",))},
            {"name": "other"},
        ],
    )
    def test_results_of_something_else_are_not_used(self, change: dict[str, Any], tmp_path: Path) -> None:
        options = {"count": 3, "sampling": "random", "ranks": (1, 9)}
        part = tmp_path / "part.jsonl"
        mine(list(SEVEN_ROWS), SEVEN_SCORES, part=part, **options)
        before = part.read_text(encoding="utf-8").splitlines()[0]
        rows = [*SEVEN_ROWS[:6], change.pop("data", SEVEN_ROWS[6])]
        scores = dict(SEVEN_SCORES)
        encoder = Cosines(scores, [row.query for row in rows])
        if change.pop("name", None):
            encoder.cache_namespace = lambda role: "another"  # type: ignore[method-assign]
        chosen = {"corpus": list(scores), "relative_margin": None, **options, **change}
        second = mine_hard_negatives(TrainingData(rows), encoder, part=part, **chosen)
        fresh = mine_hard_negatives(TrainingData(rows), encoder, **chosen)
        assert negatives(second) == negatives(fresh)
        assert part.read_text(encoding="utf-8").splitlines()[0] != before

    def test_a_file_of_another_kind_is_not_replaced(self, tmp_path: Path) -> None:
        file = tmp_path / "notes.txt"
        file.write_text("precious\n", encoding="utf-8")
        with pytest.raises(SettingsError, match="is a file of another kind"):
            mine(ROW, TABLE, part=file)
        assert file.read_text(encoding="utf-8") == "precious\n"
        file.write_text("", encoding="utf-8")
        mine(ROW, TABLE, part=file)

    def test_an_encoder_without_a_namespace_can_have_no_part_file(self, tmp_path: Path) -> None:
        class Nameless:
            def embed_query(self, text: str) -> list[float]:
                return [1.0, 0.0]

            def embed_documents(self, texts: list[str]) -> list[list[float]]:
                return [[1.0, float(len(text))] for text in texts]

        data = TrainingData([ROW])
        found = mine_hard_negatives(data, Nameless(), corpus=["a", "bb"], ranks=(1, 2), relative_margin=None)
        assert negatives(found) == [("a", "bb")]
        with pytest.raises(SettingsError, match="needs an encoder with a cache_namespace"):
            mine_hard_negatives(data, Nameless(), part=tmp_path / "part")
        assert not (tmp_path / "part").exists()


@pytest.mark.usefixtures("kept_reranker_base")
class TestTeacher:
    DATA = TrainingData(
        [
            TrainingRow("a fox", ("the fox jumps", "it runs"), ("a stone", "a river"), prompt="instruction: "),
            TrainingRow("a fox", ("the fox jumps",), ("a stone",)),
            TrainingRow("a stone", ("it is hard",)),
        ]
    )

    def test_scores_are_the_rerankers_logits(self, bge_reranker_base: Path) -> None:
        reranker = BgeReranker(bge_reranker_base, device="cpu")
        for before, row in zip(self.DATA.rows, score_with_teacher(self.DATA, reranker).rows, strict=True):
            assert row.pos_scores == pytest.approx(reranker.score(row.query, row.pos).tolist(), abs=1e-5)
            assert row.neg_scores == pytest.approx(reranker.score(row.query, row.neg).tolist(), abs=1e-5)
            assert dataclasses.replace(row, pos_scores=None, neg_scores=None) == before

    def test_each_pair_is_scored_once_and_kept(self, bge_reranker_base: Path, tmp_path: Path) -> None:
        reranker, cache = BgeReranker(bge_reranker_base, device="cpu"), EvaluationCache(tmp_path)
        before = reranker.stats().texts
        first = score_with_teacher(self.DATA, reranker, cache=cache)
        assert reranker.stats().texts - before == 5
        assert score_with_teacher(self.DATA, reranker, cache=cache) == first
        assert reranker.stats().texts - before == 5

    def test_what_gives_no_logits_is_refused(self, bge_reranker_base: Path) -> None:
        with pytest.raises(SettingsError, match="normalize=False"):
            score_with_teacher(self.DATA, BgeReranker(bge_reranker_base, normalize=True))
        with pytest.raises(SettingsError, match="can't score pairs"):
            score_with_teacher(self.DATA, object())

        class Broken:
            def score_pairs(self, pairs: list[tuple[str, str]]) -> list[float]:
                return [float("nan")] * len(pairs)

        with pytest.raises(SettingsError, match="NaN"):
            score_with_teacher(self.DATA, Broken())


class TestReport:
    @pytest.fixture
    def mined(self) -> Mined:
        rows = [TrainingRow(f"query {number}", (f"p{number}",), source="s") for number in range(7)]
        return mine(rows, SEVEN_SCORES, count=3, relative_margin=0.05, ranks=(2, 12))

    def test_words_fit_into_100_columns(self, mined: Mined) -> None:
        words = mined.report.in_words()
        assert max(map(len, words.splitlines())) <= 100
        assert words.startswith("data: 7 rows, 20 passages to choose from, with Cosines, in ")
        assert "at the ranks 2 to 12" in words
        assert mined.report.margins == {margin: mined.report.distances.share_below(margin) for margin in MARGINS}
        margins, shares = (line.split() for line in words.splitlines()[-2:])
        assert margins[2:] == ["0", "%", "1", "%", "2", "%", "5", "%", "10", "%", "20", "%"]
        assert [float(share) for share in shares[5::2]] == sorted(float(share) for share in shares[5::2])

    def test_markdown_has_rows_to_read(self, mined: Mined) -> None:
        markdown = mined.report.to_markdown()
        assert "| before the first rank | 7 |" in markdown
        assert "**query 0** (row 0" in markdown
        assert " positive: p0" in markdown
        assert "negative, rank " in markdown
        assert "| score | positives | negatives | |" in markdown

    def test_json_has_everything(self, mined: Mined) -> None:
        content = json.loads(json.dumps(mined.report.to_dict()))
        assert content["settings"]["ranks"] == [2, 12]
        assert content["left_out"]["rank"] == 7
        assert sum(content["positives"]["counts"].values()) == 7
        assert sum(content["negatives"]["counts"].values()) == content["found"]
        assert sum(content["distances"]["counts"].values()) == content["candidates"] == 77
        assert content["digest"] == TrainingData([dataclasses.replace(row, neg=()) for row in mined.data.rows]).digest

    def test_chart(self, mined: Mined, tmp_path: Path) -> None:
        file = draw_mining_chart(mined.report, tmp_path / "new" / "chart.png")
        assert struct.unpack(">I", file.read_bytes()[16:20]) == (1800,)
        with pytest.raises(SettingsError, match="does not know"):
            draw_mining_chart(mined.report, tmp_path / "chart.nothing")

    def test_a_run_that_finds_nothing_is_reported_and_drawn(self, tmp_path: Path) -> None:
        mined = mine(ROW, {"positive": 0.5})
        assert mined.report.empty == 1
        assert "0 of 7 negatives" in mined.report.in_words()
        assert mined.report.to_markdown()
        draw_mining_chart(mined.report, tmp_path / "chart.png")


class TestTexts:
    def test_overlap(self) -> None:
        assert overlap("abcd", "abcd") == 1
        assert overlap("abcd", "abce") == pytest.approx(1 / 3)
        assert overlap("aaaa", "aaaaa") == pytest.approx(2 / 3)
        assert overlap("ab", "ab") == 0
        assert overlap("向量数据库", "向量数据集") == pytest.approx(2 / 4)

    def test_contains(self) -> None:
        assert contains("read the art of war", "the art")
        assert contains("(art)", "art")
        assert not contains("a party of smart people", "art")
        assert contains("a party of art", "art")
        assert contains("向量数据库", "数据")
        assert contains("anything", "")

    def test_normalised(self) -> None:
        assert normalised(" Ｆｏｘ \n STRASSE\tstraße") == "fox strasse strasse"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 0}, "count=0"),
        ({"ranks": (0, 5)}, "ranks 0-5"),
        ({"ranks": (6, 5)}, "ranks 6-5"),
        ({"relative_margin": -0.1}, "relative_margin=-0.1"),
        ({"absolute_margin": float("nan")}, "absolute_margin=nan"),
        ({"sampling": "best"}, "sampling='best'"),
        ({"corpus": "one text"}, "corpus is one text"),
        ({"corpus": ["a", 5]}, "corpus has 5"),
        ({"corpus": [" "]}, "no passages"),
    ],
)
def test_wrong_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        mine(ROW, TABLE, **options)


@pytest.mark.parametrize("encoder", [None, BgeEncoder, "BAAI/bge-small-en", len])
def test_what_gives_no_vectors_is_refused(encoder: object) -> None:
    with pytest.raises(SettingsError, match="gives no vectors"):
        mine_hard_negatives(TrainingData([ROW]), encoder, corpus=["a"])


def test_prompts_need_an_encoder_of_this_package() -> None:
    with pytest.raises(SettingsError, match="prompts of their own, such as 'x: '"):
        mine(dataclasses.replace(ROW, prompt="x: "), TABLE)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with data and passages, and a cache of results for this test alone."""
    monkeypatch.setattr("bge_integrations.evaluation.cache.cache_root", lambda: tmp_path / "cache")
    rows = [TrainingRow("a fox", (FOX,)), TrainingRow("what is hard?", ("a stone is hard",), ("water is wet",))]
    TrainingData(rows).save(tmp_path / "data.jsonl")
    passages = [f"passage {number} about a {word}" for number, word in enumerate(["fox", "stone", "river", "owl"] * 5)]
    lines = [json.dumps({"text": text, "title": "T", "document": number % 3}) for number, text in enumerate(passages)]
    (tmp_path / "corpus.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (tmp_path / "corpus.txt").write_text("\n\n".join(passages), encoding="utf-8")
    return tmp_path


@pytest.mark.usefixtures("kept_small_en", "kept_reranker_base")
class TestCommand:
    @pytest.fixture(autouse=True)
    def _arguments(self, folder: Path, bge_small_en: Path) -> None:
        self.folder = folder
        self.output = folder / "out.jsonl"
        self.arguments = [folder / "data.jsonl", "--model", bge_small_en, "-o", self.output, "--device", "cpu"]

    def run(self, *arguments: object, ok: bool = True) -> Result:
        done = CliRunner().invoke(app, ["mine", *map(str, [*self.arguments, *arguments])])
        assert (done.exit_code == 0) is ok, (done.output, done.exception)
        return done

    def test_negatives_and_a_teachers_scores_are_written(self, bge_small_en: Path, bge_reranker_base: Path) -> None:
        options = ("--corpus", self.folder / "corpus.jsonl", "--negatives", 4, "--ranks", "1-15", "--margin", 0)
        found = json.loads(self.run(*options, "--teacher", bge_reranker_base, "--json").stdout)
        data, encoder = load_training_data(self.folder / "data.jsonl"), BgeEncoder(bge_small_en, device="cpu")
        passages, documents = load_passages(self.folder / "corpus.jsonl")
        expected = mine_hard_negatives(
            data, encoder, corpus=passages, documents=documents, count=4, ranks=(1, 15), relative_margin=0.0
        )
        written = load_training_data(self.output)
        assert negatives(Mined(written, expected.report)) == negatives(expected)
        assert all(text.startswith(("T passage", "water")) for row in written.rows for text in row.neg)
        reranker = BgeReranker(bge_reranker_base, device="cpu")
        for row in written.rows:
            assert row.neg_scores == pytest.approx(reranker.score(row.query, row.neg).tolist(), abs=1e-5)
        assert found["output"] == str(self.output)
        assert found["settings"] == {**found["settings"], "count": 4, "ranks": [1, 15], "relative_margin": 0.0}
        assert found["found"] == expected.report.found > 0
        assert sorted(path.name for path in self.folder.iterdir() if "out" in path.name) == ["out.jsonl"]

    def test_the_report_is_printed_in_100_columns(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("COLUMNS", "100")
        files = ("--report", self.folder / "report.md", "--chart", self.folder / "chart.png")
        said = self.run("--corpus", self.folder / "corpus.txt", *files, "--lexical", "--sampling", "random").stdout
        paths = [line for line in said.splitlines() if str(self.folder) in line]
        assert max(len(line) for line in said.splitlines() if line not in paths) <= 100
        assert said.startswith("data: 2 rows, 20 passages to choose from, with bge-small-en-v1.5, in ")
        assert "relative margin" in said
        assert [line.split(":")[0] for line in paths] == ["saved", "report", "chart"]
        assert (self.folder / "report.md").read_text(encoding="utf-8").startswith("# Hard negatives of data")
        assert (self.folder / "chart.png").stat().st_size > 10_000

    @pytest.mark.parametrize("option", ["--output", "--report", "--chart"])
    def test_nothing_is_overwritten_unless_forced(self, option: str) -> None:
        file = self.folder / {"--output": "out.jsonl", "--report": "r.md", "--chart": "c.png"}[option]
        file.write_text("precious", encoding="utf-8")
        more = () if option == "--output" else (option, file)
        error = self.run(*more, ok=False).exception
        assert isinstance(error, SettingsError)
        assert str(error).startswith(f"{option} {file} is there already.")
        assert file.read_text(encoding="utf-8") == "precious"
        self.run(*more, "--force")
        assert file.read_bytes() != b"precious"

    def test_a_second_run_goes_on_where_the_first_was_interrupted(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(data: TrainingData, file: Path) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patched:
            patched.setattr(TrainingData, "save", fail)
            self.run(ok=False)
        part = self.folder / "out.jsonl.part"
        assert len(part.read_text(encoding="utf-8").splitlines()) == 3
        with monkeypatch.context() as patched:
            patched.setattr(BgeEncoder, "encode_documents", fail)
            patched.setattr(choice_module.Chooser, "choose", fail)
            self.run()
        assert not part.exists()
        assert len(load_training_data(self.output).rows) == 2

    def test_without_a_cache_nothing_is_kept(self) -> None:
        self.run("--no-cache")
        assert not (self.folder / "cache").exists()

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--ranks", "5"], "--ranks 5 is no window"),
            (["--ranks", "9-3"], "ranks 9-3 are no window"),
            (["--sampling", "best"], "sampling='best'"),
            (["--corpus", "nowhere"], "no file or folder nowhere"),
            (["--corpus", "."], "no corpus.jsonl"),
            (["-o", "out.txt"], "--output out.txt must end with"),
            (["-o", "no/folder/out.jsonl"], "there is no folder"),
            (["--report", "."], "--report . is a folder"),
            (["--precision", "int3"], "int3"),
        ],
    )
    def test_errors_come_before_a_model_is_loaded(
        self, arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        monkeypatch.setattr(BgeEncoder, "from_settings", None)
        error = self.run(*arguments, ok=False).exception
        assert isinstance(error, BgeError)
        assert message in str(error)

    def test_messages_name_the_options(self) -> None:
        options = options_of(mine_command)
        assert in_options("relative_margin=-1 is no margin", options) == "--margin -1 is no margin"
        assert in_options("count=0 leaves no negatives", options) == "--negatives 0 leaves no negatives"


class TestLoadPassages:
    def test_formats(self, folder: Path) -> None:
        plain, documents = load_passages(folder / "corpus.txt")
        titled, its = load_passages(folder)
        assert titled == [f"T {text}" for text in plain]
        assert (documents, its[titled[4]]) == ({}, {"1"})

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ('{"title": "x"}', "line 1: text is None"),
            ('{"text": 5}', "line 1: text is 5"),
            ('{"text": "x", "title": ["y"]}', "line 1: title is"),
            ('{"text": "x", "document": 1.5}', "line 1: document is 1.5"),
            ('{"text": " "}', "has no passages"),
            ("[]", "line 1 is no JSON object"),
        ],
    )
    def test_what_is_wrong_is_named_with_its_place(self, line: str, message: str, tmp_path: Path) -> None:
        file = tmp_path / "corpus.jsonl"
        file.write_text(line, encoding="utf-8")
        with pytest.raises(TrainingDataError, match=message):
            load_passages(file)

    def test_other_files_are_refused(self, tmp_path: Path) -> None:
        (tmp_path / "corpus.pdf").write_text("x", encoding="utf-8")
        with pytest.raises(TrainingDataError, match="no known format"):
            load_passages(tmp_path / "corpus.pdf")
