"""What training refuses before it starts, and what it warns of."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from bge_integrations.errors import SettingsError
from bge_integrations.settings import EncoderSettings
from bge_integrations.training import (
    DistillationTraining,
    EmbedderTraining,
    TrainingData,
    TrainingRow,
    distil_embedder,
    train_embedder,
)
from bge_integrations.training.trainer.checks import advice
from bge_integrations.training.trainer.starting import open_start
from bge_integrations.training.trainer.work import about_weights

_MANY = [TrainingRow(f"q{number}", (f"p{number}",), (f"a{number}", f"b{number}")) for number in range(1000)]


def said(rows: list[TrainingRow], *, processes: int = 1, **changes: Any) -> str:  # noqa: ANN401
    return "\n".join(
        advice(TrainingData(rows, "rows"), EmbedderTraining(temperature=0.02, **changes), processes=processes)
    )


class TestWarnings:
    def test_there_are_none_where_all_is_well(self) -> None:
        assert said(_MANY) == ""

    def test_of_few_rows(self) -> None:
        assert "rows has 999 rows; fine-tuning needs about a thousand" in said(_MANY[1:])

    def test_of_a_temperature_of_1(self) -> None:
        found = advice(TrainingData(_MANY), EmbedderTraining(temperature=1.0))
        assert found == [
            "temperature=1.0 makes the loss flat; leave it out, or take 0.01 or 0.02 as BGE models were trained with."
        ]

    def test_of_one_negative_a_row(self) -> None:
        rows = [dataclasses.replace(row, neg=row.neg[:1]) for row in _MANY]
        assert "1000 of 1000 rows have one negative or none" in said(rows)
        assert "mine_hard_negatives" in said(rows)
        assert said(rows[:400] + _MANY[400:]) == ""
        assert said([dataclasses.replace(row, type="only_1neg") for row in rows]) == ""

    def test_of_one_negative_where_rows_have_more(self) -> None:
        assert "negatives=1 draws one negative of a row, though rows have up to 2" in said(_MANY, negatives=1)
        assert said(_MANY, negatives=0) == ""

    @pytest.mark.parametrize(
        ("rows", "changes", "reason"),
        [
            (
                [TrainingRow("q", ("p",), no_in_batch_neg=True)],
                {},
                "they have none of their own, and passages of other rows do not count (no_in_batch_neg)",
            ),
            (
                [TrainingRow("q", ("p",))],
                {"batch_size": 1},
                "they have none of their own, and a batch has one row (batch_size=1)",
            ),
            (
                [TrainingRow("q", ("p",), source="other"), TrainingRow("r", ("p",), source="other")],
                {"same_source": True},
                "they have none of their own, and all passages of the other rows answer their query",
            ),
        ],
    )
    def test_of_rows_without_negatives(self, rows: list[TrainingRow], changes: dict[str, Any], reason: str) -> None:
        found = said([*_MANY, *rows], **changes)
        assert f"{len(rows)} of {1000 + len(rows)} rows of rows have no negatives: {reason}" in found
        assert "Their loss is always 0. Add negatives with mine_hard_negatives" in found

    def test_other_processes_have_negatives_for_a_batch_of_one_row(self) -> None:
        rows = [TrainingRow(f"q{number}", (f"p{number}",)) for number in range(1000)]
        assert "no negatives" not in said(rows, batch_size=1, processes=2)

    @pytest.mark.parametrize("kind", ["float16", "bfloat16"])
    def test_of_weights_in_half_precision(
        self, bge_small_en: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
    ) -> None:
        import shutil

        import torch

        half = shutil.copytree(bge_small_en, tmp_path / "bge-small-en-v1.5")
        file = next(half.rglob("model.safetensors"))
        tensors = {name: tensor.to(getattr(torch, kind)) for name, tensor in load_file(file).items()}
        save_file(tensors, file, {"format": "pt"})
        start = EncoderSettings(model_name=str(half), device="cpu")
        settings = EmbedderTraining(max_steps=1, batch_size=4, precision="float32")
        result = train_embedder(TrainingData(_MANY[:4]), start, tmp_path / "out", settings=settings)
        expected = f"The weights of bge-small-en-v1.5 are stored in {kind}. They are trained and saved in float32"
        assert expected in caplog.text
        assert "data has 4 rows; fine-tuning needs about a thousand" in caplog.text
        assert open_start(EncoderSettings(model_name=str(result.output), device="cpu")).stored_in == {"F32"}
        caplog.clear()
        quick = DistillationTraining(max_steps=1, precision="float32")
        distil_embedder(["a", "b"], half, start, tmp_path / "distilled", settings=quick)
        assert expected in caplog.text

    def test_there_is_none_of_weights_in_float32(self, bge_small_en: Path) -> None:
        assert about_weights(open_start(EncoderSettings(model_name=str(bge_small_en), device="cpu")), "x") == []


class TestRefused:
    @pytest.mark.parametrize(
        ("rows", "changes"),
        [
            ([TrainingRow("q", ("p",)), TrainingRow("r", ("p",))], {}),
            ([TrainingRow("q", ("p", "s")), TrainingRow("q", ("s",))], {}),
            ([TrainingRow("q", ("p",), ("n",)), TrainingRow("r", ("p",), ("n",))], {"negatives": 0}),
            ([TrainingRow("q", ("p",)), TrainingRow("r", ("s",))], {"batch_size": 1}),
            ([TrainingRow(query, (query,), no_in_batch_neg=True) for query in "ab"], {}),
        ],
    )
    def test_data_without_any_negative(self, rows: list[TrainingRow], changes: dict[str, Any]) -> None:
        with pytest.raises(SettingsError, match=r"2 of 2 rows .*The loss would always be 0\. Add negatives"):
            said(rows, **changes)

    def test_float16(self) -> None:
        for kind in (EmbedderTraining, DistillationTraining):
            with pytest.raises(SettingsError, match="float16' can't be trained with: small gradients become 0"):
                kind(precision="float16")


class TestScores:
    @pytest.mark.parametrize("kind", ["kl_div", "m3_kd_loss"])
    @pytest.mark.parametrize(
        ("scores", "missing"),
        [
            ({}, "pos_scores"),
            ({"pos_scores": (1,)}, "neg_scores"),
            ({"neg_scores": (1,)}, "pos_scores"),
        ],
    )
    def test_are_needed_by_rows_with_negatives(self, kind: Any, scores: dict[str, Any], missing: str) -> None:  # noqa: ANN401
        whole = TrainingRow("q", ("p",), ("n",), (2.0,), (1.0,))
        rows = [whole, TrainingRow("r", ("s",), ("n",), **scores), TrainingRow("t", ("u",), ("n",), **scores)]
        with pytest.raises(SettingsError) as caught:
            said(rows, distillation=kind)
        assert str(caught.value) == (
            f"distillation={kind!r} needs scores, but row 1 of rows has negatives and no {missing}, and 1 more rows "
            "lack them. Make both with score_with_teacher."
        )
        data = TrainingData(rows, "rows", places=["a.jsonl, line 1", "a.jsonl, line 2", "a.jsonl, line 3"])
        with pytest.raises(SettingsError, match=r"but a\.jsonl, line 2 has negatives"):
            advice(data, EmbedderTraining(distillation=kind))
        assert "scores" not in said([dataclasses.replace(row, neg_scores=None) for row in rows])

    def test_are_needed_to_leave_out_negatives_by_them(self) -> None:
        rows = [TrainingRow("q", ("p",), ("n",)), TrainingRow("r", ("s",), ("m",))]
        with pytest.raises(SettingsError, match=r"teacher_margin=0\.5 needs scores, and no row of rows has neg_scores"):
            said(rows, teacher_margin=0.5)
        said([*rows, TrainingRow("t", ("u",), ("n",), (2.0,), (1.0,))], teacher_margin=0.5)

    def test_are_not_needed_by_rows_without_negatives(self) -> None:
        whole = TrainingRow("q", ("p",), ("n",), (2.0,), (1.0,))
        for scores in ({}, {"pos_scores": (1,)}, {"pos_scores": (1,), "neg_scores": ()}):
            said([whole, TrainingRow("r", ("s",), **scores)], distillation="kl_div")

    def test_without_any_negative_there_is_nothing_to_distil(self) -> None:
        rows = [TrainingRow(query, (f"{query}{query}",), pos_scores=(1.0,)) for query in "ab"]
        with pytest.raises(SettingsError, match="compares a positive with negatives of its row, but no row of rows"):
            said(rows, distillation="kl_div")
        with pytest.raises(SettingsError, match="but negatives=0"):
            said([TrainingRow("q", ("p",), ("n",), (2,), (1,)), *rows], distillation="kl_div", negatives=0)

    def test_are_the_teachers_in_a_batch_of_rows_with_and_without_negatives(self) -> None:
        from tests.test_training_batches import Read

        rows = [TrainingRow("q", ("p",), ("n",), (2.0,), (1.0,)), TrainingRow("r", ("s",))]
        assert Read(rows, uses_teacher=True).layout.teacher.tolist() == [[2, 1], [0, 0]]  # type: ignore[union-attr]
