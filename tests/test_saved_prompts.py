"""Cross-encoders as sentence-transformers saves them: their default prompt, and modules after the classifier."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sentence_transformers import CrossEncoder
from sentence_transformers.base.modules import Dense

from bge_integrations import BgeReranker, find_model
from bge_integrations.errors import SettingsError, UnsupportedModelError
from bge_integrations.langchain import BgeReranker as LangChainReranker
from bge_integrations.llama_index import BgeRerank
from bge_integrations.prepare import prepare
from bge_integrations.settings import EngineName
from tests.checkpoints_of_pairs import make_reranker

PROMPTS = {"web": "the lazy fox finds passages: ", "other": "dog "}
PAIRS = [("what is a vector?", "Retrieval with dense vectors"), ("fox", "The quick brown fox"), ("", "样例数据")]
QUERY, PASSAGES = PAIRS[0][0], [passage for _, passage in PAIRS]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_reranker(tmp_path_factory.mktemp("plain") / "ours", "xlm-roberta")


@pytest.fixture(scope="module")
def prompted(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prompted") / "ours"
    CrossEncoder(str(plain), prompts=PROMPTS, default_prompt_name="web", device="cpu").save_pretrained(str(folder))
    return folder


def predicted(folder: Path, pairs: list[tuple[str, str]], **kwargs: Any) -> NDArray[np.float32]:  # noqa: ANN401
    """What sentence-transformers gives, without the activation that it saves."""
    found = CrossEncoder(str(folder), device="cpu").predict(pairs, activation_fn=torch.nn.Identity(), **kwargs)
    return np.asarray(found)


def changed(folder: Path, target: Path, file: str, **entries: object) -> Path:
    """A copy whose JSON file has other entries."""
    shutil.copytree(folder, target)
    content = json.loads((target / file).read_text())
    (target / file).write_text(json.dumps({**content, **entries}))
    return target


class TestSavedPrompt:
    @pytest.mark.parametrize("engine", ["openvino", "torch", "sentence-transformers"])
    def test_goes_before_each_query_as_in_sentence_transformers(
        self, prompted: Path, plain: Path, engine: EngineName
    ) -> None:
        expected = predicted(prompted, PAIRS)
        assert np.abs(expected - predicted(plain, PAIRS)).min() > 1e-3
        reranker = BgeReranker(prompted, engine=engine, device="cpu")
        np.testing.assert_allclose(reranker.score_pairs(PAIRS), expected, atol=1e-5)
        one_query = predicted(prompted, [(QUERY, passage) for passage in PASSAGES])
        np.testing.assert_allclose(reranker.score(QUERY, PASSAGES), one_query, atol=1e-5)

    def test_is_known_to_graphs_from_the_cache_and_to_prepared_folders(self, prompted: Path, tmp_path: Path) -> None:
        expected = predicted(prompted, PAIRS)
        for _ in range(2):  # the second time from the cache
            with BgeReranker(prompted, engine="openvino", device="cpu") as reranker:
                np.testing.assert_allclose(reranker.score_pairs(PAIRS), expected, atol=1e-5)
            del reranker
        manifest = prepare(prompted, tmp_path / "prepared")
        assert manifest.query_instruction == PROMPTS["web"]
        np.testing.assert_allclose(BgeReranker(tmp_path / "prepared").score_pairs(PAIRS), expected, atol=1e-5)

    async def test_awaited_it_is_the_same(self, prompted: Path) -> None:
        reranker = BgeReranker(prompted, device="cpu")
        np.testing.assert_allclose(await reranker.ascore_pairs(PAIRS), predicted(prompted, PAIRS), atol=1e-5)
        assert (await reranker.ascore(QUERY, PASSAGES)).tolist() == reranker.score(QUERY, PASSAGES).tolist()

    @pytest.mark.parametrize("instruction", ["", "cat: "])
    def test_gives_way_to_the_users_own(self, prompted: Path, plain: Path, instruction: str) -> None:
        found = BgeReranker(prompted, device="cpu", query_instruction=instruction).score_pairs(PAIRS)
        expected = predicted(plain, [(instruction + query, passage) for query, passage in PAIRS])
        np.testing.assert_allclose(found, expected, atol=1e-5)

    def test_without_a_default_none_is_used(self, prompted: Path, plain: Path, tmp_path: Path) -> None:
        settings = "config_sentence_transformers.json"
        folder = changed(prompted, tmp_path / "ours", settings, default_prompt_name=None)
        np.testing.assert_allclose(BgeReranker(folder).score_pairs(PAIRS), predicted(plain, PAIRS), atol=1e-5)

    def test_of_a_fine_tune_that_records_a_bge_reranker_is_used(self, prompted: Path, tmp_path: Path) -> None:
        folder = changed(prompted, tmp_path / "ours", "config.json", _name_or_path="BAAI/bge-reranker-base")
        spec = find_model(folder)
        assert spec is not None
        assert spec.model_id == "BAAI/bge-reranker-base"
        np.testing.assert_allclose(BgeReranker(folder).score_pairs(PAIRS), predicted(folder, PAIRS), atol=1e-5)

    def test_of_a_model_called_like_a_bge_reranker_is_not(self, prompted: Path, plain: Path, tmp_path: Path) -> None:
        shutil.copytree(prompted, tmp_path / "bge-reranker-large")
        found = BgeReranker(tmp_path / "bge-reranker-large").score_pairs(PAIRS)
        np.testing.assert_allclose(found, predicted(plain, PAIRS), atol=1e-5)

    def test_is_used_by_the_classes_of_both_frameworks(self, prompted: Path) -> None:
        expected = predicted(prompted, PAIRS)
        langchain, llama_index = LangChainReranker(model_name=str(prompted)), BgeRerank(str(prompted))
        np.testing.assert_allclose(langchain.score(PAIRS), expected, atol=1e-5)
        np.testing.assert_allclose(llama_index.reranker.score_pairs(PAIRS), expected, atol=1e-5)
        without = LangChainReranker(model_name=str(prompted), query_instruction="")
        assert np.abs(np.subtract(without.score(PAIRS), expected)).min() > 1e-3
        with pytest.raises(SettingsError, match="query_instruction"):
            BgeRerank(str(prompted), prompts=PROMPTS)


def test_a_module_after_the_classifier_counts(plain: Path, tmp_path: Path) -> None:
    model = CrossEncoder(str(plain), device="cpu")
    further = Dense(1, 1, activation_function=torch.nn.Tanh(), module_input_name="scores", module_output_name="scores")
    folder = tmp_path / "ours"
    CrossEncoder(modules=[model[0], further], device="cpu").save_pretrained(str(folder))
    expected = predicted(folder, PAIRS)
    assert np.abs(expected - predicted(plain, PAIRS)).min() > 1e-3
    np.testing.assert_allclose(BgeReranker(folder).score_pairs(PAIRS), expected, atol=1e-5)


def test_pairs_written_by_a_chat_template_are_refused(plain: Path, tmp_path: Path) -> None:
    folder = tmp_path / "ours"
    CrossEncoder(str(plain), device="cpu").save_pretrained(str(folder))
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }} {% endfor %}"
    )
    settings = json.loads((folder / "sentence_bert_config.json").read_text())
    way = {"method": "forward", "method_output_name": "logits"}
    settings["modality_config"] = {"text": way, "message": {**way, "format": "flat"}}
    (folder / "sentence_bert_config.json").write_text(json.dumps(settings))
    assert np.abs(predicted(folder, PAIRS) - predicted(plain, PAIRS)).min() > 1e-4
    with pytest.raises(UnsupportedModelError, match="chat template"):
        BgeReranker(folder)
