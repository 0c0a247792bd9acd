"""HuggingFaceBgeEmbedding in LlamaIndex: what its users write, and what they get."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import uuid
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_index.core import Settings, StorageContext, VectorStoreIndex, load_index_from_storage
from llama_index.core.callbacks import CallbackManager, CBEventType, LlamaDebugHandler
from llama_index.core.ingestion import DocstoreStrategy, IngestionPipeline
from llama_index.core.instrumentation.events.embedding import EmbeddingEndEvent, EmbeddingStartEvent
from llama_index.core.llms import MockLLM
from llama_index.core.node_parser import SemanticSplitterNodeParser
from llama_index.core.rate_limiter import BaseRateLimiter
from llama_index.core.schema import Document, TextNode
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index.core.storage.kvstore import SimpleKVStore
from numpy.typing import NDArray

from bge_integrations.errors import SettingsError
from bge_integrations.llama_index import HuggingFaceBgeEmbedding
from tests.adapters import ANSWER, CORPUS, EN, QUESTION, assert_close
from tests.checkpoints import reference_vectors
from tests.conftest import MakeCheckpoint
from tests.llama_index.events import observed

pytestmark = pytest.mark.usefixtures("kept_small_en", "kept_minilm")


@pytest.fixture
def embedding(bge_small_en: Path) -> HuggingFaceBgeEmbedding:
    return HuggingFaceBgeEmbedding(str(bge_small_en))


def test_queries_and_texts_equal_the_reference(embedding: HuggingFaceBgeEmbedding, bge_small_en: Path) -> None:
    assert_close([embedding.get_query_embedding("fox")], reference_vectors(bge_small_en, [EN + "fox"]))
    assert_close([embedding.get_text_embedding("fox")], reference_vectors(bge_small_en, ["fox"]))
    assert_close(embedding.get_text_embedding_batch(["fox", "dog"]), reference_vectors(bge_small_en, ["fox", "dog"]))
    assert embedding.get_text_embedding_batch([]) == []
    aggregated = embedding.get_agg_embedding_from_queries(["fox", "dog"])
    assert_close(aggregated, reference_vectors(bge_small_en, [EN + "fox", EN + "dog"]).mean(axis=0))


async def test_workers_of_async_batches_keep_the_order(embedding: HuggingFaceBgeEmbedding) -> None:
    texts = [f"fox {i}" for i in range(7)]
    small = HuggingFaceBgeEmbedding(embedding.model_name, embed_batch_size=2, num_workers=2)
    assert_close(await small.aget_text_embedding_batch(texts), np.array(embedding.get_text_embedding_batch(texts)))


def test_gives_python_floats(embedding: HuggingFaceBgeEmbedding) -> None:
    vectors = [embedding.get_query_embedding("fox"), *embedding.get_text_embedding_batch(["fox"])]
    assert {type(value) for vector in vectors for value in vector} == {float}


class TestWhatTheFormerClassGetsWrong:
    """That it does is shown in `tests/llama_index/test_former_class.py`."""

    def test_the_instruction_can_be_switched_off(
        self, make: MakeCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        make("BAAI/bge-small-en", modules=("cls", "normalize"))
        monkeypatch.chdir(tmp_path)
        plain = reference_vectors(tmp_path / "BAAI/bge-small-en", ["fox"])
        assert_close(
            [HuggingFaceBgeEmbedding("BAAI/bge-small-en", query_instruction="").get_query_embedding("fox")], plain
        )

    @pytest.mark.parametrize("settings", [{"num_workers": 2}, {"embeddings_cache": SimpleKVStore()}], ids=list)
    def test_the_constructor_takes_every_field(self, bge_small_en: Path, settings: dict[str, Any]) -> None:
        ours = HuggingFaceBgeEmbedding(str(bge_small_en), **settings)
        assert all(getattr(ours, name) is value for name, value in settings.items())

    def test_an_error_is_raised_at_once(
        self, embedding: HuggingFaceBgeEmbedding, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        calls: list[object] = []

        def failing(batch: object) -> object:
            calls.append(batch)
            raise RuntimeError("engine trouble")

        monkeypatch.setattr(embedding.encoder.backend.engine, "submit", failing)
        with pytest.raises(RuntimeError, match="engine trouble"):
            embedding.get_text_embedding("fox")
        assert len(calls) == 1

    def test_a_bare_checkpoint_is_cls_pooled_and_normalised(self, make: MakeCheckpoint) -> None:
        folder = make("bge-small-en")
        expected = reference_vectors(folder, ["lazy fox"])
        assert_close([HuggingFaceBgeEmbedding(str(folder)).get_text_embedding("lazy fox")], expected)

    def test_truncation_is_not_silent(self, embedding: HuggingFaceBgeEmbedding) -> None:
        with pytest.warns(UserWarning, match="1 of 1 texts were cut"):
            embedding.get_text_embedding("fox " * 100)

    def test_large_batches_reach_the_encoder(
        self, embedding: HuggingFaceBgeEmbedding, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        calls: list[int] = []
        encode = type(embedding.encoder).encode_documents

        def counted(encoder: Any, texts: list[str]) -> NDArray[np.float32]:  # noqa: ANN401
            calls.append(len(texts))
            return encode(encoder, texts)

        monkeypatch.setattr(type(embedding.encoder), "encode_documents", counted)
        embedding.get_text_embedding_batch([f"fox {i}" for i in range(2100)])
        assert calls == [2048, 52]

    def test_a_cached_text_is_no_answer_to_a_query(self, bge_small_en: Path) -> None:
        ours = HuggingFaceBgeEmbedding(str(bge_small_en), embeddings_cache=SimpleKVStore())
        for _ in range(2):
            assert_close([ours.get_text_embedding("fox")], reference_vectors(bge_small_en, ["fox"]))
            assert_close([ours.get_query_embedding("fox")], reference_vectors(bge_small_en, [EN + "fox"]))
            assert_close([asyncio.run(ours.aget_query_embedding("fox"))], reference_vectors(bge_small_en, [EN + "fox"]))


class TestCache:
    async def test_answers_the_second_time(self, bge_small_en: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        store = SimpleKVStore()
        embedding = HuggingFaceBgeEmbedding(str(bge_small_en), embeddings_cache=store)
        first = [
            embedding.get_query_embedding("fox"),
            embedding.get_text_embedding("fox"),
            *embedding.get_text_embedding_batch(["fox", "dog"]),
        ]
        assert embedding.embeddings_cache is store

        def unreachable(batch: object) -> object:
            raise AssertionError("the model was asked again")

        monkeypatch.setattr(embedding.encoder.backend.engine, "submit", unreachable)
        second = [
            embedding.get_query_embedding("fox"),
            await embedding.aget_text_embedding("fox"),
            *await embedding.aget_text_embedding_batch(["fox", "dog"]),
        ]
        assert second == first
        assert await embedding.aget_query_embedding("fox") == first[0]

    def test_does_not_make_encoders_anew_for_each_query(
        self, bge_small_en: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        embedding = HuggingFaceBgeEmbedding(str(bge_small_en), embeddings_cache=SimpleKVStore())
        embedding.get_query_embedding("fox")

        def unreachable(*_: object) -> object:
            raise AssertionError("encoders were made again")

        monkeypatch.setattr("bge_integrations.adapters.models.build_encoders", unreachable)
        assert_close([embedding.get_query_embedding("dog")], reference_vectors(bge_small_en, [EN + "dog"]))


class TestArguments:
    def test_of_the_old_class_are_taken(self, bge_small_en: Path) -> None:
        embedding = HuggingFaceBgeEmbedding(
            model_name=str(bge_small_en),
            tokenizer_name="deprecated",
            pooling="deprecated",
            max_length=20,
            query_instruction="q: ",
            text_instruction="t: ",
            normalize=False,
            model="deprecated",
            tokenizer="deprecated",
            embed_batch_size=7,
            cache_folder="/tmp/models",
            trust_remote_code=False,
            device="cpu",
            callback_manager=None,
            parallel_process=False,
            target_devices=None,
            show_progress_bar=False,
            revision="v1",
            model_kwargs={"attn_implementation": "eager"},
            tokenizer_kwargs={"truncation_side": "left"},
        )
        assert (embedding.max_length, embedding.embed_batch_size, embedding.revision) == (20, 7, "v1")
        assert embedding.client.transformers_model is not None
        assert embedding.client.transformers_model.config._attn_implementation == "eager"
        assert_close(
            [embedding.get_query_embedding("fox")], reference_vectors(bge_small_en, ["q: fox"], normalize=False)
        )
        assert_close(
            [embedding.get_text_embedding("fox")], reference_vectors(bge_small_en, ["t: fox"], normalize=False)
        )

    def test_the_models_limit_can_be_read(self, embedding: HuggingFaceBgeEmbedding) -> None:
        assert embedding.max_length == 64

    @pytest.mark.parametrize("name", ["tokenizer", "model", "tokenizer_name"])
    def test_that_were_dropped_say_what_to_do(self, bge_small_en: Path, name: str) -> None:
        with pytest.raises(SettingsError, match=f"{name}='mean' is not supported: "):
            HuggingFaceBgeEmbedding(str(bge_small_en), **{name: "mean"})

    def test_parallel_process_computes_the_same_without_a_pool(self, bge_small_en: Path) -> None:
        embedding = HuggingFaceBgeEmbedding(str(bge_small_en), parallel_process=True, target_devices=["cpu", "cpu"])
        assert_close(embedding.get_text_embedding_batch(["fox"]), reference_vectors(bge_small_en, ["fox"]))

    def test_show_progress_goes_to_standard_error(self, bge_small_en: Path, capfd: pytest.CaptureFixture[str]) -> None:
        embedding = HuggingFaceBgeEmbedding(str(bge_small_en), show_progress=True)
        capfd.readouterr()
        embedding.get_query_embedding("fox")
        assert capfd.readouterr().err == ""
        embedding.get_text_embedding_batch(["fox"])
        captured = capfd.readouterr()
        assert "tokens/s" in captured.err
        assert captured.out == ""


class TestInstrumentation:
    def test_events_and_spans_are_those_of_the_base_class(self, embedding: HuggingFaceBgeEmbedding) -> None:
        assert observed(embedding) == (
            [EmbeddingStartEvent, EmbeddingEndEvent] * 2,
            ["_get_query_embedding", "get_query_embedding", "get_text_embedding_batch"],
        )

    def test_a_callback_manager_sees_what_was_embedded(self, bge_small_en: Path) -> None:
        handler = LlamaDebugHandler(print_trace_on_end=False)
        embedding = HuggingFaceBgeEmbedding(str(bge_small_en), callback_manager=CallbackManager([handler]))
        embedding.get_text_embedding_batch(["fox", "dog"])
        pairs = handler.get_event_pairs(CBEventType.EMBEDDING)
        assert pairs[0][1].payload is not None
        assert pairs[0][1].payload["chunks"] == ["fox", "dog"]

    async def test_a_rate_limiter_is_asked_once_a_call(self, bge_small_en: Path) -> None:
        class Limiter(BaseRateLimiter):
            asked = 0

            def acquire(self, num_tokens: int = 0) -> None:
                self.asked += 1

            async def async_acquire(self, num_tokens: int = 0) -> None:
                self.asked += 1

        limiter = Limiter()
        embedding = HuggingFaceBgeEmbedding(str(bge_small_en), rate_limiter=limiter)
        embedding.get_query_embedding("fox")
        await embedding.aget_query_embedding("fox")
        embedding.get_text_embedding_batch(["fox", "dog"])
        assert limiter.asked == 3


MEMORY = """
import sys, psutil
from bge_integrations.langchain import HuggingFaceBgeEmbeddings
from bge_integrations.llama_index import HuggingFaceBgeEmbedding
first = HuggingFaceBgeEmbeddings(model_name=sys.argv[1])
first.embed_query("warm up")
before = psutil.Process().memory_info().rss
second = HuggingFaceBgeEmbedding(sys.argv[1])
second.get_query_embedding("warm up")
print((psutil.Process().memory_info().rss - before) / 2**20)
"""


def test_both_frameworks_together_take_the_memory_of_one(minilm: str) -> None:
    run = subprocess.run([sys.executable, "-c", MEMORY, minilm], capture_output=True, text=True, check=True)
    weights_mib = (Path(minilm) / "model.safetensors").stat().st_size / 2**20
    assert float(run.stdout) < weights_mib / 4


PIPELINE = """
import sys
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.schema import TextNode
from bge_integrations.llama_index import HuggingFaceBgeEmbedding
if __name__ == "__main__":
    pipeline = IngestionPipeline(transformations=[HuggingFaceBgeEmbedding(sys.argv[1])])
    nodes = pipeline.run(nodes=[TextNode(text=f"fox {i}") for i in range(6)], num_workers=2)
    print(len(nodes), {len(node.embedding) for node in nodes})
"""


class TestUsedForReal:
    @pytest.fixture
    def semantic(self, minilm: str) -> HuggingFaceBgeEmbedding:
        return HuggingFaceBgeEmbedding(minilm)

    @pytest.fixture
    def nodes(self) -> list[TextNode]:
        return [TextNode(text=text, id_=str(uuid.UUID(int=index))) for index, text in enumerate(CORPUS)]

    def test_as_the_settings_model_in_index_and_query_engine(
        self, semantic: HuggingFaceBgeEmbedding, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(Settings, "_embed_model", semantic)
        monkeypatch.setattr(Settings, "_llm", MockLLM())
        index = VectorStoreIndex.from_documents([Document(text=text) for text in CORPUS])
        found = index.as_retriever(similarity_top_k=2).retrieve(QUESTION)
        assert found[0].text == ANSWER
        expected = np.dot(semantic.get_query_embedding(QUESTION), semantic.get_text_embedding(ANSWER))
        assert found[0].score == pytest.approx(float(expected), abs=1e-5)
        response = index.as_query_engine(similarity_top_k=1).query(QUESTION)
        assert response.source_nodes[0].text == ANSWER

    def test_in_a_pipeline_with_a_docstore(self, semantic: HuggingFaceBgeEmbedding) -> None:
        pipeline = IngestionPipeline(
            transformations=[semantic],
            docstore=SimpleDocumentStore(),
            docstore_strategy=DocstoreStrategy.DUPLICATES_ONLY,
        )
        documents = [Document(text=text, doc_id=str(index)) for index, text in enumerate(CORPUS)]
        assert len(pipeline.run(documents=documents)) == len(CORPUS)
        assert pipeline.run(documents=documents) == []
        again = pipeline.run(documents=[*documents, Document(text="new", doc_id="new")])
        assert [node.get_content() for node in again] == ["new"]
        assert again[0].embedding is not None

    def test_in_a_pipeline_with_two_workers(self, bge_small_en: Path, tmp_path: Path) -> None:
        program = tmp_path / "pipeline.py"
        program.write_text(PIPELINE)
        run = subprocess.run(
            [sys.executable, str(program), str(bge_small_en)], capture_output=True, text=True, timeout=300
        )
        assert run.stdout.strip() == "6 {32}", run.stderr

    def test_in_the_semantic_splitter(self, semantic: HuggingFaceBgeEmbedding) -> None:
        text = (
            "Plants turn sunlight into sugar. Photosynthesis happens in leaves. Chlorophyll makes leaves green. "
            "The stock market fell today. Investors sold their shares. Bond prices rose."
        )
        splitter = SemanticSplitterNodeParser(embed_model=semantic, buffer_size=1, breakpoint_percentile_threshold=80)
        parts = [node.get_content() for node in splitter.get_nodes_from_documents([Document(text=text)])]
        assert len(parts) == 2
        assert "green" in parts[0]
        assert "Investors" in parts[1]

    @pytest.mark.filterwarnings("ignore:Payload indexes have no effect in the local Qdrant")
    @pytest.mark.parametrize("kind", ["faiss", "qdrant"])
    def test_in_a_vector_store(self, semantic: HuggingFaceBgeEmbedding, nodes: list[TextNode], kind: str) -> None:
        context = StorageContext.from_defaults(vector_store=_store(kind, semantic.encoder.dimension))
        index = VectorStoreIndex(nodes, storage_context=context, embed_model=semantic)
        assert index.as_retriever(similarity_top_k=1).retrieve(QUESTION)[0].text == ANSWER

    def test_an_index_is_saved_and_loaded(
        self, semantic: HuggingFaceBgeEmbedding, nodes: list[TextNode], tmp_path: Path
    ) -> None:
        index = VectorStoreIndex(nodes, embed_model=semantic)
        index.storage_context.persist(str(tmp_path))
        loaded = load_index_from_storage(
            StorageContext.from_defaults(persist_dir=str(tmp_path)),
            embed_model=HuggingFaceBgeEmbedding.from_dict(semantic.to_dict()),
        )
        assert loaded.as_retriever(similarity_top_k=1).retrieve(QUESTION)[0].text == ANSWER


def _store(kind: str, dimension: int) -> Any:  # noqa: ANN401
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if kind == "faiss":
            import faiss
            from llama_index.vector_stores.faiss import FaissVectorStore

            return FaissVectorStore(faiss_index=faiss.IndexFlatIP(dimension))
        from llama_index.vector_stores.qdrant import QdrantVectorStore
        from qdrant_client import QdrantClient

        return QdrantVectorStore("corpus", client=QdrantClient(":memory:"))
