"""What the frameworks' own handlers see of calls that go through the queue: each its own, whatever runs beside it."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.documents import Document
from langchain_core.vectorstores import InMemoryVectorStore, VectorStoreRetriever
from llama_index.core.callbacks import CallbackManager, CBEventType, LlamaDebugHandler, TokenCountingHandler
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events import BaseEvent
from llama_index.core.instrumentation.events.embedding import EmbeddingEndEvent, EmbeddingStartEvent
from llama_index_instrumentation import get_dispatcher

from bge_integrations import BgeEncoder
from bge_integrations.backend.engines.interface import TokenBatch
from bge_integrations.errors import EngineFailedError, InputValueError
from bge_integrations.langchain import HuggingFaceBgeEmbeddings
from bge_integrations.llama_index import HuggingFaceBgeEmbedding
from tests.adapters import CORPUS, QUESTION
from tests.conftest import MakeCheckpoint


class TestLlamaIndex:
    @pytest.fixture
    def counter(self, bge_small_en: Path) -> TokenCountingHandler:
        return TokenCountingHandler(tokenizer=BgeEncoder(bge_small_en, device="cpu").chunk_tokens)

    @pytest.fixture
    def events(self) -> LlamaDebugHandler:
        return LlamaDebugHandler(print_trace_on_end=False)

    @pytest.fixture
    def embedding(
        self, bge_small_en: Path, counter: TokenCountingHandler, events: LlamaDebugHandler
    ) -> HuggingFaceBgeEmbedding:
        manager = CallbackManager([counter, events])
        return HuggingFaceBgeEmbedding(str(bge_small_en), device="cpu", callback_manager=manager, embed_batch_size=2)

    @staticmethod
    def _embedded(events: LlamaDebugHandler) -> Counter[str]:
        """The texts of all events, each of which has to end with as many vectors as it has texts."""
        seen: Counter[str] = Counter()
        for _, end in events.get_event_pairs(CBEventType.EMBEDDING):
            assert end.payload is not None
            assert len(end.payload["chunks"]) == len(end.payload["embeddings"])
            seen.update(end.payload["chunks"])
        return seen

    def test_tokens_and_texts_of_calls_that_wait(
        self, embedding: HuggingFaceBgeEmbedding, counter: TokenCountingHandler, events: LlamaDebugHandler
    ) -> None:
        embedding.get_query_embedding(QUESTION)
        embedding.get_text_embedding(CORPUS[0])
        embedding.get_text_embedding_batch(CORPUS)
        texts = [QUESTION, CORPUS[0], *CORPUS]
        # Instruction and special tokens are the model's own affair: a handler counts the texts that it is told.
        assert counter.total_embedding_token_count == sum(map(embedding.encoder.chunk_length, texts))
        assert self._embedded(events) == Counter(texts)
        assert len(events.get_event_pairs(CBEventType.EMBEDDING)) == 2 + 3

    async def test_tokens_and_texts_of_many_that_are_awaited_at_once(
        self, embedding: HuggingFaceBgeEmbedding, counter: TokenCountingHandler, events: LlamaDebugHandler
    ) -> None:
        await asyncio.gather(
            *(embedding.aget_query_embedding(f"{QUESTION} {number}") for number in range(20)),
            *(embedding.aget_text_embedding(f"{text} {number}") for number in range(4) for text in CORPUS),
            embedding.aget_text_embedding_batch(CORPUS),
        )
        texts = [
            *(f"{QUESTION} {number}" for number in range(20)),
            *(f"{text} {number}" for number in range(4) for text in CORPUS),
            *CORPUS,
        ]
        assert self._embedded(events) == Counter(texts)
        assert counter.total_embedding_token_count == sum(map(embedding.encoder.chunk_length, texts))

    async def test_events_of_the_instrumentation_come_in_pairs(self, embedding: HuggingFaceBgeEmbedding) -> None:
        class Seen(BaseEventHandler):
            events: list[BaseEvent] = []  # noqa: RUF012 - a pydantic field

            def handle(self, event: BaseEvent, **_: Any) -> None:  # noqa: ANN401
                self.events.append(event)

        root, seen = get_dispatcher(), Seen(events=[])
        root.add_event_handler(seen)
        try:
            await asyncio.gather(*(embedding.aget_query_embedding(text) for text in CORPUS))
            await embedding.aget_text_embedding_batch(CORPUS)
            embedding.get_text_embedding_batch(CORPUS)
        finally:
            root.event_handlers.remove(seen)
        started = [event for event in seen.events if isinstance(event, EmbeddingStartEvent)]
        ended = [event for event in seen.events if isinstance(event, EmbeddingEndEvent)]
        assert len(started) == len(ended) == 5 + 3 + 3
        assert Counter(text for event in ended for text in event.chunks) == Counter(CORPUS * 3)
        assert all(len(event.chunks) == len(event.embeddings) for event in ended)


class _Runs(BaseCallbackHandler):
    """Notes what a retriever tells."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.found: list[str] = []
        self.errors: list[BaseException] = []

    def on_retriever_start(self, serialized: Any, query: str, **_: Any) -> None:  # noqa: ANN401
        self.started.append(query)

    def on_retriever_end(self, documents: Any, **_: Any) -> None:  # noqa: ANN401
        self.found += [document.page_content for document in documents]

    def on_retriever_error(self, error: BaseException, **_: Any) -> None:  # noqa: ANN401
        self.errors.append(error)


class TestLangChain:
    @pytest.fixture
    def embeddings(self, make: MakeCheckpoint) -> HuggingFaceBgeEmbeddings:
        return HuggingFaceBgeEmbeddings(model_name=str(make("bge-small-en")), device="cpu")

    @pytest.fixture
    def retriever(self, embeddings: HuggingFaceBgeEmbeddings) -> VectorStoreRetriever:
        store = InMemoryVectorStore.from_documents([Document(text) for text in CORPUS], embeddings)
        return store.as_retriever(search_kwargs={"k": 1})

    def test_a_retriever_tells_of_its_runs(self, retriever: VectorStoreRetriever) -> None:
        runs = _Runs()
        found = retriever.invoke(QUESTION, config={"callbacks": [runs]})
        assert runs.started == [QUESTION]
        assert runs.found == [found[0].page_content]
        assert runs.errors == []

    async def test_each_of_many_awaited_runs_is_told_of(self, retriever: VectorStoreRetriever) -> None:
        queries, runs = [f"{QUESTION} {number}" for number in range(20)], [_Runs() for _ in range(20)]
        found = await asyncio.gather(
            *(retriever.ainvoke(query, config={"callbacks": [own]}) for query, own in zip(queries, runs, strict=True))
        )
        assert [own.started for own in runs] == [[query] for query in queries]
        assert [own.found for own in runs] == [[documents[0].page_content] for documents in found]

    async def test_our_errors_reach_the_handlers(
        self,
        embeddings: HuggingFaceBgeEmbeddings,
        retriever: VectorStoreRetriever,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        def failing(_: TokenBatch) -> Any:  # noqa: ANN401
            raise ValueError("engine trouble")

        monkeypatch.setattr(embeddings.encoder.backend.engine, "submit", failing)
        runs = _Runs()
        with pytest.raises(EngineFailedError):
            retriever.invoke(QUESTION, config={"callbacks": [runs]})
        with pytest.raises(EngineFailedError):
            await retriever.ainvoke(QUESTION, config={"callbacks": [runs]})
        with pytest.raises(InputValueError):
            await retriever.ainvoke("\ud83d", config={"callbacks": [runs]})
        assert list(map(type, runs.errors)) == [EngineFailedError, EngineFailedError, InputValueError]
        assert runs.found == []
