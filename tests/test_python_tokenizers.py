"""Tokenizers that transformers has in Python only, as those of Japanese and Vietnamese models: slower, and right."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from bge_integrations import BgeEncoder, BgeReranker
from bge_integrations.backend.text.templates import Frame
from bge_integrations.errors import (
    EngineNotAvailableError,
    MissingEmbeddingError,
    TruncationError,
    TruncationWarning,
    UnsupportedModelError,
)
from bge_integrations.prepare import prepare
from bge_integrations.settings import EngineName
from tests.adapters import assert_close
from tests.checkpoints import make_checkpoint
from tests.checkpoints_of_pairs import make_reranker

TEXTS = ["xin chao thuong", "an <mask> trang </s> x", "", "thuong trang " * 60]
JAPANESE = ["日本の首都は東京です", "北京 天气 THE Fox", "向量検索 " * 40]


def make_vietnamese(folder: Path) -> Path:
    """Gives a checkpoint PhoBERT's tokenizer: words in pieces, by a list of merges."""
    letters = "acghinortuxm"
    pieces = [*(f"{letter}@@" for letter in letters), *letters, "th@@", "ng"]
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_text("".join(f"{piece} 1\n" for piece in pieces))
    (folder / "bpe.codes").write_text("t h 5\nn g</w> 4\n")
    config = {"tokenizer_class": "PhobertTokenizer", "model_max_length": 64}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def vietnamese(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("python") / "my-vietnamese-model"
    return make_vietnamese(make_checkpoint(folder, "xlm-roberta", modules=("mean",)))


@pytest.fixture(scope="module")
def encoder(vietnamese: Path) -> BgeEncoder:
    return BgeEncoder(vietnamese, on_truncation="ignore")


@pytest.mark.parametrize("engine", ["auto", "torch", "sentence-transformers"])
def test_vectors_are_those_of_sentence_transformers(vietnamese: Path, engine: EngineName) -> None:
    expected = SentenceTransformer(str(vietnamese), device="cpu").encode(TEXTS)
    encoder = BgeEncoder(vietnamese, engine=engine, on_truncation="ignore")
    assert_close(encoder.encode(TEXTS), expected)
    assert_close(asyncio.run(encoder.aencode(TEXTS * 20)), np.tile(expected, (20, 1)))


def test_japanese_models_are_read_as_their_tokenizer_reads_them(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "my-japanese-model", modules=("cls", "normalize"))
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    (folder / "vocab.txt").write_text("\n".join(sorted(vocabulary, key=vocabulary.get)), encoding="utf-8")
    (folder / "tokenizer.json").unlink()
    config = {
        "tokenizer_class": "BertJapaneseTokenizer",
        "word_tokenizer_type": "basic",
        "subword_tokenizer_type": "character",
        "do_lower_case": False,
        "model_max_length": 64,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    expected = SentenceTransformer(str(folder), device="cpu").encode(JAPANESE)
    assert_close(BgeEncoder(folder, on_truncation="ignore").encode(JAPANESE), expected)


def test_truncation_is_counted(vietnamese: Path, encoder: BgeEncoder) -> None:
    counts = AutoTokenizer.from_pretrained(vietnamese)(TEXTS, verbose=False)["input_ids"]
    assert encoder.count_tokens(TEXTS).tolist() == [len(ids) for ids in counts]
    with pytest.warns(TruncationWarning, match=f"text 3, has {len(counts[3])} tokens, the limit is 64"):
        BgeEncoder(vietnamese).encode(TEXTS)
    with pytest.raises(TruncationError):
        BgeEncoder(vietnamese, on_truncation="error").encode(TEXTS)
    # Splitters count them too.
    assert encoder.chunk_length("thuong trang") >= len(counts[3]) // 60
    tokens = Frame(encoder.backend.tokenizer, "an ", " chao", 20).tokenize([TEXTS[3]])
    plain = AutoTokenizer.from_pretrained(vietnamese)
    ids = tokens.ids.tolist()
    assert len(ids) == 20
    assert str(plain.decode(ids)).endswith("chao </s>")


def test_pairs_are_scored_as_transformers_scores_them(tmp_path: Path) -> None:
    folder = make_vietnamese(make_reranker(tmp_path / "my-reranker"))
    pairs = [("an", "xin chao"), ("thuong", "trang " * 60)]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    reranker = BgeReranker(folder, on_truncation="ignore")
    for pair, score in zip(pairs, reranker.score_pairs(pairs), strict=True):
        with torch.no_grad():
            expected = model(**tokenizer(*pair, truncation="only_second", max_length=64, return_tensors="pt")).logits
        assert_close(score, expected[0, 0].numpy())


def test_what_needs_a_tokenizer_json_says_so(vietnamese: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=r"tokenizer exists in Python only.*engine='torch'"):
        prepare(vietnamese, tmp_path / "prepared")
    with pytest.raises(EngineNotAvailableError, match="tokenizer that exists in Python only"):
        BgeEncoder(vietnamese, engine="openvino")
    with pytest.raises(EngineNotAvailableError, match="tokenizer that exists in Python only"):
        BgeEncoder(vietnamese, precision="int8")


def test_added_tokens_without_an_embedding_are_refused(tmp_path: Path) -> None:
    folder = make_vietnamese(make_checkpoint(tmp_path / "my-model", "xlm-roberta", modules=("mean",)))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([f"thuoc{number}" for number in range(200)])
    tokenizer.save_pretrained(folder)
    with pytest.raises(MissingEmbeddingError, match=r"Text 1 .*'thuoc199'"):
        BgeEncoder(folder).encode(["an thuoc0", "thuoc199 an"])
