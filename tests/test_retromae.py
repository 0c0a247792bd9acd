"""RetroMAE from texts to a folder: what is trained, saved, resumed and refused."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoTokenizer,
    BertForMaskedLM,
    XLMRobertaForMaskedLM,
)

from bge_integrations import BgeEncoder, find_model
from bge_integrations.errors import DeviceMemoryError, SettingsError, UnsupportedModelError
from bge_integrations.settings import EncoderSettings
from bge_integrations.training import (
    EmbedderTraining,
    RetroMaeTraining,
    TrainingData,
    TrainingRow,
    pretrain_retromae,
    train_embedder,
)
from bge_integrations.training.machine.memory import DEFAULT_BUDGET
from bge_integrations.training.retromae.model import RetroMae
from bge_integrations.training.retromae.subject import build_model
from bge_integrations.training.trainer.starting import open_start
from tests.checkpoints import Architecture, make_checkpoint
from tests.processes import Together

_WORDS = ("fox", "dog", "plants", "sugar", "light", "water", "Paris", "capital", "France", "vector", "store", "Berlin")
_DRAWS = random.Random(0)
TEXTS = [
    f"the {one} of the {one} and the {other}, over the {other}" for one in _WORDS for other in _DRAWS.sample(_WORDS, 5)
]
_QUICK = RetroMaeTraining(epochs=2, batch_size=8, learning_rate=3e-3, precision="float32", seed=3, save_every=5)


def weights(folder: Path) -> dict[str, Any]:
    return {name: value.numpy() for name, value in SentenceTransformer(str(folder), device="cpu").state_dict().items()}


class TestTraining:
    @pytest.mark.parametrize("precision", ["float32", "bfloat16"])
    def test_both_losses_fall_and_the_vector_tells_more_of_the_text(
        self, bge_small_en: Path, tmp_path: Path, precision: str
    ) -> None:
        settings = dataclasses.replace(_QUICK, epochs=8, precision=precision)
        seen: dict[int, dict[str, float]] = {}
        result = pretrain_retromae(
            TEXTS,
            bge_small_en,
            tmp_path / "out",
            settings=settings,
            on_log=lambda step, logs: seen.update({step: {**logs, **seen.get(step, {})}}),
        )
        assert result.steps == 64 == len(result.losses)
        for part in ("encoder_loss", "decoder_loss"):
            losses = [seen[step][part] for step in range(1, 65)]
            assert np.mean(losses[-8:]) < 0.6 * np.mean(losses[:8])
        for step, loss in result.losses.items():
            assert loss == pytest.approx(seen[step]["encoder_loss"] + seen[step]["decoder_loss"], rel=1e-3)
        assert [path.name for path in tmp_path.iterdir()] == ["out"]

    def test_the_folder_is_one_of_an_embedder_and_is_known(self, bge_small_en: Path, tmp_path: Path) -> None:
        result = pretrain_retromae(TEXTS, bge_small_en, tmp_path / "out", settings=_QUICK)
        spec = find_model(result.output)
        assert spec is not None
        assert spec.model_id == "BAAI/bge-small-en-v1.5"
        plain = SentenceTransformer(str(result.output), device="cpu")
        assert [type(module).__name__ for module in plain] == ["Transformer", "Pooling", "Normalize"]
        assert plain[1].pooling_mode in ("cls", ["cls"], ("cls",))
        with BgeEncoder(result.output, device="cpu") as encoder:
            assert encoder.instruction("query").prefix.startswith("Represent this sentence")
            assert encoder.encode_documents(["the fox"])[0] == pytest.approx(plain.encode("the fox"), abs=1e-5)
        record = json.loads((result.output / "bge_training.json").read_text(encoding="utf-8"))
        assert record["pretrained"] == "RetroMAE"
        assert record["steps"] == 16
        assert record["data"]["rows"] == record["data"]["pieces"] == 60
        card = (result.output / "README.md").read_text(encoding="utf-8")
        assert "Pre-trained by RetroMAE from bge-small-en-v1.5 with bge-integrations." in card
        assert "base_model: BAAI/bge-small-en-v1.5" in card
        assert "no useful similarity before contrastive training" in card
        assert not [path for path in result.output.iterdir() if "retromae" in path.name]

    @pytest.mark.parametrize("architecture", ["bert", "xlm-roberta"])
    def test_contrastive_training_starts_from_it(self, tmp_path: Path, architecture: Architecture) -> None:
        base = make_checkpoint(tmp_path / "base", architecture)
        pretrained = pretrain_retromae(TEXTS, base, tmp_path / "pretrained", settings=_QUICK).output
        rows = TrainingData([TrainingRow(f"about {word}", (f"{word} is fox",)) for word in _WORDS])
        settings = EmbedderTraining(max_steps=1, batch_size=4, learning_rate=1e-12, precision="float32")
        tuned = train_embedder(rows, pretrained, tmp_path / "tuned", settings=settings).output
        before, after, start = (weights(folder) for folder in (pretrained, tuned, base))
        for name, value in before.items():
            np.testing.assert_allclose(after[name], value, atol=1e-6, err_msg=name)
        assert any(np.abs(before[name] - value).max() > 1e-3 for name, value in start.items() if name in before)

    def test_a_base_model_of_bge_can_be_trained_further(self, tmp_path: Path) -> None:
        """bge-m3-retromae, which is no embedder."""
        base = make_checkpoint(tmp_path / "bge-m3-retromae", "xlm-roberta")
        with pytest.raises(UnsupportedModelError, match="gives no usable vectors"):
            BgeEncoder(base)
        settings = dataclasses.replace(_QUICK, max_steps=1)
        output = pretrain_retromae(TEXTS, base, tmp_path / "out", settings=settings).output
        with BgeEncoder(output, device="cpu") as encoder:
            assert encoder.encode_documents(["the fox"]).shape == (1, 32)

    def test_a_mean_pooled_start_is_told_and_gets_cls_pooling(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        mean = make_checkpoint(tmp_path / "mean", modules=("mean",))
        settings = dataclasses.replace(_QUICK, max_steps=1)
        output = pretrain_retromae(TEXTS, mean, tmp_path / "out", settings=settings).output
        assert "mean does not pool [CLS], the token whose vector is pre-trained" in caplog.text
        modules = list(SentenceTransformer(str(output), device="cpu"))
        assert [type(module).__name__ for module in modules] == ["Transformer", "Pooling", "Normalize"]
        assert modules[1].pooling_mode in ("cls", ["cls"], ("cls",))

    def test_a_killed_run_goes_on_with_the_same_batches_and_masks(self, bge_small_en: Path, tmp_path: Path) -> None:
        file = tmp_path / "texts.txt"
        file.write_text("\n".join(TEXTS), encoding="utf-8")
        whole = pretrain_retromae(file, bge_small_en, tmp_path / "whole", settings=_QUICK, keep_head=True)

        class Killed(BaseException):
            pass

        def kill(step: int, _: object) -> None:
            if step == 12:  # in the second epoch, after a checkpoint in it
                raise Killed

        with pytest.raises(Killed):
            pretrain_retromae(file, bge_small_en, tmp_path / "killed", settings=_QUICK, on_log=kill)
        work = tmp_path / "killed.training"
        assert {path.name for path in work.iterdir()} >= {"checkpoint-5", "checkpoint-10", "texts.ids"}
        # A checkpoint can be used as it is.
        assert find_model(work / "checkpoint-10") is not None
        assert SentenceTransformer(str(work / "checkpoint-10"), device="cpu").encode("fox").shape == (32,)
        with pytest.raises(SettingsError, match="resume=True"):
            pretrain_retromae(file, bge_small_en, tmp_path / "killed", settings=_QUICK)
        other = dataclasses.replace(_QUICK, seed=4)
        with pytest.raises(SettingsError, match="of another run"):
            pretrain_retromae(file, bge_small_en, tmp_path / "killed", settings=other, resume=True)
        steps: list[int] = []
        again = pretrain_retromae(
            file,
            bge_small_en,
            tmp_path / "killed",
            settings=_QUICK,
            keep_head=True,
            resume=True,
            on_log=lambda step, _: steps.append(step),
        )
        assert min(steps) == 11
        assert again.steps == whole.steps == 16
        assert again.losses == pytest.approx(whole.losses, abs=1e-5)
        expected, found = (load_file(result.output / "model.safetensors") for result in (whole, again))
        assert expected.keys() == found.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, atol=1e-5, rtol=0, msg=name)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["killed", "texts.txt", "whole"]

    def test_the_order_differs_between_epochs_and_seeds(self, bge_small_en: Path, tmp_path: Path) -> None:
        losses = []
        for number, seed in enumerate((3, 3, 4)):
            settings = dataclasses.replace(_QUICK, epochs=1, seed=seed)
            losses.append(pretrain_retromae(TEXTS, bge_small_en, tmp_path / f"{number}", settings=settings).losses)
        assert losses[0] == losses[1] != losses[2]

    @pytest.mark.slow
    def test_two_processes_go_on_where_they_stopped(
        self, bge_small_en: Path, tmp_path: Path, together: Together
    ) -> None:
        (tmp_path / "texts.txt").write_text("\n".join(TEXTS), encoding="utf-8")
        found = []
        for resume in ("killed", "resumed", "whole"):
            output = "whole" if resume == "whole" else "out"
            ended = together(_IN_TWO_PROCESSES, bge_small_en, tmp_path / "texts.txt", tmp_path / output, resume)
            if resume == "killed":
                assert any(ended.codes)
                assert (tmp_path / "out.training" / "checkpoint-4").is_dir(), ended.said
                continue
            assert ended.codes == [0, 0], ended.said
            found.append([json.loads((tmp_path / f"{output}.{rank}.json").read_text("utf-8")) for rank in (0, 1)])
            assert ended.said.count("no head of masked language modelling") == 1
        for one, other in found:
            assert one["losses"] == other["losses"]
            assert one["parts"] == other["parts"]
        (resumed, _), (whole, _) = found
        assert resumed["losses"] == pytest.approx(whole["losses"], abs=1e-5)
        assert len(whole["losses"]) == 8
        for step, loss in whole["losses"].items():
            assert sum(whole["parts"][step]) == pytest.approx(loss, abs=1e-4)
        expected, again = (weights(tmp_path / output) for output in ("whole", "out"))
        for name, value in expected.items():
            np.testing.assert_allclose(again[name], value, atol=1e-5, err_msg=name)


_IN_TWO_PROCESSES = """
import json, os, sys
from bge_integrations.settings import EncoderSettings
from bge_integrations.training import RetroMaeTraining, pretrain_retromae
model, texts, output, how = sys.argv[1:]
settings = RetroMaeTraining(
    epochs=2, batch_size=8, learning_rate=1e-3, precision="float32", save_every=2, encoder_masking=0.3
)
parts = {}

def log(step, logs):
    if "encoder_loss" in logs:
        parts[step] = [logs["encoder_loss"], logs["decoder_loss"]]
    if how == "killed" and step == 5:
        os._exit(7)

start = EncoderSettings(model_name=model, device="cpu")
result = pretrain_retromae(texts, start, output, settings=settings, resume=how == "resumed", on_log=log)
with open(f"{output}.{os.environ['RANK']}.json", "w") as file:
    json.dump({"losses": result.losses, "parts": parts}, file)
"""


def masked_lm(folder: Path, architecture: Architecture) -> Any:  # noqa: ANN401
    """Saves a model with its own head beside a tokenizer."""
    make_checkpoint(folder, architecture)
    config = AutoModel.from_pretrained(folder).config
    torch.manual_seed(8)
    model: Any = BertForMaskedLM(config) if architecture == "bert" else XLMRobertaForMaskedLM(config)
    torch.nn.init.normal_(model.get_output_embeddings().bias)
    model.save_pretrained(folder)
    return model.eval()


def logits_of(model: Any, folder: Path) -> torch.Tensor:  # noqa: ANN401
    encoded = AutoTokenizer.from_pretrained(folder)(TEXTS[:3], padding=True, return_tensors="pt")
    with torch.no_grad():
        found: torch.Tensor = model(**encoded).logits
    return found


@pytest.mark.parametrize("architecture", ["bert", "xlm-roberta"])
class TestHead:
    def test_a_checkpoint_keeps_its_own(
        self, tmp_path: Path, architecture: Architecture, caplog: pytest.LogCaptureFixture
    ) -> None:
        """With a learning rate of nearly 0, the logits of the result are those of the start."""
        model = masked_lm(tmp_path / "start", architecture)
        settings = dataclasses.replace(_QUICK, learning_rate=1e-12, max_steps=1)
        output = pretrain_retromae(
            TEXTS, tmp_path / "start", tmp_path / "out", settings=settings, keep_head=True
        ).output
        assert "no head" not in caplog.text
        whole, report = AutoModelForMaskedLM.from_pretrained(output, output_loading_info=True)
        assert not report["missing_keys"]
        torch.testing.assert_close(logits_of(whole.eval(), output), logits_of(model, output), atol=1e-4, rtol=0)

    def test_a_kept_one_is_read_by_transformers_and_the_embedder_stays_the_same(
        self, tmp_path: Path, architecture: Architecture
    ) -> None:
        start = make_checkpoint(tmp_path / "start", architecture)
        folders = [
            pretrain_retromae(
                TEXTS, start, tmp_path / f"{keep}", settings=dataclasses.replace(_QUICK, epochs=6), keep_head=keep
            ).output
            for keep in (True, False)
        ]
        whole, report = AutoModelForMaskedLM.from_pretrained(folders[0], output_loading_info=True)
        assert not report["missing_keys"]
        for folder in folders:  # their files differ, and their vectors don't
            with BgeEncoder(folder, device="cpu") as encoder:
                plain = SentenceTransformer(str(folder), device="cpu")
                assert encoder.encode_documents(TEXTS[:3]) == pytest.approx(plain.encode(TEXTS[:3]), abs=1e-5)
        vectors = [SentenceTransformer(str(folder), device="cpu").encode(TEXTS[:3]) for folder in folders]
        assert vectors[0] == pytest.approx(vectors[1], abs=1e-5)
        # The head of the result is the trained one: a masked word is told better than by chance.
        tokenizer = AutoTokenizer.from_pretrained(folders[0])
        ids = tokenizer(TEXTS, padding=True, return_tensors="pt")
        labels = ids["input_ids"].masked_fill(ids["attention_mask"] == 0, -100)
        with torch.no_grad():
            loss = float(whole.eval()(**ids, labels=labels).loss)
        assert loss < 0.8 * np.log(len(tokenizer))
        # It is found again when training goes on from there.
        start_again = open_start(EncoderSettings(model_name=str(folders[0]), device="cpu"))
        model = build_model(start_again, _QUICK, DEFAULT_BUDGET, "it", warns=False)
        bias = whole.get_output_embeddings().bias
        torch.testing.assert_close(model.head.bias, bias, atol=0, rtol=0)

    def test_former_names_and_pickled_files_are_read_too(self, tmp_path: Path, architecture: Architecture) -> None:
        model = masked_lm(tmp_path / "start", architecture)
        file = tmp_path / "start" / "model.safetensors"
        former = {
            name.replace("norm.weight", "norm.gamma").replace("Norm.weight", "Norm.gamma"): value
            for name, value in load_file(file).items()
        }
        norm = model.cls.predictions.transform.LayerNorm if architecture == "bert" else model.lm_head.layer_norm
        save_file(former, file, metadata={"format": "pt"})
        for pickled in (False, True):
            if pickled:
                torch.save(former, tmp_path / "start" / "pytorch_model.bin")
                file.unlink()
            settings = EncoderSettings(model_name=str(tmp_path / "start"), device="cpu", allow_pickle_weights=pickled)
            found = build_model(open_start(settings), _QUICK, DEFAULT_BUDGET, "it", warns=False).head
            torch.testing.assert_close(found.norm.weight, norm.weight, atol=0, rtol=0)
            torch.testing.assert_close(found.bias, model.get_output_embeddings().bias, atol=0, rtol=0)


def test_a_new_head_is_told(bge_small_en: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pretrain_retromae(TEXTS, bge_small_en, tmp_path / "out", settings=dataclasses.replace(_QUICK, max_steps=1))
    assert "bge-small-en-v1.5 has no head of masked language modelling" in caplog.text


class TestRefused:
    def test_settings(self) -> None:
        for options, said in (
            ({"encoder_masking": 0}, "encoder_masking=0 must be above 0 and below 1; BGE has 0.3 and 0.5"),
            ({"decoder_masking": 1.0}, r"decoder_masking=1\.0 must be above 0 and below 1"),
            ({"length": 4}, "length=4 leaves no room for words; give at least 8"),
            ({"save_every": 0}, "save_every=0 must be above 0"),
            ({"precision": "float16"}, "can't be trained with"),
        ):
            with pytest.raises(SettingsError, match=said):
                RetroMaeTraining(**options)

    def test_an_output_with_content_and_other_models(self, bge_small_en: Path, tmp_path: Path) -> None:
        (tmp_path / "full").mkdir()
        (tmp_path / "full" / "file").touch()
        with pytest.raises(SettingsError, match="never overwritten"):
            pretrain_retromae(TEXTS, "missing", tmp_path / "full")
        other = make_checkpoint(tmp_path / "other")
        config = json.loads((other / "config.json").read_text(encoding="utf-8"))
        (other / "config.json").write_text(json.dumps({**config, "hidden_act": "relu"}), encoding="utf-8")
        with pytest.raises(UnsupportedModelError, match="other can't be pre-trained: its encoder is not a plain BERT"):
            pretrain_retromae(TEXTS, other, tmp_path / "out")
        with pytest.raises(SettingsError, match="has no checkpoint; start without it"):
            pretrain_retromae(TEXTS, bge_small_en, tmp_path / "out", resume=True)

    def test_memory_that_runs_out_is_told_with_the_remedy(
        self, bge_small_en: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*_: object) -> None:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory")

        monkeypatch.setattr(RetroMae, "_sums", fail)
        with pytest.raises(DeviceMemoryError, match=r"Lower tokens_in_memory=\d+, which changes no gradient"):
            pretrain_retromae(TEXTS, bge_small_en, tmp_path / "out", settings=_QUICK)
