"""BgeRerank and BgeM3Rerank in LlamaIndex: what their users write, and what they get."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from llama_index.core import VectorStoreIndex
from llama_index.core.callbacks import CallbackManager, CBEventType, EventPayload, LlamaDebugHandler
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
from llama_index.core.llms import MockLLM
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.schema import MetadataMode, NodeWithScore, TextNode
from numpy.typing import NDArray

from bge_integrations import BgeM3Encoder, BgeReranker
from bge_integrations.backend.engines.interface import PendingRows, TokenBatch
from bge_integrations.errors import EngineFailedError, InputTypeError, SettingsError
from bge_integrations.llama_index import BgeM3Rerank, BgeRerank
from tests.checkpoints_of_pairs import make_m3, make_reranker, reference_m3, reference_scores
from tests.llama_index.events import watched
from tests.model_server import wait_until_idle

QUERY = "what is a vector?"
TEXTS = [
    "The quick brown fox jumps over the lazy dog.",
    "Retrieval with dense vectors finds passages.",
    "样例数据 样例文档 向量",
    "Emoji and accents: naïve café",
    "vector store",
]
Rerank = BgeRerank | BgeM3Rerank


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A tiny reranker, which stays loaded."""
    made = make_reranker(tmp_path_factory.mktemp("rerankers") / "bge-reranker-base", positions=128)
    with BgeReranker(made):
        yield made


@pytest.fixture(scope="module")
def m3_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A tiny bge-m3, which stays loaded."""
    made = make_m3(tmp_path_factory.mktemp("m3") / "bge-m3", positions=128)
    with BgeM3Encoder(made):
        yield made


@pytest.fixture(params=["reranker", "m3"])
def either(request: pytest.FixtureRequest, folder: Path, m3_folder: Path) -> Rerank:
    """One of each, for what both do alike."""
    return BgeRerank(folder, top_n=3) if request.param == "reranker" else BgeM3Rerank(m3_folder, top_n=3)


def _nodes() -> list[NodeWithScore]:
    return [
        NodeWithScore(node=TextNode(text=text, id_=str(place), metadata={"page": place}), score=0.5 - place / 10)
        for place, text in enumerate(TEXTS)
    ]


def _read(mode: MetadataMode = MetadataMode.EMBED) -> list[str]:
    """What the model should be given of the nodes."""
    shown = mode in (MetadataMode.EMBED, MetadataMode.ALL)
    return [f"page: {place}\n\n{text}" if shown else text for place, text in enumerate(TEXTS)]


def _expected(folder: Path, passages: list[str], **settings: Any) -> NDArray[np.float32]:  # noqa: ANN401
    return reference_scores(folder, [(QUERY, passage) for passage in passages], **settings)


def _scores(found: list[NodeWithScore]) -> dict[str, float]:
    return {scored.node_id: scored.get_score(raise_error=True) for scored in found}


def _assert_best(found: list[NodeWithScore], expected: NDArray[np.floating[Any]], count: int) -> None:
    order = np.argsort(-expected)[:count]
    assert [scored.node_id for scored in found] == [str(place) for place in order]
    np.testing.assert_allclose(list(_scores(found).values()), expected[order], atol=1e-4)


class TestScores:
    @pytest.mark.parametrize("architecture", ["bert", "xlm-roberta"])
    def test_are_the_models_logits_best_first(self, tmp_path: Path, architecture: Any) -> None:  # noqa: ANN401
        folder = make_reranker(tmp_path / "bge-reranker-mine", architecture, positions=128, seed=3)
        found = BgeRerank(folder, top_n=5).postprocess_nodes(_nodes(), query_str=QUERY)
        _assert_best(found, _expected(folder, _read()), 5)
        assert {type(scored.score) for scored in found} == {float}

    def test_of_m3_compare_token_vectors(self, m3_folder: Path) -> None:
        query, passages = reference_m3(m3_folder, [QUERY], max_length=128), reference_m3(m3_folder, _read())
        expected = np.array([(query.colbert[0] @ rows.T).max(axis=1).mean() for rows in passages.colbert])
        _assert_best(BgeM3Rerank(m3_folder, top_n=5).postprocess_nodes(_nodes(), query_str=QUERY), expected, 5)

    def test_of_m3_can_be_mixed(self, m3_folder: Path) -> None:
        query, passages = reference_m3(m3_folder, [QUERY]), reference_m3(m3_folder, _read())
        dense = passages.dense @ query.dense[0]
        lexical = [
            sum(weight * weights.get(token, 0) for token, weight in query.sparse[0].items())
            for weights in passages.sparse
        ]
        expected = (3 * dense + np.array(lexical)) / 4
        reranker = BgeM3Rerank(m3_folder, top_n=5, weights=(3, 1, 0))
        _assert_best(reranker.postprocess_nodes(_nodes(), query_str=QUERY), expected, 5)

    def test_keep_two_as_the_old_class(self, folder: Path) -> None:
        _assert_best(BgeRerank(folder).postprocess_nodes(_nodes(), query_str=QUERY), _expected(folder, _read()), 2)

    def test_lie_between_0_and_1_if_wanted(self, folder: Path) -> None:
        expected = 1 / (1 + np.exp(-_expected(folder, _read())))
        for settings in ({"normalize": True}, {"cross_encoder_kwargs": {"activation_fn": "torch.nn.Sigmoid"}}):
            found = BgeRerank(folder, **settings).postprocess_nodes(_nodes(), query_str=QUERY)
            _assert_best(found, expected, 2)

    @pytest.mark.parametrize("mode", list(MetadataMode))
    def test_read_the_metadata_that_they_are_told_to(self, folder: Path, mode: MetadataMode) -> None:
        nodes = _nodes()
        for scored in nodes:
            scored.node.excluded_llm_metadata_keys = ["page"]
        found = BgeRerank(folder, top_n=5, metadata_mode=mode).postprocess_nodes(nodes, query_str=QUERY)
        _assert_best(found, _expected(folder, _read(mode)), 5)

    def test_follow_an_instruction_and_a_limit(self, folder: Path) -> None:
        reranker = BgeRerank(folder, top_n=5, query_instruction="query: ", max_length=50, on_truncation="ignore")
        pairs = [(f"query: {QUERY}", passage) for passage in _read()]
        expected = reference_scores(folder, pairs, max_length=50)
        assert np.abs(expected - reference_scores(folder, pairs, max_length=128)).max() > 1e-2  # some are cut
        _assert_best(reranker.postprocess_nodes(_nodes(), query_str=QUERY), expected, 5)

    def test_that_are_equal_keep_the_order(self, either: Rerank) -> None:
        nodes = [NodeWithScore(node=TextNode(text="fox", id_=str(place))) for place in range(20)]
        either.top_n = 20
        assert list(_scores(either.postprocess_nodes(nodes, query_str=QUERY))) == [str(place) for place in range(20)]


class TestNodes:
    def test_that_come_in_are_left_as_they_are(self, either: Rerank) -> None:
        nodes = _nodes()
        before = [scored.to_json() for scored in nodes]
        either.keep_retrieval_score = True
        either.postprocess_nodes(nodes, query_str=QUERY)
        assert [scored.to_json() for scored in nodes] == before

    def test_that_come_out_can_be_written_as_json(self, either: Rerank) -> None:
        either.keep_retrieval_score = True
        for scored in either.postprocess_nodes(_nodes(), query_str=QUERY):
            assert json.loads(scored.to_json())["score"] == scored.score

    def test_keep_the_retrieval_score_where_no_text_shows_it(self, either: Rerank) -> None:
        given = _scores(_nodes())
        either.keep_retrieval_score = True
        once = either.postprocess_nodes(_nodes(), query_str=QUERY)
        assert {scored.node_id: scored.metadata["retrieval_score"] for scored in once} == {
            scored.node_id: given[scored.node_id] for scored in once
        }
        for mode in (MetadataMode.EMBED, MetadataMode.LLM):
            assert all("retrieval" not in scored.get_content(mode) for scored in once)
        twice = either.postprocess_nodes(once, query_str=QUERY)
        assert _scores(twice) == pytest.approx(_scores(once), abs=1e-5)
        assert [scored.metadata["retrieval_score"] for scored in twice] == list(_scores(once).values())

    def test_without_a_score_are_taken(self, either: Rerank) -> None:
        either.keep_retrieval_score = True
        found = either.postprocess_nodes([NodeWithScore(node=TextNode(text="fox"))], query_str=QUERY)
        assert found[0].metadata == {"retrieval_score": None}

    def test_that_are_none_give_none(self, either: Rerank) -> None:
        assert either.postprocess_nodes([], query_str=QUERY) == []
        assert asyncio.run(either.apostprocess_nodes([], query_str=QUERY)) == []

    def test_without_a_query_are_refused(self, either: Rerank) -> None:
        for nodes in (_nodes(), []):
            with pytest.raises(InputTypeError, match="There is no query to score nodes for"):
                either.postprocess_nodes(nodes)
        with pytest.raises(InputTypeError, match="There is no query to score nodes for"):
            asyncio.run(either.apostprocess_nodes(_nodes()))


class TestAsync:
    async def test_can_be_cancelled(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        reranker = BgeRerank(folder, top_n=2, batch_tokens=1)
        engine = reranker.reranker.backend.engine
        submit, release = engine.submit, threading.Event()
        submitted: list[TokenBatch] = []

        def held(batch: TokenBatch) -> PendingRows:
            submitted.append(batch)
            assert release.wait(30)
            return submit(batch)

        monkeypatch.setattr(engine, "submit", held)
        nodes = [NodeWithScore(node=TextNode(text=f"fox {place}")) for place in range(50)]
        with watched() as (events, _):
            task = asyncio.create_task(reranker.apostprocess_nodes(nodes, query_str=QUERY))
            while not submitted:
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        wait_until_idle(reranker.reranker.backend.scheduler)
        release.set()
        found = await reranker.apostprocess_nodes(_nodes(), query_str=QUERY)
        _assert_best(found, _expected(folder, _read()), 2)
        assert len(submitted) < 50  # of 55: what was still queued was given up
        assert [type(event) for event in events] == [ReRankStartEvent]


class TestSettings:
    def test_of_the_old_class_are_taken(self, folder: Path, tmp_path: Path) -> None:
        reranker = BgeRerank(
            model=str(folder),
            device="cpu",
            cache_folder=tmp_path,
            top_n=4,
            keep_retrieval_score=True,
            cross_encoder_kwargs={"max_length": 50, "model_kwargs": {"torch_dtype": "bfloat16"}, "num_labels": 1},
        )
        assert (reranker.model_name, reranker.cache_folder, reranker.top_n) == (str(folder), str(tmp_path), 4)
        settings = reranker.reranker.settings
        assert (settings.max_length, settings.precision, settings.device) == (50, "bfloat16", "cpu")

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"model": "other"}, "model='other' is another name of model_name, which is given too"),
            ({"cross_encoder_kwargs": {"model": "x"}}, r"the arguments\['model'\] is unknown"),
            (
                {"cross_encoder_kwargs": {"num_labels": 3}},
                r"\['num_labels'\]=3 is not supported: a reranker gives one",
            ),
            ({"cross_encoder_kwargs": {"prompts": {}}}, r"\['prompts'\] is not supported: give the text before each"),
            (
                {"max_length": 40, "cross_encoder_kwargs": {"max_length": 50}},
                "max_length=40, but the arguments says 50",
            ),
            ({"cutoff_layers": 3}, "cutoff_layers=.* is given, but .* takes none"),
            ({"prompt": "?"}, "prompt='.' is given, but .* takes none"),
        ],
        ids=str,
    )
    def test_that_cant_be_honoured_are_refused(self, folder: Path, given: dict[str, Any], message: str) -> None:
        with pytest.raises(SettingsError, match=message):
            BgeRerank(folder, **given)


class TestInstrumentation:
    def test_tells_handlers_what_goes_in_and_comes_out(self, either: Rerank) -> None:
        nodes = _nodes()
        with watched() as (events, spans):
            found = either.postprocess_nodes(nodes, query_str=QUERY)
        start, end = events
        assert isinstance(start, ReRankStartEvent)
        assert isinstance(end, ReRankEndEvent)
        assert (start.top_n, start.model_name, len(start.nodes)) == (3, either.model_name, 5)
        assert start.query is not None
        assert "vector" in str(start.query)
        assert end.nodes == found
        # And nothing of how it is done.
        assert [span.id_.split("-")[0].split(".")[-1] for span in spans] == ["_postprocess_nodes"]

    async def test_does_so_when_awaited(self, either: Rerank) -> None:
        with watched() as (events, _):
            found = await either.apostprocess_nodes(_nodes(), query_str=QUERY)
        assert [type(event) for event in events] == [ReRankStartEvent, ReRankEndEvent]
        assert isinstance(events[1], ReRankEndEvent)
        assert events[1].nodes == found

    def test_a_callback_manager_sees_the_reranking(self, either: Rerank) -> None:
        handler = LlamaDebugHandler(print_trace_on_end=False)
        either.callback_manager = CallbackManager([handler])
        found = either.postprocess_nodes(_nodes(), query_str=QUERY)
        ((start, end),) = handler.get_event_pairs(CBEventType.RERANKING)
        assert start.payload is not None
        assert end.payload is not None
        assert start.payload[EventPayload.QUERY_STR] == QUERY
        assert start.payload[EventPayload.TOP_K] == 3
        assert start.payload[EventPayload.MODEL_NAME] == either.model_name
        assert len(start.payload[EventPayload.NODES]) == 5
        assert end.payload[EventPayload.NODES] == found

    def test_a_failure_is_told(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        handler = LlamaDebugHandler(print_trace_on_end=False)
        reranker = BgeRerank(folder, callback_manager=CallbackManager([handler]))

        def failing(batch: object) -> object:
            raise RuntimeError("engine trouble")

        monkeypatch.setattr(reranker.reranker.backend.engine, "submit", failing)
        with watched() as (events, _), pytest.raises(EngineFailedError, match="engine trouble"):
            reranker.postprocess_nodes(_nodes(), query_str=QUERY)
        ((_, end),) = handler.get_event_pairs(CBEventType.RERANKING)
        assert end.payload is not None
        assert isinstance(end.payload[EventPayload.EXCEPTION], EngineFailedError)
        assert isinstance(events[0], ReRankStartEvent)
        assert not any(isinstance(event, ReRankEndEvent) for event in events)


class TestInAQueryEngine:
    @pytest.fixture
    def engine(self, either: Rerank) -> RetrieverQueryEngine:
        index = VectorStoreIndex([scored.node for scored in _nodes()], embed_model=MockEmbedding(embed_dim=4))
        retriever = index.as_retriever(similarity_top_k=5)
        return RetrieverQueryEngine.from_args(retriever, llm=MockLLM(), node_postprocessors=[either])

    def test_puts_the_sources_in_order(self, engine: RetrieverQueryEngine, either: Rerank) -> None:
        expected = _scores(either.postprocess_nodes(_nodes(), query_str=QUERY))
        found = _scores(engine.query(QUERY).source_nodes)
        assert list(found) == list(expected)
        assert found == pytest.approx(expected, abs=1e-5)

    async def test_does_so_when_awaited(self, engine: RetrieverQueryEngine, either: Rerank) -> None:
        expected = _scores(either.postprocess_nodes(_nodes(), query_str=QUERY))
        assert list(_scores((await engine.aquery(QUERY)).source_nodes)) == list(expected)


def test_types_of_torch_under_former_names_are_saved(bge_reranker_base: Path) -> None:
    rerank = BgeRerank(
        str(bge_reranker_base), cross_encoder_kwargs={"automodel_args": {"torch_dtype": torch.float32}}, device="cpu"
    )
    assert BgeRerank.from_json(rerank.to_json()).cross_encoder_kwargs == {"model_kwargs": {"torch_dtype": "float32"}}
