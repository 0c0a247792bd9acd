"""`guard` of LangChain's stores: what is recorded where, and what is refused, in real stores that are reopened."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from langchain_classic.embeddings import CacheBackedEmbeddings
from langchain_classic.storage import InMemoryByteStore
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding, Embeddings
from langchain_core.vectorstores import InMemoryVectorStore, VectorStore

from bge_integrations.errors import FingerprintError, IndexMismatchError
from bge_integrations.fingerprint import METADATA_KEY, Fingerprint
from bge_integrations.langchain import HuggingFaceBgeEmbeddings, guard
from tests.adapters import CORPUS
from tests.index_processes import in_new_process
from tests.langchain.stores import OPENERS, fill, outcome

pytestmark = pytest.mark.filterwarnings("ignore:`langchain-community` is being sunset:DeprecationWarning")

CHANGES: dict[str, dict[str, Any]] = {
    "same": {},
    "precision": {"precision": "bfloat16"},
    "instruction": {"embed_instruction": "passage: "},
    "length": {"max_length": 100},
    "unnormalised": {"normalize": False},
}


@pytest.fixture(scope="module")
def outcomes(minilm: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """What `guard` says in a new process of stores that another process has filled, by change and store."""
    folder = tmp_path_factory.mktemp("stores")
    options = [{"model_name": minilm, **change} for change in CHANGES.values()]
    in_new_process("tests.langchain.stores", "fill", folder, options[:1])
    return dict(zip(CHANGES, in_new_process("tests.langchain.stores", "check", folder, options), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("store", OPENERS)
def test_a_store_that_is_reopened_fits_its_model(store: str, outcomes: dict[str, dict[str, str]]) -> None:
    assert outcomes["same"][store] == "fits"
    assert outcomes["precision"][store] == "fits"


@pytest.mark.slow
@pytest.mark.parametrize("store", OPENERS)
def test_a_store_that_is_reopened_refuses_other_settings(store: str, outcomes: dict[str, dict[str, str]]) -> None:
    instruction = outcomes["instruction"][store]
    assert instruction.startswith("IndexMismatchError: the ")
    assert "embed its documents again" in instruction
    assert "vectors were normalised then, and are not now" in outcomes["unnormalised"][store]
    if store == "in_memory":  # it keeps no fingerprint, and its documents are short
        assert "they agree with the document instruction ''; now it is 'passage: '" in instruction
        return
    assert "another instruction for documents: '' then, 'passage: ' now" in instruction
    assert "texts were cut at 256 tokens then, and are cut at 100 now" in outcomes["length"][store]


@pytest.fixture(scope="module")
def embeddings(minilm: str) -> HuggingFaceBgeEmbeddings:
    return HuggingFaceBgeEmbeddings(model_name=minilm)


# The others are in memory, or need no more than these two.
@pytest.mark.parametrize("store", ["chroma", "qdrant", "lancedb", "milvus", "faiss"])
def test_a_store_from_before_the_guard_is_probed_and_then_recorded(
    store: str, embeddings: HuggingFaceBgeEmbeddings, minilm: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fill(tmp_path, store, embeddings, guarded=False)
    other = HuggingFaceBgeEmbeddings(model_name=minilm, embed_instruction="passage: ")
    refused = outcome(tmp_path, store, other)
    assert "does not fit the model in use, 'model': the vectors of 5 of 5 documents differ" in refused
    assert "they agree with the document instruction ''; now it is 'passage: '" in refused
    with caplog.at_level(logging.INFO, "bge_integrations"):
        assert outcome(tmp_path, store, embeddings) == "fits"
    assert "had no fingerprint: 5 of its documents were embedded again and fit model" in caplog.text
    assert "was made with 'model'" in outcome(tmp_path, store, other)  # from the record


def test_chroma_keeps_its_other_metadata_and_its_metric(embeddings: HuggingFaceBgeEmbeddings, tmp_path: Path) -> None:
    fill(tmp_path, "chroma", embeddings)
    with OPENERS["chroma"](tmp_path, embeddings) as (store, _):
        collection = store._collection
        assert Fingerprint.from_json(collection.metadata[METADATA_KEY]) == embeddings.fingerprint()
        assert collection.metadata["owner"] == "tests"
        assert collection.configuration["hnsw"]["space"] == "cosine"
        (found,) = store.similarity_search_with_score(CORPUS[1], k=1)
        assert (found[0].page_content, round(found[1], 5)) == (CORPUS[1], 0)


def test_a_cache_is_seen_through(embeddings: HuggingFaceBgeEmbeddings, minilm: str, tmp_path: Path) -> None:
    kept = InMemoryByteStore()

    def cached(inner: Embeddings) -> Embeddings:
        return CacheBackedEmbeddings.from_bytes_store(inner, kept, namespace="test", key_encoder="sha256")

    fill(tmp_path, "chroma", cached(embeddings))
    assert outcome(tmp_path, "chroma", embeddings) == "fits"
    other = cached(HuggingFaceBgeEmbeddings(model_name=minilm, embed_instruction="passage: "))
    assert other.embed_documents(CORPUS) == embeddings.embed_documents(CORPUS)  # the cache's, though of another model
    assert "another instruction" in outcome(tmp_path, "chroma", other)


def test_other_embeddings_are_probed_too(embeddings: HuggingFaceBgeEmbeddings, tmp_path: Path) -> None:
    fake = DeterministicFakeEmbedding(size=384)
    fill(tmp_path, "chroma", fake)
    assert outcome(tmp_path, "chroma", fake) == "fits"
    assert "another model: 'DeterministicFakeEmbedding' then, 'model' now" in outcome(tmp_path, "chroma", embeddings)


def test_another_dimension_is_told_before_a_search_fails(embeddings: HuggingFaceBgeEmbeddings, tmp_path: Path) -> None:
    fill(tmp_path, "chroma", DeterministicFakeEmbedding(size=8), guarded=False)
    found = outcome(tmp_path, "chroma", embeddings)
    assert "its vectors have 8 dimensions, and those of the model have 384" in found


def test_overwrite_records_the_model_in_use(embeddings: HuggingFaceBgeEmbeddings, minilm: str, tmp_path: Path) -> None:
    other = HuggingFaceBgeEmbeddings(model_name=minilm, embed_instruction="passage: ")
    fill(tmp_path, "chroma", embeddings)
    with OPENERS["chroma"](tmp_path, other) as (store, _):
        guard(store, overwrite=True)
    assert outcome(tmp_path, "chroma", other) == "fits"


class _Mixed(Embeddings):
    """Embeds the first texts with another model than the rest."""

    def __init__(self, inner: Embeddings) -> None:
        self.inner = inner

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        vectors = np.array(self.inner.embed_documents(texts))
        vectors[:2] = vectors[:2, ::-1]
        found: list[list[float]] = vectors.tolist()
        return found

    def embed_query(self, text: str) -> list[float]:
        return self.inner.embed_query(text)


def test_an_index_of_two_models_is_told(embeddings: HuggingFaceBgeEmbeddings) -> None:
    store = InMemoryVectorStore.from_texts(CORPUS, _Mixed(embeddings))
    with pytest.raises(
        IndexMismatchError, match=r"the vectors of 2 of 5 documents differ.*of several models"
    ) as raised:
        guard(store, embeddings=embeddings)
    assert len(raised.value.differences) == 1


def test_an_index_that_was_cut_elsewhere_is_told(minilm: str) -> None:
    texts = [*CORPUS, " ".join(CORPUS * 3)]
    store = InMemoryVectorStore.from_texts(
        texts, HuggingFaceBgeEmbeddings(model_name=minilm, max_length=64, on_truncation="ignore")
    )
    with pytest.raises(IndexMismatchError, match=r"only texts of \d+ tokens and more differ.*\(now 256\)"):
        guard(store, embeddings=HuggingFaceBgeEmbeddings(model_name=minilm))


def test_vectors_of_zeros_do_not_fit(embeddings: HuggingFaceBgeEmbeddings) -> None:
    store = InMemoryVectorStore.from_texts(CORPUS, embeddings)
    for row in store.store.values():
        row["vector"] = [0.0] * 384
    with pytest.raises(IndexMismatchError, match=r"the vectors of 5 of 5 documents differ \(least cosine 0.0000"):
        guard(store)


def test_a_store_in_memory_is_compared_each_time(embeddings: HuggingFaceBgeEmbeddings, minilm: str) -> None:
    store = guard(InMemoryVectorStore(embeddings))
    store.add_texts(CORPUS)
    assert guard(store) is store
    store.embedding = HuggingFaceBgeEmbeddings(model_name=minilm, embed_instruction="passage: ")
    with pytest.raises(IndexMismatchError, match="the InMemoryVectorStore does not fit"):
        guard(store)


class Unknown(VectorStore):
    """A store of a kind that nobody knows."""

    def __init__(self, embeddings: Embeddings) -> None:
        self._embeddings = embeddings

    @property
    def embeddings(self) -> Embeddings:
        return self._embeddings

    def similarity_search(self, query: str, k: int = 4, **kwargs: Any) -> list[Document]:  # noqa: ANN401
        return []

    @classmethod
    def from_texts(cls, texts: list[str], embedding: Embeddings, *_: Any, **__: Any) -> Unknown:  # noqa: ANN401
        return cls(embedding)


def test_an_unknown_store_needs_a_file(embeddings: HuggingFaceBgeEmbeddings, minilm: str, tmp_path: Path) -> None:
    store = Unknown(embeddings)
    with pytest.raises(FingerprintError, match="Unknown is not a store whose metadata are known here"):
        guard(store)
    file = tmp_path / "new" / "index.json"
    assert guard(store, fingerprint_file=file) is store
    assert Fingerprint.from_json(file.read_text()) == embeddings.fingerprint()
    other = HuggingFaceBgeEmbeddings(model_name=minilm, embed_instruction="passage: ")
    with pytest.raises(IndexMismatchError, match="another instruction"):
        guard(store, embeddings=other, fingerprint_file=file)


def test_a_damaged_fingerprint_is_told(embeddings: HuggingFaceBgeEmbeddings, tmp_path: Path) -> None:
    store = InMemoryVectorStore(embeddings)
    (tmp_path / "bge_fingerprint.json").write_text("{")
    with pytest.raises(FingerprintError, match=r"the InMemoryVectorStore: '\{' is not a fingerprint"):
        guard(store, fingerprint_file=tmp_path)
    guard(store, fingerprint_file=tmp_path, overwrite=True)
    guard(store, fingerprint_file=tmp_path)


def test_a_store_that_keeps_nothing_can_not_be_overwritten(embeddings: HuggingFaceBgeEmbeddings) -> None:
    with pytest.raises(FingerprintError, match="has no place for a fingerprint; give fingerprint_file="):
        guard(InMemoryVectorStore(embeddings), overwrite=True)
