"""Training towards a teacher's vectors, and means of models."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer

from bge_integrations import BgeEncoder, find_model
from bge_integrations.errors import InputTypeError, SettingsError
from bge_integrations.evaluation import RetrievalData
from bge_integrations.evaluation.cache import EvaluationCache
from bge_integrations.training import DistillationTraining, best_merge, distil_embedder, merge_models
from bge_integrations.training.losses.imitation import ImitationLoss
from bge_integrations.training.machine.budget import mini_batches
from bge_integrations.training.rows.batches import TargetCollator
from tests.checkpoints import make_checkpoint
from tests.test_contrastive import Tiny, column, small_budget

_WORDS = (
    *("fox", "dog", "plants", "sugar", "light", "water", "Paris", "capital", "France"),
    *("vector", "store", "Berlin", "cat", "tree", "house", "river", "stone"),
)
_QUICK = DistillationTraining(epochs=12, batch_size=16, learning_rate=2e-3, precision="float32", seed=3)
_DRAWS = random.Random(0)
TEXTS = [" ".join(_DRAWS.choices(_WORDS, k=_DRAWS.randint(1, 12))) for _ in range(100)]
HELD_OUT = [" ".join(_DRAWS.choices(_WORDS, k=_DRAWS.randint(1, 12))) for _ in range(30)]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("teacher") / "teacher", modules=("mean", "normalize"), seed=7)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shape of the tiny English checkpoint with other weights."""
    folder = tmp_path_factory.mktemp("other") / "bge-small-en-v1.5"
    return make_checkpoint(folder, modules=("cls", "normalize"), seed=5)


def vectors(folder: Path, texts: list[str] = HELD_OUT, **options: Any) -> NDArray[np.float32]:  # noqa: ANN401
    with BgeEncoder(folder, device="cpu", **options) as encoder:
        return encoder.encode_documents(texts)


def weights(folder: Path) -> dict[str, Any]:
    return {name: value.numpy() for name, value in SentenceTransformer(str(folder), device="cpu").state_dict().items()}


class TestDistilling:
    def test_another_pooling_comes_near_the_teacher(self, teacher: Path, tmp_path: Path) -> None:
        """As MiniLM becomes a model with CLS pooling."""
        result = distil_embedder(TEXTS, teacher, teacher, tmp_path / "cls", settings=_QUICK, pooling="cls")
        losses = [result.losses[step] for step in sorted(result.losses)]
        assert result.steps == len(losses) == 84
        assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])
        wanted = vectors(teacher)
        before, after = (
            1 - (found * wanted).sum(1).mean() for found in (vectors(teacher, pooling="cls"), vectors(result.output))
        )
        assert after < 0.4 * before
        plain = SentenceTransformer(str(result.output), device="cpu")
        assert plain[1].pooling_mode in ("cls", ("cls",), ["cls"])
        assert vectors(result.output) == pytest.approx(plain.encode(HELD_OUT), abs=1e-5)
        record = json.loads((result.output / "bge_training.json").read_text(encoding="utf-8"))
        assert record["started_from"] == record["distilled_from"] == "teacher"
        card = (result.output / "README.md").read_text(encoding="utf-8")
        assert "Made from teacher, to give the vectors of teacher, with bge-integrations." in card
        assert [path.name for path in tmp_path.iterdir()] == ["cls"]

    def test_other_weights_come_near_the_teacher(self, bge_small_en: Path, teacher: Path, tmp_path: Path) -> None:
        result = distil_embedder(TEXTS, teacher, bge_small_en, tmp_path / "out", settings=_QUICK)
        wanted = vectors(teacher)
        before, after = ((vectors(folder) * wanted).sum(1).mean() for folder in (bge_small_en, result.output))
        assert before < 0.3
        assert after > 0.9

    def test_another_dimension_learns_the_similarities(self, teacher: Path, tmp_path: Path) -> None:
        start = make_checkpoint(tmp_path / "small", modules=("mean", "normalize"), hidden_size=16, seed=2)
        result = distil_embedder(TEXTS, teacher, start, tmp_path / "out", settings=_QUICK)
        wanted = vectors(teacher)
        distances = [
            np.square(found @ found.T - wanted @ wanted.T).mean() for found in map(vectors, (start, result.output))
        ]
        assert distances[1] < 0.3 * distances[0]

    def test_each_side_has_its_own_instruction(self, bge_small_en: Path, teacher: Path, tmp_path: Path) -> None:
        read: list[str] = []

        class Notes:
            def encode_queries(self, texts: list[str]) -> NDArray[np.float32]:
                read.extend(f"query {text}" for text in texts)
                return vectors(teacher, texts)

            def encode_documents(self, texts: list[str]) -> NDArray[np.float32]:
                read.extend(texts)
                return 5 * vectors(teacher, texts)

        seen: list[str] = []
        with pytest.MonkeyPatch.context() as patch:
            original = TargetCollator.__init__

            def note(self: Any, texts: Any, targets: Any, *rest: Any, **options: Any) -> None:  # noqa: ANN401
                seen.extend(texts)
                np.testing.assert_allclose(np.linalg.norm(targets, axis=1), 1, atol=1e-6)
                original(self, texts, targets, *rest, **options)

            patch.setattr(TargetCollator, "__init__", note)
            settings = DistillationTraining(max_steps=1, precision="float32")
            documents = ["fox", "dog", "fox"]
            distil_embedder(documents, Notes(), bge_small_en, tmp_path / "out", settings=settings, queries=["fox"])
        assert read == ["query fox", "fox", "dog"]
        assert seen == ["Represent this sentence for searching relevant passages: fox", "fox", "dog"]

    def test_a_killed_run_goes_on_with_the_same_batches(
        self, bge_small_en: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        settings = DistillationTraining(**{**vars(_QUICK), "epochs": 2, "save_every": 5})
        whole = distil_embedder(TEXTS, teacher, bge_small_en, tmp_path / "whole", settings=settings)

        class Killed(BaseException):
            pass

        def kill(step: int, _: object) -> None:
            if step == 12:  # in the middle of the second epoch, after a checkpoint in it
                raise Killed

        with pytest.raises(Killed):
            distil_embedder(TEXTS, teacher, bge_small_en, tmp_path / "killed", settings=settings, on_log=kill)
        with pytest.raises(SettingsError, match="of another run"):
            distil_embedder(TEXTS[1:], teacher, bge_small_en, tmp_path / "killed", settings=settings, resume=True)
        # The teacher's vectors are kept with the checkpoints.
        monkeypatch.setattr(BgeEncoder, "encode_documents", None)
        steps: list[int] = []
        again = distil_embedder(
            TEXTS,
            teacher,
            bge_small_en,
            tmp_path / "killed",
            settings=settings,
            resume=True,
            on_log=lambda step, _: steps.append(step),
        )
        assert again.steps == whole.steps == 14
        assert again.losses == pytest.approx(whole.losses, abs=1e-6)
        assert min(steps) == 11
        expected, found = weights(whole.output), weights(again.output)
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, atol=1e-6, err_msg=name)

    def test_kept_vectors_are_not_computed_again(
        self, bge_small_en: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        settings = DistillationTraining(max_steps=1, precision="float32")
        cache = EvaluationCache(tmp_path / "cache")
        with BgeEncoder(teacher, device="cpu") as encoder:
            distil_embedder(TEXTS, encoder, bge_small_en, tmp_path / "one", settings=settings, cache=cache)
            before = encoder.stats().texts
            distil_embedder(TEXTS, encoder, bge_small_en, tmp_path / "two", settings=settings, cache=cache)
            assert encoder.stats().texts == before

    def test_a_bge_model_with_its_own_pooling_stays_one(
        self, bge_small_en: Path, teacher: Path, tmp_path: Path
    ) -> None:
        settings = DistillationTraining(max_steps=1, precision="float32")
        own = distil_embedder(TEXTS, teacher, bge_small_en, tmp_path / "own", settings=settings)
        spec = find_model(own.output)
        assert spec is not None
        assert spec.model_id == "BAAI/bge-small-en-v1.5"
        mean = distil_embedder(TEXTS, teacher, bge_small_en, tmp_path / "mean", settings=settings, pooling="mean")
        assert find_model(mean.output) is None
        plain = SentenceTransformer(str(mean.output), device="cpu")
        assert vectors(mean.output) == pytest.approx(plain.encode(HELD_OUT), abs=1e-5)
        with BgeEncoder(mean.output) as encoder:
            assert encoder.instruction("query").prefix.startswith("Represent this sentence")


def test_a_model_that_knows_it_all_already_is_told(
    bge_small_en: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    same = tmp_path / "same"
    shutil.copytree(bge_small_en, same)
    config = json.loads((same / "config.json").read_text(encoding="utf-8"))
    (same / "config.json").write_text(json.dumps({**config, "hidden_dropout_prob": 0.0}), encoding="utf-8")
    settings = DistillationTraining(max_steps=11, batch_size=8, learning_rate=1e-9, precision="float32")
    result = distil_embedder(TEXTS, str(bge_small_en), str(same), tmp_path / "out", settings=settings)
    assert max(result.losses.values()) < 1e-6
    (said,) = [record.getMessage() for record in caplog.records if "nothing is learnt" in record.getMessage()]
    assert "The model gives the teacher's vectors already" in said


class TestLoss:
    def test_cached_gradients_are_those_of_the_whole_batch(self) -> None:
        torch.manual_seed(0)
        texts = [[5], [6, 7], [8, 9], [10, 11, 12], [13, 14, 15, 16]]
        for dimension in (8, 3):  # that of the model, and another
            targets = {
                "places": torch.tensor([4, 0, 1, 2, 3, 0]),
                "vectors": torch.nn.functional.normalize(torch.randn(6, dimension), dim=-1),
            }
            found = []
            for memory in (1000, 0):
                torch.manual_seed(1)
                model = Tiny()
                loss = ImitationLoss(model, budget=small_budget(memory))([column(texts)], targets)
                loss.backward()
                found.append((loss.item(), [parameter.grad for parameter in model.parameters()]))
            (one, gradients), (other, others) = found
            assert one == pytest.approx(other, abs=1e-6)
            for left, right in zip(gradients, others, strict=True):
                torch.testing.assert_close(left, right, atol=1e-6, rtol=0)

    @pytest.mark.parametrize(
        ("lengths", "tokens", "padding", "expected"),
        [
            ([1, 2, 3], 100, 100, [(0, 3)]),
            ([2, 2, 2, 2], 4, 100, [(0, 2), (2, 4)]),
            ([2, 2, 9], 100, 10, [(0, 2), (2, 3)]),
            ([2, 2, 9], 100, 14, [(0, 3)]),
            ([3, 50], 4, 0, [(0, 1), (1, 2)]),
            ([3, 3, 50], 1000, 0, [(0, 2), (2, 3)]),
        ],
    )
    def test_mini_batches(self, lengths: list[int], tokens: int, padding: int, expected: list[tuple[int, int]]) -> None:
        assert mini_batches(lengths, tokens, padding) == expected


class TestMerging:
    def test_the_mean_is_exact(self, bge_small_en: Path, other: Path, tmp_path: Path) -> None:
        folder = merge_models([bge_small_en, other, bge_small_en], [0.5, 0.3, 0.2], tmp_path / "mean")
        one, two, found = map(weights, (bge_small_en, other, folder))
        assert one.keys() == found.keys()
        for name, value in found.items():
            parts = (one[name], two[name], one[name])
            if value.dtype == np.float32:
                doubles = [share * part.astype(np.float64) for share, part in zip((0.5, 0.3, 0.2), parts, strict=True)]
                np.testing.assert_array_equal(value, sum(doubles[1:], doubles[0]).astype(np.float32), err_msg=name)
            else:
                np.testing.assert_array_equal(value, one[name])
        spec = find_model(folder)
        assert spec is not None
        assert spec.model_id == "BAAI/bge-small-en-v1.5"
        with BgeEncoder(folder) as encoder:
            assert encoder.instruction("query").prefix.startswith("Represent this sentence")
        record = json.loads((folder / "bge_training.json").read_text(encoding="utf-8"))
        assert [one["weight"] for one in record["merged"]] == [0.5, 0.3, 0.2]
        assert "The weighted mean of bge-small-en-v1.5 (0.5)" in (folder / "README.md").read_text(encoding="utf-8")

    def test_prompts_and_record_of_the_last(self, bge_small_en: Path, other: Path, tmp_path: Path) -> None:
        settings = DistillationTraining(max_steps=1, precision="float32")
        tuned = distil_embedder(TEXTS, other, bge_small_en, tmp_path / "tuned", settings=settings).output
        record = json.loads((tuned / "bge_training.json").read_text(encoding="utf-8"))
        (tuned / "bge_training.json").write_text(json.dumps({**record, "verdict": "It is better."}), encoding="utf-8")
        folder = merge_models([bge_small_en, tuned], [0, 1], tmp_path / "mean")
        for name, value in weights(tuned).items():
            np.testing.assert_array_equal(weights(folder)[name], value)
        merged = json.loads((folder / "bge_training.json").read_text(encoding="utf-8"))
        assert {name: merged[name] for name in record} == record
        assert "verdict" not in merged
        assert SentenceTransformer(str(folder)).prompts == SentenceTransformer(str(tuned)).prompts

    def test_the_best_share_is_written(self, bge_small_en: Path, other: Path, tmp_path: Path) -> None:
        with BgeEncoder(bge_small_en, device="cpu") as encoder:
            nearest = np.argmax(encoder.encode_queries(TEXTS[:20]) @ encoder.encode_documents(HELD_OUT).T, axis=1)
        validation = RetrievalData(
            {f"q{place}": text for place, text in enumerate(TEXTS[:20])},
            {f"d{place}": text for place, text in enumerate(HELD_OUT)},
            {f"q{place}": {f"d{found}": 1} for place, found in enumerate(nearest)},
        )
        result = best_merge(bge_small_en, other, [0.1, 0.6], validation, tmp_path / "best", device="cpu")
        assert list(result.figures) == [0.1, 0.6, 1.0]
        assert result.share == 0.1
        assert result.figures[0.1] > result.figures[1.0]
        expected = merge_models([bge_small_en, other], [0.9, 0.1], tmp_path / "expected")
        for name, value in weights(expected).items():
            np.testing.assert_array_equal(weights(result.output)[name], value)
        record = json.loads((result.output / "bge_training.json").read_text(encoding="utf-8"))
        assert record["merge_chosen_on"]["ndcg@10"]["0.1"] == result.figures[0.1]
        assert sorted(path.name for path in tmp_path.iterdir()) == ["best", "expected"]
        with pytest.raises(SettingsError, match=r"shares has 1\.5"):
            best_merge(bge_small_en, other, [1.5], validation, tmp_path / "new")


class TestRefused:
    def test_models_that_differ(self, bge_small_en: Path, teacher: Path, tmp_path: Path) -> None:
        roberta = make_checkpoint(tmp_path / "roberta", "xlm-roberta", modules=("cls", "normalize"))
        deep = make_checkpoint(tmp_path / "deep", modules=("cls", "normalize"), layers=3)
        wide = make_checkpoint(tmp_path / "wide", modules=("cls", "normalize"), hidden_size=16)
        for model, said in (
            (teacher, r"their modules are .*\(cls\).*\(mean\)"),
            (roberta, "their architectures are bert and xlm-roberta"),
            (deep, r"only one of them has the tensor 0\."),
            (wide, r"the shapes of .* are \(.*, 32\) and \(.*, 16\)"),
        ):
            with pytest.raises(SettingsError, match=said):
                merge_models([bge_small_en, model], [0.5, 0.5], tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_weights(self, tmp_path: Path) -> None:
        for models, shares, said in (
            (["a", "b"], [0.5, 0.6], r"has the sum 1\.1; it must be 1"),
            (["a", "b"], [float("nan"), 0.6], "it must be 1"),
            (["a", "b"], [1.0], "2 models and 1 weights"),
            (["a"], [1.0], "at least two"),
        ):
            with pytest.raises(SettingsError, match=said):
                merge_models(models, shares, tmp_path / "out")

    def test_texts_teachers_and_numbers(self, bge_small_en: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        with pytest.raises(InputTypeError, match="one str"):
            distil_embedder("text", bge_small_en, bge_small_en, out)
        with pytest.raises(InputTypeError):
            distil_embedder(["a", 1], bge_small_en, bge_small_en, out)  # type: ignore[list-item]
        with pytest.raises(SettingsError, match="fewer than 2 different texts"):
            distil_embedder(["a", "a"], bge_small_en, bge_small_en, out)
        with pytest.raises(SettingsError, match=r"teacher=3 is .* which can't embed texts"):
            distil_embedder(TEXTS, 3, bge_small_en, out)
        with pytest.raises(SettingsError, match="save_every=0 must be above 0"):
            DistillationTraining(save_every=0)
        (tmp_path / "full").mkdir()
        (tmp_path / "full" / "file").touch()
        with pytest.raises(SettingsError, match="never overwritten"):
            distil_embedder(TEXTS, "missing", "missing", tmp_path / "full")
