"""What is loaded, from where, and what is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from huggingface_hub.utils._paths import filter_repo_objects

from bge_integrations import BgeEncoder
from bge_integrations.backend.machine import devices
from bge_integrations.errors import (
    BgeError,
    DeviceNotAvailableError,
    ModelNotCachedError,
    ModelNotFoundError,
    PoolingMismatchError,
    SettingsError,
    UnsafeWeightsError,
    UnsupportedModelError,
)
from tests.checkpoints import reference_vectors
from tests.conftest import MakeCheckpoint

COMMIT = "5c38ec7c405ec4b44b94cc5a9bb96e735b38267a"


class TestPooling:
    def test_a_bare_bge_checkpoint_gets_cls_and_norm(self, make: MakeCheckpoint) -> None:
        from sentence_transformers import SentenceTransformer

        folder = make("bge-small-en")
        vector = BgeEncoder(folder).encode(["lazy fox"])
        np.testing.assert_allclose(vector, reference_vectors(folder, ["lazy fox"]), atol=1e-5)
        mean_pooled = SentenceTransformer(str(folder), device="cpu").encode(["lazy fox"], normalize_embeddings=True)
        assert not np.allclose(vector, mean_pooled, atol=1e-2)

    def test_a_renamed_fine_tune_is_known_by_what_its_config_records(self, make: MakeCheckpoint) -> None:
        folder = make("my-model", recorded_name="/root/.cache/torch/sentence_transformers/BAAI_bge-base-zh/")
        encoder = BgeEncoder(folder)
        assert encoder.backend.spec is not None
        assert encoder.backend.spec.model_id == "BAAI/bge-base-zh"
        np.testing.assert_allclose(encoder.encode(["fox"]), reference_vectors(folder, ["fox"]), atol=1e-5)

    def test_a_trainers_checkpoint_folder_is_known(self, make: MakeCheckpoint) -> None:
        folder = make("bge-small-en-v1.5/checkpoint-500")
        np.testing.assert_allclose(BgeEncoder(folder).encode(["fox"]), reference_vectors(folder, ["fox"]), atol=1e-5)

    @pytest.mark.parametrize("modules", [("mean",), ("cls", "mean"), ("max", "normalize")])
    def test_a_bge_model_that_asks_for_another_is_refused(self, make: MakeCheckpoint, modules: tuple[str, ...]) -> None:
        wanted = " \\+ ".join(name for name in modules if name != "normalize")
        with pytest.raises(PoolingMismatchError, match=f"uses cls pooling, but its modules.json asks for {wanted}"):
            BgeEncoder(make("bge-small-en", modules=modules))

    def test_a_model_that_is_no_bge_is_followed(self, make: MakeCheckpoint) -> None:
        from sentence_transformers import SentenceTransformer

        folder = make("other", modules=("cls", "mean"))
        expected = SentenceTransformer(str(folder), device="cpu").encode(["lazy fox"])
        vectors = BgeEncoder(folder, device="cpu").encode(["lazy fox"])
        assert vectors.shape == (1, 64)
        np.testing.assert_allclose(vectors, expected, atol=1e-5)


class TestDevice:
    def test_auto_takes_the_best_there_is(self, bge_small_en: Path) -> None:
        assert BgeEncoder(bge_small_en).backend.device == devices.available_devices()[0]

    @pytest.mark.parametrize("device", ["cuda:77", "mps:x", "gpu", "CPU", "cuda:", "xpu", ""])
    def test_one_that_is_not_there_is_refused_naming_those_that_are(self, bge_small_en: Path, device: str) -> None:
        with pytest.raises(DeviceNotAvailableError, match=f"device='{device}' is not on this machine; it has .*'cpu'"):
            BgeEncoder(bge_small_en, device=device)

    def test_cuda_is_refused_without_cuda(self, bge_small_en: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        with pytest.raises(DeviceNotAvailableError, match="device='cuda'"):
            BgeEncoder(bge_small_en, device="cuda")

    def test_cuda_comes_before_mps_and_cpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
        assert devices.available_devices() == ["cuda:0", "cuda:1", "mps", "cpu"]
        assert devices.resolve_devices(None) == devices.resolve_devices("cuda") == ("cuda:0",)
        assert devices.resolve_device("cuda:1") == "cuda:1"
        assert devices.resolve_precision("auto", "cuda:0") == "float16"
        assert devices.resolve_precision("auto", "cpu") == "float32"
        assert devices.resolve_precision("bfloat16", "cpu") == "bfloat16"

    @pytest.mark.gpu
    def test_cuda_agrees_with_the_cpu(self, bge_small_en: Path) -> None:
        texts = ["", "lazy fox", "dog " * 50]
        expected = BgeEncoder(bge_small_en, device="cpu").encode(texts)
        exact = BgeEncoder(bge_small_en, device="cuda", precision="float32").encode(texts)
        np.testing.assert_allclose(exact, expected, atol=1e-4)
        half = BgeEncoder(bge_small_en, device="cuda").encode(texts)
        assert ((half * expected).sum(axis=1) > 0.9995).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"precision": "float64"}, "precision='float64' is unknown; choose one of 'auto', 'float32'"),
        ({"precision": "ubinary"}, "precision='ubinary' is a format for stored vectors"),
        ({"threads": 0}, "threads=0 must be a whole number of at least 1"),
        ({"engine": "onnx"}, "engine='onnx' is unknown"),
        ({"on_truncation": "raise"}, "on_truncation='raise' is unknown; choose one of 'warn', 'ignore', 'error'"),
        ({"max_length": 0}, "max_length=0 must be a whole number of at least 1"),
        ({"truncate_dim": 33}, "truncate_dim=33 is more than the 32 dimensions"),
        ({"batch_tokens": 1.5}, "batch_tokens=1.5 must be a whole number"),
        ({"batch_size": True}, "batch_size=True must be a whole number"),
        ({"query_instruction": 3}, "query_instruction=3 is an int"),
        ({"normalize": "yes"}, "normalize='yes' is unknown"),
        ({"device": {"cpu": 1}}, "give one device as text"),
        ({"transformers_kwargs": {"attn_implementation": "eager"}}, r"give TransformersKwargs\.of\(model="),
    ],
)
def test_a_setting_that_cant_be_honoured_is_named_with_the_choices(
    bge_small_en: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        BgeEncoder(bge_small_en, **settings)


@pytest.mark.parametrize("name", ["", "  ", None, 3])
def test_a_name_that_names_nothing_is_refused(name: Any) -> None:  # noqa: ANN401
    with pytest.raises(SettingsError, match="names no model"):
        BgeEncoder(name)


class TestFolders:
    @pytest.mark.parametrize("name", ["./missing", "/no/such/folder", "~/missing", "a/b/c"])
    def test_a_missing_one_is_named(self, name: str) -> None:
        with pytest.raises(ModelNotFoundError, match="There is no folder"):
            BgeEncoder(name)

    def test_a_file_is_refused(self, bge_small_en: Path) -> None:
        with pytest.raises(ModelNotFoundError, match="is a file"):
            BgeEncoder(bge_small_en / "config.json")

    def test_one_without_a_model_says_what_it_holds(self, tmp_path: Path) -> None:
        (tmp_path / "notes.txt").touch()
        with pytest.raises(ModelNotFoundError, match=r"has no config.json.*notes.txt"):
            BgeEncoder(tmp_path)

    def test_one_without_weights_is_refused(self, make: MakeCheckpoint) -> None:
        folder = make("bge-small-en")
        (folder / "model.safetensors").unlink()
        with pytest.raises(ModelNotFoundError, match="has no weights"):
            BgeEncoder(folder)

    def test_damaged_json_is_named(self, make: MakeCheckpoint) -> None:
        folder = make("bge-small-en", modules=("cls",))
        (folder / "modules.json").write_text('[{"idx": 0')
        with pytest.raises(BgeError, match=r"modules\.json can't be read as JSON"):
            BgeEncoder(folder)

    def test_rerankers_and_base_models_are_refused(self, make: MakeCheckpoint) -> None:
        with pytest.raises(UnsupportedModelError, match="is a reranker"):
            BgeEncoder(make("bge-reranker-base", "xlm-roberta"))
        with pytest.raises(UnsupportedModelError, match="base model for further training"):
            BgeEncoder(make("bge-m3-retromae", "xlm-roberta"))


class TestSafety:
    def test_pickled_weights_are_refused_unless_allowed_by_name(self, make: MakeCheckpoint) -> None:
        folder = make("bge-m3", "xlm-roberta", safetensors=False)
        with pytest.raises(UnsafeWeightsError, match=r"only pytorch_model\.bin.*allow_pickle_weights=True"):
            BgeEncoder(folder)
        vectors = BgeEncoder(folder, allow_pickle_weights=True).encode(["fox"])
        np.testing.assert_allclose(vectors, reference_vectors(folder, ["fox"]), atol=1e-5)

    def test_a_custom_module_is_refused(self, make: MakeCheckpoint) -> None:
        folder = make("other", modules=("mean",))
        modules = json.loads((folder / "modules.json").read_text())
        modules[1]["type"] = "custom_code.Pooling"
        (folder / "modules.json").write_text(json.dumps(modules))
        with pytest.raises(UnsafeWeightsError, match=r"custom_code\.Pooling.*trust_remote_code=True"):
            BgeEncoder(folder)

    @pytest.mark.parametrize(
        ("changed", "name"),
        [({"model_type": "my-bert"}, "my-bert"), ({"architectures": ["LayerWiseBertModel"]}, "LayerWiseBertModel")],
    )
    def test_a_custom_architecture_is_refused_without_running_it(
        self, make: MakeCheckpoint, changed: dict[str, Any], name: str
    ) -> None:
        folder = make("other")
        config = json.loads((folder / "config.json").read_text())
        config |= {**changed, "auto_map": {"AutoModel": "evil.Model", "AutoConfig": "evil.Config"}}
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "evil.py").write_text(f"open({str(folder / 'ran')!r}, 'w')")
        with pytest.raises(UnsafeWeightsError, match=f"own code for the architecture '{name}'"):
            BgeEncoder(folder)
        assert not (folder / "ran").exists()


class TestHub:
    """The hub's client is replaced by one that records what it is asked for, and answers as the real one would."""

    @pytest.fixture
    def asked(self, monkeypatch: pytest.MonkeyPatch, make: MakeCheckpoint) -> list[dict[str, Any]]:
        calls: list[dict[str, Any]] = []
        folder = make(f"hub/models--BAAI--bge-small-en/snapshots/{COMMIT}", modules=("cls", "normalize"))

        def snapshot_download(repo_id: str, **kwargs: Any) -> str:  # noqa: ANN401
            calls.append({"repo_id": repo_id, **kwargs})
            return str(folder)

        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
        return calls

    def test_is_asked_for_the_model_with_every_setting(self, asked: list[dict[str, Any]], tmp_path: Path) -> None:
        encoder = BgeEncoder("BAAI/bge-small-en", revision="v1", cache_folder=str(tmp_path), token="hf_x")
        (call,) = asked
        assert call["repo_id"] == "BAAI/bge-small-en"
        assert (call["revision"], call["cache_dir"], call["token"]) == ("v1", str(tmp_path), "hf_x")
        assert call["local_files_only"] is False
        assert encoder.instruction("query").prefix.startswith("Represent this sentence")

    def test_is_asked_for_no_pickled_weights_and_no_code(self, asked: list[dict[str, Any]]) -> None:
        BgeEncoder("BAAI/bge-small-en")
        files = ["model.safetensors", "1_Pooling/config.json", "vocab.txt", "sentencepiece.bpe.model"]
        files += ["sparse_linear.pt", "colbert_linear.pt"]  # read as weights alone; they tell what a model is made from
        unwanted = ["pytorch_model.bin", "optimizer.pt", "modeling.py", "onnx/config.json", "tf_model.h5"]
        wanted = filter_repo_objects(
            [*files, *unwanted],
            allow_patterns=asked[0]["allow_patterns"],
            ignore_patterns=asked[0]["ignore_patterns"],
        )
        assert list(wanted) == files

    def test_is_asked_for_them_where_they_are_allowed(self, asked: list[dict[str, Any]]) -> None:
        BgeEncoder("BAAI/bge-small-en", allow_pickle_weights=True, trust_remote_code=True, local_files_only=True)
        assert {"*.bin", "*.pt", "*.py"} < set(asked[0]["allow_patterns"])
        assert asked[0]["local_files_only"] is True

    def test_bare_names_of_bge_models_are_completed(self, asked: list[dict[str, Any]]) -> None:
        BgeEncoder("bge-small-en")
        assert asked[0]["repo_id"] == "BAAI/bge-small-en"

    def test_sentence_transformers_home_is_respected(
        self, asked: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SENTENCE_TRANSFORMERS_HOME", "/models")
        BgeEncoder("BAAI/bge-small-en")
        assert asked[0]["cache_dir"] == "/models"

    def test_a_snapshot_path_is_known_by_its_repository(self, asked: list[dict[str, Any]], tmp_path: Path) -> None:
        encoder = BgeEncoder(tmp_path / "hub" / "models--BAAI--bge-small-en" / "snapshots" / COMMIT)
        assert encoder.instruction("query").prefix.startswith("Represent this sentence")
        assert asked == []

    def test_not_cached_and_offline_says_what_to_do(self, tmp_path: Path) -> None:
        assert os.environ["HF_HUB_OFFLINE"] == "1"
        with pytest.raises(ModelNotCachedError) as caught:
            BgeEncoder("BAAI/bge-small-en-v1.5", cache_folder=str(tmp_path), token="hf_secret")
        message = str(caught.value)
        for part in (str(tmp_path), "HF_HUB_OFFLINE=1", "hf download BAAI/bge-small-en-v1.5", "HF_ENDPOINT"):
            assert part in message
        assert "hf_secret" not in message

    def test_a_model_cached_before_is_used_offline(self, make: MakeCheckpoint, tmp_path: Path) -> None:
        repository = tmp_path / "models--BAAI--bge-small-zh"
        snapshot = make(f"models--BAAI--bge-small-zh/snapshots/{COMMIT}", modules=("cls", "normalize"))
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text(COMMIT)
        encoder = BgeEncoder("BAAI/bge-small-zh", cache_folder=str(tmp_path))
        np.testing.assert_allclose(encoder.encode(["fox"]), reference_vectors(snapshot, ["fox"]), atol=1e-5)

    def test_a_model_that_is_not_there_gets_a_suggestion(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import httpx

        def snapshot_download(*_: Any, **__: Any) -> str:  # noqa: ANN401
            response = httpx.Response(404, request=httpx.Request("GET", "https://hub.invalid"))
            raise huggingface_hub.errors.RepositoryNotFoundError("404", response=response)

        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
        with pytest.raises(ModelNotFoundError, match=r"no model 'me/bge-small-en'.*Did you mean 'BAAI/bge-small-en'"):
            BgeEncoder("me/bge-small-en")
