"""Settings that a tokenizer.json does not hold: read, so that vectors are the library's, or refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from bge_integrations import BgeEncoder, BgeReranker
from bge_integrations.errors import BgeError, UnsupportedModelError
from bge_integrations.langchain import HuggingFaceBgeEmbeddings
from bge_integrations.prepare import prepare
from tests.adapters import assert_close
from tests.checkpoints import make_checkpoint
from tests.checkpoints_of_pairs import make_reranker
from tests.decoder_checkpoints import make_embedder

INJECTED = "an injected [SEP] token and [PAD] in a text"
LONG = "retrieval with dense vectors " * 40


def change(folder: Path, file: str, **values: Any) -> None:  # noqa: ANN401 - JSON
    content = json.loads((folder / file).read_text()) if (folder / file).is_file() else {}
    (folder / file).write_text(json.dumps({**content, **values}))


def by_transformers(
    folder: Path,
    text: str | tuple[str, str],
    load: dict[str, Any] | None = None,
    **call: Any,  # noqa: ANN401 - of a tokenizer
) -> NDArray[np.float32]:
    """Plain transformers: the first row of one text with unit length, or the logit of a pair."""
    tokenizer = AutoTokenizer.from_pretrained(folder, **(load or {}))
    inputs = tokenizer(*([text] if isinstance(text, str) else text), return_tensors="pt", **call)
    kind = AutoModel if isinstance(text, str) else AutoModelForSequenceClassification
    with torch.no_grad():
        output = kind.from_pretrained(folder).eval()(**inputs)
    found = torch.nn.functional.normalize(output[0][0, 0], dim=0) if isinstance(text, str) else output.logits[0, 0]
    result: NDArray[np.float32] = found.numpy()
    return result


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "my-model", modules=("cls", "normalize"))


def test_special_tokens_in_texts_are_split_where_that_is_asked_for(folder: Path, tmp_path: Path) -> None:
    plain = by_transformers(folder, INJECTED)
    split = by_transformers(folder, INJECTED, {"split_special_tokens": True})
    assert np.abs(split - plain).max() > 0.01
    assert_close(BgeEncoder(folder).encode([INJECTED])[0], plain)
    passed = HuggingFaceBgeEmbeddings(
        model_name=str(folder), model_kwargs={"tokenizer_kwargs": {"split_special_tokens": True}}
    )
    assert_close(passed.embed_documents([INJECTED])[0], split)
    change(folder, "tokenizer_config.json", split_special_tokens=True)
    prepare(folder, tmp_path / "prepared")
    for name, engine in ((folder, "sentence-transformers"), (folder, "openvino"), (tmp_path / "prepared", "openvino")):
        assert_close(BgeEncoder(name, engine=engine).encode([INJECTED])[0], split)  # type: ignore[arg-type]
    assert_close(BgeEncoder(folder).encode([INJECTED])[0], split)  # from the cache


@pytest.mark.parametrize(
    ("saved", "call", "limit"),
    [
        ({"text": {"max_length": 16, "truncation": True}}, {"truncation": True, "max_length": 16}, 16),
        ({"common": {"max_length": 9}, "text": {"max_length": 16}}, {"truncation": True, "max_length": 9}, 9),
        ({"text": {"max_length": 512}}, {"truncation": True, "max_length": 64}, 64),
        ({"text": {"truncation": False}}, {"truncation": True, "max_length": 64}, 64),
        ({"text": {"padding": "max_length"}}, {"truncation": True, "max_length": 64}, 64),
        (
            {"text": {"add_special_tokens": False}},
            {"truncation": True, "max_length": 64, "add_special_tokens": False},
            64,
        ),
        ({"text": {"split_special_tokens": True}}, {"truncation": True, "split_special_tokens": True}, 64),
    ],
    ids=str,
)
def test_what_a_checkpoint_sets_for_every_call_is_honoured(
    folder: Path, saved: dict[str, Any], call: dict[str, Any], limit: int
) -> None:
    change(folder, "sentence_bert_config.json", processing_kwargs=saved)
    encoder = BgeEncoder(folder, engine="torch", on_truncation="ignore")
    assert encoder.max_length == limit
    for text, got in zip((LONG, INJECTED), encoder.encode([LONG, INJECTED]), strict=True):
        assert_close(got, by_transformers(folder, text, **call))


@pytest.mark.parametrize(
    ("saved", "names"),
    [
        ({"processing_kwargs": {"text": {"max_length": 16, "stride": 4, "return_overflowing_tokens": True}}}, "encode"),
        ({"processing_kwargs": {"text": {"is_split_into_words": True}}}, "two texts are read as 1"),
        ({"processing_kwargs": {"text": {"max_length": "16"}}}, "encode"),
        ({"processing_kwargs": {"text": {"max_length": 2}}}, "leaves no room beside its 2 special tokens"),
        ({"query_length": 40}, r"a long text .*`encode_query`.*query_length=40"),
        ({"document_length": 8}, r"`encode_document`.*document_length=8"),
        ({"query_expansion": {"strategy": "min", "length": 60, "attend": True}}, "query_expansion"),
    ],
    ids=str,
)
def test_what_can_not_be_honoured_is_refused_by_name(folder: Path, saved: dict[str, Any], names: str) -> None:
    change(folder, "sentence_bert_config.json", **saved)
    with pytest.raises(UnsupportedModelError, match=names):
        BgeEncoder(folder, engine="sentence-transformers")


def test_a_chat_template_is_not_left_out_in_silence(tmp_path: Path) -> None:
    folder = make_embedder(tmp_path, "bge-code-v1").rename(tmp_path / "my-decoder")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = "{% for m in messages %}<|chat|>{{ m['content'] }}{% endfor %}"
    tokenizer.save_pretrained(folder)
    with pytest.raises(UnsupportedModelError, match=r"chat_template.*`pooling`"):
        BgeEncoder(folder)
    tokenizer.chat_template = None
    found = BgeEncoder(folder, pooling="last").encode(["fox", "the quick brown fox"])
    named = BgeEncoder(folder.rename(tmp_path / "bge-code-v1"), normalize=False).encode(["fox", "the quick brown fox"])
    assert_close(found, named)


@pytest.mark.parametrize("side", ["left", "right"])
def test_lower_case_and_the_side_of_truncation_are_the_librarys(folder: Path, side: str) -> None:
    content = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(content.replace('"lowercase": true', '"lowercase": false'))
    change(folder, "sentence_bert_config.json", do_lower_case=True)
    change(folder, "tokenizer_config.json", truncation_side=side)
    texts = ["The QUICK Brown FOX", LONG + "end"]
    expected = SentenceTransformer(str(folder), device="cpu").encode(texts)
    encoder = BgeEncoder(folder, engine="torch", on_truncation="ignore")
    assert_close(encoder.encode(texts), expected)
    assert_close(encoder.encode(["the quick brown fox"])[0], expected[0])


def test_rerankers_read_them_too(tmp_path: Path) -> None:
    folder = make_reranker(tmp_path / "my-reranker", "bert")
    modules = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.base.modules.Transformer"}]
    (folder / "modules.json").write_text(json.dumps(modules))
    saved = {"text": {"max_length": 24, "split_special_tokens": True}}
    change(
        folder,
        "sentence_bert_config.json",
        transformer_task="sequence-classification",
        processing_kwargs=saved,
    )
    change(folder, "config_sentence_transformers.json", model_type="CrossEncoder")
    reranker = BgeReranker(folder, on_truncation="ignore")
    assert reranker.max_length == 24
    for pair in (("a [SEP] fox", "dog"), ("fox", LONG)):
        expected = by_transformers(
            folder, pair, {"split_special_tokens": True}, truncation="only_second", max_length=24
        )
        assert_close(reranker.score_pairs([pair])[0], expected)
    change(folder, "sentence_bert_config.json", processing_kwargs={"text": {"truncation": "only_first"}})
    with pytest.raises(BgeError, match=r"`predict` .* a long text"):
        BgeReranker(folder)
