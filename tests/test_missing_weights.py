"""Weights that a checkpoint lacks are an error that names the first, and never random numbers."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, GemmaConfig, GemmaForCausalLM, GemmaTokenizer

from bge_integrations import BgeEncoder, BgeM3Encoder, BgeReranker
from bge_integrations.errors import ModelLoadError
from bge_integrations.prepare import prepare
from bge_integrations.settings import EngineName
from tests.checkpoints import make_checkpoint, reference_vectors
from tests.checkpoints_of_pairs import make_m3, make_reranker, reference_scores
from tests.decoder_checkpoints import make_tokenizer, tiny_shape

TEXTS = ["the quick brown fox", "jumps"]
PAIRS = [("fox", "the quick brown fox"), ("dog", "jumps")]
ENGINES: tuple[EngineName, ...] = ("openvino", "torch", "sentence-transformers")
LAYER = "encoder.layer.1.output.dense.weight"


def without(folder: Path, *names: str) -> Path:
    """Takes weights out, by the ends of their names."""
    kept = {name: value for name, value in load_file(folder / "model.safetensors").items() if not name.endswith(names)}
    assert len(kept) < len(load_file(folder / "model.safetensors"))
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole checkpoint, never loaded as it is."""
    return make_checkpoint(tmp_path_factory.mktemp("whole") / "bge-small-en-v1.5", modules=("cls", "normalize"))


@pytest.fixture
def copy(embedder: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(embedder, tmp_path / embedder.name))


@pytest.mark.parametrize("engine", ENGINES)
def test_a_layer_is_named_on_every_engine(copy: Path, engine: EngineName) -> None:
    with pytest.raises(ModelLoadError, match=rf"no {LAYER}, so random numbers"):
        BgeEncoder(without(copy, LAYER), engine=engine)


def test_the_first_of_many_is_named_with_their_number(copy: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"no embeddings\.word_embeddings\.weight and 1 more"):
        BgeEncoder(without(copy, "word_embeddings.weight", LAYER))


def test_a_missing_pooler_is_no_fault(copy: Path) -> None:
    expected = reference_vectors(copy, TEXTS)
    folder = without(copy, "pooler.dense.weight", "pooler.dense.bias")
    np.testing.assert_allclose(BgeEncoder(folder).encode(TEXTS), expected, atol=1e-5)


def test_names_with_a_prefix_or_of_former_times_are_whole(copy: Path) -> None:
    expected = reference_vectors(copy, TEXTS)
    weights = load_file(copy / "model.safetensors")
    renamed = {
        f"bert.{name}".replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
        for name, value in weights.items()
    }
    save_file(renamed, copy / "model.safetensors", metadata={"format": "pt"})
    np.testing.assert_allclose(BgeEncoder(copy).encode(TEXTS), expected, atol=1e-5)


def test_a_prefix_that_nothing_reads_leaves_no_weights(copy: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    save_file({f"module.{n}": v for n, v in weights.items()}, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelLoadError, match=r"no embeddings\.word_embeddings\.weight and \d+ more"):
        BgeEncoder(copy)


def test_shards_and_pickles_are_read_too(copy: Path, tmp_path: Path) -> None:
    expected = reference_vectors(copy, TEXTS)
    model = AutoModel.from_pretrained(copy)
    (copy / "model.safetensors").unlink()
    model.save_pretrained(copy, max_shard_size="20KB")
    assert len(list(copy.glob("model-*.safetensors"))) > 1
    np.testing.assert_allclose(BgeEncoder(copy).encode(TEXTS), expected, atol=1e-5)
    for file in copy.glob("model*"):
        file.unlink()
    state = model.state_dict()
    for is_zip in (True, False):  # as torch writes them, and as it did before version 1.6
        torch.save(state, copy / "pytorch_model.bin", _use_new_zipfile_serialization=is_zip)
        np.testing.assert_allclose(BgeEncoder(copy, allow_pickle_weights=True).encode(TEXTS), expected, atol=1e-5)
    del state[LAYER]
    torch.save(state, copy / "pytorch_model.bin")
    with pytest.raises(ModelLoadError, match=f"no {LAYER}"):
        BgeEncoder(copy, allow_pickle_weights=True)


@pytest.mark.parametrize("architecture", ["bert", "xlm-roberta"])
@pytest.mark.parametrize("engine", ["openvino", "sentence-transformers"])
def test_a_rerankers_classifier_is_named(tmp_path: Path, architecture: str, engine: EngineName) -> None:
    folder = make_reranker(tmp_path / "bge-reranker-base", architecture)  # type: ignore[arg-type]
    expected = reference_scores(folder, PAIRS)
    np.testing.assert_allclose(BgeReranker(folder, engine=engine).score_pairs(PAIRS), expected, atol=1e-5)
    lacking = "classifier.weight" if architecture == "bert" else "classifier.out_proj.weight"
    with pytest.raises(ModelLoadError, match=f"no {lacking}"):
        BgeReranker(without(folder, lacking), engine=engine)


def test_berts_pooler_is_part_of_its_classifier(tmp_path: Path) -> None:
    folder = without(make_reranker(tmp_path / "bge-reranker-base", "bert"), "pooler.dense.weight")
    with pytest.raises(ModelLoadError, match=r"no bert\.pooler\.dense\.weight"):
        BgeReranker(folder)


def test_a_decoders_layer_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "bge-reranker-v2-gemma"
    tokenizer = make_tokenizer(GemmaTokenizer)
    tokenizer.save_pretrained(folder)
    GemmaForCausalLM(GemmaConfig(**tiny_shape(len(tokenizer)))).save_pretrained(folder)
    BgeReranker(folder).close()
    with pytest.raises(ModelLoadError, match=r"no model\.layers\.0\.mlp\.up_proj\.weight"):
        BgeReranker(without(folder, "layers.0.mlp.up_proj.weight"))


def _prepare(folder: Path) -> object:
    return prepare(folder, folder.parent / "prepared", purpose="m3")


@pytest.mark.parametrize("use", [BgeM3Encoder, _prepare])
def test_every_use_of_a_checkpoint_refuses_it(tmp_path: Path, use: Callable[[Path], object]) -> None:
    folder = without(make_m3(tmp_path / "bge-m3"), LAYER)
    with pytest.raises(ModelLoadError, match=f"no {LAYER}"):
        use(folder)
    assert not (tmp_path / "prepared").exists()
