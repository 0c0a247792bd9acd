"""Who says how a model pools, and with which prompts: its name, its own files, a record, the user, or nobody."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import AutoModel, AutoTokenizer

from bge_integrations import BgeEncoder, BgeM3Encoder
from bge_integrations.errors import PoolingMismatchError, PoolingWarning, SettingsError
from bge_integrations.langchain import HuggingFaceBgeEmbeddings
from bge_integrations.llama_index import HuggingFaceBgeEmbedding
from bge_integrations.prepare import prepare
from bge_integrations.settings import EngineName, Pooling
from tests.checkpoints import make_checkpoint
from tests.checkpoints_of_pairs import make_m3

TEXTS = ["the quick brown fox", "jumps"]
ENGINES: tuple[EngineName, ...] = ("openvino", "torch", "sentence-transformers")
POOLINGS: tuple[Pooling, ...] = ("cls", "mean", "last")


def pooled(folder: Path, pooling: Pooling, texts: list[str] = TEXTS, *, unit: bool = True) -> NDArray[np.float32]:
    """One text at a time by plain transformers, so that there is no padding to go wrong."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    rows = []
    for text in texts:
        with torch.no_grad():
            states = model(**tokenizer(text, return_tensors="pt"))[0][0]
        rows.append({"cls": states[0], "mean": states.mean(0), "last": states[-1]}[pooling].numpy())
    found: NDArray[np.float32] = np.stack(rows)
    return found / np.linalg.norm(found, axis=1, keepdims=True) if unit else found


def with_card(folder: Path, base: str = "BAAI/bge-small-en-v1.5") -> Path:
    (folder / "README.md").write_text(f"---\nbase_model: {base}\n---\n# Mine\n")
    return folder


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of which nothing is known."""
    return make_checkpoint(tmp_path_factory.mktemp("bare") / "our-model")


@pytest.fixture(scope="module")
def fine_tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fine-tune with pooling, prompts and length of its own, which only its card traces back to a BGE model."""
    folder = tmp_path_factory.mktemp("record") / "our-model"
    prompts = {"query": "fox: ", "document": "dog: "}
    return with_card(make_checkpoint(folder, modules=("mean",), prompts=prompts))


class TestRecordedOnly:
    @pytest.mark.parametrize("engine", ENGINES)
    def test_its_own_pooling_prompts_and_length_are_used(self, fine_tuned: Path, engine: EngineName) -> None:
        encoder = BgeEncoder(fine_tuned, engine=engine)
        texts = [f"dog: {text}" for text in TEXTS]
        np.testing.assert_allclose(
            encoder.encode_documents(TEXTS), pooled(fine_tuned, "mean", texts, unit=False), atol=1e-5
        )
        assert encoder.instruction("query").prefix == "fox: "
        assert encoder.instruction("symmetric").prefix == ""

    def test_a_default_prompt_is_used_where_sentence_transformers_uses_it(self, tmp_path: Path) -> None:
        folder = make_checkpoint(
            tmp_path / "our-model", modules=("cls",), prompts={"web": "the "}, default_prompt_name="web"
        )
        encoder = BgeEncoder(with_card(folder))
        original = encoder.client
        np.testing.assert_allclose(encoder.encode(TEXTS), original.encode(TEXTS), atol=1e-5)
        np.testing.assert_allclose(encoder.encode_queries(TEXTS), original.encode_query(TEXTS), atol=1e-5)
        assert (encoder.instruction("symmetric").prefix, encoder.instruction("query").prefix) == ("the ", "")

    def test_the_catalogue_says_what_its_files_do_not(self, tmp_path: Path) -> None:
        # sentence-transformers saves empty prompts with every model.
        folder = make_checkpoint(
            tmp_path / "our-model", modules=("cls", "normalize"), prompts={"query": "", "document": ""}
        )
        encoder = BgeEncoder(with_card(folder))
        assert encoder.instruction("query").prefix.startswith("Represent this sentence")

    def test_without_modules_it_pools_as_its_ancestor(self, bare: Path, tmp_path: Path) -> None:
        folder = with_card(Path(shutil.copytree(bare, tmp_path / "our-model")))
        np.testing.assert_allclose(BgeEncoder(folder).encode(TEXTS), pooled(folder, "cls"), atol=1e-5)

    def test_an_explicit_instruction_or_task_wins(self, fine_tuned: Path) -> None:
        assert BgeEncoder(fine_tuned, query_instruction="").instruction("query").prefix == ""
        with pytest.raises(SettingsError, match="takes no task"):
            BgeEncoder(fine_tuned, task="find").instruction("query")

    def test_prepared_it_keeps_its_own(self, fine_tuned: Path, tmp_path: Path) -> None:
        prepare(fine_tuned, tmp_path / "prepared")
        ready, original = BgeEncoder(tmp_path / "prepared"), BgeEncoder(fine_tuned)
        assert ready.instruction("query") == original.instruction("query")
        np.testing.assert_allclose(ready.encode_queries(TEXTS), original.encode_queries(TEXTS), atol=1e-6)

    def test_a_graph_in_the_cache_is_not_shared_with_a_folder_of_the_models_name(
        self, fine_tuned: Path, tmp_path: Path
    ) -> None:
        own = BgeEncoder(fine_tuned).encode(TEXTS)
        called = Path(shutil.copytree(fine_tuned, tmp_path / "bge-small-en-v1.5"))
        by_name = BgeEncoder(called, pooling="cls")
        np.testing.assert_allclose(by_name.encode(TEXTS), pooled(fine_tuned, "cls"), atol=1e-5)
        assert by_name.instruction("query").prefix.startswith("Represent this sentence")
        assert not np.allclose(own, by_name.encode(TEXTS), atol=1e-2)

    @pytest.mark.parametrize("engine", ENGINES)
    def test_the_heads_of_bge_m3_are_a_record(self, tmp_path: Path, engine: EngineName) -> None:
        folder = make_m3(tmp_path / "our-model")
        (folder / "modules.json").unlink(missing_ok=True)
        shutil.rmtree(folder / "1_Pooling", ignore_errors=True)
        expected = pooled(folder, "cls")
        m3 = BgeM3Encoder(folder, engine=engine)
        dense = m3.encode_documents(TEXTS).dense
        assert dense is not None
        np.testing.assert_allclose(dense, expected, atol=1e-5)
        m3.close()
        np.testing.assert_allclose(BgeEncoder(folder, engine=engine).encode(TEXTS), expected, atol=1e-5)


class TestNothingSaysSo:
    def test_a_warning_names_the_remedy_at_every_start(self, bare: Path) -> None:
        for _ in range(2):  # the second time the graph comes from the cache
            with pytest.warns(PoolingWarning, match=r"pooling='cls', normalize=True") as caught:
                encoder = BgeEncoder(bare, engine="openvino")
            assert Path(caught[0].filename).name == Path(__file__).name
            encoder.close()

    def test_the_remedy_gives_the_vectors_of_the_fine_tune(self, bare: Path) -> None:
        found = BgeEncoder(bare, pooling="cls", normalize=True).encode(TEXTS)  # a warning would be an error here
        np.testing.assert_allclose(found, pooled(bare, "cls"), atol=1e-5)

    def test_preparing_warns_too(self, bare: Path, tmp_path: Path) -> None:
        with pytest.warns(PoolingWarning):
            prepare(bare, tmp_path / "prepared")
        prepare(bare, tmp_path / "told", pooling="last")
        np.testing.assert_allclose(
            BgeEncoder(tmp_path / "told", normalize=True).encode(TEXTS), pooled(bare, "last"), atol=1e-5
        )

    @pytest.mark.parametrize("adapter", [HuggingFaceBgeEmbeddings, HuggingFaceBgeEmbedding])
    def test_adapters_warn_and_take_the_setting(self, bare: Path, adapter: Any) -> None:  # noqa: ANN401
        with pytest.warns(PoolingWarning) as caught:
            adapter(model_name=str(bare), normalize=True)
        assert len(caught) == 1
        told = adapter(model_name=str(bare), normalize=True, pooling="cls")
        np.testing.assert_allclose(told.encoder.encode_documents(TEXTS), pooled(bare, "cls"), atol=1e-5)


class TestSetting:
    @pytest.mark.parametrize("engine", ENGINES)
    @pytest.mark.parametrize("pooling", POOLINGS)
    def test_it_decides_on_every_engine(self, bare: Path, engine: EngineName, pooling: Pooling) -> None:
        encoder = BgeEncoder(bare, engine=engine, pooling=pooling)
        np.testing.assert_allclose(encoder.encode(TEXTS), pooled(bare, pooling, unit=False), atol=1e-5)

    @pytest.mark.parametrize("pooling", POOLINGS)
    def test_it_wins_over_the_checkpoints_own(self, fine_tuned: Path, pooling: Pooling) -> None:
        encoder = BgeEncoder(fine_tuned, pooling=pooling)
        np.testing.assert_allclose(encoder.encode(TEXTS), pooled(fine_tuned, pooling, unit=False), atol=1e-5)

    def test_a_mismatch_with_the_models_name_names_both_choices(self, tmp_path: Path) -> None:
        folder = make_checkpoint(tmp_path / "bge-small-en-v1.5", modules=("mean", "normalize"))
        with pytest.raises(PoolingMismatchError, match=r"pooling='mean' if .*pooling='cls' to use"):
            BgeEncoder(folder)
        for pooling in POOLINGS:
            found = BgeEncoder(folder, pooling=pooling).encode(TEXTS)
            np.testing.assert_allclose(found, pooled(folder, pooling), atol=1e-5)

    def test_modules_that_need_another_pooling_refuse_it(self, tmp_path: Path) -> None:
        folder = make_checkpoint(tmp_path / "our-model", modules=("mean", "max"))
        with pytest.raises(SettingsError, match=r"pooling='cls' can't be honoured.*64 numbers"):
            BgeEncoder(folder, pooling="cls")

    def test_a_prepared_folder_keeps_its_pooling(self, bare: Path, tmp_path: Path) -> None:
        prepare(bare, tmp_path / "prepared", pooling="mean")
        assert BgeEncoder(tmp_path / "prepared", pooling="mean").dimension == 32
        with pytest.raises(SettingsError, match="prepared with mean pooling"):
            BgeEncoder(tmp_path / "prepared", pooling="cls")

    def test_an_unknown_pooling_names_the_choices(self, bare: Path) -> None:
        with pytest.raises(SettingsError, match=r"pooling='max' is unknown; choose one of None, 'cls', 'mean', 'last'"):
            BgeEncoder(bare, pooling="max")  # type: ignore[arg-type]

    def test_it_is_part_of_a_cache_s_namespace(self, bare: Path) -> None:
        names = [BgeEncoder(bare, pooling=pooling).cache_namespace("document") for pooling in POOLINGS]
        assert len(set(names)) == len(names)


def test_what_is_recorded_survives_a_copy_of_the_settings(fine_tuned: Path) -> None:
    embeddings = HuggingFaceBgeEmbeddings(model_name=str(fine_tuned), pooling="cls")
    again = HuggingFaceBgeEmbeddings(**json.loads(embeddings.model_dump_json()))
    assert again.encoder.settings.pooling == "cls"
