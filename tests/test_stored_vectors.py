"""Stored vectors stand in for the model, and fill real stores of both frameworks."""

from __future__ import annotations

import json
import pickle
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
from langchain_chroma import Chroma
from langchain_core.vectorstores import InMemoryVectorStore, VectorStore
from langchain_qdrant import QdrantVectorStore
from llama_index.core import StorageContext, VectorStoreIndex, load_index_from_storage
from llama_index.core.schema import BaseNode
from llama_index.vector_stores.faiss import FaissVectorStore
from llama_index.vector_stores.qdrant import QdrantVectorStore as LlamaQdrant
from qdrant_client import QdrantClient
from qdrant_client.models import Distance, VectorParams

from bge_integrations import BgeEncoder, langchain, llama_index
from bge_integrations.corpus import StoredVectors, embed_corpus, load_into
from bge_integrations.errors import CorpusDataError, IndexMismatchError, ModelNotFoundError, SettingsError
from tests.corpora import some_texts, write_lines

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # about the whole package
    from langchain_community.docstore.in_memory import InMemoryDocstore
    from langchain_community.vectorstores import FAISS

pytestmark = pytest.mark.usefixtures("kept_small_en")

Make = Callable[[Any, Path], VectorStore]
Keep = Callable[[VectorStore], VectorStore]

TEXTS = some_texts(50)
ROWS = [{"_id": f"d{n}", "text": text, "page": n} for n, text in enumerate(TEXTS)]


@pytest.fixture(scope="module")
def folder(bge_small_en: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """50 rows in three shards."""
    place = tmp_path_factory.mktemp("stored")
    embed_corpus(write_lines(place / "in.jsonl", ROWS), place / "out", BgeEncoder(bge_small_en), rows_per_shard=20)
    return place / "out"


@pytest.fixture
def vectors(bge_small_en: Path) -> np.ndarray[Any, Any]:
    return BgeEncoder(bge_small_en).encode_documents(TEXTS)


class NoModel:
    """Refuses to compute."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(BgeEncoder, "_loaded", self.refuse)

    def refuse(self, *_: object) -> None:
        raise AssertionError("a model was loaded")


class TestStoredVectors:
    def test_texts_of_the_corpus_need_no_model(
        self, folder: Path, vectors: np.ndarray[Any, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        NoModel(monkeypatch)
        stored = StoredVectors(folder)
        wanted = [49, 0, 21, 0]
        found = stored.encode_documents([TEXTS[n] for n in wanted])
        np.testing.assert_allclose(found, vectors[wanted], atol=1e-6)
        assert (len(stored), stored.dimension, stored.role) == (50, 32, "document")
        assert stored.encode_documents([]).shape == (0, 32)

    def test_other_texts_and_roles_are_computed(self, folder: Path, bge_small_en: Path) -> None:
        encoder = BgeEncoder(bge_small_en)
        with StoredVectors(folder) as stored:
            mixed = [TEXTS[3], "a new text", TEXTS[4]]
            np.testing.assert_allclose(stored.encode_documents(mixed), encoder.encode_documents(mixed), atol=1e-6)
            np.testing.assert_allclose(stored.encode_queries(mixed), encoder.encode_queries(mixed), atol=1e-6)
            np.testing.assert_allclose(stored.encode(mixed), encoder.encode(mixed), atol=1e-6)
            found, is_there = stored.find(mixed)
            assert is_there.tolist() == [True, False, True]
            assert not found[1].any()
            assert not stored.find(mixed, role="query")[1].any()

    async def test_async(self, folder: Path, bge_small_en: Path) -> None:
        encoder, stored = BgeEncoder(bge_small_en), StoredVectors(folder)
        mixed = [TEXTS[3], "a new text"]
        np.testing.assert_allclose(await stored.aencode_documents(mixed), encoder.encode_documents(mixed), atol=1e-6)
        np.testing.assert_allclose(await stored.aencode_queries(mixed), encoder.encode_queries(mixed), atol=1e-6)
        np.testing.assert_allclose(await stored.aencode(mixed), encoder.encode(mixed), atol=1e-6)
        stored.close()

    def test_batches_are_the_rows_in_their_order(self, folder: Path, vectors: np.ndarray[Any, Any]) -> None:
        batches = list(StoredVectors(folder).batches(15, start=7))
        assert [batch.start for batch in batches] == [7, 20, 35, 40]
        assert [id_ for batch in batches for id_ in batch.ids] == [f"d{n}" for n in range(7, 50)]
        assert batches[1].columns[0] == {"page": 20}
        np.testing.assert_allclose(np.concatenate([batch.vectors for batch in batches]), vectors[7:], atol=1e-6)

    def test_another_model_is_refused(self, folder: Path, bge_small_zh: Path, bge_small_en: Path) -> None:
        with pytest.raises(IndexMismatchError, match="were made by another model"):
            StoredVectors(folder, BgeEncoder(bge_small_zh))
        assert StoredVectors(folder, BgeEncoder(bge_small_en)).encode_queries(["x"]).shape == (1, 32)

    def test_a_model_that_has_moved_is_asked_for(self, folder: Path, tmp_path: Path, bge_small_en: Path) -> None:
        copy = tmp_path / "copy"
        (copy / "_corpus").mkdir(parents=True)
        for file in (*folder.glob("*.parquet"), *(folder / "_corpus").iterdir()):
            (copy / file.relative_to(folder)).write_bytes(file.read_bytes())
        manifest = json.loads((copy / "_corpus" / "manifest.json").read_text())
        manifest["settings"]["model_name"] = str(tmp_path / "gone")
        (copy / "_corpus" / "manifest.json").write_text(json.dumps(manifest))
        stored = StoredVectors(copy)
        assert len(stored.encode_documents(TEXTS)) == 50
        with pytest.raises(ModelNotFoundError, match=r"Give it as encoder=BgeEncoder\(…\)"):
            stored.encode_queries(["x"])
        (copy / "part-000001.parquet").unlink()
        with pytest.raises(CorpusDataError, match=r"part-000001.parquet is missing"):
            StoredVectors(copy).encode_documents(TEXTS)

    def test_an_unfinished_folder_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(CorpusDataError, match="is no folder that `bge embed` has made"):
            StoredVectors(tmp_path)
        (tmp_path / "_corpus").mkdir()
        with pytest.raises(CorpusDataError, match="is not finished: run `bge embed` again"):
            StoredVectors(tmp_path)

    def test_a_damaged_lookup_is_named(self, folder: Path, tmp_path: Path) -> None:
        shutil.copytree(folder, tmp_path / "copy")
        (tmp_path / "copy" / "_corpus" / "lookup.sqlite").write_bytes(b"no database" * 1000)
        with pytest.raises(CorpusDataError, match=r"lookup\.sqlite can't be read: .*\. Embed the corpus again\."):
            StoredVectors(tmp_path / "copy").find(TEXTS)

    def test_pickles_carry_the_path(self, folder: Path) -> None:
        stored = pickle.loads(pickle.dumps(StoredVectors(folder)))
        assert len(stored.encode_documents(TEXTS)) == 50
        assert len(pickle.dumps(StoredVectors(folder))) < 1000

    def test_several_threads_use_one(self, folder: Path, vectors: np.ndarray[Any, Any]) -> None:
        from concurrent.futures import ThreadPoolExecutor

        stored = StoredVectors(folder)
        with ThreadPoolExecutor(8) as pool:
            for found in pool.map(stored.encode_documents, [TEXTS] * 40):
                np.testing.assert_allclose(found, vectors, atol=1e-6)


def chroma(embeddings: Any, place: Path) -> VectorStore:  # noqa: ANN401
    return Chroma("rows", embedding_function=embeddings, persist_directory=str(place / "chroma"))


def faiss_store(embeddings: Any, place: Path) -> VectorStore:  # noqa: ANN401
    if (place / "faiss").exists():
        return FAISS.load_local(str(place / "faiss"), embeddings, allow_dangerous_deserialization=True)
    return FAISS(embeddings, faiss.IndexFlatIP(32), InMemoryDocstore(), {})


def qdrant(embeddings: Any, place: Path) -> VectorStore:  # noqa: ANN401
    client = QdrantClient(path=str(place / "qdrant"))
    if not client.collection_exists("rows"):
        client.create_collection("rows", vectors_config=VectorParams(size=32, distance=Distance.COSINE))
    return QdrantVectorStore(client, "rows", embeddings)


def in_memory(embeddings: Any, place: Path) -> VectorStore:  # noqa: ANN401
    return InMemoryVectorStore(embeddings)


@pytest.fixture
def opened() -> Iterator[Keep]:
    """Closes what stores leave open."""
    stores: list[VectorStore] = []

    def keep(store: VectorStore) -> VectorStore:
        stores.append(store)
        return store

    yield keep
    for store in stores:
        if isinstance(store, QdrantVectorStore):
            store.client.close()


class TestLangChain:
    @pytest.mark.parametrize("make", [chroma, faiss_store, qdrant, in_memory])
    def test_a_store_is_filled_without_a_model(
        self,
        make: Make,
        folder: Path,
        tmp_path: Path,
        bge_small_en: Path,
        monkeypatch: pytest.MonkeyPatch,
        opened: Keep,
    ) -> None:
        embeddings = langchain.StoredVectors(folder)
        store = opened(make(embeddings, tmp_path))
        with monkeypatch.context() as patched:
            NoModel(patched)
            assert embeddings.load_into(store, batch_size=7) == 50
            # All rows are there already.
            assert embeddings.load_into(store) == 0
        expected = BgeEncoder(bge_small_en)
        order = np.argsort(-(expected.encode_documents(TEXTS) @ expected.encode_queries(["a query"])[0]))
        hits = store.similarity_search("a query", k=3)
        assert [hit.page_content for hit in hits] == [TEXTS[n] for n in order[:3]]
        assert [hit.metadata["page"] for hit in hits] == order[:3].tolist()

    @pytest.mark.parametrize("make", [chroma, faiss_store, qdrant])
    def test_a_load_that_was_interrupted_goes_on(
        self,
        make: Make,
        folder: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        opened: Keep,
    ) -> None:
        embeddings = langchain.StoredVectors(folder)
        store = opened(make(embeddings, tmp_path))
        real, calls = store.add_texts, 0

        def fail(*arguments: Any, **options: Any) -> Any:  # noqa: ANN401
            nonlocal calls
            calls += 1
            if calls == 4:
                raise KeyboardInterrupt
            return real(*arguments, **options)

        monkeypatch.setattr(store, "add_texts", fail)
        with pytest.raises(KeyboardInterrupt):
            embeddings.load_into(store, batch_size=10)
        if isinstance(store, FAISS):
            store.save_local(str(tmp_path / "faiss"))
        elif isinstance(store, QdrantVectorStore):
            store.client.close()
        again = opened(make(embeddings, tmp_path))
        assert embeddings.load_into(again, batch_size=20) == 20
        assert embeddings.load_into(again) == 0

    def test_a_store_with_other_embeddings_is_refused(self, folder: Path, bge_small_en: Path) -> None:
        other = InMemoryVectorStore(langchain.HuggingFaceBgeEmbeddings(model_name=str(bge_small_en)))
        with pytest.raises(SettingsError, match=r"are not the StoredVectors that are loaded"):
            load_into(other, folder)
        with pytest.raises(SettingsError, match="load_into was given a list"):
            load_into([], folder)

    async def test_embeddings(self, folder: Path, bge_small_en: Path, vectors: np.ndarray[Any, Any]) -> None:
        plain = langchain.HuggingFaceBgeEmbeddings(model_name=str(bge_small_en))
        embeddings = langchain.StoredVectors(folder, plain)
        np.testing.assert_allclose(embeddings.embed_documents(TEXTS), vectors, atol=1e-6)
        np.testing.assert_allclose(await embeddings.aembed_documents(TEXTS), vectors, atol=1e-6)
        np.testing.assert_allclose(embeddings.embed_query("q"), plain.embed_query("q"), atol=1e-6)
        np.testing.assert_allclose(await embeddings.aembed_query("q"), plain.embed_query("q"), atol=1e-6)
        assert embeddings.fingerprint() == plain.fingerprint()


class TestLlamaIndex:
    def test_an_index_is_filled_without_a_model(
        self, folder: Path, bge_small_en: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        embeddings = llama_index.StoredVectors(folder)
        index = VectorStoreIndex([], embed_model=embeddings)
        with monkeypatch.context() as patched:
            NoModel(patched)
            assert embeddings.load_into(index, batch_size=7) == 50
            assert embeddings.load_into(index) == 0
        index.storage_context.persist(str(tmp_path))
        again = load_index_from_storage(StorageContext.from_defaults(persist_dir=str(tmp_path)), embed_model=embeddings)
        assert embeddings.load_into(again) == 0
        expected = BgeEncoder(bge_small_en)
        order = np.argsort(-(expected.encode_documents(TEXTS) @ expected.encode_queries(["a query"])[0]))
        hits = again.as_retriever(similarity_top_k=3).retrieve("a query")
        assert [hit.text for hit in hits] == [TEXTS[n] for n in order[:3]]
        assert hits[0].metadata == {"page": int(order[0])}

    @pytest.mark.filterwarnings("ignore:Payload indexes have no effect:UserWarning")
    def test_qdrant(self, folder: Path, tmp_path: Path) -> None:
        client = QdrantClient(path=str(tmp_path / "qdrant"))
        store = LlamaQdrant("rows", client=client)
        assert load_into(store, folder, batch_size=20) == 50
        assert load_into(store, folder) == 0
        index = VectorStoreIndex.from_vector_store(store, embed_model=llama_index.StoredVectors(folder))
        assert load_into(index, folder) == 0
        hit = index.as_retriever(similarity_top_k=1).retrieve("a query")[0]
        assert TEXTS[hit.metadata["page"]] == hit.text
        assert hit.metadata["id"] == f"d{hit.metadata['page']}"
        client.close()

    def test_a_store_that_knows_no_ids_goes_on_by_a_file(
        self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        vector_index = faiss.IndexFlatIP(32)
        store = FaissVectorStore(vector_index)
        real = FaissVectorStore.add

        def fail(self: FaissVectorStore, nodes: list[BaseNode], **options: Any) -> Any:  # noqa: ANN401
            if vector_index.ntotal == 20:
                raise KeyboardInterrupt
            return real(self, nodes, **options)

        with monkeypatch.context() as patched:
            patched.setattr(FaissVectorStore, "add", fail)
            with pytest.raises(KeyboardInterrupt):
                load_into(store, folder, batch_size=10, resume_file=tmp_path / "at.json")
        assert load_into(store, folder, batch_size=10, resume_file=tmp_path / "at.json") == 30
        assert vector_index.ntotal == 50
        (tmp_path / "at.json").write_text('{"content": "other", "rows": 3}')
        with pytest.raises(SettingsError, match="is about other vectors"):
            load_into(store, folder, resume_file=tmp_path / "at.json")

    async def test_embedding(self, folder: Path, bge_small_en: Path, vectors: np.ndarray[Any, Any]) -> None:
        plain = llama_index.HuggingFaceBgeEmbedding(str(bge_small_en))
        embedding = llama_index.StoredVectors(folder, plain)
        again = llama_index.StoredVectors.from_dict(embedding.to_dict())
        for one in (embedding, again, pickle.loads(pickle.dumps(embedding))):
            np.testing.assert_allclose(one.get_text_embedding_batch(TEXTS), vectors, atol=1e-6)
            np.testing.assert_allclose(await one.aget_text_embedding_batch(TEXTS), vectors, atol=1e-6)
            np.testing.assert_allclose(one.get_text_embedding("new"), plain.get_text_embedding("new"), atol=1e-6)
            np.testing.assert_allclose(one.get_query_embedding("q"), plain.get_query_embedding("q"), atol=1e-6)
            np.testing.assert_allclose(await one.aget_query_embedding("q"), plain.get_query_embedding("q"), atol=1e-6)
        assert embedding.model_name == "bge-small-en-v1.5"
