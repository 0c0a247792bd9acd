"""bge-m3: its three outputs as plain transformers gives them, and the scores made of them."""

from __future__ import annotations

import copy
import gc
import pickle
import subprocess
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bge_integrations import BgeEncoder, BgeM3Encoder, M3Output, M3Weights, TruncationWarning
from bge_integrations.backend.engines.interface import TokenBatch
from bge_integrations.backend.model.heads import m3_rows
from bge_integrations.errors import (
    InputTypeError,
    ModelLoadError,
    NonFiniteOutputError,
    SettingsError,
    TruncationError,
    UnsafeWeightsError,
    UnsupportedModelError,
)
from bge_integrations.m3 import colbert_score, lexical_score
from bge_integrations.prepare import prepare
from bge_integrations.settings import EngineName, ModelOptions
from tests.checkpoints import make_checkpoint
from tests.checkpoints_of_pairs import ReferenceM3, make_m3, reference_m3

ENGINES = ("openvino", "torch", "sentence-transformers")
QUERY = "what is a vector?"
TEXTS = [
    "Retrieval with dense vectors finds passages, dense vectors that share a meaning.",
    "fox",
    "",
    "样例数据 样例文档 向量 检索",
    "fox",  # again
    "the quick brown fox " * 30,
    "Emoji and accents: naïve café, 12345",
]


@pytest.fixture(scope="module")
def m3(bge_m3: Path) -> BgeM3Encoder:
    """It, loaded."""
    return BgeM3Encoder(bge_m3, device="cpu", on_truncation="ignore")


@pytest.fixture(scope="module")
def expected(bge_m3: Path) -> ReferenceM3:
    """What it should say of the texts."""
    return reference_m3(bge_m3, TEXTS)


def _assert_equal(found: M3Output, expected: ReferenceM3, tolerance: float = 1e-5) -> None:
    assert found.dense is not None
    assert found.sparse is not None
    assert found.colbert is not None
    np.testing.assert_allclose(found.dense, expected.dense, atol=tolerance)
    assert len(found.sparse) == len(found.colbert) == len(expected.dense)
    for ours, theirs in zip(found.sparse, expected.sparse, strict=True):
        assert ours.keys() == theirs.keys()
        assert all(type(token) is int and type(weight) is float for token, weight in ours.items())
        np.testing.assert_allclose([ours[token] for token in theirs], list(theirs.values()), atol=tolerance)
    for vectors, rows in zip(found.colbert, expected.colbert, strict=True):
        assert vectors.dtype == np.float32
        np.testing.assert_allclose(vectors, rows, atol=tolerance)


class TestEquality:
    @pytest.mark.parametrize("engine", ENGINES)
    @pytest.mark.parametrize(("hidden_size", "heads"), [(32, 4), (64, 2)])
    def test_with_plain_transformers(self, tmp_path: Path, hidden_size: int, heads: int, engine: EngineName) -> None:
        folder = make_m3(tmp_path / "bge-m3", hidden_size=hidden_size, heads=heads, layers=3, seed=5)
        encoder = BgeM3Encoder(folder, engine=engine, device="cpu", on_truncation="ignore")
        expected = reference_m3(folder, TEXTS)
        assert sum(map(len, expected.sparse)) > 20
        _assert_equal(encoder.encode_documents(TEXTS), expected)
        _assert_equal(encoder.encode_queries(TEXTS), expected)
        assert encoder.backend.engine.name == engine

    def test_in_batches_of_any_size_and_in_several_slices(
        self, bge_m3: Path, expected: ReferenceM3, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("bge_integrations.calls.call.ITEMS_A_SLICE", 3)
        choices: tuple[ModelOptions, ...] = (
            {"on_truncation": "ignore", "batch_tokens": 1},
            {"on_truncation": "ignore", "batch_size": 2},
        )
        for settings in choices:
            encoder = BgeM3Encoder(bge_m3, **settings)
            _assert_equal(encoder.encode_documents(iter(TEXTS)), expected)

    def test_only_what_is_asked_for_is_given(self, m3: BgeM3Encoder, expected: ReferenceM3) -> None:
        found = m3.encode_documents(TEXTS, dense=False, colbert=False)
        assert found.dense is None
        assert found.colbert is None
        assert [sorted(weights) for weights in found.sparse or ()] == [sorted(weights) for weights in expected.sparse]
        alone = m3.encode_documents(TEXTS, sparse=False, colbert=False)
        assert alone.sparse is None
        assert alone.dense is not None
        np.testing.assert_allclose(alone.dense, expected.dense, atol=1e-5)

    def test_all_three_take_one_forward_pass(self, m3: BgeM3Encoder) -> None:
        before = m3.stats()
        m3.encode_documents(["fox", "dog"])
        after = m3.stats()
        assert (after.batches - before.batches, after.texts - before.texts) == (1, 2)

    async def test_awaited_it_is_the_same(self, m3: BgeM3Encoder, expected: ReferenceM3) -> None:
        _assert_equal(await m3.aencode_documents(TEXTS), expected)
        _assert_equal(await m3.aencode_queries(TEXTS), expected)

    def test_no_texts_give_empty_outputs(self, m3: BgeM3Encoder) -> None:
        found = m3.encode_documents([])
        assert found.dense is not None
        assert found.dense.shape == (0, 32)
        assert (found.sparse, found.colbert) == ([], [])

    def test_repeated_texts_do_not_share_a_dictionary(self, m3: BgeM3Encoder) -> None:
        first, second = m3.encode_documents(["fox", "fox"], dense=False, colbert=False).sparse or [{}, {}]
        assert first == second
        assert first is not second

    def test_tokens_can_be_read(self, m3: BgeM3Encoder, bge_m3: Path) -> None:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(bge_m3)
        (weights,) = m3.encode_documents(["dense vectors"], dense=False, colbert=False).sparse or [{}]
        assert weights
        assert m3.tokens(weights) == {tokenizer.convert_ids_to_tokens(id_): weight for id_, weight in weights.items()}

    def test_an_instruction_goes_before_queries_alone(self, bge_m3: Path, m3: BgeM3Encoder) -> None:
        instructed = BgeM3Encoder(bge_m3, device="cpu", query_instruction="fox: ", on_truncation="ignore")
        plain = m3.encode_documents([f"fox: {QUERY}", QUERY]).dense
        query, document = instructed.encode_queries([QUERY]).dense, instructed.encode_documents([QUERY]).dense
        assert plain is not None
        assert query is not None
        assert document is not None
        np.testing.assert_allclose(np.concatenate([query, document]), plain, atol=1e-6)
        scored = instructed.score(QUERY, [QUERY], weights=(1, 0, 0))
        np.testing.assert_allclose(scored, [plain[0] @ plain[1]], atol=1e-6)


class TestScores:
    def test_are_the_weighted_mean_of_three(self, m3: BgeM3Encoder, expected: ReferenceM3, bge_m3: Path) -> None:
        query = reference_m3(bge_m3, [QUERY])
        dense = expected.dense @ query.dense[0]
        sparse = np.array(
            [
                sum(weight * weights.get(token, 0.0) for token, weight in query.sparse[0].items())
                for weights in expected.sparse
            ]
        )
        colbert = np.array([(query.colbert[0] @ rows.T).max(axis=1).mean() for rows in expected.colbert])
        for weights in ((0.4, 0.2, 0.4), (1, 0, 0), (0, 1, 0), (0, 0, 1), (3, 1, 1)):
            mixed = (weights[0] * dense + weights[1] * sparse + weights[2] * colbert) / sum(weights)
            np.testing.assert_allclose(m3.score(QUERY, TEXTS, weights=weights), mixed, atol=1e-5)
            pairs = [(QUERY, text) for text in TEXTS]
            np.testing.assert_allclose(m3.score_pairs(pairs, weights=M3Weights(*weights)), mixed, atol=1e-5)
        np.testing.assert_allclose(m3.score(QUERY, TEXTS), 0.4 * dense + 0.2 * sparse + 0.4 * colbert, atol=1e-5)

    def test_pairs_are_scored_each_with_the_other_alone(
        self, m3: BgeM3Encoder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("bge_integrations.m3.encoder._PAIRS_A_SLICE", 2)
        pairs = [("fox", "dog"), ("dog", "fox"), (QUERY, TEXTS[0]), ("fox", TEXTS[0]), ("", "")]
        alone = [float(m3.score(query, [passage])[0]) for query, passage in pairs]
        np.testing.assert_allclose(m3.score_pairs(iter(pairs)), alone, atol=1e-5)

    async def test_awaited_they_are_the_same(self, m3: BgeM3Encoder) -> None:
        np.testing.assert_allclose(await m3.ascore(QUERY, TEXTS), m3.score(QUERY, TEXTS), atol=1e-5)
        pairs = [(QUERY, text) for text in TEXTS]
        np.testing.assert_allclose(await m3.ascore_pairs(pairs), m3.score_pairs(pairs), atol=1e-5)

    async def test_errors_name_the_place_among_the_pairs(self, bge_m3: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("bge_integrations.m3.encoder._PAIRS_A_SLICE", 2)
        strict = BgeM3Encoder(bge_m3, device="cpu", on_truncation="error")
        pairs = [("fox", "dog"), ("fox", "dog"), ("fox", "dog"), ("fox", "fox " * 100)]
        with pytest.raises(TruncationError, match="Passage of pair 3 has") as caught:
            strict.score_pairs(pairs)
        assert caught.value.index == 3
        with pytest.raises(TruncationError, match="Query of pair 2 has"):
            await strict.ascore_pairs([*pairs[:2], ("fox " * 100, "dog")])

    def test_no_passages_give_no_scores(self, m3: BgeM3Encoder) -> None:
        assert m3.score(QUERY, []).shape == (0,)
        assert m3.score_pairs([]).shape == (0,)

    def test_what_weighs_nothing_is_not_computed(self, m3: BgeM3Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: list[tuple[bool, bool]] = []

        def watching(*args: Any, sparse: bool, colbert: bool) -> Any:  # noqa: ANN401
            asked.append((sparse, colbert))
            return m3_rows(*args, sparse=sparse, colbert=colbert)

        monkeypatch.setattr("bge_integrations.calls.m3.m3_rows", watching)
        m3.score(QUERY, ["fox"], weights=(1, 1, 0))
        assert set(asked) == {(True, False)}

    @pytest.mark.parametrize("weights", [(1, 2), (0, 0, 0), (-1, 1, 1), (float("nan"), 1, 1), "abc", 3])
    def test_weights_that_make_no_sense_are_refused(self, m3: BgeM3Encoder, weights: Any) -> None:  # noqa: ANN401
        with pytest.raises(SettingsError, match=r"(?i)weights"):
            m3.score(QUERY, ["fox"], weights=weights)

    def test_lexical_score_by_hand(self) -> None:
        assert lexical_score({1: 0.5, 2: 2.0, 3: 1.0}, {2: 0.25, 3: 4.0, 9: 7.0}) == 4.5
        assert lexical_score({}, {1: 1.0}) == 0

    def test_colbert_score_by_hand(self) -> None:
        query = np.array([[1, 0], [0, 1]], dtype=np.float32)
        document = np.array([[0.6, 0.8], [1, 0], [-1, 0]], dtype=np.float32)
        assert colbert_score(query, document) == pytest.approx((1 + 0.8) / 2)


class TestSharing:
    def test_dense_vectors_come_from_the_same_model(self, bge_m3: Path, m3: BgeM3Encoder) -> None:
        encoder = BgeEncoder(bge_m3, device="cpu", on_truncation="ignore")
        assert encoder.backend is m3.backend
        assert m3.dense_encoder().backend is m3.backend
        found = m3.encode_documents(TEXTS).dense
        assert found is not None
        np.testing.assert_allclose(encoder.encode_documents(TEXTS), found, atol=1e-6)
        np.testing.assert_allclose(m3.dense_encoder().encode_queries(TEXTS), found, atol=1e-6)

    def test_alone_an_encoder_of_dense_vectors_loads_no_more_than_it_needs(self, tmp_path: Path) -> None:
        folder = make_m3(tmp_path / "bge-m3")
        gc.collect()
        encoder = BgeEncoder(folder, device="cpu")
        assert encoder.backend.engine.rows == "cls"
        assert encoder.backend.heads == {}

    def test_both_kinds_share_a_forward_pass(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        folder = make_m3(tmp_path / "bge-m3")
        m3 = BgeM3Encoder(folder, device="cpu")
        encoder = BgeEncoder(folder, device="cpu")
        expected = reference_m3(folder, [QUERY, *TEXTS[:2]])
        engine, entered, may_go = m3.backend.engine, threading.Event(), threading.Event()
        submit, sizes = engine.submit, list[int]()

        def held_up(batch: TokenBatch) -> Any:  # noqa: ANN401
            sizes.append(len(batch.lengths))
            entered.set()
            assert may_go.wait(30)
            return submit(batch)

        monkeypatch.setattr(engine, "submit", held_up)
        with ThreadPoolExecutor(3) as threads:
            first = threads.submit(m3.encode_queries, ["dog"])
            assert entered.wait(30)
            whole = threads.submit(m3.encode_queries, [QUERY])
            dense = threads.submit(encoder.encode_queries, TEXTS[:2])
            while m3.backend.scheduler.jobs_waiting("interactive") < 2:
                time.sleep(0.001)
            may_go.set()
            first.result()
            found = whole.result()
            assert found.dense is not None
            assert found.colbert is not None
            np.testing.assert_allclose(found.dense[0], expected.dense[0], atol=1e-5)
            np.testing.assert_allclose(found.colbert[0], expected.colbert[0], atol=1e-5)
            np.testing.assert_allclose(dense.result(), expected.dense[1:], atol=1e-5)
        assert sizes == [1, 3]


class TestModels:
    def test_one_without_heads_is_refused(self, tmp_path: Path) -> None:
        folder = make_checkpoint(tmp_path / "bge-m3", "xlm-roberta", modules=("cls", "normalize"))
        with pytest.raises(UnsupportedModelError, match=r"no sparse_linear\.pt and no colbert_linear\.pt"):
            BgeM3Encoder(folder)

    def test_heads_that_would_run_code_are_refused(self, tmp_path: Path) -> None:
        folder = make_m3(tmp_path / "bge-m3")
        torch.save(torch.nn.Linear(32, 1), folder / "sparse_linear.pt")
        with pytest.raises(UnsafeWeightsError, match=r"sparse_linear\.pt contains more than weights"):
            BgeM3Encoder(folder, device="cpu")

    @pytest.mark.parametrize("content", [b"", b"no weights at all"])
    def test_damaged_heads_are_named(self, tmp_path: Path, content: bytes) -> None:
        folder = make_m3(tmp_path / "bge-m3")
        (folder / "colbert_linear.pt").write_bytes(content)
        with pytest.raises(ModelLoadError, match=r"colbert_linear\.pt"):
            BgeM3Encoder(folder, device="cpu")

    def test_heads_of_another_model_are_named(self, tmp_path: Path) -> None:
        folder = make_m3(tmp_path / "bge-m3")
        torch.save(torch.nn.Linear(16, 1).state_dict(), folder / "sparse_linear.pt")
        with pytest.raises(ModelLoadError, match="don't fit an encoder of 32 dimensions"):
            BgeM3Encoder(folder, device="cpu")

    def test_prepared_it_gives_the_same_without_torch(
        self, bge_m3: Path, expected: ReferenceM3, tmp_path: Path
    ) -> None:
        manifest = prepare(bge_m3, tmp_path / "prepared", purpose="m3")
        assert manifest.purpose == "m3"
        code = (
            "import sys, pickle; from bge_integrations import BgeM3Encoder, BgeEncoder\n"
            f"m3 = BgeM3Encoder({str(tmp_path / 'prepared')!r}, on_truncation='ignore')\n"
            f"found = m3.encode_documents({TEXTS!r})\n"
            f"dense = BgeEncoder({str(tmp_path / 'prepared')!r}, on_truncation='ignore').encode({TEXTS!r})\n"
            "assert 'torch' not in sys.modules and 'transformers' not in sys.modules\n"
            "sys.stdout.buffer.write(pickle.dumps((found.dense, found.sparse, found.colbert, dense)))"
        )
        printed = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
        dense, sparse, colbert, alone = pickle.loads(printed)
        _assert_equal(M3Output(dense, sparse, colbert), expected)
        np.testing.assert_allclose(alone, expected.dense, atol=1e-5)

    def test_in_bfloat16_it_comes_near(self, bge_m3: Path, expected: ReferenceM3) -> None:
        rounded = BgeM3Encoder(bge_m3, device="cpu", engine="torch", precision="bfloat16", on_truncation="ignore")
        found = rounded.encode_documents(TEXTS)
        assert found.dense is not None
        assert found.colbert is not None
        cosines = np.einsum("td,td->t", found.dense, expected.dense)
        assert cosines.min() > 0.999
        for ours, theirs in zip(found.colbert, expected.colbert, strict=True):
            assert np.einsum("td,td->t", ours, theirs).min() > 0.995


class TestInput:
    def test_nothing_asked_for_is_refused(self, m3: BgeM3Encoder) -> None:
        with pytest.raises(SettingsError, match="set at least one of them to True"):
            m3.encode_documents(["fox"], dense=False, sparse=False, colbert=False)

    def test_bad_texts_are_named(self, m3: BgeM3Encoder) -> None:
        with pytest.raises(InputTypeError, match="Text 1 is a NoneType"):
            m3.encode_documents(["fox", None])  # type: ignore[list-item]
        with pytest.raises(InputTypeError, match="score takes a list"):
            m3.score(QUERY, "fox")

    def test_truncation_is_reported(self, bge_m3: Path) -> None:
        with pytest.warns(TruncationWarning, match="1 of 7 texts were cut"):
            BgeM3Encoder(bge_m3, device="cpu").encode_documents(TEXTS)

    def test_nan_names_the_text(self, tmp_path: Path) -> None:
        folder = make_m3(tmp_path / "bge-m3")
        head = torch.load(folder / "sparse_linear.pt", weights_only=True)
        torch.save({**head, "bias": torch.tensor([float("nan")])}, folder / "sparse_linear.pt")
        broken = BgeM3Encoder(folder, device="cpu")
        with pytest.raises(NonFiniteOutputError, match="for text 0 "):
            broken.encode_documents(["fox", "dog"])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert broken.encode_documents(["fox"], sparse=False).dense is not None

    def test_pickles_and_copies_carry_settings_alone(self, m3: BgeM3Encoder) -> None:
        pickled = pickle.dumps(m3)
        assert len(pickled) < 2000
        for other in (pickle.loads(pickled), copy.copy(m3)):
            np.testing.assert_array_equal(other.score(QUERY, TEXTS), m3.score(QUERY, TEXTS))
