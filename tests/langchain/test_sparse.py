"""BgeSparseEmbeddings: bge-m3's lexical weights, as Qdrant's and Milvus' integrations want them."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from langchain_milvus.utils.sparse import BaseSparseEmbedding
from langchain_qdrant import QdrantVectorStore, RetrievalMode, SparseEmbeddings, SparseVector
from pydantic import ValidationError
from transformers import AutoTokenizer

from bge_integrations.errors import UnsupportedModelError
from bge_integrations.langchain import BgeSparseEmbeddings
from bge_integrations.langchain.milvus import DOCUMENT_WITHOUT_WORDS, QUERY_WITHOUT_WORDS
from tests.adapters import CORPUS, each_way_to_copy
from tests.checkpoints_of_pairs import reference_m3
from tests.langchain.lexical import make_lexical_m3
from tests.test_package import modules_after, run_python

QUERY = "how do plants make their food?"
SECRET = "hf_secret"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_lexical_m3(tmp_path_factory.mktemp("m3") / "bge-m3")


@pytest.fixture(scope="module")
def reference(folder: Path) -> list[dict[int, float]]:
    found = reference_m3(folder, [QUERY, *CORPUS], max_length=128).sparse
    assert all(len(weights) > 3 for weights in found)
    return found


@pytest.fixture(scope="module")
def sparse(folder: Path) -> BgeSparseEmbeddings:
    return BgeSparseEmbeddings(model_name=str(folder))


def assert_weights(found: dict[int, float], expected: dict[int, float]) -> None:
    assert found == pytest.approx(expected, abs=1e-5)
    assert {type(token) for token in found} <= {int}
    assert {type(weight) for weight in found.values()} <= {float}


def as_weights(vector: SparseVector) -> dict[int, float]:
    return dict(zip(vector.indices, vector.values, strict=True))


class TestForQdrant:
    def test_is_what_the_store_asks_for(self, sparse: BgeSparseEmbeddings) -> None:
        assert isinstance(sparse, SparseEmbeddings)

    def test_gives_the_weight_of_each_token(
        self, sparse: BgeSparseEmbeddings, reference: list[dict[int, float]]
    ) -> None:
        vectors = [sparse.embed_query(QUERY), *sparse.embed_documents(CORPUS)]
        assert {type(vector) for vector in vectors} == {SparseVector}
        for vector, expected in zip(vectors, reference, strict=True):
            assert_weights(as_weights(vector), expected)

    def test_a_text_without_words_gives_an_empty_vector(self, sparse: BgeSparseEmbeddings) -> None:
        assert sparse.embed_documents(["", CORPUS[0]])[0] == SparseVector(indices=[], values=[])
        assert sparse.embed_documents([]) == []

    def test_a_store_of_sparse_vectors_alone_ranks_by_their_inner_product(
        self, sparse: BgeSparseEmbeddings, reference: list[dict[int, float]]
    ) -> None:
        store = QdrantVectorStore.from_texts(
            [*CORPUS, ""],
            sparse_embedding=sparse,
            retrieval_mode=RetrievalMode.SPARSE,
            location=":memory:",
            collection_name="corpus",
        )
        found = store.similarity_search_with_score(QUERY, k=10)
        query, *documents = reference
        products = {
            text: sum(weight * weights.get(token, 0) for token, weight in query.items())
            for text, weights in zip(CORPUS, documents, strict=True)
        }
        assert {document.page_content: score for document, score in found} == pytest.approx(
            {text: product for text, product in products.items() if product > 0}, abs=1e-4
        )
        assert store.similarity_search("", k=10) == []


class TestForMilvus:
    def test_is_what_the_store_asks_for(self, sparse: BgeSparseEmbeddings) -> None:
        assert isinstance(sparse.for_milvus(), BaseSparseEmbedding)

    def test_gives_the_weight_of_each_token(
        self, sparse: BgeSparseEmbeddings, reference: list[dict[int, float]]
    ) -> None:
        milvus = sparse.for_milvus()
        for found in (
            [milvus.embed_query(QUERY), *milvus.embed_documents(CORPUS)],
            [asyncio.run(milvus.aembed_query(QUERY)), *asyncio.run(milvus.aembed_documents(CORPUS))],
        ):
            for weights, expected in zip(found, reference, strict=True):
                assert_weights(weights, expected)

    async def test_texts_without_words_have_an_id_that_no_other_text_has(
        self, sparse: BgeSparseEmbeddings, folder: Path
    ) -> None:
        milvus, vocabulary = sparse.for_milvus(), len(AutoTokenizer.from_pretrained(folder))
        (document,), query = milvus.embed_documents([""]), milvus.embed_query("")
        assert document == {DOCUMENT_WITHOUT_WORDS: 1.0} == milvus.embed_documents([CORPUS[0], ""])[1]
        assert query == {QUERY_WITHOUT_WORDS: 1.0}
        assert vocabulary <= min(DOCUMENT_WITHOUT_WORDS, QUERY_WITHOUT_WORDS)
        assert DOCUMENT_WITHOUT_WORDS != QUERY_WITHOUT_WORDS
        assert max(DOCUMENT_WITHOUT_WORDS, QUERY_WITHOUT_WORDS) < 2**32 - 1  # ids that Milvus takes
        assert await milvus.aembed_documents([""]) == [document]
        assert await milvus.aembed_query("") == query
        assert milvus.embed_documents([]) == []

    @each_way_to_copy
    def test_copies_share_the_model(self, sparse: BgeSparseEmbeddings, way: Callable[[Any], Any]) -> None:
        twin = way(sparse.for_milvus())
        assert twin.embed_query(QUERY) == sparse.query_weights(QUERY)
        assert twin.embeddings.encoder.backend is sparse.encoder.backend


class TestSettings:
    def test_the_query_instruction_goes_before_queries_only(
        self, folder: Path, reference: list[dict[int, float]]
    ) -> None:
        sparse = BgeSparseEmbeddings(model_name=str(folder), query_instruction="北京 ")
        (expected,) = reference_m3(folder, ["北京 " + QUERY], max_length=128).sparse
        assert_weights(as_weights(sparse.embed_query(QUERY)), expected)
        assert_weights(as_weights(sparse.embed_documents([QUERY])[0]), reference[0])
        assert expected.keys() != reference[0].keys()

    def test_bad_ones_are_refused(self, folder: Path, bge_small_en: Path) -> None:
        for settings, message in (
            ({"model_kwargs": {"prompts": {"query": "q"}}}, "query_instruction"),
            ({"model_kwargs": {"activation_fn": "Sigmoid"}}, "unknown"),
        ):
            with pytest.raises(ValidationError, match=message):
                BgeSparseEmbeddings(model_name=str(folder), **settings)
        with pytest.raises(UnsupportedModelError):
            BgeSparseEmbeddings(model_name=str(bge_small_en))

    def test_the_token_is_not_shown_for_milvus_either(self, folder: Path) -> None:
        milvus = BgeSparseEmbeddings(model_name=str(folder), token=SECRET).for_milvus()
        assert milvus.embeddings.encoder.settings.token == SECRET
        assert SECRET not in repr(milvus)
        assert SECRET.encode() not in pickle.dumps(milvus)


class TestWhatIsInstalled:
    USE = """
from bge_integrations.langchain import BgeSparseEmbeddings
from bge_integrations.errors import MissingExtraError
sparse = BgeSparseEmbeddings(model_name={folder!r})
assert sparse.query_weights("dense vectors")

def said(use):
    try:
        use()
    except MissingExtraError as error:
        return str(error)
    return "works"

print(said(lambda: sparse.embed_query("dense vectors")))
print(said(lambda: sparse.embed_documents(["dense vectors"])))
print(said(lambda: sparse.for_milvus().embed_query("dense vectors")))
"""
    NO_QDRANT = "langchain_qdrant is not installed. Install it with: pip install langchain-qdrant"
    NO_MILVUS = "langchain_milvus is not installed. Install it with: pip install langchain-milvus"

    @pytest.mark.parametrize(
        ("without", "expected"),
        [
            (("langchain_qdrant",), [NO_QDRANT, NO_QDRANT, "works"]),
            (("langchain_milvus",), ["works", "works", NO_MILVUS]),
            (("langchain_qdrant", "langchain_milvus"), [NO_QDRANT, NO_QDRANT, NO_MILVUS]),
        ],
        ids=["no langchain-qdrant", "no langchain-milvus", "neither"],
    )
    def test_each_store_needs_its_own_package_only(
        self, folder: Path, without: tuple[str, ...], expected: list[str]
    ) -> None:
        printed = run_python(self.USE.format(folder=str(folder)), without=without)
        assert printed.splitlines() == expected

    @pytest.mark.parametrize("name", ["HuggingFaceBgeEmbeddings", "BgeReranker", "BgeM3Reranker"])
    def test_the_other_classes_import_no_store(self, name: str) -> None:
        loaded = modules_after(f"from bge_integrations.langchain import {name}")
        assert not loaded & {"langchain_qdrant", "qdrant_client", "langchain_milvus", "pymilvus", "torch"}

    def test_every_name_can_be_listed_and_used(self) -> None:
        import bge_integrations.langchain as adapter

        assert set(adapter.__all__) <= set(dir(adapter))
        assert all(getattr(adapter, name).__module__.startswith(adapter.__name__) for name in adapter.__all__)
        with pytest.raises(AttributeError, match=r"'bge_integrations\.langchain' has no attribute 'BgeRerank'"):
            adapter.BgeRerank  # noqa: B018 - the access is what is tested


def test_weights_are_the_same_in_any_company(sparse: BgeSparseEmbeddings) -> None:
    alone = [as_weights(sparse.embed_documents([text])[0]) for text in CORPUS]
    together = [as_weights(vector) for vector in sparse.embed_documents(CORPUS)]
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(list(one), list(other))
        np.testing.assert_allclose(list(one.values()), list(other.values()), atol=1e-5)
