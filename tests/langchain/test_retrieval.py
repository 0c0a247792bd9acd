"""With real weights, in the stores, chains and caches that people use: the right document comes first."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from langchain_classic.embeddings import CacheBackedEmbeddings
from langchain_classic.storage import LocalFileStore
from langchain_core.documents import Document
from langchain_core.language_models.fake_chat_models import FakeListChatModel
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableLambda, RunnablePassthrough
from langchain_core.vectorstores import InMemoryVectorStore, VectorStore
from sentence_transformers import SentenceTransformer

from bge_integrations.langchain import HuggingFaceBgeEmbeddings
from tests.checkpoints import reference_vectors
from tests.langchain.former import EN, are_close, assert_close

ANSWERS = {
    "how do plants make their food?": "Photosynthesis turns sunlight, water and carbon dioxide into sugar and oxygen.",
    "where can I see the big coral formation?": "The Great Barrier Reef lies off the coast of Queensland, Australia.",
    "what makes bread rise?": "Sourdough dough swells through the gas of wild yeast and bacteria.",
    "quick look-up of a value by its key": "A hash table maps keys to values with constant average time.",
    "famous landmark of the French capital": "The Eiffel Tower is a wrought-iron lattice tower in Paris.",
    "why does the moon change its shape?": "Lunar phases depend on how much of the sunlit side faces the Earth.",
}
CORPUS = [*ANSWERS.values(), "The stock market closed lower on Friday.", "Her brother plays the cello in an orchestra."]
DOCUMENTS = [Document(text, metadata={"number": number}) for number, text in enumerate(CORPUS)]

MakeStore = Callable[[HuggingFaceBgeEmbeddings, Path], VectorStore]

pytestmark = pytest.mark.usefixtures("kept_small_en")


@pytest.fixture(scope="module")
def embeddings(minilm: str) -> HuggingFaceBgeEmbeddings:
    return HuggingFaceBgeEmbeddings(model_name=minilm)


def in_memory(embeddings: HuggingFaceBgeEmbeddings, folder: Path) -> VectorStore:
    return InMemoryVectorStore.from_documents(DOCUMENTS, embeddings)


def saved_in_memory(embeddings: HuggingFaceBgeEmbeddings, folder: Path) -> VectorStore:
    InMemoryVectorStore.from_documents(DOCUMENTS, embeddings).dump(str(folder / "store.json"))
    return InMemoryVectorStore.load(str(folder / "store.json"), embeddings)


def faiss(embeddings: HuggingFaceBgeEmbeddings, folder: Path) -> VectorStore:
    from langchain_community.vectorstores import FAISS

    store: VectorStore = FAISS.from_documents(DOCUMENTS, embeddings)
    return store


def saved_faiss(embeddings: HuggingFaceBgeEmbeddings, folder: Path) -> VectorStore:
    from langchain_community.vectorstores import FAISS

    FAISS.from_documents(DOCUMENTS, embeddings).save_local(str(folder))
    store: VectorStore = FAISS.load_local(str(folder), embeddings, allow_dangerous_deserialization=True)
    return store


def chroma(embeddings: HuggingFaceBgeEmbeddings, folder: Path) -> VectorStore:
    import chromadb
    from langchain_chroma import Chroma

    store = Chroma(folder.name, embeddings, client=chromadb.EphemeralClient())
    store.add_documents(DOCUMENTS)
    return store


def saved_chroma(embeddings: HuggingFaceBgeEmbeddings, folder: Path) -> VectorStore:
    from langchain_chroma import Chroma

    Chroma("corpus", embeddings, persist_directory=str(folder)).add_documents(DOCUMENTS)
    return Chroma("corpus", embeddings, persist_directory=str(folder))


def qdrant(embeddings: HuggingFaceBgeEmbeddings, folder: Path) -> VectorStore:
    from langchain_qdrant import QdrantVectorStore
    from qdrant_client import QdrantClient
    from qdrant_client.models import Distance, VectorParams

    client = QdrantClient(":memory:")
    client.create_collection("corpus", VectorParams(size=embeddings.encoder.dimension, distance=Distance.COSINE))
    store = QdrantVectorStore(client, "corpus", embeddings)
    store.add_documents(DOCUMENTS)
    return store


STORES: tuple[MakeStore, ...] = (in_memory, saved_in_memory, faiss, saved_faiss, chroma, saved_chroma, qdrant)


@pytest.mark.filterwarnings("ignore:`langchain-community` is being sunset:DeprecationWarning")
@pytest.mark.parametrize("make_store", STORES)
def test_every_question_finds_its_answer_first(
    embeddings: HuggingFaceBgeEmbeddings, make_store: MakeStore, tmp_path: Path
) -> None:
    store = make_store(embeddings, tmp_path)
    for question, answer in ANSWERS.items():
        assert store.similarity_search(question, k=3)[0].page_content == answer
        assert asyncio.run(store.asimilarity_search(question, k=3))[0].page_content == answer
        diverse = store.max_marginal_relevance_search(question, k=2, fetch_k=4)
        assert diverse[0].page_content == answer


def test_scores_are_the_cosines_of_sentence_transformers(embeddings: HuggingFaceBgeEmbeddings, minilm: str) -> None:
    theirs = SentenceTransformer(minilm, device="cpu")
    cosines = theirs.encode(list(ANSWERS)) @ theirs.encode(CORPUS).T
    store = in_memory(embeddings, Path())
    for question, row in zip(ANSWERS, cosines, strict=True):
        found = store.similarity_search_with_score(question, k=len(CORPUS))
        assert [document.metadata["number"] for document, _ in found] == np.argsort(-row).tolist()
        np.testing.assert_allclose([score for _, score in found], np.sort(row)[::-1], atol=1e-5)


def test_a_retrieval_chain_answers_one_many_and_async(embeddings: HuggingFaceBgeEmbeddings) -> None:
    prompt = ChatPromptTemplate.from_messages([("system", "Use only:\n{context}"), ("human", "{question}")])
    prompts: list[str] = []

    def record(value: Any) -> Any:  # noqa: ANN401 - a prompt value
        prompts.append(value.to_string())
        return value

    chain = (
        {
            "context": in_memory(embeddings, Path()).as_retriever(search_kwargs={"k": 1})
            | RunnableLambda(lambda documents: documents[0].page_content),
            "question": RunnablePassthrough(),
        }
        | prompt
        | RunnableLambda(record)
        | FakeListChatModel(responses=["grounded"])
        | StrOutputParser()
    )
    (question, answer), *_ = ANSWERS.items()
    assert chain.invoke(question) == asyncio.run(chain.ainvoke(question)) == "grounded"
    assert prompts == [f"System: Use only:\n{answer}\nHuman: {question}"] * 2
    prompts.clear()
    assert chain.batch(list(ANSWERS)) == ["grounded"] * len(ANSWERS)
    assert sorted(prompts) == sorted(f"System: Use only:\n{a}\nHuman: {q}" for q, a in ANSWERS.items())


class TestCache:
    """As documented: one namespace a role, since the cache knows vectors by their raw text only."""

    @pytest.fixture
    def documented(self, tmp_path: Path) -> Callable[[HuggingFaceBgeEmbeddings], CacheBackedEmbeddings]:
        def cached(embeddings: HuggingFaceBgeEmbeddings) -> CacheBackedEmbeddings:
            return CacheBackedEmbeddings.from_bytes_store(
                embeddings,
                LocalFileStore(tmp_path / embeddings.cache_namespace("document")),
                query_embedding_cache=LocalFileStore(tmp_path / embeddings.cache_namespace("query")),
                key_encoder="sha256",
            )

        return cached

    def test_a_query_never_gets_a_documents_vector_nor_the_other_way(
        self, bge_small_en: Path, documented: Callable[[HuggingFaceBgeEmbeddings], CacheBackedEmbeddings]
    ) -> None:
        cached = documented(HuggingFaceBgeEmbeddings(model_name=str(bge_small_en)))
        as_query, as_document = reference_vectors(bge_small_en, [EN + "fox", "fox"])
        for _ in range(2):
            assert_close(cached.embed_query("fox"), as_query)
            assert_close(cached.embed_documents(["fox"])[0], as_document)
        assert not are_close(as_query, as_document)

    def test_what_is_cached_is_not_computed_again(
        self,
        bge_small_en: Path,
        documented: Callable[[HuggingFaceBgeEmbeddings], CacheBackedEmbeddings],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        embeddings = HuggingFaceBgeEmbeddings(model_name=str(bge_small_en))
        cached = documented(embeddings)
        first = cached.embed_query("fox"), cached.embed_documents(["fox", "dog"])

        def refuse(batch: Any) -> Any:  # noqa: ANN401
            raise AssertionError("computed again")

        monkeypatch.setattr(embeddings.encoder.backend.engine, "submit", refuse)
        again = documented(HuggingFaceBgeEmbeddings(model_name=str(bge_small_en)))
        assert (again.embed_query("fox"), again.embed_documents(["fox", "dog"])) == first

    def test_embedders_that_differ_in_vectors_share_no_entry(self, bge_small_en: Path, bge_small_zh: Path) -> None:
        variants: list[dict[str, Any]] = [
            {},
            {"query_instruction": "q: ", "embed_instruction": "d: "},
            {"normalize": False},
            {"truncate_dim": 8},
            {"max_length": 16},
            {"precision": "bfloat16"},
            {"encode_kwargs": {"prompt": "p: "}},
        ]
        embedders = [
            *(HuggingFaceBgeEmbeddings(model_name=str(bge_small_en), device="cpu", **v) for v in variants),
            HuggingFaceBgeEmbeddings(model_name=str(bge_small_zh), device="cpu"),
        ]
        namespaces = [e.cache_namespace(role) for e in embedders for role in ("query", "document")]
        assert len(set(namespaces)) == len(namespaces)

    def test_embedders_that_differ_in_nothing_that_matters_share_them(self, bge_small_en: Path) -> None:
        variants: list[dict[str, Any]] = [
            {},
            {"show_progress": True, "multi_process": True, "on_truncation": "ignore"},
            {"encode_kwargs": {"batch_size": 1, "normalize_embeddings": True}},
            {"batch_tokens": 64, "query_instruction": EN, "embed_instruction": ""},
        ]
        for role in ("query", "document"):
            embedders = [HuggingFaceBgeEmbeddings(model_name=str(bge_small_en), **v) for v in variants]
            assert len({e.cache_namespace(role) for e in embedders}) == 1


class TestAsync:
    async def test_many_calls_at_once_get_their_own_answers(self, embeddings: HuggingFaceBgeEmbeddings) -> None:
        queries = list(ANSWERS) * 3
        answers, documents = await asyncio.gather(
            asyncio.gather(*map(embeddings.aembed_query, queries)), embeddings.aembed_documents(CORPUS)
        )
        assert_close(answers, [embeddings.embed_query(query) for query in queries])
        assert_close(documents, embeddings.embed_documents(CORPUS))


def test_threads_that_embed_at_once_get_what_one_gets(embeddings: HuggingFaceBgeEmbeddings) -> None:
    expected = {query: embeddings.embed_query(query) for query in ANSWERS}
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda query: (query, embeddings.embed_query(query)), list(ANSWERS) * 8))
    for query, vector in found:
        assert_close(vector, expected[query])
