"""BgeReranker and BgeM3Reranker in LangChain: scores, order, settings."""

from __future__ import annotations

import asyncio
import copy
import json
import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from langchain_classic.retrievers import ContextualCompressionRetriever
from langchain_classic.retrievers.document_compressors import CrossEncoderReranker, DocumentCompressorPipeline
from langchain_core.cross_encoders import BaseCrossEncoder
from langchain_core.documents import BaseDocumentCompressor, Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.vectorstores import InMemoryVectorStore
from pydantic import ValidationError
from sentence_transformers import CrossEncoder

from bge_integrations.adapters.cross_encoder_keywords import CROSS_ENCODER_KEYS
from bge_integrations.backend.engines.interface import TokenBatch
from bge_integrations.errors import InputTypeError, SettingsError, TruncationWarning, UnsupportedModelError
from bge_integrations.langchain import BgeM3Reranker, BgeReranker
from bge_integrations.langchain.compressor import ScoringCompressor
from tests.adapters import CORPUS
from tests.checkpoints_of_pairs import make_m3, make_reranker, reference_m3, reference_scores
from tests.model_server import wait_until_idle

QUERY = "how do plants make their food?"
DOCUMENTS = [Document(text, id=str(place), metadata={"at": [place]}) for place, text in enumerate(CORPUS)]
PAIRS = [(QUERY, text) for text in CORPUS]
SECRET = "hf_secret"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_reranker(tmp_path_factory.mktemp("reranker") / "bge-reranker-base", positions=128)


@pytest.fixture(scope="module")
def logits(folder: Path) -> list[float]:
    return list(reference_scores(folder, PAIRS, max_length=128).tolist())


@pytest.fixture(scope="module")
def m3_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_m3(tmp_path_factory.mktemp("m3") / "bge-m3", positions=128)


@pytest.fixture(scope="module")
def colbert(m3_folder: Path) -> list[float]:
    query, *passages = reference_m3(m3_folder, [QUERY, *CORPUS], max_length=128).colbert
    return [float((query @ passage.T).max(axis=1).mean()) for passage in passages]


@pytest.fixture(scope="module")
def reranker(folder: Path) -> BgeReranker:
    return BgeReranker(model_name=str(folder))


def scores_of(documents: Any) -> list[float]:  # noqa: ANN401 - whatever sequence a compressor returns
    return [document.metadata["relevance_score"] for document in documents]


def assert_best(found: Any, expected: list[float], count: int = len(CORPUS)) -> None:  # noqa: ANN401 - as above
    """The documents that score best by `expected`, best first; those with almost equal scores in any order."""
    np.testing.assert_allclose(
        [expected[int(document.id)] for document in found], sorted(expected, reverse=True)[:count], atol=2e-4
    )
    assert len({document.id for document in found}) == len(found)


def assert_best_with_scores(found: Any, expected: list[float], count: int = len(CORPUS)) -> None:  # noqa: ANN401
    assert_best(found, expected, count)
    np.testing.assert_allclose(scores_of(found), [expected[int(document.id)] for document in found], atol=1e-4)
    assert scores_of(found) == sorted(scores_of(found), reverse=True)


class TestCompressing:
    def test_orders_documents_by_the_models_logits(self, reranker: BgeReranker, logits: list[float]) -> None:
        assert_best_with_scores(reranker.compress_documents(DOCUMENTS, QUERY), logits)

    def test_gives_copies_that_can_be_written_as_json(self, reranker: BgeReranker) -> None:
        before = copy.deepcopy(DOCUMENTS)
        found = reranker.compress_documents(DOCUMENTS, QUERY)
        assert {type(score) for score in scores_of(found)} == {float}
        assert json.loads(json.dumps([document.metadata for document in found]))[0].keys() == {"at", "relevance_score"}
        for document in found:
            document.metadata["at"].append("mine")
        assert before == DOCUMENTS

    @pytest.mark.parametrize("top_n", [1, 3, 5, 100])
    def test_top_n_keeps_the_best(self, folder: Path, logits: list[float], top_n: int) -> None:
        found = BgeReranker(model_name=str(folder), top_n=top_n).compress_documents(DOCUMENTS, QUERY)
        assert_best_with_scores(found, logits, top_n)

    def test_a_threshold_leaves_out_what_scores_lower(self, folder: Path, logits: list[float]) -> None:
        high_to_low = sorted(logits, reverse=True)
        kept = int(np.argmin(np.diff(high_to_low))) + 1  # above the widest gap
        between = (high_to_low[kept - 1] + high_to_low[kept]) / 2
        found = BgeReranker(model_name=str(folder), score_threshold=between).compress_documents(DOCUMENTS, QUERY)
        assert_best_with_scores(found, logits, kept)
        assert len(found) == kept

    def test_a_score_equal_to_the_threshold_is_kept(self, folder: Path, reranker: BgeReranker) -> None:
        second = scores_of(reranker.compress_documents(DOCUMENTS, QUERY))[1]
        limited = BgeReranker(model_name=str(folder), score_threshold=second, top_n=3)
        assert len(limited.compress_documents(DOCUMENTS, QUERY)) == 2

    def test_equal_scores_keep_their_order(self, reranker: BgeReranker) -> None:
        same = [Document("fox", id=str(place)) for place in range(20)]
        assert [document.id for document in reranker.compress_documents(same, QUERY)] == [d.id for d in same]

    def test_no_documents_need_no_model(self, reranker: BgeReranker) -> None:
        asleep = pickle.loads(pickle.dumps(reranker))
        assert asleep.compress_documents([], QUERY) == asyncio.run(asleep.acompress_documents([], QUERY)) == []
        assert asleep._made is None

    def test_normalize_puts_scores_through_the_sigmoid(self, folder: Path, logits: list[float]) -> None:
        found = BgeReranker(model_name=str(folder), normalize=True).compress_documents(DOCUMENTS, QUERY)
        expected = 1 / (1 + np.exp(-np.sort(logits)[::-1]))
        np.testing.assert_allclose(scores_of(found), expected, atol=1e-5)

    def test_a_cut_passage_is_reported(self, folder: Path) -> None:
        long = Document("fox " * 300)
        with pytest.warns(TruncationWarning, match="1 of 1 pairs"):
            (found,) = BgeReranker(model_name=str(folder)).compress_documents([long], QUERY)
        expected = reference_scores(folder, [(QUERY, long.page_content)], max_length=128)
        assert found.metadata["relevance_score"] == pytest.approx(expected[0], abs=1e-4)


class TestScoring:
    def test_scores_are_python_floats(self, reranker: BgeReranker, logits: list[float]) -> None:
        scores = reranker.score(PAIRS)
        assert {type(score) for score in scores} == {float}
        np.testing.assert_allclose(scores, logits, atol=1e-4)
        assert reranker.score([]) == []

    def test_a_bert_reranker_works_as_well(self, tmp_path: Path) -> None:
        folder = make_reranker(tmp_path / "mine", "bert", positions=128)
        expected = reference_scores(folder, PAIRS, max_length=128)
        np.testing.assert_allclose(BgeReranker(model_name=str(folder)).score(PAIRS), expected, atol=1e-4)

    def test_sentence_transformers_gives_the_sigmoid_of_it(self, reranker: BgeReranker, folder: Path) -> None:
        theirs = CrossEncoder(str(folder), device="cpu").predict(PAIRS)
        np.testing.assert_allclose(1 / (1 + np.exp(-np.array(reranker.score(PAIRS)))), theirs, atol=1e-5)


class TestUsedForReal:
    @pytest.fixture
    def store(self) -> InMemoryVectorStore:
        return InMemoryVectorStore.from_documents(DOCUMENTS, DeterministicFakeEmbedding(size=8))

    def test_is_both_of_langchains_interfaces(self, reranker: BgeReranker) -> None:
        assert isinstance(reranker, BaseDocumentCompressor)
        assert isinstance(reranker, BaseCrossEncoder)

    def test_in_a_contextual_compression_retriever(
        self, folder: Path, store: InMemoryVectorStore, logits: list[float]
    ) -> None:
        retriever = ContextualCompressionRetriever(
            base_compressor=BgeReranker(model_name=str(folder), top_n=2),
            base_retriever=store.as_retriever(search_kwargs={"k": len(CORPUS)}),
        )
        assert_best_with_scores(retriever.invoke(QUERY), logits, 2)
        assert_best_with_scores(asyncio.run(retriever.ainvoke(QUERY)), logits, 2)
        assert all("relevance_score" not in entry["metadata"] for entry in store.store.values())

    def test_as_the_model_of_a_cross_encoder_reranker(
        self, reranker: BgeReranker, store: InMemoryVectorStore, logits: list[float]
    ) -> None:
        retriever = ContextualCompressionRetriever(
            base_compressor=CrossEncoderReranker(model=reranker, top_n=2),
            base_retriever=store.as_retriever(search_kwargs={"k": len(CORPUS)}),
        )
        assert_best(retriever.invoke(QUERY), logits, 2)

    def test_in_a_pipeline_of_compressors(self, folder: Path, logits: list[float]) -> None:
        pipeline = DocumentCompressorPipeline(
            transformers=[BgeReranker(model_name=str(folder), top_n=3), BgeReranker(model_name=str(folder), top_n=1)]
        )
        assert_best_with_scores(pipeline.compress_documents(DOCUMENTS, QUERY), logits, 1)


class TestAsync:
    @pytest.mark.parametrize(("kind", "make", "held"), [(BgeReranker, make_reranker, 1), (BgeM3Reranker, make_m3, 2)])
    async def test_cancelled_it_gives_up_what_is_queued(
        self,
        tmp_path: Path,
        kind: type[ScoringCompressor],
        make: Callable[[Path], Path],
        held: int,  # the batch that waits; before it, bge-m3 encodes the query
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        reranker = kind(model_name=str(make(tmp_path / "mine")), device="cpu", batch_tokens=64)
        assert isinstance(reranker, (BgeReranker, BgeM3Reranker))
        backend = (reranker.reranker if isinstance(reranker, BgeReranker) else reranker.encoder).backend
        engine = backend.engine
        submit, entered, go, batches = engine.submit, threading.Event(), threading.Event(), 0

        def slow(batch: TokenBatch) -> Any:  # noqa: ANN401 - whatever the engine returns
            nonlocal batches
            batches += 1
            if batches == held:
                entered.set()
                assert go.wait(30)
            return submit(batch)

        monkeypatch.setattr(engine, "submit", slow)
        many = [Document(f"fox {place}") for place in range(200)]
        task = asyncio.create_task(reranker.acompress_documents(many, "fox"))
        assert await asyncio.to_thread(entered.wait, 30)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        wait_until_idle(backend.scheduler)
        go.set()
        assert len(await reranker.acompress_documents(many[:1], "dog")) == 1
        assert batches == 2 * held


class TestM3:
    def test_compares_tokens(self, m3_folder: Path, colbert: list[float]) -> None:
        reranker = BgeM3Reranker(model_name=str(m3_folder), top_n=3)
        found = reranker.compress_documents(DOCUMENTS, QUERY)
        assert_best_with_scores(found, colbert, 3)
        assert {type(score) for score in scores_of(found)} == {float}
        assert scores_of(asyncio.run(reranker.acompress_documents(DOCUMENTS, QUERY))) == scores_of(found)

    def test_weighs_the_three_scores(self, m3_folder: Path, colbert: list[float]) -> None:
        reference = reference_m3(m3_folder, [QUERY, *CORPUS], max_length=128)
        dense = reference.dense[1:] @ reference.dense[0]
        query, *passages = reference.sparse
        lexical = [sum(weight * passage.get(token, 0) for token, weight in query.items()) for passage in passages]
        expected = (1 * dense + 2 * np.array(lexical) + 5 * np.array(colbert)) / 8
        assert BgeM3Reranker(model_name=str(m3_folder), weights=(1, 2, 5)).score(PAIRS) == pytest.approx(
            expected.tolist(), abs=1e-5
        )

    async def test_async_scores_of_several_queries_are_in_their_order(self, m3_folder: Path) -> None:
        reranker = BgeM3Reranker(model_name=str(m3_folder))
        pairs = [(query, text) for text in CORPUS for query in (QUERY, "fox", "fox and dog")]
        scores = await reranker.ascore(pairs)
        assert {type(score) for score in scores} == {float}
        assert scores == pytest.approx(reranker.score(pairs), abs=1e-6)
        assert len(set(scores)) == len(pairs)
        with pytest.raises(InputTypeError, match="Pair 1"):
            await reranker.ascore([("fox", "dog"), "fox"])  # type: ignore[list-item]

    def test_in_a_contextual_compression_retriever(self, m3_folder: Path, colbert: list[float]) -> None:
        store = InMemoryVectorStore.from_documents(DOCUMENTS, DeterministicFakeEmbedding(size=8))
        retriever = ContextualCompressionRetriever(
            base_compressor=BgeM3Reranker(model_name=str(m3_folder), top_n=1),
            base_retriever=store.as_retriever(search_kwargs={"k": len(CORPUS)}),
        )
        assert_best_with_scores(retriever.invoke(QUERY), colbert, 1)

    def test_keys_that_belong_to_dense_vectors_are_refused(self, m3_folder: Path) -> None:
        with pytest.raises(ValidationError, match=r"model_kwargs\['truncate_dim'\] is not supported: it belongs"):
            BgeM3Reranker(model_name=str(m3_folder), model_kwargs={"truncate_dim": 8})


class TestSettings:
    @pytest.mark.parametrize(
        ("name", "value"),
        [("prompt", "is it so?"), ("cutoff_layers", 8), ("compress_ratio", 2), ("compress_layers", [4, 8])],
    )
    def test_what_only_decoders_take_reaches_the_model_and_travels(
        self,
        reranker: BgeReranker,
        name: str,
        value: Any,  # noqa: ANN401 - the fields' own types
    ) -> None:
        changed = reranker.model_copy(update={name: value})
        with pytest.raises(SettingsError, match=f"{name}=.* is given, but .*bge-reranker-base takes none"):
            changed.score(PAIRS)
        assert json.loads(changed.model_dump_json())[name] == value

    def test_the_query_instruction_goes_before_the_query(self, folder: Path) -> None:
        reranker = BgeReranker(model_name=str(folder), query_instruction="find: ")
        expected = reference_scores(folder, [("find: " + query, text) for query, text in PAIRS], max_length=128)
        np.testing.assert_allclose(reranker.score(PAIRS), expected, atol=1e-4)

    def test_what_is_changed_later_counts(self, folder: Path) -> None:
        reranker = BgeReranker(model_name=str(folder))
        first = reranker.reranker
        reranker.top_n = 1
        assert len(reranker.compress_documents(DOCUMENTS, QUERY)) == 1
        assert reranker.reranker is first
        reranker.normalize = True
        assert 0 < reranker.score(PAIRS)[0] < 1
        assert reranker.reranker.backend is first.backend
        for name, value in (("top_n", 0), ("max_length", -1)):
            changed = reranker.model_copy(update={name: value})
            with pytest.raises(SettingsError, match=f"{name}={value}"):
                changed.compress_documents(DOCUMENTS, QUERY)

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"cutoff_layers": [1, 2]}, "name one"),
            ({"max_length": 9, "model_kwargs": {"max_length": 10}}, "max_length=9, but model_kwargs says 10"),
            ({"normalize": True, "model_kwargs": {"activation_fn": "Identity"}}, "normalize=True, but model_kwargs"),
        ],
        ids=str,
    )
    def test_bad_ones_are_refused(self, folder: Path, settings: dict[str, Any], message: str) -> None:
        with pytest.raises(ValidationError, match=message):
            BgeReranker(model_name=str(folder), **settings)

    def test_an_embedding_model_is_no_reranker(self, bge_small_en: Path) -> None:
        with pytest.raises(UnsupportedModelError, match="reranker"):
            BgeReranker(model_name=str(bge_small_en))


class TestModelKwargs:
    """What langchain-community's HuggingFaceCrossEncoder hands on to sentence-transformers."""

    HONOURED: ClassVar[dict[str, tuple[Any, Callable[[BgeReranker], Any], Any]]] = {
        "activation_fn": (torch.nn.Sigmoid(), lambda r: r.reranker.settings.normalize, True),
        "attn_implementation": ("eager", lambda r: r.client.model.config._attn_implementation, "eager"),
        "backend": ("openvino", lambda r: r.reranker.backend.engine.name, "openvino"),
        "cache_folder": ("somewhere", lambda r: r.reranker.settings.cache_folder, "somewhere"),
        "config_kwargs": ({"layer_norm_eps": 0.5}, lambda r: r.client.model.config.layer_norm_eps, 0.5),
        "device": ("cpu", lambda r: r.reranker.backend.device, "cpu"),
        "dtype": ("bfloat16", lambda r: r.reranker.settings.precision, "bfloat16"),
        "local_files_only": (True, lambda r: r.reranker.settings.local_files_only, True),
        "max_length": (40, lambda r: r.reranker.max_length, 40),
        "model_kwargs": ({"dtype": torch.bfloat16}, lambda r: r.reranker.settings.precision, "bfloat16"),
        "num_labels": (1, lambda r: len(r.score(PAIRS)), len(PAIRS)),
        "processor_kwargs": ({"truncation_side": "left"}, lambda r: r.client.tokenizer.truncation_side, "left"),
        "revision": ("v2", lambda r: r.reranker.settings.revision, "v2"),
        "token": (SECRET, lambda r: r.reranker.settings.token, SECRET),
        "tokenizer_kwargs": ({"truncation_side": "left"}, lambda r: r.client.tokenizer.truncation_side, "left"),
        "torch_dtype": (torch.float32, lambda r: r.reranker.settings.precision, "float32"),
        "trust_remote_code": (True, lambda r: r.reranker.settings.trust_remote_code, True),
        "use_auth_token": (SECRET, lambda r: r.reranker.settings.token, SECRET),
    }
    FORMER: ClassVar[dict[str, tuple[Any, Callable[[BgeReranker], Any], Any]]] = {
        "automodel_args": ({"torch_dtype": torch.bfloat16}, lambda r: r.reranker.settings.precision, "bfloat16"),
        "cache_dir": ("somewhere", lambda r: r.reranker.settings.cache_folder, "somewhere"),
        "config_args": ({"layer_norm_eps": 0.5}, lambda r: r.client.model.config.layer_norm_eps, 0.5),
        "default_activation_function": (torch.sigmoid, lambda r: r.reranker.settings.normalize, True),
        "tokenizer_args": ({"truncation_side": "left"}, lambda r: r.client.tokenizer.truncation_side, "left"),
    }

    def test_no_key_is_left_out(self) -> None:
        assert set(self.HONOURED) == set(CROSS_ENCODER_KEYS)

    @pytest.mark.parametrize("key", [*HONOURED, *FORMER])
    def test_is_honoured_as_it_was_given_and_as_it_was_saved(self, folder: Path, key: str) -> None:
        value, read, expected = {**self.HONOURED, **self.FORMER}[key]
        given = {key: value}
        reranker = BgeReranker(model_name=str(folder), model_kwargs=given)
        assert read(reranker) == expected
        assert given == {key: value}
        if expected != SECRET:
            assert read(BgeReranker.model_validate_json(reranker.model_dump_json())) == expected

    def test_a_key_put_in_later_counts(self, folder: Path) -> None:
        reranker = BgeReranker(model_name=str(folder))
        reranker.model_kwargs["default_activation_function"] = torch.nn.Sigmoid()
        assert 0 < reranker.score(PAIRS)[0] < 1

    @pytest.mark.parametrize(
        ("kwargs", "message"),
        [
            ({"modules": []}, r"model_kwargs\['modules'\] is not supported: give the folder"),
            ({"prompts": {"query": "q"}}, "give the text before each query as query_instruction"),
            ({"truncate_dim": 8}, "it belongs to dense vectors"),
            ({"keep_in_fp32_modules": ["x"]}, "choose with precision"),
            ({"classifier_dropout": 0.1}, "only matters for training"),
            ({"num_labels": 2}, "a reranker gives one score"),
            ({"activation_fn": torch.nn.Tanh()}, "Tanh.* is not supported: scores are logits"),
            ({"cache_dir": "a", "cache_folder": "b"}, "the former name of cache_folder, which is given too"),
            ({"device_map": "auto"}, "unknown"),
            ({"model_kwargs": {"device_map": "auto"}}, "choose with device"),
        ],
        ids=str,
    )
    def test_is_refused_with_a_reason(self, folder: Path, kwargs: dict[str, Any], message: str) -> None:
        with pytest.raises(ValidationError, match=message):
            BgeReranker(model_name=str(folder), model_kwargs=kwargs)
