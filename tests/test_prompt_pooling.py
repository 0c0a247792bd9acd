"""Checkpoints that leave the instruction out of their pooling (`include_prompt: false`): as sentence-transformers."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoTokenizer

from bge_integrations import BgeEncoder, BgeM3Encoder
from bge_integrations.prepare import prepare
from bge_integrations.settings import EngineName
from tests.checkpoints import make_checkpoint
from tests.checkpoints_of_pairs import make_m3

ENGINES: tuple[EngineName, ...] = ("openvino", "torch", "sentence-transformers")
BEHIND = ["lazy fox", "the quick brown fox jumps", "a", ""]


def leave_prompt_out(folder: Path, pooling: str, prompt: str = "") -> Path:
    """Rewrites what a checkpoint says of its pooling, and its saved prompt for queries."""
    file = folder / "1_Pooling" / "config.json"
    width = json.loads(file.read_text())["word_embedding_dimension"]
    content = {"word_embedding_dimension": width, "pooling_mode": pooling, "include_prompt": False}
    file.write_text(json.dumps(content))
    saved = {"prompts": {"query": prompt, "document": ""}, "default_prompt_name": None}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(saved))
    return folder


def test_a_prepared_folder_leaves_it_out_too(tmp_path: Path) -> None:
    folder = leave_prompt_out(make_checkpoint(tmp_path / "mine", modules=("mean",)), "cls", "dense vectors: ")
    prepare(folder, tmp_path / "prepared")
    expected = SentenceTransformer(str(folder), device="cpu").encode_query(BEHIND)
    np.testing.assert_allclose(BgeEncoder(tmp_path / "prepared").encode_queries(BEHIND), expected, atol=1e-5)


def merging(folder: Path) -> tuple[str, str]:
    """Finds a word whose start has more tokens than the whole, and cuts it there."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for word in ("vector", "represent", "retrieval", "passages", "sentence", "relevant", "searching", "quick"):
        for cut in range(2, len(word)):
            if len(tokenizer.tokenize(word[:cut])) > len(tokenizer.tokenize(word)):
                return word[:cut], word[cut:]
    raise AssertionError("no word of the vocabulary has fewer tokens than its start")


def last_row(folder: Path, text: str) -> NDArray[np.float32]:
    """The hidden state of the last token, which is all that is left."""
    inputs = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")
    with torch.no_grad():
        states = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()(**inputs)[0]
    row: NDArray[np.float32] = states[0, -1].numpy()
    return row


@pytest.mark.parametrize("pooling", ["mean", "max", "cls", "lasttoken", "weightedmean", "mean_sqrt_len_tokens"])
def test_every_pooling_leaves_it_out_on_every_engine_also_where_it_merges_with_a_short_text(
    tmp_path: Path, pooling: str
) -> None:
    folder = make_checkpoint(tmp_path / "mine", modules=("mean",))
    prompt, text = merging(folder)
    leave_prompt_out(folder, pooling, prompt)
    texts = [" quick brown fox", text, " dog", text, "", " the lazy dog and the fox"]
    theirs = SentenceTransformer(str(folder), device="cpu")
    expected, without = theirs.encode_query(texts), theirs.encode_document(texts)
    expected[[1, 3]] = last_row(folder, prompt + text)
    is_fast = pooling not in ("weightedmean", "mean_sqrt_len_tokens")
    for engine in ENGINES if is_fast else ("auto",):
        encoder = BgeEncoder(folder, device="cpu", engine=engine)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # no division by zero on the way
            np.testing.assert_allclose(encoder.encode_queries(texts), expected, atol=1e-5, err_msg=engine)
            np.testing.assert_allclose(encoder.encode_queries([text]), expected[1:2], atol=1e-5, err_msg=engine)
            np.testing.assert_allclose(encoder.encode_documents(texts), without, atol=1e-5, err_msg=engine)


def test_dense_vectors_of_bge_m3_are_those_of_the_encoder(tmp_path: Path) -> None:
    folder = leave_prompt_out(make_m3(tmp_path / "mine"), "mean")
    (folder / "modules.json").write_text(json.dumps(json.loads((folder / "modules.json").read_text())[:2]))
    settings = {"device": "cpu", "query_instruction": "dense vectors: "}
    with BgeM3Encoder(folder, **settings) as m3:  # type: ignore[arg-type]
        dense = m3.encode_queries(BEHIND).dense
    expected = SentenceTransformer(str(folder), device="cpu").encode(
        BEHIND, prompt="dense vectors: ", normalize_embeddings=True
    )
    assert dense is not None
    np.testing.assert_allclose(dense, expected, atol=1e-5)
