"""BgeSparseEmbedding: bge-m3's lexical weights in LlamaIndex."""

from __future__ import annotations

from pathlib import Path

import pytest
from llama_index.core.base.embeddings.base_sparse import BaseSparseEmbedding
from llama_index.core.instrumentation.events.embedding import SparseEmbeddingEndEvent, SparseEmbeddingStartEvent

from bge_integrations.errors import UnsupportedModelError
from bge_integrations.llama_index import BgeSparseEmbedding
from tests.checkpoints import make_checkpoint
from tests.checkpoints_of_pairs import reference_m3
from tests.llama_index.events import watched

TEXTS = [
    "Retrieval with dense vectors finds passages, dense vectors that share a meaning.",
    "",
    "样例数据 样例文档 向量 检索",
    "The quick brown fox",
]

pytestmark = pytest.mark.usefixtures("kept_m3")


@pytest.fixture
def embedding(bge_m3: Path) -> BgeSparseEmbedding:
    return BgeSparseEmbedding(bge_m3)


def _assert_equal(found: list[dict[int, float]], expected: list[dict[int, float]]) -> None:
    assert sum(map(len, expected)) > 5
    assert [set(weights) for weights in found] == [set(weights) for weights in expected]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-4)
        assert {(type(token), type(weight)) for token, weight in ours.items()} <= {(int, float)}


def test_texts_and_queries_equal_the_reference(bge_m3: Path, embedding: BgeSparseEmbedding) -> None:
    expected = reference_m3(bge_m3, TEXTS).sparse
    _assert_equal(embedding.get_text_embedding_batch(TEXTS), expected)
    _assert_equal([embedding.get_text_embedding(text) for text in TEXTS], expected)
    _assert_equal([embedding.get_query_embedding(text) for text in TEXTS], expected)
    assert isinstance(embedding, BaseSparseEmbedding)
    assert embedding.get_text_embedding_batch([]) == []


async def test_workers_of_async_batches_keep_the_order(bge_m3: Path) -> None:
    embedding = BgeSparseEmbedding(bge_m3, embed_batch_size=3, num_workers=2)
    _assert_equal(await embedding.aget_text_embedding_batch(TEXTS), reference_m3(bge_m3, TEXTS).sparse)


def test_functions_for_qdrant_give_columns(bge_m3: Path, embedding: BgeSparseEmbedding) -> None:
    expected = reference_m3(bge_m3, TEXTS).sparse
    for function in (embedding.sparse_doc_fn, embedding.sparse_query_fn):
        tokens, weights = function(TEXTS)
        _assert_equal([dict(zip(*pair, strict=True)) for pair in zip(tokens, weights, strict=True)], expected)


def test_a_query_gets_its_instruction_and_a_text_none(bge_m3: Path) -> None:
    embedding = BgeSparseEmbedding(bge_m3, query_instruction="find: ")
    expected = reference_m3(bge_m3, ["find: The quick brown fox", "The quick brown fox"]).sparse
    assert set(expected[0]) != set(expected[1])
    of_query = dict(zip(*(column[0] for column in embedding.sparse_query_fn(["The quick brown fox"])), strict=True))
    of_text = dict(zip(*(column[0] for column in embedding.sparse_doc_fn(["The quick brown fox"])), strict=True))
    assert of_query == pytest.approx(expected[0], abs=1e-4)
    assert embedding.get_query_embedding("The quick brown fox") == of_query
    assert of_text == pytest.approx(expected[1], abs=1e-4)


def test_a_model_without_the_heads_is_refused(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "bge-base-en", modules=("cls", "normalize"))
    with pytest.raises(UnsupportedModelError, match="sparse_linear"):
        BgeSparseEmbedding(folder)


def test_tells_handlers_what_comes_out(embedding: BgeSparseEmbedding) -> None:
    with watched() as (events, _):
        found = embedding.get_text_embedding_batch(TEXTS)
    start, end = events
    assert isinstance(start, SparseEmbeddingStartEvent)
    assert isinstance(end, SparseEmbeddingEndEvent)
    assert (end.chunks, end.embeddings) == (TEXTS, found)
