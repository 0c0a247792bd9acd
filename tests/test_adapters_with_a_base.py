"""LoRA folders: the base model is found by the rules of any model, and vetted like one."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from bge_integrations import BgeEncoder, BgeReranker
from bge_integrations.errors import (
    MissingExtraError,
    ModelLoadError,
    ModelNotCachedError,
    ModelNotFoundError,
    UnsafeWeightsError,
    UnsupportedModelError,
)
from tests.checkpoints import reference_vectors
from tests.checkpoints_of_pairs import make_reranker
from tests.conftest import MakeCheckpoint

COMMIT = "0" * 40
ADAPTER, CONFIG = "adapter_model.safetensors", "adapter_config.json"
RANK, ALPHA = 4, 8


def make_adapter(folder: Path, base: object, **further: object) -> Path:
    """Saves a LoRA adapter of the query and value matrices of two layers, as peft does."""
    folder.mkdir(parents=True)
    config = {"base_model_name_or_path": str(base), "peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA}
    config |= {"target_modules": ["query", "value"], "bias": "none", "inference_mode": True, "lora_dropout": 0.0}
    (folder / CONFIG).write_text(json.dumps({**config, **further}))
    torch.manual_seed(11)
    shapes = {"A": (RANK, 32), "B": (32, RANK)}
    weights = {
        f"base_model.model.encoder.layer.{layer}.attention.self.{part}.lora_{half}.weight": torch.randn(shape) / 4
        for layer in range(2)
        for part in ("query", "value")
        for half, shape in shapes.items()
    }
    save_file(weights, folder / ADAPTER)
    return folder


def merged(adapter: Path, base: Path, folder: Path, kind: Any = AutoModel) -> Path:  # noqa: ANN401 - any auto class
    """Adds an adapter to its base by hand, independently of peft, and saves the whole model."""
    shutil.copytree(base, folder)
    model = kind.from_pretrained(base)
    saved = load_file(adapter / ADAPTER)
    for name in [name for name in saved if "lora_A" in name]:
        target = name.removeprefix("base_model.model.").replace("lora_A.", "")
        change = saved[name.replace("lora_A", "lora_B")] @ saved[name]
        model.base_model.get_parameter(target).data += ALPHA / RANK * change
    model.save_pretrained(folder)
    return folder


def as_cached(model: Path, cache: Path, name: str) -> None:
    repository = cache / f"models--{name.replace('/', '--')}"
    shutil.copytree(model, repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)


def copies_of(file: Path) -> dict[str, torch.Tensor]:
    """Weights that stay as they are when their file is written over."""
    return {name: weight.clone() for name, weight in load_file(file).items()}


class TestBase:
    """What is said before anything is loaded."""

    def test_is_named_where_it_is_missing(self, tmp_path: Path) -> None:
        by_id = make_adapter(tmp_path / "by-id", "BAAI/bge-small-en-v1.5")
        with pytest.raises(
            ModelNotCachedError, match=r"adapter of the base model 'BAAI/bge-small-en-v1\.5'.*hf download"
        ):
            BgeEncoder(by_id, cache_folder=str(tmp_path))
        by_path = make_adapter(tmp_path / "by-path", "/home/me/bge-base-en-v1.5")
        with pytest.raises(
            ModelNotFoundError, match=r"adapter of the base model '/home/me/bge-base.*adapter_config\.json"
        ):
            BgeEncoder(by_path)

    def test_is_refused_with_pickled_weights(self, make: MakeCheckpoint, tmp_path: Path) -> None:
        base = make("base", safetensors=False)
        with pytest.raises(UnsafeWeightsError, match=r"base has no safetensors weights.*allow_pickle_weights=True"):
            BgeEncoder(make_adapter(tmp_path / "adapter", base))

    def test_is_checked_for_code_like_any_model(self, make: MakeCheckpoint, tmp_path: Path) -> None:
        base = make("base")
        config = json.loads((base / "config.json").read_text())
        config |= {"model_type": "my-bert", "auto_map": {"AutoModel": "evil.Model"}}
        (base / "config.json").write_text(json.dumps(config))
        with pytest.raises(UnsafeWeightsError, match="own code"):
            BgeEncoder(make_adapter(tmp_path / "adapter", base))

    @pytest.mark.parametrize("base", [None, "", 3, ["BAAI/bge-m3"]])
    def test_that_is_no_name_is_an_error(self, tmp_path: Path, base: object) -> None:
        folder = make_adapter(tmp_path / "adapter", "x")
        (folder / CONFIG).write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": base}))
        with pytest.raises(ModelLoadError, match=r"adapter_config\.json names no base model"):
            BgeEncoder(folder)

    def test_that_is_an_adapter_itself_is_refused(self, tmp_path: Path) -> None:
        first = make_adapter(tmp_path / "first", tmp_path / "first")
        with pytest.raises(UnsupportedModelError, match="which is or contains an adapter itself"):
            BgeEncoder(first)


class TestAdapter:
    def test_without_peft_names_the_package_and_the_base(
        self, make: MakeCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        base = make("bge-small-en")
        find_spec = importlib.util.find_spec
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "peft" else find_spec(name))
        with pytest.raises(MissingExtraError, match=f"adapter .*of the base model '{base}', .*pip install peft"):
            BgeEncoder(make_adapter(tmp_path / "adapter", base))

    @pytest.mark.parametrize(
        ("further", "error", "message"),
        [
            ({"megatron_config": {}, "megatron_core": "evil"}, UnsafeWeightsError, "makes peft import a module"),
            ({"peft_type": "XLORA"}, UnsafeWeightsError, "peft_type = 'XLORA'"),
        ],
    )
    def test_that_names_code_or_other_files_is_refused(
        self, make: MakeCheckpoint, tmp_path: Path, further: dict[str, Any], error: type[Exception], message: str
    ) -> None:
        with pytest.raises(error, match=message):
            BgeEncoder(make_adapter(tmp_path / "adapter", make("base"), **further))

    def test_without_weights_or_with_pickled_ones_is_refused(self, make: MakeCheckpoint, tmp_path: Path) -> None:
        folder = make_adapter(tmp_path / "adapter", make("base"))
        torch.save(load_file(folder / ADAPTER), folder / "adapter_model.bin")
        (folder / ADAPTER).unlink()
        with pytest.raises(UnsafeWeightsError, match=r"pickled \(adapter_model\.bin in .*allow_pickle_weights=True"):
            BgeEncoder(folder)
        (folder / "adapter_model.bin").unlink()
        with pytest.raises(ModelNotFoundError, match=r"but not the adapter's weights \(adapter_model\.safetensors\)"):
            BgeEncoder(folder)


class TestWithPeft:
    """What is computed; an independent sum of base and adapter is the reference."""

    def test_a_base_in_the_cache_folder_is_used(self, make: MakeCheckpoint, tmp_path: Path) -> None:
        base = make("base", modules=("cls", "normalize"))
        as_cached(base, tmp_path / "hub", "BAAI/bge-small-en-v1.5")
        adapter = make_adapter(tmp_path / "adapter", "BAAI/bge-small-en-v1.5")
        # A decoy beside the adapter: the base's own weights are read.
        (adapter / "model.safetensors.index.json").write_text('{"metadata": {}, "weight_map": {"x": "evil.bin"}}')
        encoder = BgeEncoder(adapter, cache_folder=str(tmp_path / "hub"))
        whole = merged(adapter, base, tmp_path / "whole")
        np.testing.assert_allclose(encoder.encode(["fox"]), reference_vectors(whole, ["fox"]), atol=1e-5)
        assert np.abs(encoder.encode(["fox"]) - reference_vectors(base, ["fox"])).max() > 1e-2

    def test_another_base_makes_another_model(self, make: MakeCheckpoint, tmp_path: Path) -> None:
        base = make("bge-small-en")
        adapter = make_adapter(tmp_path / "adapter", base)
        before = BgeEncoder(adapter)
        weights = {name: value * 1.5 for name, value in load_file(base / "model.safetensors").items()}
        save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
        after = BgeEncoder(adapter)
        assert after.backend.identity != before.backend.identity
        whole = merged(adapter, base, tmp_path / "whole")
        np.testing.assert_allclose(after.encode(["fox"]), reference_vectors(whole, ["fox"]), atol=1e-5)

    def test_pickled_weights_of_an_adapter_are_read_where_they_are_allowed(
        self, make: MakeCheckpoint, tmp_path: Path
    ) -> None:
        base = make("bge-small-en")
        adapter = make_adapter(tmp_path / "adapter", base)
        whole = merged(adapter, base, tmp_path / "whole")
        torch.save(load_file(adapter / ADAPTER), adapter / "adapter_model.bin")
        (adapter / ADAPTER).unlink()
        vectors = BgeEncoder(adapter, allow_pickle_weights=True).encode(["fox"])
        np.testing.assert_allclose(vectors, reference_vectors(whole, ["fox"]), atol=1e-5)

    @pytest.mark.parametrize("lacking", ["lora_A.weight", "lora_B.weight"])
    def test_a_missing_matrix_is_named(self, make: MakeCheckpoint, tmp_path: Path, lacking: str) -> None:
        adapter = make_adapter(tmp_path / "adapter", make("bge-small-en"))
        saved = copies_of(adapter / ADAPTER)
        gone = next(name for name in saved if name.endswith(lacking))
        save_file({name: value for name, value in saved.items() if name != gone}, adapter / ADAPTER)
        with pytest.raises(ModelLoadError, match=rf"adapter_model\.safetensors has no {gone}"):
            BgeEncoder(adapter)

    @pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing")  # of peft
    def test_magnitudes_that_transformers_leaves_out_are_named(self, make: MakeCheckpoint, tmp_path: Path) -> None:
        # transformers 5 takes the initial magnitudes of a DoRA adapter in silence.
        base = make("bge-small-en")
        config = peft.LoraConfig(r=2, target_modules=["query"], use_dora=True)
        adapted = peft.get_peft_model(AutoModel.from_pretrained(base), config)
        adapted.peft_config["default"].base_model_name_or_path = str(base)
        adapted.save_pretrained(str(tmp_path / "adapter"))
        with pytest.raises(ModelLoadError, match=r"lora_magnitude_vector\.weight, .* merge_and_unload"):
            BgeEncoder(tmp_path / "adapter")

    @pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing")  # of peft
    @pytest.mark.parametrize(
        ("kind", "rank"),
        [
            ("AdaLoraConfig", {"init_r": 4, "total_step": 9}),
            ("LoHaConfig", {"r": 4}),
            ("OFTConfig", {"r": 4, "oft_block_size": 0}),
        ],
    )
    def test_other_kinds_give_what_peft_gives(
        self, make: MakeCheckpoint, tmp_path: Path, kind: str, rank: dict[str, int]
    ) -> None:
        base = make("bge-small-en")
        config = getattr(peft, kind)(target_modules=["query"], **rank)
        adapted = peft.get_peft_model(AutoModel.from_pretrained(base), config).eval()
        torch.manual_seed(3)
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.data.normal_(0, 0.3)
        adapted.peft_config["default"].base_model_name_or_path = str(base)
        adapted.save_pretrained(str(tmp_path / "adapter"))
        with torch.no_grad():
            state = adapted(**AutoTokenizer.from_pretrained(base)("fox jumps", return_tensors="pt"))[0][0, 0].numpy()
        found = BgeEncoder(tmp_path / "adapter", pooling="cls", normalize=True).encode(["fox jumps"])[0]
        np.testing.assert_allclose(found, state / np.linalg.norm(state), atol=1e-5)

    def test_missing_weights_of_its_base_are_named(self, make: MakeCheckpoint, tmp_path: Path) -> None:
        base = make("bge-small-en")
        adapter = make_adapter(tmp_path / "adapter", base)
        saved = copies_of(base / "model.safetensors")
        for gone in ("encoder.layer.0.attention.self.query.weight", "encoder.layer.1.output.dense.weight"):
            kept = {name: value for name, value in saved.items() if name != gone}
            save_file(kept, base / "model.safetensors", metadata={"format": "pt"})
            with pytest.raises(ModelLoadError, match=f"no {gone}, so random"):
                BgeEncoder(adapter)

    def test_a_reranker_can_have_one(self, tmp_path: Path) -> None:
        base = make_reranker(tmp_path / "bge-reranker-base")
        adapter = make_adapter(tmp_path / "adapter", base)
        saved = copies_of(adapter / ADAPTER)
        save_file(
            {name.replace("model.encoder", "model.roberta.encoder"): value for name, value in saved.items()},
            adapter / ADAPTER,
        )
        whole = tmp_path / "whole"
        shutil.copytree(base, whole)
        model = AutoModelForSequenceClassification.from_pretrained(base)
        for name in [name for name in saved if "lora_A" in name]:
            target = name.removeprefix("base_model.model.").replace("lora_A.", "")
            model.base_model.get_parameter(target).data += (
                ALPHA / RANK * saved[name.replace("lora_A", "lora_B")] @ saved[name]
            )
        model.save_pretrained(whole)
        scores = [BgeReranker(folder).score("a fox", ["a dog", "a fox"]) for folder in (adapter, whole, base)]
        np.testing.assert_allclose(scores[0], scores[1], atol=1e-5)
        assert np.abs(np.subtract(scores[0], scores[2])).max() > 1e-3
