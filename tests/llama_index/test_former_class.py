"""llama-index-embeddings-huggingface's class: which of its defects are gone. See `tests/test_former_vectors.py` too."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_index.core.storage.kvstore import SimpleKVStore
from llama_index.embeddings.huggingface import HuggingFaceEmbedding
from llama_index.embeddings.huggingface.utils import get_query_instruct_for_model_name

from bge_integrations import find_model
from bge_integrations.llama_index import HuggingFaceBgeEmbedding
from tests.adapters import EN, assert_close
from tests.checkpoints import reference_vectors
from tests.conftest import MakeCheckpoint
from tests.llama_index.events import observed

pytestmark = pytest.mark.slow


def test_a_local_folder_gets_the_instruction(bge_small_en: Path) -> None:
    right = reference_vectors(bge_small_en, [EN + "fox"])
    theirs = HuggingFaceEmbedding(str(bge_small_en), device="cpu")
    assert not np.allclose(theirs.get_query_embedding("fox"), right, atol=1e-3)
    assert_close([HuggingFaceBgeEmbedding(str(bge_small_en)).get_query_embedding("fox")], right)


def test_the_english_instruction_has_its_true_wording() -> None:
    spec = find_model("BAAI/bge-small-en")
    assert spec is not None
    assert get_query_instruct_for_model_name("BAAI/bge-small-en") != spec.query_instruction == EN


def test_the_instruction_can_be_switched_off(
    make: MakeCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make("BAAI/bge-small-en", modules=("cls", "normalize"))
    monkeypatch.chdir(tmp_path)
    plain = reference_vectors(tmp_path / "BAAI/bge-small-en", ["fox"])
    theirs = HuggingFaceEmbedding("BAAI/bge-small-en", query_instruction="", device="cpu")
    assert not np.allclose(theirs.get_query_embedding("fox"), plain, atol=1e-3)
    ours = HuggingFaceBgeEmbedding("BAAI/bge-small-en", query_instruction="")
    assert_close([ours.get_query_embedding("fox")], plain)


def test_goes_to_a_dictionary_and_back(bge_small_en: Path) -> None:
    theirs = HuggingFaceEmbedding(str(bge_small_en), device="cpu")
    with pytest.raises(Exception, match=r"unexpected keyword|got multiple|num_workers"):
        HuggingFaceEmbedding.from_dict(theirs.to_dict())
    ours = HuggingFaceBgeEmbedding(str(bge_small_en))
    assert HuggingFaceBgeEmbedding.from_dict(ours.to_dict()).to_dict() == ours.to_dict()


@pytest.mark.parametrize("settings", [{"num_workers": 2}, {"embeddings_cache": SimpleKVStore()}], ids=list)
def test_the_constructor_takes_every_field(bge_small_en: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(TypeError):
        HuggingFaceEmbedding(str(bge_small_en), device="cpu", **settings)
    ours = HuggingFaceBgeEmbedding(str(bge_small_en), **settings)
    assert all(getattr(ours, name) is value for name, value in settings.items())


def test_a_bare_checkpoint_is_cls_pooled_and_normalised(make: MakeCheckpoint) -> None:
    folder = make("bge-small-en")
    expected = reference_vectors(folder, ["lazy fox"])
    theirs = HuggingFaceEmbedding(str(folder), device="cpu")
    assert not np.allclose(theirs.get_text_embedding("lazy fox"), expected, atol=1e-2)
    assert_close([HuggingFaceBgeEmbedding(str(folder)).get_text_embedding("lazy fox")], expected)


def test_truncation_is_not_silent(bge_small_en: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        HuggingFaceEmbedding(str(bge_small_en), device="cpu").get_text_embedding("fox " * 100)
    with pytest.warns(UserWarning, match="1 of 1 texts were cut"):
        HuggingFaceBgeEmbedding(str(bge_small_en)).get_text_embedding("fox " * 100)


def test_a_cached_text_is_no_answer_to_a_query(bge_small_en: Path) -> None:
    theirs = HuggingFaceEmbedding(str(bge_small_en), device="cpu", query_instruction=EN)
    theirs.embeddings_cache = SimpleKVStore()
    text = theirs.get_text_embedding("fox")
    assert theirs.get_query_embedding("fox") == text
    ours = HuggingFaceBgeEmbedding(str(bge_small_en), embeddings_cache=SimpleKVStore())
    assert ours.get_text_embedding("fox") != ours.get_query_embedding("fox")


def test_handlers_are_told_the_same(bge_small_en: Path) -> None:
    theirs = HuggingFaceEmbedding(str(bge_small_en), device="cpu")
    assert observed(HuggingFaceBgeEmbedding(str(bge_small_en))) == observed(theirs)
