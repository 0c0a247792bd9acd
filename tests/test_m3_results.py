"""bge-m3: results that nobody shares, weights of a fine-tune's own tokens, and heads saved in other ways."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from bge_integrations import BgeEncoder, BgeM3Encoder, BgeReranker, M3Output, M3Weights, TruncationWarning
from bge_integrations.errors import ModelLoadError, SettingsError, TruncationError, UnsafeWeightsError
from bge_integrations.langchain import HuggingFaceBgeEmbeddings
from bge_integrations.langchain import bge_m3_hybrid as langchain_hybrid
from bge_integrations.llama_index import bge_m3_hybrid as llama_index_hybrid
from bge_integrations.prepare import prepare
from bge_integrations.settings import EngineName
from tests.checkpoints import Architecture, make_checkpoint
from tests.checkpoints_of_pairs import make_m3, make_reranker, reference_m3

REPEATED = ["fox", "dense vectors", "fox", "fox"]
ENGINES: tuple[EngineName, ...] = ("openvino", "torch", "sentence-transformers")


@pytest.fixture(scope="module")
def m3(bge_m3: Path) -> BgeM3Encoder:
    return BgeM3Encoder(bge_m3, device="cpu", on_truncation="ignore")


class TestEqualTexts:
    """What is written into one result changes no other: not of the same call, and not of a later one."""

    def test_of_a_call_of_bge_m3_have_results_of_their_own(self, m3: BgeM3Encoder) -> None:
        for encode in (m3.encode_documents, m3.encode_queries):
            expected = encode(REPEATED)
            for place in range(len(REPEATED)):
                found = encode(REPEATED)
                assert found.dense is not None
                assert found.sparse is not None
                assert found.colbert is not None
                found.dense[place] = 9
                found.sparse[place].clear()
                found.colbert[place][:] = 9
                self._assert_others_unchanged(found, expected, place)
            self._assert_others_unchanged(encode(REPEATED), expected, None)

    def _assert_others_unchanged(self, found: M3Output, expected: M3Output, place: int | None) -> None:
        for other in set(range(len(REPEATED))) - {place}:
            for ours, theirs in ((found.dense, expected.dense), (found.colbert, expected.colbert)):
                assert ours is not None
                assert theirs is not None
                np.testing.assert_allclose(ours[other], theirs[other], atol=1e-6)
            assert found.sparse is not None
            assert expected.sparse is not None
            assert found.sparse[other].keys() == expected.sparse[other].keys() != set()

    def test_of_dense_encoders_and_rerankers_too(self, bge_m3: Path, tmp_path: Path) -> None:
        vectors = BgeEncoder(bge_m3, device="cpu").encode(REPEATED)
        before = vectors.copy()
        vectors[0] = 9
        np.testing.assert_array_equal(vectors[1:], before[1:])
        scores = BgeReranker(make_reranker(tmp_path / "ours"), device="cpu").score("fox", REPEATED)
        again = scores.copy()
        scores[0] = 9
        np.testing.assert_array_equal(scores[1:], again[1:])

    async def test_of_both_frameworks_classes_too(self, bge_m3: Path) -> None:
        dense, sparse = langchain_hybrid(str(bge_m3))
        embed, lexical = llama_index_hybrid(str(bge_m3))
        for found in (
            dense.embed_documents(REPEATED),
            await dense.aembed_documents(REPEATED),
            sparse.document_weights(REPEATED),
            sparse.for_milvus().embed_documents(REPEATED),
            [vector.values for vector in sparse.embed_documents(REPEATED)],
            embed.get_text_embedding_batch(REPEATED),
            lexical.get_text_embedding_batch(REPEATED),
            lexical.sparse_doc_fn(REPEATED)[1],
        ):
            assert found[0] == found[2] == found[3] != []
            found[0].clear()
            assert found[2] == found[3] != []


def with_own_tokens(folder: Path, architecture: Architecture) -> Path:
    """A fine-tune of bge-m3 with a special token of its own."""
    if architecture == "xlm-roberta":
        make_m3(folder)
    else:
        heads = make_m3(folder / "heads")
        make_checkpoint(folder, architecture, modules=("cls", "normalize"))
        for name in ("sparse_linear.pt", "colbert_linear.pt"):
            (heads / name).rename(folder / name)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["[DRUG]"]})
    tokenizer.save_pretrained(folder)
    model = AutoModel.from_pretrained(folder)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.save_pretrained(folder)
    head = torch.load(folder / "sparse_linear.pt", weights_only=True)
    torch.save({**head, "bias": head["bias"] + 3}, folder / "sparse_linear.pt")  # so that every token has a weight
    return folder


class TestOwnSpecialTokens:
    @pytest.mark.parametrize("architecture", ["xlm-roberta", "bert"])
    def test_have_lexical_weights_as_in_the_authors_code(self, tmp_path: Path, architecture: Architecture) -> None:
        folder = with_own_tokens(tmp_path / "ours", architecture)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        text = f"[DRUG] and {tokenizer.mask_token} ☃ {tokenizer.unk_token} help the fox {tokenizer.sep_token}"
        (expected,) = reference_m3(folder, [text]).sparse
        drug = tokenizer.convert_tokens_to_ids("[DRUG]")
        assert {drug, tokenizer.mask_token_id} <= expected.keys()
        assert not {tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.unk_token_id} & expected.keys()
        prepare(folder, tmp_path / "prepared", purpose="m3")
        ways: list[tuple[Path, EngineName]] = [
            *((folder, engine) for engine in ENGINES),
            (folder, "openvino"),  # from the cache by now
            (tmp_path / "prepared", "auto"),
        ]
        for model, engine in ways:
            with BgeM3Encoder(model, engine=engine, device="cpu") as encoder:
                (found,) = encoder.encode_documents([text], dense=False, colbert=False).sparse or [{}]
            assert found == pytest.approx(expected, abs=1e-4)


class TestHeads:
    """The files of bge-m3's two linear maps."""

    @pytest.fixture
    def own_folder(self, bge_m3: Path, tmp_path: Path) -> Path:
        return Path(shutil.copytree(bge_m3, tmp_path / "bge-m3"))

    @pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
    def test_saved_under_a_wrappers_names_are_read(self, own_folder: Path, prefix: str) -> None:
        self._assert_read(own_folder, lambda head: {f"{prefix}{name}": value for name, value in head.items()})

    def test_saved_as_parameters_are_read(self, own_folder: Path) -> None:
        self._assert_read(own_folder, lambda head: {name: torch.nn.Parameter(value) for name, value in head.items()})

    def test_saved_before_torch_1_6_are_read(self, own_folder: Path) -> None:
        self._assert_read(own_folder, dict, _use_new_zipfile_serialization=False)

    def _assert_read(self, folder: Path, change: Callable[[Any], Any], **kwargs: Any) -> None:  # noqa: ANN401
        expected = reference_m3(folder, ["dense vectors"])
        for name in ("sparse_linear.pt", "colbert_linear.pt"):
            torch.save(change(torch.load(folder / name, weights_only=True)), folder / name, **kwargs)
        encoder = BgeM3Encoder(folder, device="cpu", engine="sentence-transformers")
        found = encoder.encode_documents(["dense vectors"])
        assert found.sparse is not None
        assert found.colbert is not None
        assert found.sparse[0] == pytest.approx(expected.sparse[0], abs=1e-5)
        np.testing.assert_allclose(found.colbert[0], expected.colbert[0], atol=1e-5)

    @pytest.mark.parametrize(
        ("saved", "message"),
        [
            ({"linear.weight": torch.ones(1, 32), "linear.bias": torch.ones(1)}, r"'linear\.weight', 'linear\.bias'"),
            ({"weight": torch.ones(1, 32)}, "contains 'weight', instead of 'weight' and 'bias'"),
            ({"state_dict": {"weight": torch.ones(1, 32), "bias": torch.ones(1)}}, "contains 'state_dict', instead of"),
            ({}, "contains nothing, instead of"),
            (torch.ones(1, 32), "contains a Tensor, not a dictionary"),
            ([torch.ones(1, 32)], "contains a list, not a dictionary"),
            ({"weight": [1.0] * 32, "bias": torch.ones(1)}, r"'weight' in .* is not a tensor of floating-point"),
            ({"weight": torch.ones(1, 32, dtype=torch.int8), "bias": torch.ones(1)}, "is not a tensor of floating"),
            ({"weight": torch.tensor(1.0), "bias": torch.ones(1)}, r"a weight of shape \(\)"),
            ({"weight": torch.ones(1, 32), "bias": torch.tensor(1.0)}, r"a bias of shape \(\)"),
            ({"weight": torch.ones(2, 32), "bias": torch.ones(2)}, "don't fit an encoder of 32 dimensions"),
        ],
    )
    def test_that_are_none_are_named(self, own_folder: Path, saved: object, message: str) -> None:
        torch.save(saved, own_folder / "sparse_linear.pt")
        with pytest.raises(ModelLoadError, match=message) as caught:
            BgeM3Encoder(own_folder, device="cpu")
        assert "sparse_linear.pt" in str(caught.value)

    def test_that_would_run_code_are_told_from_files_of_no_kind(self, own_folder: Path) -> None:
        torch.save(torch.nn.Linear(32, 1), own_folder / "sparse_linear.pt")
        with pytest.raises(UnsafeWeightsError, match=r"\(torch\.nn\.modules\.linear\.Linear\), and would run code"):
            BgeM3Encoder(own_folder, device="cpu")
        (own_folder / "sparse_linear.pt").write_text("no weights at all")
        with pytest.raises(ModelLoadError, match=r"was not saved by torch") as caught:
            BgeM3Encoder(own_folder, device="cpu")
        assert not isinstance(caught.value, UnsafeWeightsError)


class TestWeights:
    @pytest.mark.parametrize(
        "weights",
        [
            ("1", 0, 0),
            (None, 1, 1),
            ([1], 0, 0),
            (1j, 0, 0),
            (10**310, 0, 0),
            (1e308,) * 3,
            (np.ones(2), 1, 1),
            {},
            1.5,
        ],
        ids=repr,
    )
    def test_of_a_wrong_kind_are_refused_by_every_method(self, m3: BgeM3Encoder, weights: Any) -> None:  # noqa: ANN401
        with pytest.raises(SettingsError, match=r"(?i)weights.*three"):
            m3.score("fox", ["dog"], weights=weights)
        with pytest.raises(SettingsError, match=r"(?i)weights.*three"):
            m3.score_pairs([], weights=weights)

    async def test_are_refused_where_they_are_awaited(self, m3: BgeM3Encoder) -> None:
        with pytest.raises(SettingsError, match="dense='1' is no finite number"):
            await m3.ascore("fox", ["dog"], weights=("1", 0, 0))  # type: ignore[arg-type]
        with pytest.raises(SettingsError, match="colbert=None is no finite number"):
            await m3.ascore_pairs([("fox", "dog")], weights=(1, 0, None))  # type: ignore[arg-type]

    def test_of_every_kind_of_number_are_taken(self, m3: BgeM3Encoder) -> None:
        expected = m3.score("fox", ["dog"], weights=(0.5, 0.25, 0.25))
        given: tuple[Any, ...] = ((2, 1, 1), (np.float32(2), np.int64(1), 1), (Fraction(1, 2), Fraction(1, 4), 0.25))
        for weights in given:
            np.testing.assert_allclose(m3.score("fox", ["dog"], weights=weights), expected, atol=1e-6)
        assert M3Weights(Fraction(1, 2), 0, 0).dense == 0.5  # type: ignore[arg-type]


class TestTruncation:
    LONG = "the quick brown fox " * 30

    def test_is_reported_once_a_call(self, bge_m3: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("bge_integrations.m3.encoder._PAIRS_A_SLICE", 2)
        encoder = BgeM3Encoder(bge_m3, device="cpu", max_length=20)
        pairs = [("fox", "dog"), (self.LONG, self.LONG), ("fox", "dog"), ("fox", self.LONG * 2), ("fox", "dog")]
        length = len(AutoTokenizer.from_pretrained(bge_m3)(self.LONG * 2)["input_ids"])
        for score in (encoder.score_pairs, lambda given: encoder.score_pairs(iter(given))):
            with pytest.warns(TruncationWarning) as caught:
                score(pairs)
            (told,) = caught
            assert str(told.message).startswith(
                f"3 of 10 texts were cut: the longest, passage of pair 3, has {length} tokens, the limit is 20."
            )
            assert told.filename == __file__
        with pytest.warns(TruncationWarning, match="2 of 3 texts were cut: the longest, passage 1, has") as caught:
            encoder.score(self.LONG, ["fox", self.LONG * 2])
        assert len(caught) == 1

    async def test_is_reported_once_an_awaited_call(self, bge_m3: Path) -> None:
        encoder = BgeM3Encoder(bge_m3, device="cpu", max_length=20)
        with pytest.warns(TruncationWarning, match="2 of 2 texts were cut: the longest, query 0, has") as caught:
            await encoder.ascore(self.LONG * 2, [self.LONG])
        assert len(caught) == 1

    def test_is_counted_and_not_reported_where_it_is_ignored(self, m3: BgeM3Encoder) -> None:
        before = m3.stats().truncated_texts
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            m3.score_pairs([(self.LONG, self.LONG), ("fox", "dog")])
        assert m3.stats().truncated_texts - before == 2

    def test_is_an_error_that_names_the_side(self, bge_m3: Path) -> None:
        strict = BgeM3Encoder(bge_m3, device="cpu", on_truncation="error")
        with pytest.raises(TruncationError, match="Passage 1 has"):
            strict.score("fox", ["dog", self.LONG])
        with pytest.raises(TruncationError, match="Query 0 has"):
            strict.score(self.LONG, ["dog"])

    def test_one_bar_counts_the_pairs_of_a_call(
        self, bge_m3: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr("bge_integrations.m3.encoder._PAIRS_A_SLICE", 2)
        BgeM3Encoder(bge_m3, device="cpu", show_progress=True).score_pairs([("fox", "dog")] * 5)
        shown = capsys.readouterr().err
        assert "5/5" in shown
        assert "pair" in shown
        assert shown.count("| 0/") == 1  # one bar, however often it was drawn at its end


def test_prompts_of_a_fine_tune_are_those_of_its_dense_encoder(tmp_path: Path) -> None:
    prompts = {"query": "the query: ", "document": "a fox "}
    folder = make_m3(tmp_path / "ours", prompts=prompts)
    m3 = BgeM3Encoder(folder, device="cpu")
    dense = HuggingFaceBgeEmbeddings(model_name=str(folder))
    for found, expected, prompt in (
        (m3.encode_queries(["dog"]), dense.embed_query("dog"), "the query: "),
        (m3.encode_documents(["dog"]), dense.embed_documents(["dog"])[0], "a fox "),
    ):
        reference = reference_m3(folder, [f"{prompt}dog"])
        assert found.dense is not None
        assert found.sparse is not None
        np.testing.assert_allclose(found.dense, reference.dense, atol=1e-5)
        np.testing.assert_allclose(expected, reference.dense[0], atol=1e-5)
        assert found.sparse[0] == pytest.approx(reference.sparse[0], abs=1e-5)
    plain = BgeM3Encoder(folder, device="cpu", query_instruction="").encode_queries(["dog"]).dense
    assert plain is not None
    np.testing.assert_allclose(plain, reference_m3(folder, ["dog"]).dense, atol=1e-5)
