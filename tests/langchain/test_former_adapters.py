"""What people have today: which of its defects are gone, and that the vectors they stored stay valid.

Tests with the former classes themselves are slow; see `tests/test_former_vectors.py` for those without.
"""

from __future__ import annotations

import copy
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from bge_integrations.errors import InputTypeError, InputValueError
from bge_integrations.langchain import HuggingFaceBgeEmbeddings
from tests.checkpoints import Architecture, reference_vectors
from tests.conftest import MakeCheckpoint
from tests.former_vectors import TEXTS
from tests.langchain.former import EN, are_close, assert_close, community_bge, huggingface


@pytest.mark.slow
class TestDefects:
    """Each is shown on the former class first, so that ours is known to differ from something real."""

    def test_a_folder_above_the_model_does_not_choose_its_language(self, make: MakeCheckpoint) -> None:
        folder = make("models-zh/bge-small-en-v1.5", modules=("cls", "normalize"))
        expected = reference_vectors(folder, [EN + "fox"])
        assert not are_close(community_bge(model_name=str(folder)).embed_query("fox"), expected[0])
        assert_close([HuggingFaceBgeEmbeddings(model_name=str(folder)).embed_query("fox")], expected)

    def test_the_english_instruction_has_its_true_wording(self, bge_small_en: Path) -> None:
        right = reference_vectors(bge_small_en, [EN + "fox"])
        assert not are_close(community_bge(model_name=str(bge_small_en)).embed_query("fox"), right[0])
        assert_close([HuggingFaceBgeEmbeddings(model_name=str(bge_small_en)).embed_query("fox")], right)

    def test_a_users_own_instruction_is_kept_for_zh(self, bge_small_zh: Path) -> None:
        mine = reference_vectors(bge_small_zh, ["找: fox"])
        settings = {"model_name": str(bge_small_zh), "query_instruction": "找: "}
        assert not are_close(community_bge(**settings).embed_query("fox"), mine[0])
        assert_close([HuggingFaceBgeEmbeddings(**settings).embed_query("fox")], mine)

    @pytest.mark.parametrize(("name", "architecture"), [("bge-large-zh-noinstruct", "bert"), ("bge-m3", "xlm-roberta")])
    def test_models_without_an_instruction_get_none(
        self, make: MakeCheckpoint, name: str, architecture: Architecture
    ) -> None:
        folder = make(name, architecture, modules=("cls", "normalize"))
        plain = reference_vectors(folder, ["fox"])
        assert not are_close(community_bge(model_name=str(folder)).embed_query("fox"), plain[0])
        assert_close([HuggingFaceBgeEmbeddings(model_name=str(folder)).embed_query("fox")], plain)

    def test_dumps_as_json(self, bge_small_en: Path) -> None:
        with pytest.raises(Exception, match="serialize"):
            community_bge(model_name=str(bge_small_en)).model_dump_json()
        assert HuggingFaceBgeEmbeddings(model_name=str(bge_small_en)).model_dump_json()

    def test_query_encode_kwargs_add_to_encode_kwargs(self, bge_small_en: Path) -> None:
        settings: dict[str, Any] = {
            "model_name": str(bge_small_en),
            "encode_kwargs": {"truncate_dim": 8},
            "query_encode_kwargs": {"prompt": "find: "},
        }
        assert len(huggingface(**settings).embed_query("fox")) == 32
        assert len(HuggingFaceBgeEmbeddings(**settings).embed_query("fox")) == 8

    def test_a_progress_bar_may_be_asked_for_in_encode_kwargs(self, bge_small_en: Path) -> None:
        settings: dict[str, Any] = {"model_name": str(bge_small_en), "encode_kwargs": {"show_progress_bar": True}}
        with pytest.raises(TypeError):
            huggingface(**settings).embed_documents(["fox"])
        assert len(HuggingFaceBgeEmbeddings(**settings).embed_documents(["fox"])) == 1

    def test_a_bare_checkpoint_is_cls_pooled_and_normalised(self, make: MakeCheckpoint) -> None:
        folder = make("bge-small-en")
        expected = reference_vectors(folder, ["lazy fox"])
        assert not are_close(community_bge(model_name=str(folder)).embed_documents(["lazy fox"]), expected)
        assert_close(HuggingFaceBgeEmbeddings(model_name=str(folder)).embed_documents(["lazy fox"]), expected)

    def test_truncation_is_not_silent(self, bge_small_en: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            huggingface(model_name=str(bge_small_en)).embed_documents(["fox " * 100])
        with pytest.warns(UserWarning, match="1 of 1 texts were cut"):
            HuggingFaceBgeEmbeddings(model_name=str(bge_small_en)).embed_documents(["fox " * 100])

    def test_pickles_carry_no_weights(self, minilm: str) -> None:
        assert len(pickle.dumps(huggingface(model_name=minilm))) > 80_000_000
        assert len(pickle.dumps(HuggingFaceBgeEmbeddings(model_name=minilm))) < 10_000

    def test_queries_get_an_instruction_without_being_told(self, bge_small_en: Path) -> None:
        theirs = huggingface(model_name=str(bge_small_en))
        assert_close(theirs.embed_query("fox"), theirs.embed_documents(["fox"])[0])
        ours = HuggingFaceBgeEmbeddings(model_name=str(bge_small_en))
        assert_close([ours.embed_query("fox")], reference_vectors(bge_small_en, [EN + "fox"]))

    def test_the_users_model_kwargs_are_not_emptied(self, bge_small_en: Path) -> None:
        given = {"device": "cpu", "torch_dtype": torch.float32}
        theirs = community_bge(model_name=str(bge_small_en), model_kwargs=given)
        assert "torch_dtype" not in theirs.model_kwargs
        ours = HuggingFaceBgeEmbeddings(model_name=str(bge_small_en), model_kwargs=given)
        assert ours.model_kwargs == {"device": "cpu", "torch_dtype": "float32"}

    def test_a_second_embedder_takes_no_second_model(self, bge_small_en: Path) -> None:
        def weights(model: SentenceTransformer) -> int:
            return next(iter(model.parameters())).data_ptr()

        theirs = [huggingface(model_name=str(bge_small_en))._client for _ in range(2)]
        assert weights(theirs[0]) != weights(theirs[1])
        ours = [HuggingFaceBgeEmbeddings(model_name=str(bge_small_en), query_instruction=i) for i in ("a", "b")]
        assert weights(ours[0].client) == weights(ours[1].client)

    @pytest.mark.parametrize(
        ("bad", "theirs", "ours"), [("abc\ud83d", TypeError, InputValueError), (None, AttributeError, InputTypeError)]
    )
    def test_bad_input_is_named_instead_of_dying_in_the_tokenizer(
        self,
        bge_small_en: Path,
        bad: Any,  # noqa: ANN401
        theirs: type[Exception],
        ours: type[Exception],
    ) -> None:
        for former in (community_bge, huggingface):
            with pytest.raises(theirs) as caught:
                former(model_name=str(bge_small_en)).embed_documents(["fox", bad])
            assert "1" not in str(caught.value)
        with pytest.raises(ours, match=r"^Text 1 "):
            HuggingFaceBgeEmbeddings(model_name=str(bge_small_en)).embed_documents(["fox", bad])

    def test_multi_process_starts_no_pool_and_keeps_encode_kwargs(
        self, bge_small_en: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pools: list[str] = []

        def encode_multi_process(model: SentenceTransformer, texts: list[str], pool: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            return model.encode(texts, **kwargs)

        # The true pool takes twenty seconds to start; what matters is that it is started, and what it is told.
        monkeypatch.setattr(SentenceTransformer, "start_multi_process_pool", lambda *_: pools.append("started"))
        monkeypatch.setattr(SentenceTransformer, "stop_multi_process_pool", lambda *_: None)
        monkeypatch.setattr(SentenceTransformer, "encode_multi_process", encode_multi_process)
        settings: dict[str, Any] = {
            "model_name": str(bge_small_en),
            "multi_process": True,
            "encode_kwargs": {"truncate_dim": 8},
        }
        theirs, ours = huggingface(**settings), HuggingFaceBgeEmbeddings(**settings)
        assert np.shape(theirs.embed_documents(["fox"])) == np.shape(theirs.embed_documents(["dog"])) == (1, 32)
        assert pools == ["started", "started"]
        assert np.shape(ours.embed_documents(["fox"])) == (1, 8)
        assert pools == ["started", "started"]

    def test_a_copy_shares_the_weights(self, bge_small_en: Path) -> None:
        theirs = huggingface(model_name=str(bge_small_en))
        assert copy.deepcopy(theirs)._client is not theirs._client
        ours = HuggingFaceBgeEmbeddings(model_name=str(bge_small_en))
        assert copy.deepcopy(ours).client is ours.client


@pytest.mark.slow
@pytest.mark.parametrize(
    "encode_kwargs", [{}, {"normalize_embeddings": True}, {"normalize_embeddings": False}], ids=str
)
def test_stored_documents_of_a_model_that_does_not_normalise_stay_valid(
    make: MakeCheckpoint, encode_kwargs: dict[str, Any]
) -> None:
    folder = str(make("bge-small-en", modules=("cls",)))
    # The one difference: where the checkpoint does not say, BGE vectors are normalised unless the user says otherwise.
    theirs = community_bge(model_name=folder, encode_kwargs=encode_kwargs or {"normalize_embeddings": True})
    ours = HuggingFaceBgeEmbeddings(model_name=folder, encode_kwargs=encode_kwargs)
    assert_close(ours.embed_documents(TEXTS[:3]), theirs.embed_documents(TEXTS[:3]))


@pytest.mark.slow
@pytest.mark.parametrize("former", [community_bge, huggingface])
@pytest.mark.parametrize("architecture", ["bert", "xlm-roberta"])
@pytest.mark.parametrize(
    "encode_kwargs",
    [{}, {"normalize_embeddings": True}, {"normalize_embeddings": False}, {"batch_size": 2}],
    ids=str,
)
def test_stored_documents_stay_valid(
    make: MakeCheckpoint,
    former: Any,  # noqa: ANN401
    architecture: Architecture,
    encode_kwargs: dict[str, Any],
) -> None:
    name = "bge-base-zh-v1.5" if architecture == "bert" else "bge-m3"
    folder = str(make(name, architecture, modules=("cls", "normalize")))
    # Both replace line breaks, which the hub's tokenizers read as spaces and this small one does not.
    texts = TEXTS if architecture == "bert" else [text.replace("\n", " ") for text in TEXTS]
    stored = former(model_name=folder, encode_kwargs=encode_kwargs).embed_documents(texts)
    ours = HuggingFaceBgeEmbeddings(model_name=folder, encode_kwargs=encode_kwargs, on_truncation="ignore")
    assert_close(ours.embed_documents(texts), stored)


def test_normalize_false_adds_none_but_keeps_the_checkpoints_own(make: MakeCheckpoint) -> None:
    norms = {}
    for modules in (("cls",), ("cls", "normalize")):
        folder = make("-".join(("bge-small-en", *modules)) + "/bge-small-en", modules=modules)
        embeddings = HuggingFaceBgeEmbeddings(
            model_name=str(folder), encode_kwargs={"normalize_embeddings": False}, on_truncation="ignore"
        )
        stored = SentenceTransformer(str(folder), device="cpu").encode(TEXTS, normalize_embeddings=False)
        assert_close(embeddings.embed_documents(TEXTS), stored)
        norms[modules] = np.linalg.norm(stored, axis=1)
    np.testing.assert_allclose(norms["cls", "normalize"], 1, atol=1e-5)
    assert np.abs(norms[("cls",)] - 1).min() > 0.1
