"""Which files of a checkpoint are read, which are refused, and what is said of damaged and missing ones."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Router, Transformer
from sentence_transformers.sentence_transformer.modules import BoW, Normalize, Pooling, StaticEmbedding
from tokenizers import Tokenizer

from bge_integrations import BgeEncoder, BgeReranker
from bge_integrations.errors import ModelLoadError, ModelNotFoundError, UnsafeWeightsError, UnsupportedModelError
from bge_integrations.settings import EngineName, TransformersKwargs
from tests.checkpoints import reference_vectors
from tests.checkpoints_of_pairs import make_reranker
from tests.conftest import MakeCheckpoint

SAFE, PICKLED, INDEX = "model.safetensors", "pytorch_model.bin", "model.safetensors.index.json"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:3c9f31665447\nsize 133466304\n"
PAGE = b"\n<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>"
DENSE = "2_Dense"
ENGINES: tuple[EngineName, ...] = ("auto", "sentence-transformers")


class _Opened:
    """Runs when it is unpickled, which nothing may do without being allowed to."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return pytest.fail, ("a pickle was opened",)


def add_trap(path: Path) -> None:
    """Saves a pickled file that makes the test fail when anything reads it with or without `weights_only`."""
    torch.save({"weight": _Opened()}, path)


def write_index(folder: Path, file: str, name: str = INDEX) -> None:
    weights = dict.fromkeys(load_file(folder / SAFE), file)
    (folder / name).write_text(json.dumps({"metadata": {}, "weight_map": weights}))


def add_dense(folder: Path) -> dict[str, torch.Tensor]:
    """Lists a Dense module, without weights, and returns weights for it."""
    listed = json.loads((folder / "modules.json").read_text())
    listed.append({"idx": 2, "name": "2", "path": DENSE, "type": "sentence_transformers.models.Dense"})
    (folder / "modules.json").write_text(json.dumps(listed))
    (folder / DENSE).mkdir()
    config: dict[str, object] = {"in_features": 32, "out_features": 16, "bias": True}
    config["activation_function"] = "torch.nn.modules.linear.Identity"
    (folder / DENSE / "config.json").write_text(json.dumps(config))
    torch.manual_seed(3)
    return {f"linear.{name}": value.clone() for name, value in torch.nn.Linear(32, 16).state_dict().items()}


def edit(file: Path, **changes: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


class TestPickles:
    """The files that are read are the ones that were vetted."""

    def _index_names_it(self, folder: Path) -> None:
        write_index(folder, PICKLED)
        (folder / SAFE).rename(folder / "other.safetensors")

    def _lies_beside_another_name(self, folder: Path) -> None:
        (folder / SAFE).rename(folder / "other.safetensors")

    def _config_names_it(self, folder: Path) -> None:
        (folder / PICKLED).rename(folder / "adapter_model.bin")
        edit(folder / "config.json", transformers_weights="adapter_model.bin")

    @pytest.mark.parametrize("way", ["index_names_it", "lies_beside_another_name", "config_names_it"])
    @pytest.mark.parametrize("engine", ENGINES)
    def test_behind_a_decoy_are_refused(
        self, make: MakeCheckpoint, tmp_path: Path, way: str, engine: EngineName
    ) -> None:
        for folder, kind in (
            (make("bge-small-en", modules=("cls", "normalize")), BgeEncoder),
            (make_reranker(tmp_path / "bge-reranker-base"), BgeReranker),
        ):
            add_trap(folder / PICKLED)
            getattr(self, f"_{way}")(folder)
            with pytest.raises(UnsafeWeightsError, match=r"_model\.bin.*allow_pickle_weights=True"):
                kind(folder, engine=engine)

    def test_that_nothing_reads_do_no_harm(self, make: MakeCheckpoint) -> None:
        folder = make("bge-small-en", modules=("cls", "normalize"))
        add_trap(folder / PICKLED)
        (folder / "1_Pooling" / "other.bin").write_bytes(b"no weights")
        vectors = BgeEncoder(folder, device="cpu").encode(["fox"])
        np.testing.assert_allclose(vectors, reference_vectors(folder, ["fox"]), atol=1e-5)

    def test_of_a_module_are_refused_behind_a_decoy_and_ignored_beside_safetensors(self, make: MakeCheckpoint) -> None:
        folder = make("other", modules=("mean",))
        weights = add_dense(folder)
        add_trap(folder / DENSE / PICKLED)
        save_file(weights, folder / DENSE / "decoy.safetensors")
        with pytest.raises(UnsafeWeightsError, match=rf"only pytorch_model\.bin, in .*{DENSE}.*SentenceTransformer"):
            BgeEncoder(folder)
        (folder / DENSE / SAFE).symlink_to(folder / "gone")
        with pytest.raises(ModelNotFoundError, match=r"2_Dense/model\.safetensors is a symlink to .*gone"):
            BgeEncoder(folder, allow_pickle_weights=True)
        (folder / DENSE / SAFE).unlink()
        save_file(weights, folder / DENSE / SAFE)
        assert BgeEncoder(folder).encode(["fox"]).shape == (1, 16)

    def test_of_a_module_are_read_where_they_are_allowed(self, make: MakeCheckpoint) -> None:
        folder = make("other", modules=("mean",))
        torch.save(add_dense(folder), folder / DENSE / PICKLED)
        assert BgeEncoder(folder, allow_pickle_weights=True).encode(["fox"]).shape == (1, 16)

    def test_of_a_trainers_own_are_no_weights(self, make: MakeCheckpoint) -> None:
        folder = make("bge-small-en")
        (folder / SAFE).unlink()
        add_trap(folder / "training_args.bin")
        with pytest.raises(ModelNotFoundError, match="has no weights"):
            BgeEncoder(folder)

    @pytest.mark.parametrize("file", ["../x/model.safetensors", "/etc/model.safetensors", "a/../../model.safetensors"])
    def test_and_others_outside_the_folder_are_never_read(self, make: MakeCheckpoint, file: str) -> None:
        folder = make("bge-small-en")
        write_index(folder, file)
        (folder / SAFE).unlink()
        with pytest.raises(UnsafeWeightsError, match=f"index.json names '{file}', which is outside"):
            BgeEncoder(folder, allow_pickle_weights=True)

    @pytest.mark.parametrize("path", ["../elsewhere", "/elsewhere", "C:\\elsewhere"])
    def test_a_module_outside_the_folder_is_refused(self, make: MakeCheckpoint, path: str) -> None:
        folder = make("other", modules=("mean",))
        (folder / "modules.json").write_text(
            (folder / "modules.json").read_text().replace("1_Pooling", path.replace("\\", "\\\\"))
        )
        with pytest.raises(
            ModelLoadError, match=r"modules\.json is damaged: .*elsewhere', not a relative path without"
        ):
            BgeEncoder(folder)


class TestSafetensors:
    def test_in_several_files_are_read(self, make: MakeCheckpoint) -> None:
        folder = make("bge-small-en")
        expected = reference_vectors(folder, ["fox"])
        write_index(folder, "part.safetensors")
        (folder / SAFE).rename(folder / "part.safetensors")
        np.testing.assert_allclose(BgeEncoder(folder, engine="torch").encode(["fox"]), expected, atol=1e-5)

    def test_of_which_one_is_missing_name_it(self, make: MakeCheckpoint) -> None:
        folder = make("bge-small-en")
        write_index(folder, "part-2.safetensors")
        (folder / SAFE).unlink()
        with pytest.raises(ModelNotFoundError, match=r"names part-2\.safetensors, but .* does not have it"):
            BgeEncoder(folder)

    def test_of_a_variant_are_read_where_it_is_asked_for(self, make: MakeCheckpoint) -> None:
        folder = make("bge-small-en")
        expected = reference_vectors(folder, ["fox"])
        (folder / SAFE).rename(folder / "model.fp16.safetensors")
        with pytest.raises(ModelNotFoundError, match=r"has model\.fp16\.safetensors, a name that no loader looks for"):
            BgeEncoder(folder)
        encoder = BgeEncoder(folder, transformers_kwargs=TransformersKwargs.of(model={"variant": "fp16"}))
        np.testing.assert_allclose(encoder.encode(["fox"]), expected, atol=1e-5)


class TestContents:
    """Files that are not what their names say."""

    @pytest.mark.parametrize("name", [SAFE, "tokenizer.json", "config.json", "tokenizer_config.json"])
    @pytest.mark.parametrize(
        ("content", "message"),
        [(POINTER, "is a Git LFS pointer.*git lfs pull"), (PAGE, "is a web page, not the file"), (b"", "is empty")],
    )
    def test_are_named(self, make: MakeCheckpoint, name: str, content: bytes, message: str) -> None:
        folder = make("bge-small-en", modules=("cls", "normalize"))
        (folder / name).write_bytes(content)
        with pytest.raises(ModelLoadError, match=rf"{name} {message}"):
            BgeEncoder(folder)

    @pytest.mark.parametrize("name", [PICKLED, "1_Pooling/config.json", "modules.json"])
    def test_are_named_wherever_they_lie(self, make: MakeCheckpoint, name: str) -> None:
        folder = make("bge-small-en", modules=("cls", "normalize"), safetensors=False)
        (folder / name).write_bytes(POINTER)
        with pytest.raises(ModelLoadError, match=f"{name} is a Git LFS pointer"):
            BgeEncoder(folder, allow_pickle_weights=True)

    @pytest.mark.parametrize(
        ("name", "kept"), [(SAFE, -8), (SAFE, 300), (SAFE, 5), ("tokenizer.json", -9), (PICKLED, -9)]
    )
    def test_are_named_where_they_are_cut_off(self, make: MakeCheckpoint, name: str, kept: int) -> None:
        folder = make("bge-small-en", safetensors=name != PICKLED)
        (folder / name).write_bytes((folder / name).read_bytes()[:kept])
        with pytest.raises(ModelLoadError, match=f"{name} is cut off"):
            BgeEncoder(folder, allow_pickle_weights=True)

    @pytest.mark.parametrize(
        "content", [b"\x80\x04 pickled", b'{"error": "not found"}', b"\x10" + b"\0" * 7 + b"{" * 16]
    )
    def test_that_are_no_safetensors_are_called_so(self, make: MakeCheckpoint, content: bytes) -> None:
        folder = make("bge-small-en")
        (folder / SAFE).write_bytes(content)
        with pytest.raises(ModelLoadError, match=r"model\.safetensors is not a safetensors file"):
            BgeEncoder(folder)

    def test_that_nobody_reads_may_be_anything(self, make: MakeCheckpoint) -> None:
        folder = make("bge-small-en", modules=("cls", "normalize"))
        for name in ("notes.json", "vocab.txt", "old.safetensors", "README.md"):
            (folder / name).write_bytes(POINTER)
        np.testing.assert_allclose(
            BgeEncoder(folder, engine="torch").encode(["fox"]), reference_vectors(folder, ["fox"]), atol=1e-5
        )


def test_a_missing_tokenizer_is_named(make: MakeCheckpoint) -> None:
    folder = make("bge-small-en", modules=("cls", "normalize"))
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelNotFoundError, match=r"has no tokenizer \(tokenizer\.json"):
        BgeEncoder(folder)


class TestSymlinks:
    def test_that_lead_nowhere_are_ignored_where_nobody_needs_them(self, make: MakeCheckpoint) -> None:
        folder = make("bge-small-en", modules=("cls", "normalize"))
        (folder / "checkpoint-1").mkdir()
        for name in (
            "notes.json",
            "old.safetensors",
            "checkpoint-1/optimizer.bin",
            "onnx",
            "vocab-old.txt",
            "README.md",
        ):
            (folder / name).symlink_to(folder / "gone")
        np.testing.assert_allclose(
            BgeEncoder(folder, engine="torch").encode(["fox"]), reference_vectors(folder, ["fox"]), atol=1e-5
        )

    @pytest.mark.parametrize("name", [SAFE, "config.json", "modules.json", "tokenizer.json", "1_Pooling/config.json"])
    def test_that_lead_nowhere_are_named_where_they_matter(self, make: MakeCheckpoint, name: str) -> None:
        folder = make("other", modules=("cls", "normalize"))
        (folder / name).unlink()
        (folder / name).symlink_to(folder / "gone")
        with pytest.raises(ModelNotFoundError, match=f"{name} is a symlink to .*gone, which does not exist"):
            BgeEncoder(folder)

    def test_to_a_whole_folder_that_is_gone_are_named(self, tmp_path: Path) -> None:
        (tmp_path / "link").symlink_to(tmp_path / "gone")
        with pytest.raises(ModelNotFoundError, match=r"link is a symlink to .*gone, which is not a folder"):
            BgeEncoder(tmp_path / "link")

    def test_are_followed_wherever_they_lead(self, make: MakeCheckpoint, tmp_path: Path) -> None:
        folder = make("bge-small-en", modules=("cls", "normalize"))
        shutil.move(folder / SAFE, tmp_path / "weights")
        (folder / SAFE).symlink_to(tmp_path / "weights")
        shutil.move(folder / "1_Pooling", tmp_path / "pooling")
        (folder / "1_Pooling").symlink_to(tmp_path / "pooling")
        np.testing.assert_allclose(
            BgeEncoder(folder, engine="torch").encode(["fox"]), reference_vectors(folder, ["fox"]), atol=1e-5
        )


class TestModules:
    @pytest.mark.parametrize("name", ["bge-small-en", "our-model"])
    @pytest.mark.parametrize("empty", [False, True])
    def test_whose_folder_is_missing_are_named(self, make: MakeCheckpoint, name: str, empty: bool) -> None:
        folder = make(name, modules=("cls", "normalize"))
        shutil.rmtree(folder / "1_Pooling")
        if empty:
            (folder / "1_Pooling").mkdir()
        with pytest.raises(ModelNotFoundError, match=r"names the folder 1_Pooling for the model's Pooling, but it"):
            BgeEncoder(folder)

    @pytest.mark.parametrize("engine", ENGINES)
    def test_that_have_no_files_need_no_folder(self, make: MakeCheckpoint, engine: EngineName) -> None:
        folder = make("our-model", modules=("cls", "normalize"))
        shutil.rmtree(folder / "2_Normalize")
        vectors = BgeEncoder(folder, engine=engine).encode(["fox"])
        np.testing.assert_allclose(vectors, reference_vectors(folder, ["fox"]), atol=1e-5)


class TestModelsWithoutATransformer:
    """What sentence-transformers saves when texts go into something else."""

    def test_of_routes_are_called_so(self, make: MakeCheckpoint, tmp_path: Path) -> None:
        route = [Transformer.load(str(make("our-model"))), Pooling(32, "cls")]
        folder = tmp_path / "routes"
        SentenceTransformer(modules=[Router({"query": route, "document": route}), Normalize()]).save(str(folder))
        self._assert_refused(folder, "is made of Router, Normalize; only")
        # As sentence-transformers saved it until version 5.
        (folder / "router_config.json").rename(folder / "config.json")
        listed = json.loads((folder / "modules.json").read_text())
        listed[0]["type"] = "sentence_transformers.models.Asym"
        (folder / "modules.json").write_text(json.dumps(listed))
        self._assert_refused(folder, "is made of Asym, Normalize; only")

    def test_of_tables_and_counts_are_called_so(self, make: MakeCheckpoint, tmp_path: Path) -> None:
        tokenizer = Tokenizer.from_file(str(make("our-model") / "tokenizer.json"))
        for module in (StaticEmbedding(tokenizer, embedding_dim=8), BoW(["fox", "dog"])):
            folder = tmp_path / type(module).__name__
            SentenceTransformer(modules=[module]).save(str(folder))
            self._assert_refused(folder, f"is made of {type(module).__name__}; only")

    def _assert_refused(self, folder: Path, message: str) -> None:
        for engine in ENGINES:
            with pytest.raises(UnsupportedModelError, match=message):
                BgeEncoder(folder, engine=engine)

    @pytest.mark.parametrize("engine", ENGINES)
    def test_nor_those_without_a_pooling(self, make: MakeCheckpoint, engine: EngineName) -> None:
        folder = make("our-model", modules=("cls",))
        listed = json.loads((folder / "modules.json").read_text())
        (folder / "modules.json").write_text(json.dumps(listed[:1]))
        with pytest.raises(UnsupportedModelError, match="is made of Transformer; only models with a text transformer"):
            BgeEncoder(folder, engine=engine)


class TestOtherFormats:
    @pytest.mark.parametrize(
        ("file", "name"),
        [
            ("onnx/model.onnx", "ONNX"),
            ("model_q4.gguf", "GGUF"),
            ("tf_model.h5", "TensorFlow"),
            ("flax_model.msgpack", "Flax"),
            ("openvino/openvino_model.xml", "OpenVINO"),
        ],
    )
    @pytest.mark.parametrize("pickles", [False, True])
    def test_are_named(self, make: MakeCheckpoint, file: str, name: str, pickles: bool) -> None:
        folder = make("bge-small-en-v1.5")
        (folder / SAFE).unlink()
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_bytes(b"x")
        with pytest.raises(
            ModelNotFoundError, match=rf"the model for {name}.*give the original, 'BAAI/bge-small-en-v1\.5'"
        ) as caught:
            BgeEncoder(folder, allow_pickle_weights=pickles)
        assert "allow_pickle_weights" not in str(caught.value)

    def test_without_a_configuration_are_named_too(self, tmp_path: Path) -> None:
        (tmp_path / "bge-m3-q8_0.gguf").write_bytes(b"GGUF")
        with pytest.raises(ModelNotFoundError, match=r"has no config\.json.*the model for GGUF"):
            BgeEncoder(tmp_path)

    def test_nothing_is_advised_that_was_done(self, make: MakeCheckpoint) -> None:
        folder = make("bge-small-en")
        (folder / SAFE).unlink()
        with pytest.raises(ModelNotFoundError, match="has no weights") as caught:
            BgeEncoder(folder, allow_pickle_weights=True)
        assert "allow_pickle_weights" not in str(caught.value)


def test_a_folder_that_nobody_may_enter_is_an_error_of_this_package(tmp_path: Path) -> None:
    for name in ("x" * 5000, f"{tmp_path}/{'y' * 300}/z", "~nobody-of-this-name/models/bge", "a\0b/c"):
        with pytest.raises(ModelLoadError, match="no folder"):
            BgeEncoder(name)
    assert os.environ["HF_HUB_OFFLINE"] == "1"
