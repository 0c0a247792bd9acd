"""What a model has no embedding for is refused by the text on every engine; all else is computed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModel,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    PreTrainedTokenizerFast,
)

from bge_integrations import BgeEncoder, BgeM3Encoder, BgeReranker
from bge_integrations.errors import InputValueError, MissingEmbeddingError, SettingsError
from bge_integrations.langchain import HuggingFaceBgeEmbeddings
from bge_integrations.prepare import prepare
from bge_integrations.settings import EngineName
from tests.adapters import assert_close
from tests.checkpoints import make_checkpoint, make_tokenizer, reference_vectors, transformer_config
from tests.checkpoints_of_pairs import make_m3, make_reranker, reference_scores
from tests.decoder_checkpoints import last_token_vectors, make_embedder

ENGINES: tuple[EngineName, ...] = ("openvino", "torch", "sentence-transformers")
each_engine = pytest.mark.parametrize("engine", ENGINES)


def with_more_tokens(folder: Path, *tokens: str) -> Path:
    """Adds tokens to a tokenizer, and not to its model."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(list(tokens))
    tokenizer.save_pretrained(folder)
    return folder


def refused(compute: Callable[[], Any]) -> MissingEmbeddingError:
    with pytest.raises(MissingEmbeddingError) as caught:
        compute()
    assert isinstance(caught.value, InputValueError)
    return caught.value


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_checkpoint(tmp_path_factory.mktemp("drugs") / "my-model", modules=("cls", "normalize"))
    return with_more_tokens(folder, "Aspirax", "Betalox")


@each_engine
def test_tokens_that_the_model_was_not_resized_for_are_refused(embedder: Path, engine: EngineName) -> None:
    encoder = BgeEncoder(embedder, device="cpu", engine=engine)
    for compute, index, token in (
        (lambda: encoder.encode(["fox", "take Aspirax"]), 1, "'Aspirax'"),
        (lambda: encoder.encode_queries(["fox", "dog", "dog", "take Betalox", "Aspirax"]), 3, "'Betalox'"),
        (lambda: asyncio.run(encoder.aencode_documents(["fox"] * 40 + ["Aspirax"])), 40, "'Aspirax'"),
        (lambda: encoder.encode(text for text in ["fox", "Betalox"]), 1, "'Betalox'"),
    ):
        error = refused(compute)
        assert error.index == index
        assert f"Text {index} " in str(error)
        assert token in str(error)
        assert "resize_token_embeddings(len(tokenizer))" in str(error)
    # Spare ids that don't occur, or are cut off, are no fault.
    texts = ["fox", "The quick brown fox"]
    assert_close(encoder.encode(texts), reference_vectors(embedder, texts))
    quiet = BgeEncoder(embedder, device="cpu", engine=engine, on_truncation="ignore")
    assert_close(quiet.encode(["fox " * 70 + "Aspirax"]), reference_vectors(embedder, ["fox " * 70]))


def test_prepared_folders_graphs_of_the_cache_and_adapters_refuse_them_too(embedder: Path, tmp_path: Path) -> None:
    prepare(embedder, tmp_path / "prepared")
    for folder in (tmp_path / "prepared", embedder):
        encoder = BgeEncoder(folder, device="cpu", engine="openvino")
        assert refused(lambda encoder=encoder: encoder.encode(["fox", "Aspirax"])).index == 1  # type: ignore[misc]
    embeddings = HuggingFaceBgeEmbeddings(model_name=str(embedder), query_instruction="Betalox: ")
    assert "'Betalox'" in str(refused(lambda: embeddings.embed_query("fox")))
    assert len(embeddings.embed_documents(["fox"])) == 1


def test_calibration_leaves_out_texts_that_can_not_be_computed(embedder: Path, tmp_path: Path) -> None:
    texts = [f"the quick brown fox {'Aspirax' if place == 5 else 'jumps'} over {place}" for place in range(11)]
    manifest = prepare(embedder, tmp_path / "int8", precision="int8", calibration=texts)
    assert manifest.agreement is not None
    assert manifest.agreement.texts == 2  # of 3 that are held out


@each_engine
def test_pairs_and_all_outputs_of_m3_refuse_them(engine: EngineName, tmp_path: Path) -> None:
    reranker = BgeReranker(with_more_tokens(make_reranker(tmp_path / "my-reranker"), "Aspirax"), engine=engine)
    error = refused(lambda: reranker.score("fox", ["dog", "Aspirax helps"]))
    assert error.index == 1
    assert "Pair 1 " in str(error)
    assert "'Aspirax'" in str(error)
    m3 = BgeM3Encoder(with_more_tokens(make_m3(tmp_path / "bge-m3"), "Aspirax"), engine=engine)
    assert refused(lambda: m3.encode_documents(["fox", "Aspirax"])).index == 1
    assert "Passage of pair 2 " in str(refused(lambda: m3.score_pairs([("a", "b")] * 2 + [("a", "Aspirax")])))


def test_decoders_refuse_them_and_need_no_row_for_their_padding(tmp_path: Path) -> None:
    folder = make_embedder(tmp_path, "bge-code-v1")
    texts = ["fox", "The quick brown fox jumps over the lazy dog."]
    expected = last_token_vectors(folder, texts, padding_side="left")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"pad_token": "<pad of its own>"})
    tokenizer.add_tokens(["Aspirax"])
    tokenizer.save_pretrained(folder)
    encoder = BgeEncoder(folder, device="cpu")
    assert_close(encoder.encode(texts), expected)
    assert refused(lambda: encoder.encode([*texts, "Aspirax"])).index == 2


def with_limits_that_lie(folder: Path) -> Path:
    """Leaves pad_token_id to the class's default, and saves limits that go beyond the table of positions."""
    for name, changes in (
        ("config.json", {"pad_token_id": None}),
        ("sentence_bert_config.json", {"max_seq_length": 66}),
        ("tokenizer_config.json", {"model_max_length": 512}),
    ):
        if (folder / name).is_file():
            content = {**json.loads((folder / name).read_text()), **changes}
            (folder / name).write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    return folder


@each_engine
def test_the_table_of_positions_limits_texts_whatever_the_files_say(engine: EngineName, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "my-roberta", "xlm-roberta", modules=("cls", "normalize"))
    with_limits_that_lie(folder)
    encoder = BgeEncoder(folder, device="cpu", engine=engine, on_truncation="ignore")
    assert encoder.max_length == 64
    texts = ["fox " * 100, "fox"]
    assert_close(encoder.encode(texts), reference_vectors(folder, texts, max_length=64))
    with pytest.raises(SettingsError, match=r"max_length=65 is more than the 64 positions"):
        BgeEncoder(folder, device="cpu", engine=engine, max_length=65)


def test_the_table_of_positions_limits_pairs_and_m3_too(tmp_path: Path) -> None:
    reranker = BgeReranker(
        with_limits_that_lie(make_reranker(tmp_path / "my-reranker")), engine="torch", on_truncation="ignore"
    )
    assert reranker.max_length == 64
    pairs = [("fox", "dog " * 100)]
    assert_close(reranker.score_pairs(pairs), reference_scores(tmp_path / "my-reranker", pairs))
    m3 = BgeM3Encoder(with_limits_that_lie(make_m3(tmp_path / "bge-m3")), engine="torch", on_truncation="ignore")
    assert m3.max_length == 64
    found = m3.encode_documents(["fox " * 100], sparse=False, colbert=False).dense
    assert found is not None
    assert_close(found, reference_vectors(tmp_path / "bge-m3", ["fox " * 100], max_length=64))


def _typed_reranker(folder: Path, *, types: int, names: list[str], split_types: bool = True) -> Path:
    """Saves a BERT with so many token types, and a tokenizer that gives types, or doesn't."""
    tokenizer: PreTrainedTokenizerFast = make_tokenizer("bert", 64)
    tokenizer.model_input_names = names
    tokenizer.save_pretrained(folder)
    if not split_types:
        content = (folder / "tokenizer.json").read_text()
        (folder / "tokenizer.json").write_text(content.replace('"type_id": 1', '"type_id": 0'))
    torch.manual_seed(3)
    shape = {**transformer_config(len(tokenizer), 32, 2, 4), "num_labels": 1}
    config = BertConfig(max_position_embeddings=64, type_vocab_size=types, **shape)
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder


TYPED, UNTYPED = ["input_ids", "token_type_ids", "attention_mask"], ["input_ids", "attention_mask"]
PAIRS = [("fox", "dog"), ("what is a fox", "The quick brown fox jumps over the lazy dog.")]


@each_engine
def test_pairs_of_two_types_need_a_table_of_two(engine: EngineName, tmp_path: Path) -> None:
    reranker = BgeReranker(_typed_reranker(tmp_path / "my-reranker", types=1, names=TYPED), engine=engine)
    error = refused(lambda: reranker.score_pairs(PAIRS))
    assert error.index == 0
    assert "Pair 0 " in str(error)
    assert "token_type_ids" in str(error)
    assert "type_vocab_size" in str(error)


@pytest.mark.parametrize(
    ("types", "names", "split_types", "engine"),
    [
        (2, TYPED, True, "openvino"),
        (1, UNTYPED, True, "openvino"),
        (2, UNTYPED, True, "openvino"),
        (2, TYPED, False, "openvino"),
        (2, UNTYPED, True, "sentence-transformers"),
        (2, TYPED, False, "sentence-transformers"),
    ],
)
def test_pairs_have_the_types_that_the_tokenizer_gives(
    types: int, names: list[str], split_types: bool, engine: EngineName, tmp_path: Path
) -> None:
    folder = _typed_reranker(tmp_path / "my-reranker", types=types, names=names, split_types=split_types)
    assert_close(BgeReranker(folder, engine=engine).score_pairs(PAIRS), reference_scores(folder, PAIRS))


def test_a_model_may_have_more_rows_than_the_tokenizer_has_tokens(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "my-model", modules=("cls", "normalize"))
    model = AutoModel.from_pretrained(folder)
    assert isinstance(model, BertModel)
    model.resize_token_embeddings(1000, mean_resizing=False)
    model.save_pretrained(folder)
    with_more_tokens(folder, "Aspirax")
    found = BgeEncoder(folder, device="cpu").encode(["fox", "Aspirax"])
    assert_close(found, reference_vectors(folder, ["fox", "Aspirax"]))
    assert np.isfinite(found).all()
