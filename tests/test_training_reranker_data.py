"""What a reranker is trained on: negatives of mixed difficulty, checks of rows and settings, and candidates."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from bge_integrations.errors import SettingsError
from bge_integrations.evaluation import RetrievalData, evaluate_retrieval
from bge_integrations.training import RerankerTraining, TrainingData, TrainingRow, draw, with_candidates
from bge_integrations.training.rows.sampling import draw_mixed
from bge_integrations.training.trainer.checks import reranker_advice

POOL = [f"p{number}" for number in range(40)]
ROW = TrainingRow("q", ("p0", "p1"), tuple(f"p{number}" for number in range(2, 12)), (1.0, 2.0), tuple(range(10)))


def mixed(row: TrainingRow = ROW, *, epoch: int = 0, **changes: Any) -> Any:  # noqa: ANN401 - a Drawn
    plain = {"negatives": 8, "pool": POOL, "answers": frozenset({"p20"}), "share": 0.25}
    options = {**plain, **changes}
    return draw_mixed(row, 0, epoch, 5, options.pop("negatives"), **options)


class TestDraws:
    def test_a_part_of_the_negatives_is_from_other_rows(self) -> None:
        drawn = mixed()
        assert len(drawn.negatives) == 6
        assert len(drawn.others) == 2
        assert set(drawn.negatives) <= set(ROW.neg)
        assert drawn.negative_scores == tuple(float(text[1:]) - 2 for text in drawn.negatives)
        assert drawn.positive in ROW.pos

    def test_no_answer_and_no_passage_of_the_row_is_an_easy_negative(self) -> None:
        seen = Counter(text for epoch in range(300) for text in mixed(epoch=epoch).others)
        assert set(seen) == set(POOL) - {*ROW.pos, *ROW.neg, "p20"}
        # 600 draws of 27 texts: 22 of each, with a deviation of 5.
        assert 5 < min(seen.values()) <= max(seen.values()) < 45

    def test_epochs_draw_differently_and_a_run_that_goes_on_draws_the_same(self) -> None:
        assert mixed() == mixed()
        assert len({(mixed(epoch=epoch).negatives, mixed(epoch=epoch).others) for epoch in range(20)}) > 15

    def test_a_row_with_too_few_negatives_gets_more_of_the_others(self) -> None:
        few = TrainingRow("q", ("p0",), ("p2", "p3"))
        drawn = mixed(few)
        assert set(drawn.negatives) == {"p2", "p3"}
        assert len(set(drawn.others)) == 6
        assert mixed(TrainingRow("q", ("p0",))).negatives == ()
        assert len(mixed(TrainingRow("q", ("p0",))).others) == 8

    def test_where_others_are_too_few_the_row_gives_more_of_its_own(self) -> None:
        drawn = mixed(pool=["p0", "p2", "p20", "p30"], negatives=8)
        assert drawn.others == ("p30",)
        assert len(drawn.negatives) == 7
        assert mixed(pool=[]).others == ()

    def test_without_a_share_it_is_the_plain_draw(self) -> None:
        assert mixed(share=0) == draw(ROW, 0, 0, 5, 8)

    def test_all_negatives_can_be_from_other_rows(self) -> None:
        drawn = mixed(share=1)
        assert drawn.negatives == ()
        assert len(drawn.others) == 8

    def test_types_and_flags_of_rows_count(self) -> None:
        alone = TrainingRow("q", ("p0",), ("p2",), no_in_batch_neg=True)
        assert (mixed(alone).negatives, mixed(alone).others) == (("p2",), ())
        single = TrainingRow("q", ("p0",), ("p2", "p3"), type="only_1neg")
        drawn = mixed(single)
        assert len(drawn.negatives) + len(drawn.others) == 1


class TestAdvice:
    def rows(self, count: int = 1000, **changes: Any) -> TrainingData:  # noqa: ANN401
        return TrainingData(
            [TrainingRow(f"q{n}", (f"p{n}",), **{"neg": (f"n{n}",), **changes}) for n in range(count)], "rows"
        )

    def test_good_rows_need_none(self) -> None:
        assert reranker_advice(self.rows(), RerankerTraining()) == []

    def test_few_rows_and_rows_without_hard_negatives_are_told(self) -> None:
        (few,) = reranker_advice(self.rows(3), RerankerTraining())
        assert "rows has 3 rows" in few
        (easy,) = reranker_advice(self.rows(neg=()), RerankerTraining())
        assert "1000 of 1000 rows have no negatives of their own" in easy
        assert "bge mine" in easy

    def test_hard_negatives_alone_are_told(self) -> None:
        (hard,) = reranker_advice(self.rows(), RerankerTraining(easy_negatives=0))
        assert "easy_negatives=0 trains on hard negatives only" in hard

    def test_rows_with_nothing_to_compare_are_told_or_refused(self) -> None:
        with pytest.raises(SettingsError, match=r"1000 of 1000 rows of rows have no negatives.*always be 0"):
            reranker_advice(self.rows(neg=()), RerankerTraining(easy_negatives=0))
        with pytest.raises(SettingsError, match="no passage of another row of their file"):
            reranker_advice(TrainingData([TrainingRow("q", ("p",))], "one"), RerankerTraining())
        rows = [*self.rows().rows, TrainingRow("alone", ("answer",), no_in_batch_neg=True)]
        (told,) = reranker_advice(TrainingData(rows, "rows"), RerankerTraining())
        assert "1 of 1001 rows of rows have no negatives (row 1000 of rows is the first)" in told

    def test_missing_scores_are_refused(self) -> None:
        with pytest.raises(SettingsError, match="row 0 of rows has negatives and no pos_scores"):
            reranker_advice(self.rows(), RerankerTraining(distillation="kl_div"))
        with pytest.raises(SettingsError, match=r"teacher_margin=1\.0 needs scores"):
            reranker_advice(self.rows(), RerankerTraining(teacher_margin=1.0))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"negatives": 0}, "negatives=0 must be above 0"),
        ({"easy_negatives": 1.5}, r"easy_negatives=1\.5 must be a part from 0 to 1"),
        ({"max_length": 0}, "max_length=0 must be above 0"),
        ({"distillation": "m3_kd_loss"}, "distillation='m3_kd_loss' is unknown"),
        ({"precision": "float16"}, "precision='float16' can't be trained with"),
    ],
)
def test_wrong_settings_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        RerankerTraining(**changes)


def test_candidates_are_what_a_searcher_finds_first() -> None:
    data = RetrievalData(
        {"q1": "one", "q2": "two"}, {f"d{n}": f"text {n}" for n in range(5)}, {"q1": {"d1": 1}, "q2": {"d2": 1}}
    )

    def search(query: str) -> list[str]:
        return ["d3", "d1", "d0"] if query == "one" else ["d4", "d0", "d2"]

    found = with_candidates(data, search, 2)
    assert found.candidates == {"q1": ["d3", "d1"], "q2": ["d4", "d0"]}
    assert found.digest == data.digest
    assert evaluate_retrieval(None, found, metrics=["hit@2"]).metrics == {"hit@2": 0.5}
