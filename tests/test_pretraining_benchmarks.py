"""The benchmarks of pre-training, on tiny weights: what they compute and keep; never how fast anything is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from benchmarks import pretraining, pretraining_gain
from benchmarks.docstrings.corpus import Entry
from benchmarks.pretraining import BASELINE, ENCODER, LOOP, NO_DROPOUT, RETROMAE, VECTORISED, Plan, loop_masks
from benchmarks.questions import Question
from bge_integrations.training import EmbedderTraining, RetroMaeTraining, TrainingRow, train_embedder

_ENTRIES = tuple(
    Entry(f"about.{word}", f"about.{word}: the {word} of the {other} and the {word}")
    for word in ("fox", "dog", "sun", "sea", "oak", "ivy")
    for other in ("light",)
)


class TestSpeed:
    def test_everybody_works_on_the_same_texts(self, bge_small_en: Path, tmp_path: Path) -> None:
        plan = Plan(
            model=str(bge_small_en),
            mix="queries",
            precision="float32",
            device="cpu",
            batch_size=4,
            steps=2,
            rounds=2,
            workdir=tmp_path,
        )
        found = pretraining.measure(plan)
        assert set(found["masks"]) == {VECTORISED, LOOP}
        assert set(found["steps"]) == {RETROMAE, ENCODER, BASELINE, NO_DROPOUT}
        assert found["masks"][LOOP]["ratio"] == found["steps"][BASELINE]["ratio"] == 1
        assert 4 * 10 <= found["tokens"] <= 4 * 64
        for one in (*found["masks"].values(), *found["steps"].values()):
            assert len(one["seconds"]) == 2
            assert one["median"] == pytest.approx(np.mean(one["seconds"]))
        assert str(tmp_path) not in json.dumps(found)
        console = Console(record=True, width=120)
        pretraining.print_results(console, found)
        assert "its encoder alone" in console.export_text()

    def test_the_loop_makes_masks_of_the_same_kind(self) -> None:
        ids = torch.randint(5, 100, (20, 40))
        mask = torch.ones(20, 40, dtype=torch.int64)
        mask[0, 30:] = 0
        continues = [number % 3 == 0 for number in range(100)]
        found = loop_masks({"input_ids": ids, "attention_mask": mask}, continues)
        assert [tuple(one.shape) for one in found] == [(30, 30), *[(40, 40)] * 19]
        for one in found:
            assert one[:, 0].all()
            assert not one.diagonal()[1:].any()
        seen = torch.stack([one[:, 1:-1].float().mean() for one in found]).mean()
        assert float(seen) == pytest.approx(0.5, abs=0.06)
        for place in range(2, 39):
            if continues[int(ids[1, place])]:  # one word with the token before it
                rows = [row for row in range(40) if row not in (place, place - 1)]
                assert torch.equal(found[1][rows, place], found[1][rows, place - 1])


def test_the_gain_is_that_of_equal_contrastive_steps(
    bge_small_en: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions = tuple(Question(f"where is {one.name}", frozenset({one.name}), "how-to") for one in _ENTRIES)
    rows = [TrainingRow(f"what is {one.name}", (one.text,)) for one in _ENTRIES]
    monkeypatch.setattr(pretraining_gain, "collect", lambda: _ENTRIES)
    monkeypatch.setattr(pretraining_gain, "QUESTIONS", questions)
    monkeypatch.setattr(pretraining_gain, "written_rows", lambda corpus: rows)
    trained: list[tuple[str, int, int]] = []

    def note(data: Any, model: Any, output: Any, *, settings: EmbedderTraining) -> Any:  # noqa: ANN401
        result = train_embedder(data, model, output, settings=settings)
        trained.append((Path(model).name, settings.seed, result.steps))
        return result

    monkeypatch.setattr(pretraining_gain, "train_embedder", note)
    (tmp_path / "more.txt").write_text("one more text\n", encoding="utf-8")
    plan = pretraining_gain.Plan(
        model=str(bge_small_en),
        pretraining=RetroMaeTraining(max_steps=4, batch_size=4, learning_rate=1e-3, precision="float32"),
        contrastive=EmbedderTraining(max_steps=2, batch_size=3, precision="float32"),
        seeds=(0, 1),
        texts=tmp_path / "more.txt",
        workdir=tmp_path,
    )
    console = Console(record=True, width=120)
    found = pretraining_gain.measure(plan, console)
    assert trained == [("start", 0, 2), ("pretrained", 0, 2), ("start", 1, 2), ("pretrained", 1, 2)]
    assert found["pretraining"]["texts"] == 7
    assert found["pretraining"]["steps"] == 4 == len(found["pretraining"]["losses"])
    assert {name: list(one) for name, one in found["figures"].items()} == {
        "as it was": ["none", "0", "1"],
        "after RetroMAE": ["none", "0", "1"],
    }
    for name in ("none", "0", "1"):
        before, after = (found["figures"][start][name]["ndcg@10"] for start in ("as it was", "after RetroMAE"))
        assert found["comparisons"][name]["difference"] == pytest.approx(after - before)
    means = [found["comparisons"][name]["difference"] for name in ("0", "1")]
    assert found["comparisons"]["mean of the seeds"]["difference"] == pytest.approx(np.mean(means))
    pretraining_gain.print_results(console, found)
    assert "4 steps of RetroMAE on 7 texts" in console.export_text()
    assert str(tmp_path) not in json.dumps(found)
