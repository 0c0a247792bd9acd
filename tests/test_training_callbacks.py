"""What is seen of a training while it runs: figures, the bar, logs, and what stops it."""

from __future__ import annotations

import io
import math
import os
import random
import re
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers import SentenceTransformer

from bge_integrations import BgeEncoder, find_model
from bge_integrations.errors import MissingExtraError, SettingsError
from bge_integrations.evaluation import RetrievalData, evaluate_retrieval
from bge_integrations.settings import EncoderSettings
from bge_integrations.training import (
    DistillationTraining,
    EmbedderTraining,
    TrainingData,
    TrainingRow,
    distil_embedder,
    train_embedder,
)
from bge_integrations.training.losses.contrastive import ContrastiveLoss
from bge_integrations.training.trainer.callbacks import Guard

_WORDS = ("fox", "dog", "plants", "sugar", "light", "water", "Paris", "Berlin", "cat", "tree", "house", "river")
_QUICK = EmbedderTraining(epochs=2, batch_size=8, learning_rate=1e-3, precision="float32")


@pytest.fixture(scope="module")
def data() -> TrainingData:
    draws = random.Random(0)
    rows = [
        TrainingRow(f"about {word}", (f"{word} is {other}",), (f"not {other}", f"no {other}"))
        for word in _WORDS
        for other in draws.sample(_WORDS, 2)
    ]
    return TrainingData(rows, "words")


@pytest.fixture(scope="module")
def validation() -> RetrievalData:
    """Documents of very different lengths, also above the limit of the tiny model, and equal ones."""
    draws = random.Random(1)
    return RetrievalData(
        {f"q{word}": f"about {word}" for word in _WORDS},
        {
            f"d{word}{number}": f"{word} is {' '.join(draws.choices(_WORDS, k=length))}"
            for word in _WORDS
            for number, length in enumerate((1, 5, 90))
        }
        | {"copy": "same", "again": "same"},
        {f"q{word}": {f"d{word}0": 1, f"d{word}2": 2} for word in _WORDS},
    )


def start_of(folder: Path, **options: Any) -> EncoderSettings:  # noqa: ANN401
    return EncoderSettings(model_name=str(folder), device="cpu", **options)


class TestValidation:
    @pytest.mark.parametrize("options", [{}, {"query_instruction": "find: "}, {"max_length": 24}])
    def test_figures_are_those_of_the_model_as_it_is_used(
        self, bge_small_en: Path, data: TrainingData, validation: RetrievalData, tmp_path: Path, options: dict[str, Any]
    ) -> None:
        start = start_of(bge_small_en, **options)
        result = train_embedder(data, start, tmp_path / "out", settings=_QUICK, validation=validation)
        limit = options.get("max_length")
        with BgeEncoder(result.output, device="cpu", max_length=limit, on_truncation="ignore") as encoder:
            assert encoder.instruction("query").prefix
            expected = evaluate_retrieval(encoder, validation, metrics=["ndcg@10"]).metrics["ndcg@10"]
        assert 0 < expected < 1
        assert max(result.validation.values()) == pytest.approx(expected, abs=1e-6)
        again = open_limit(result.output)
        assert again == open_limit(bge_small_en)

    @pytest.mark.parametrize("precision", ["float32", "bfloat16"])
    def test_is_computed_in_the_precision_of_the_training(
        self,
        bge_small_en: Path,
        data: TrainingData,
        validation: RetrievalData,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        precision: str,
    ) -> None:
        seen = set()
        original = SentenceTransformer.encode

        def note(self: Any, *arguments: Any, **options: Any) -> Any:  # noqa: ANN401
            if options.get("prompt") == "":  # the evaluation, not a look at a model that is loaded
                seen.add("bfloat16" if torch.is_autocast_enabled("cpu") else "float32")
            return original(self, *arguments, **options)

        monkeypatch.setattr(SentenceTransformer, "encode", note)
        settings = EmbedderTraining(max_steps=1, batch_size=8, precision=precision)
        train_embedder(data, start_of(bge_small_en), tmp_path / "out", settings=settings, validation=validation)
        assert seen == {precision}


def open_limit(folder: Path) -> int:
    return int(SentenceTransformer(str(folder), device="cpu").max_seq_length or 0)


class TestGuard:
    @pytest.mark.parametrize("part", ["loss", "gradient"])
    def test_a_loss_of_nan_stops_training_and_leaves_the_checkpoint(
        self,
        bge_small_en: Path,
        data: TrainingData,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        part: str,
    ) -> None:
        steps = 0
        original = ContrastiveLoss.loss_of

        def broken(self: ContrastiveLoss, *arguments: Any, **options: Any) -> Any:  # noqa: ANN401
            nonlocal steps
            steps += 1
            loss = original(self, *arguments, **options)
            if steps < 6:
                return loss
            # An infinite slope, with or without a finite value.
            return loss * math.nan if part == "loss" else loss + torch.sqrt(loss * 0)

        monkeypatch.setattr(ContrastiveLoss, "loss_of", broken)
        settings = EmbedderTraining(**{**vars(_QUICK), "precision": "bfloat16", "epochs": 3})
        with pytest.raises(SettingsError) as caught:
            train_embedder(data, start_of(bge_small_en), tmp_path / "out", settings=settings)
        message = str(caught.value)
        assert re.match(rf"The {part} is (nan|inf) at step 6, so training has stopped\. Lower learning_rate", message)
        assert '(0.001 now); or set precision="float32"; or check' in message
        assert not (tmp_path / "out").exists()
        (kept,) = (tmp_path / "out.training").glob("checkpoint-*")
        assert f"The checkpoint {kept} is from before" in message
        monkeypatch.undo()
        with BgeEncoder(kept, device="cpu") as encoder:
            assert encoder.instruction("query").prefix.startswith("Represent this sentence")
            assert all(map(math.isfinite, encoder.encode_queries(["about fox"])[0].tolist()))
        spec = find_model(kept)
        assert spec is not None
        assert spec.model_id == "BAAI/bge-small-en-v1.5"
        again = train_embedder(data, start_of(kept), tmp_path / "again", settings=_QUICK)
        with BgeEncoder(again.output, device="cpu") as encoder:
            assert encoder.instruction("query").prefix.startswith("Represent this sentence")

    def test_says_where_there_is_no_checkpoint(self, tmp_path: Path) -> None:
        guard = Guard(tmp_path, _QUICK, "Add negatives.")
        with pytest.raises(SettingsError, match=r"loss is inf at step 1, .* There was no checkpoint yet\."):
            guard.take(1, {"loss": math.inf}, is_main=True)

    def test_warns_once_of_a_loss_that_stays_0(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        guard = Guard(tmp_path, _QUICK, "Add negatives.")
        for step in range(1, 60):
            guard.take(step, {"loss": 0.5 if step == 9 else 1e-9}, is_main=True)
            guard.take(step, {"eval_ndcg@10": 0.0}, is_main=True)
        (said,) = [record.getMessage() for record in caplog.records]
        assert said.startswith("The loss has been 0 for 10 steps, up to step 19: nothing is learnt. ")
        assert said.endswith("Add negatives.")

    def test_a_small_loss_is_no_loss_of_0(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        guard = Guard(tmp_path, _QUICK, "Add negatives.")
        for step in range(1, 60):
            guard.take(step, {"loss": 1e-4}, is_main=True)
        assert not caplog.records


class _Writer:
    """What stands for TensorBoard's writer where it is not installed."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True)

    def add_scalar(self, name: str, value: float, step: int) -> None:
        with (self.folder / "events").open("a", encoding="utf-8") as file:
            file.write(f"{name} {step} {value}\n")

    def flush(self) -> None:
        pass

    close = flush


@pytest.fixture
def tensorboard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", types.ModuleType("tensorboard"))
    module: Any = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = _Writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)


class TestTensorBoard:
    @pytest.mark.usefixtures("tensorboard")
    def test_its_files_stay_beside_the_output(
        self, bge_small_en: Path, data: TrainingData, validation: RetrievalData, tmp_path: Path
    ) -> None:
        result = train_embedder(
            data,
            start_of(bge_small_en),
            tmp_path / "out",
            settings=_QUICK,
            validation=validation,
            report_to="tensorboard",
        )
        assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out.runs"]
        (folder,) = (tmp_path / "out.runs").iterdir()
        found: dict[str, dict[int, float]] = {}
        for line in (folder / "events").read_text(encoding="utf-8").splitlines():
            name, step, value = line.split()
            found.setdefault(name, {})[int(step)] = float(value)
        assert set(found) == {"train/loss", "train/learning_rate", "train/grad_norm", "eval/ndcg@10"}
        assert found["train/loss"] == result.losses
        assert found["eval/ndcg@10"] == result.validation

    @pytest.mark.usefixtures("tensorboard")
    def test_distillation_has_them_too(self, bge_small_en: Path, tmp_path: Path) -> None:
        quick = DistillationTraining(max_steps=2, batch_size=2, precision="float32")
        start = start_of(bge_small_en)
        distil_embedder(_WORDS, bge_small_en, start, tmp_path / "out", settings=quick, report_to="tensorboard")
        assert (tmp_path / "out.runs").is_dir()

    def test_tensorboards_own_reader_reads_them(self, bge_small_en: Path, data: TrainingData, tmp_path: Path) -> None:
        accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
        result = train_embedder(
            data, start_of(bge_small_en), tmp_path / "out", settings=_QUICK, report_to="tensorboard"
        )
        (folder,) = (tmp_path / "out.runs").iterdir()
        events = accumulator.EventAccumulator(str(folder))
        events.Reload()
        losses = {event.step: event.value for event in events.Scalars("train/loss")}
        assert losses == pytest.approx(result.losses, abs=1e-5)

    def test_it_is_asked_for_before_anything_is_loaded(
        self, data: TrainingData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "tensorboard", None)
        with pytest.raises(MissingExtraError, match=r"tensorboard is not installed.*pip install tensorboard"):
            train_embedder(data, "missing", tmp_path / "out", report_to="tensorboard")
        with pytest.raises(TypeError, match="unexpected keyword argument 'resumes'"):
            train_embedder(data, "missing", tmp_path / "out", resumes=True)  # type: ignore[call-arg]
        with pytest.raises(SettingsError, match="report_to='wandb' is unknown; choose 'none' or 'tensorboard'"):
            train_embedder(data, "missing", tmp_path / "out", report_to="wandb")


def test_nothing_is_reported_to_anyone(
    bge_small_en: Path, data: TrainingData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trackers that are installed, and have their keys in the environment, hear nothing."""
    from bge_integrations.training.trainer import trainer

    for name in ("WANDB_API_KEY", "WANDB_PROJECT", "MLFLOW_TRACKING_URI", "COMET_API_KEY", "TENSORBOARD_LOGGING_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "reported"))
    for name in ("wandb", "mlflow", "comet_ml", "tensorboardX"):
        (tmp_path / "trackers" / name).mkdir(parents=True)
        (tmp_path / "trackers" / name / "__init__.py").write_text(f"raise SystemExit('{name} was imported')")
    monkeypatch.syspath_prepend(str(tmp_path / "trackers"))
    callbacks: list[str] = []
    train = trainer._Trainer.train

    def note(self: Any, **options: Any) -> Any:  # noqa: ANN401
        callbacks.extend(type(callback).__module__ for callback in self.callback_handler.callbacks)
        return train(self, **options)

    monkeypatch.setattr(trainer._Trainer, "train", note)
    # The card of sentence-transformers would ask the hub about the base model.
    monkeypatch.setattr(SentenceTransformer, "_create_model_card", None)
    train_embedder(data, start_of(bge_small_en), tmp_path / "out", settings=_QUICK)
    assert callbacks
    assert not [module for module in callbacks if "integrations.integration" in module]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "trackers"]
    assert not {"wandb", "mlflow", "comet_ml"} & set(sys.modules)


def test_the_bar_shows_steps_time_loss_and_figures(
    bge_small_en: Path, data: TrainingData, validation: RetrievalData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(sys, "stderr", screen)
    result = train_embedder(
        data, start_of(bge_small_en), tmp_path / "out", settings=_QUICK, validation=validation, show_progress=True
    )
    said = screen.getvalue()
    lines = [line for line in re.split(r"[\r\n]+", said) if line.strip()]
    mean = sum(result.losses.values()) / len(result.losses)
    assert re.search(rf"Training: 100%\|.*\| 6/6 \[\d\d:\d\d<.*step.*, loss {mean:.4f}\]", lines[-1])
    for step, figure in result.validation.items():
        assert f"step {step}: ndcg@10 {figure:.4f} on the validation data" in lines
    assert any(line.startswith("Evaluating: ") for line in lines)
    assert "{" not in said
    assert "shards" not in said
    assert os.linesep * 2 not in said.strip()
