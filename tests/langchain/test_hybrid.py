"""Hybrid search in Qdrant and Milvus with one bge-m3: what is stored is found again, ranked as by hand."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from langchain_core.documents import Document
from langchain_milvus import Milvus
from langchain_qdrant import QdrantVectorStore, RetrievalMode
from pydantic import ValidationError
from pymilvus import Function, FunctionType
from qdrant_client import QdrantClient
from qdrant_client.models import Distance, SparseVectorParams, VectorParams

from bge_integrations.langchain import (
    BgeSparseEmbeddings,
    HuggingFaceBgeEmbeddings,
    bge_m3_hybrid,
)
from tests.checkpoints_of_pairs import reference_m3
from tests.langchain.lexical import make_lexical_m3
from tests.langchain.test_retrieval import CORPUS

QUERY = "how do plants make their food?"
DOCUMENTS = [Document(text, metadata={"number": number}) for number, text in enumerate(CORPUS)]

Hybrid = tuple[HuggingFaceBgeEmbeddings, BgeSparseEmbeddings]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_lexical_m3(tmp_path_factory.mktemp("m3") / "bge-m3")


@pytest.fixture(scope="module")
def hybrid(folder: Path) -> Hybrid:
    return bge_m3_hybrid(str(folder))


@pytest.fixture(scope="module")
def rankings(folder: Path) -> list[list[int]]:
    """The numbers of the documents by dense score, and by lexical score if they share a token, best first."""
    reference = reference_m3(folder, [QUERY, *CORPUS], max_length=128)
    query, *documents = reference.sparse
    lexical = {
        number: sum(weight * weights[token] for token, weight in query.items() if token in weights)
        for number, weights in enumerate(documents)
        if query.keys() & weights.keys()
    }
    assert len(lexical) > 3
    return [
        np.argsort(-(reference.dense[1:] @ reference.dense[0])).tolist(),
        sorted(lexical, key=lambda number: -lexical[number]),
    ]


def fused(rankings: Sequence[Sequence[int]], first: int) -> dict[int, float]:
    """Reciprocal rank fusion: the sum of 1 / (first + place), places counted from 0.

    `first` is 2 in Qdrant (https://qdrant.tech/documentation/concepts/hybrid-queries/) and 61 in Milvus, whose k is 60
    and whose ranks begin at 1 (https://milvus.io/docs/rrf-ranker.md).
    """
    scores: dict[int, float] = {}
    for ranking in rankings:
        for place, number in enumerate(ranking):
            scores[number] = scores.get(number, 0.0) + 1 / (first + place)
    return scores


def assert_ranked(found: Sequence[tuple[Document, float]], expected: dict[int, float], count: int) -> None:
    """The `count` best, best first; of documents with equal scores any may come first."""
    assert [score for _, score in found] == pytest.approx(sorted(expected.values(), reverse=True)[:count], abs=1e-6)
    for document, score in found:
        assert document.page_content == CORPUS[document.metadata["number"]]
        assert score == pytest.approx(expected[document.metadata["number"]], abs=1e-6)


class TestOneModel:
    def test_both_kinds_of_embeddings_use_one_loaded_model(self, hybrid: Hybrid) -> None:
        dense, sparse = hybrid
        assert dense.encoder.backend is sparse.encoder.backend

    def test_the_dense_vectors_are_those_of_the_model_alone(self, hybrid: Hybrid, folder: Path) -> None:
        expected = reference_m3(folder, [QUERY, *CORPUS], max_length=128).dense
        np.testing.assert_allclose(hybrid[0].embed_query(QUERY), expected[0], atol=1e-5)
        np.testing.assert_allclose(hybrid[0].embed_documents(CORPUS), expected[1:], atol=1e-5)

    def test_settings_go_to_both(self, folder: Path) -> None:
        dense, sparse = bge_m3_hybrid(
            str(folder), max_length=40, model_kwargs={"device": "cpu"}, on_truncation="ignore", batch_tokens=256
        )
        assert dense.encoder.max_length == sparse.encoder.max_length == 40
        assert dense.encoder.settings.batch_tokens == sparse.encoder.settings.batch_tokens == 256
        assert dense.encoder.backend is sparse.encoder.backend

    def test_a_setting_that_only_one_has_is_refused(self, folder: Path) -> None:
        with pytest.raises(ValidationError, match="truncate_dim"):
            bge_m3_hybrid(str(folder), truncate_dim=8)


class TestQdrant:
    @pytest.fixture
    def reopen(self, hybrid: Hybrid, tmp_path: Path) -> Iterator[Callable[[RetrievalMode], QdrantVectorStore]]:
        """Fills a store on disk, closes it, and gives a way to open it."""
        dense, sparse = hybrid
        client = QdrantClient(path=str(tmp_path))
        client.create_collection(
            "corpus",
            {"dense": VectorParams(size=dense.encoder.dimension, distance=Distance.COSINE)},
            {"sparse": SparseVectorParams()},
        )
        opened = [client]

        def store(mode: RetrievalMode) -> QdrantVectorStore:
            return QdrantVectorStore(
                opened[-1],
                "corpus",
                dense,
                retrieval_mode=mode,
                vector_name="dense",
                sparse_embedding=sparse,
                sparse_vector_name="sparse",
            )

        store(RetrievalMode.HYBRID).add_documents(DOCUMENTS)

        def reopened(mode: RetrievalMode) -> QdrantVectorStore:
            opened[-1].close()
            opened.append(QdrantClient(path=str(tmp_path)))
            return store(mode)

        yield reopened
        opened[-1].close()

    @pytest.mark.parametrize("count", [3, len(CORPUS)])
    def test_ranks_by_reciprocal_rank_fusion(
        self, reopen: Callable[[RetrievalMode], QdrantVectorStore], rankings: list[list[int]], count: int
    ) -> None:
        store = reopen(RetrievalMode.HYBRID)
        # Qdrant fuses the best `count` of each.
        expected = fused([ranking[:count] for ranking in rankings], first=2)
        assert_ranked(store.similarity_search_with_score(QUERY, k=count), expected, count)
        assert_ranked(asyncio.run(store.asimilarity_search_with_score(QUERY, k=count)), expected, count)

    def test_each_side_alone_ranks_by_its_own_score(
        self, reopen: Callable[[RetrievalMode], QdrantVectorStore], rankings: list[list[int]]
    ) -> None:
        for mode, ranking in zip((RetrievalMode.DENSE, RetrievalMode.SPARSE), rankings, strict=True):
            found = reopen(mode).similarity_search(QUERY, k=len(CORPUS))
            assert [document.metadata["number"] for document in found] == ranking


class TestMilvus:
    RRF = Function(
        name="rrf", input_field_names=[], function_type=FunctionType.RERANK, params={"reranker": "rrf", "k": 60}
    )

    # By default langchain-milvus asks for the smallest lexical weights to be dropped, which Milvus Lite refuses.
    INDEXES: ClassVar[list[dict[str, str]]] = [
        {"index_type": "AUTOINDEX", "metric_type": "IP"},
        {"index_type": "SPARSE_INVERTED_INDEX", "metric_type": "IP"},
    ]
    SEARCHES: ClassVar[list[dict[str, str]]] = [{"metric_type": "IP"}] * 2

    @pytest.fixture
    def reopen(self, hybrid: Hybrid, tmp_path: Path) -> Iterator[Callable[[], Milvus]]:
        """As for Qdrant."""
        dense, sparse = hybrid
        opened: list[Any] = []

        def store() -> Milvus:
            opened.append(
                Milvus(
                    [dense, sparse.for_milvus()],
                    "corpus",
                    vector_field=["dense", "sparse"],
                    index_params=self.INDEXES,
                    search_params=self.SEARCHES,
                    connection_args={"uri": str(tmp_path / "milvus.db")},
                    auto_id=True,
                )
            )
            return opened[-1]

        store().add_documents(DOCUMENTS)

        def reopened() -> Milvus:
            opened[-1].client.close()
            return store()

        yield reopened
        opened[-1].client.close()

    @pytest.mark.parametrize("count", [3, len(CORPUS)])
    def test_ranks_by_reciprocal_rank_fusion(
        self, reopen: Callable[[], Milvus], rankings: list[list[int]], count: int
    ) -> None:
        found = reopen().similarity_search_with_score(QUERY, k=count, fetch_k=count, reranker=self.RRF)
        assert_ranked(found, fused([ranking[:count] for ranking in rankings], first=61), count)

    async def test_async_finds_the_same(self, reopen: Callable[[], Milvus], rankings: list[list[int]]) -> None:
        store, count = reopen(), len(CORPUS)
        found = await store.asimilarity_search_with_score(QUERY, k=count, fetch_k=count, reranker=self.RRF)
        assert_ranked(found, fused(rankings, first=61), count)
        await store.aclient.close()

    def test_a_text_without_words_is_stored_and_found_by_its_dense_vector(self, hybrid: Hybrid, tmp_path: Path) -> None:
        dense, sparse = hybrid
        fields = {"vector_field": ["dense", "sparse"], "index_params": self.INDEXES, "search_params": self.SEARCHES}
        where = {"connection_args": {"uri": str(tmp_path / "empty.db")}}
        store = Milvus.from_texts([*CORPUS, ""], [dense, sparse.for_milvus()], **fields, **where)
        for query in (QUERY, "", "</s>"):
            found = [
                document.page_content
                for document in store.similarity_search(query, k=20, fetch_k=20, reranker=self.RRF)
            ]
            assert sorted(found) == sorted([*CORPUS, ""])
        store.client.close()

    def test_lexical_weights_alone_find_no_text_without_words(self, hybrid: Hybrid, tmp_path: Path) -> None:
        how = {"index_params": self.INDEXES[1], "search_params": self.SEARCHES[1]}
        where = {"connection_args": {"uri": str(tmp_path / "empty.db")}}
        store = Milvus.from_texts(["", *CORPUS, ""], hybrid[1].for_milvus(), **how, **where)
        assert "" not in [document.page_content for document in store.similarity_search(QUERY, k=10)]
        assert store.similarity_search("", k=10) == []
        store.client.close()
