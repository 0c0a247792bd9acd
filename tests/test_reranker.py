"""The core reranker: scores as plain transformers gives them, on every engine, under every kind of call."""

from __future__ import annotations

import asyncio
import copy
import pickle
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bge_integrations import BgeEncoder, BgeReranker, TruncationWarning
from bge_integrations.backend.text.pairs import PairTokenizer, layout_of_encoder
from bge_integrations.calls.scoring import sigmoid
from bge_integrations.errors import (
    InputTypeError,
    InputValueError,
    ModelClosedError,
    NonFiniteOutputError,
    SettingsError,
    TruncationError,
    UnsupportedModelError,
)
from bge_integrations.prepare import prepare
from bge_integrations.settings import EngineName, ModelOptions, Precision
from tests.checkpoints import Architecture, make_checkpoint
from tests.checkpoints_of_pairs import make_reranker, reference_scores

ENGINES = ("openvino", "torch", "sentence-transformers")
QUERY = "what is a vector?"
PASSAGES = [
    "Retrieval with dense vectors finds passages that share a meaning.",
    "fox",
    "",
    "样例数据 样例文档 向量 检索",
    "fox",  # again
    "Emoji and accents: naïve café, 12345",
]
PAIRS = [
    *((QUERY, passage) for passage in PASSAGES),
    ("fox", QUERY),
    ("北京 天气", "很好"),
    ("", "dog"),
    (QUERY, QUERY),
]
LONG = "the quick brown fox jumps over the lazy dog " * 20


@pytest.fixture(scope="module")
def reranker(bge_reranker_base: Path) -> BgeReranker:
    """It, loaded."""
    return BgeReranker(bge_reranker_base, device="cpu")


class TestEquality:
    @pytest.mark.parametrize("engine", ENGINES)
    @pytest.mark.parametrize(
        ("architecture", "hidden_size", "heads"), [("xlm-roberta", 32, 4), ("xlm-roberta", 64, 2), ("bert", 48, 3)]
    )
    def test_with_plain_transformers(
        self, tmp_path: Path, architecture: Architecture, hidden_size: int, heads: int, engine: EngineName
    ) -> None:
        folder = make_reranker(tmp_path / "mine", architecture, hidden_size=hidden_size, heads=heads, layers=3)
        reranker = BgeReranker(folder, engine=engine, device="cpu")
        found = reranker.score_pairs(PAIRS)
        assert reranker.backend.engine.name == engine
        assert found.dtype == np.float32
        assert found.shape == (len(PAIRS),)
        expected = reference_scores(folder, PAIRS)
        assert np.ptp(expected) > 0.05  # else agreement would say little
        np.testing.assert_allclose(found, expected, atol=1e-5)

    @pytest.mark.parametrize("engine", ENGINES)
    @pytest.mark.parametrize("architecture", ["bert", "xlm-roberta"])
    def test_a_long_passage_is_cut_and_the_query_kept(
        self, tmp_path: Path, architecture: Architecture, engine: EngineName
    ) -> None:
        folder = make_reranker(tmp_path / "mine", architecture)
        pairs = [(QUERY, LONG), ("fox " * 12, LONG), ("dog", "lazy")]
        found = BgeReranker(folder, engine=engine, device="cpu", on_truncation="ignore").score_pairs(pairs)
        np.testing.assert_allclose(found, reference_scores(folder, pairs), atol=1e-5)

    def test_in_batches_of_any_size_and_in_several_slices(
        self, reranker: BgeReranker, bge_reranker_base: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("bge_integrations.calls.call.ITEMS_A_SLICE", 3)
        expected = reference_scores(bge_reranker_base, PAIRS)
        choices: tuple[ModelOptions, ...] = ({"batch_tokens": 1}, {"batch_size": 2}, {"batch_tokens": 10_000})
        for settings in choices:
            found = BgeReranker(bge_reranker_base, **settings).score_pairs(iter(PAIRS))
            np.testing.assert_allclose(found, expected, atol=1e-5)

    def test_score_is_score_pairs_with_one_query(self, reranker: BgeReranker) -> None:
        pairs = [(QUERY, passage) for passage in PASSAGES]
        np.testing.assert_allclose(reranker.score(QUERY, PASSAGES), reranker.score_pairs(pairs), atol=1e-6)

    def test_normalized_scores_are_the_sigmoid_of_logits(self, reranker: BgeReranker, bge_reranker_base: Path) -> None:
        logits = reranker.score(QUERY, PASSAGES).astype(np.float64)
        found = BgeReranker(bge_reranker_base, device="cpu", normalize=True).score(QUERY, PASSAGES)
        np.testing.assert_allclose(found, 1 / (1 + np.exp(-logits)), atol=1e-6)

    def test_the_sigmoid_does_not_overflow(self) -> None:
        found = sigmoid(np.array([-1000, -1, 0, 1, 1000], dtype=np.float32))
        np.testing.assert_allclose(found, [0, 0.2689414, 0.5, 0.7310586, 1], atol=1e-6)

    def test_an_instruction_goes_before_the_query_alone(self, reranker: BgeReranker, bge_reranker_base: Path) -> None:
        found = BgeReranker(bge_reranker_base, device="cpu", query_instruction="fox: ").score(QUERY, PASSAGES)
        np.testing.assert_allclose(found, reranker.score(f"fox: {QUERY}", PASSAGES), atol=1e-6)

    @pytest.mark.parametrize(("engine", "precision"), [("torch", "bfloat16"), ("openvino", "int8")])
    def test_lower_precisions_come_near(
        self, bge_reranker_base: Path, reranker: BgeReranker, engine: EngineName, precision: Precision
    ) -> None:
        found = BgeReranker(bge_reranker_base, engine=engine, precision=precision, device="cpu").score_pairs(PAIRS)
        exact = reranker.score_pairs(PAIRS)
        assert not np.array_equal(found, exact)
        assert np.abs(found - exact).max() < 0.1 * np.ptp(exact)


class TestPairs:
    @pytest.mark.parametrize("architecture", ["bert", "xlm-roberta"])
    def test_ids_are_those_of_transformers(self, tmp_path: Path, architecture: Architecture) -> None:
        from transformers import AutoTokenizer

        folder = make_reranker(tmp_path / "mine", architecture)
        theirs = AutoTokenizer.from_pretrained(folder)
        model = BgeReranker(folder, device="cpu").backend
        pairs = [*PAIRS, (QUERY, LONG)]
        found = PairTokenizer(model.tokenizer, layout_of_encoder(model.tokenizer)).tokenize(pairs, 40)
        queries, passages = (list(texts) for texts in zip(*pairs, strict=True))
        expected = theirs(queries, passages, truncation="only_second", max_length=40)["input_ids"]
        whole = [len(ids) for ids in theirs(queries, passages)["input_ids"]]
        assert found.ids.tolist() == [token for ids in expected for token in ids]
        assert found.lengths.tolist() == [len(ids) for ids in expected]
        assert found.full_lengths.tolist() == whole

    def test_a_query_that_leaves_no_room_is_cut_to_three_quarters(self, reranker: BgeReranker) -> None:
        model = reranker.backend
        layout = layout_of_encoder(model.tokenizer)
        found = PairTokenizer(model.tokenizer, layout).tokenize([(LONG, LONG)], 44)
        room = 44 - layout.tokens
        assert found.lengths.tolist() == [44]
        assert found.first_lengths is not None
        assert found.first_lengths.tolist() == [len(layout.before) + room * 3 // 4 + len(layout.between)]

    def test_a_text_in_many_pairs_is_tokenised_once(
        self, reranker: BgeReranker, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tokenizer, asked = reranker.backend.tokenizer, list[list[str]]()
        contents = tokenizer.contents

        def counting(texts: list[str]) -> Any:  # noqa: ANN401
            asked.append(texts)
            return contents(texts)

        monkeypatch.setattr(tokenizer, "contents", counting)
        reranker.score(QUERY, PASSAGES)
        assert asked == [[QUERY], list(dict.fromkeys(PASSAGES))]


class TestTruncation:
    def test_is_a_warning_that_counts(self, reranker: BgeReranker) -> None:
        with pytest.warns(TruncationWarning, match=r"1 of 3 pairs were cut: the longest, pair 1, has \d+ tokens"):
            reranker.score(QUERY, ["fox", LONG, "dog"])

    def test_is_an_error_before_any_work(self, bge_reranker_base: Path) -> None:
        strict = BgeReranker(bge_reranker_base, device="cpu", on_truncation="error", batch_size=3)
        before = strict.stats().batches
        with pytest.raises(TruncationError, match=r"Pair 1 has \d+ tokens, the limit is 64") as caught:
            strict.score(QUERY, ["fox", LONG])
        assert caught.value.index == 1
        assert strict.stats().batches == before

    def test_can_be_ignored(self, bge_reranker_base: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            BgeReranker(bge_reranker_base, device="cpu", on_truncation="ignore").score(QUERY, [LONG])


class TestInput:
    def test_no_passages_give_no_scores(self, reranker: BgeReranker) -> None:
        assert reranker.score(QUERY, []).shape == (0,)
        assert reranker.score_pairs([]).dtype == np.float32

    @pytest.mark.parametrize(
        ("pairs", "message"),
        [
            ([("a", "b"), "ab"], "Pair 1 is 'ab'"),
            ([("a",)], "Pair 0 is"),
            ([("a", "b", "c")], "Pair 0 is"),
            ([("a", "b"), ("a", None)], "The passage of pair 1 is a NoneType"),
            ([(1, "b")], "The query of pair 0 is an int"),
            ("ab", "takes a list of pairs"),
            (3, "given an int"),
        ],
    )
    def test_what_is_no_pair_is_named(self, reranker: BgeReranker, pairs: Any, message: str) -> None:  # noqa: ANN401
        with pytest.raises(InputTypeError, match=message):
            reranker.score_pairs(pairs)

    def test_a_set_of_pairs_is_refused(self, reranker: BgeReranker) -> None:
        with pytest.raises(InputTypeError, match="no order"):
            reranker.score_pairs({("a", "b")})

    def test_a_bare_passage_is_refused(self, reranker: BgeReranker) -> None:
        with pytest.raises(InputTypeError, match="score takes a list"):
            reranker.score(QUERY, "fox")

    def test_a_query_that_is_none_is_refused(self, reranker: BgeReranker) -> None:
        with pytest.raises(InputTypeError, match="Query 0 is a NoneType"):
            reranker.score(None, ["fox"])  # type: ignore[arg-type]

    def test_a_lone_surrogate_is_named(self, reranker: BgeReranker) -> None:
        with pytest.raises(InputValueError, match="The passage of pair 1 has a lone surrogate"):
            reranker.score_pairs([("a", "b"), ("a", "\ud800")])

    def test_nan_names_the_pair(self, reranker: BgeReranker, monkeypatch: pytest.MonkeyPatch) -> None:
        scores = reranker.backend._scores

        def damaged(batch: Any, rows: Any) -> Any:  # noqa: ANN401
            found = scores(batch, rows)
            found[batch.lengths > 20] = np.nan
            return found

        monkeypatch.setattr(reranker.backend, "_scores", damaged)
        with pytest.raises(NonFiniteOutputError, match="for pair 2 ") as caught:
            reranker.score(QUERY, ["fox", "dog", "fox " * 15, "lazy"])
        assert caught.value.index == 2


class TestModels:
    def test_an_embedder_is_refused(self, bge_small_en: Path) -> None:
        with pytest.raises(UnsupportedModelError, match="gives vectors and scores no pairs"):
            BgeReranker(bge_small_en)

    def test_a_bare_encoder_is_refused_rather_than_given_a_random_head(self, tmp_path: Path) -> None:
        folder = make_checkpoint(tmp_path / "mine", "xlm-roberta")
        with pytest.raises(UnsupportedModelError, match="made for XLMRobertaModel"):
            BgeReranker(folder)

    def test_a_classifier_of_several_classes_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(UnsupportedModelError, match="classifier with 3 classes"):
            BgeReranker(make_reranker(tmp_path / "mine", labels=3), device="cpu")

    def test_the_encoder_refuses_a_reranker(self, bge_reranker_base: Path) -> None:
        with pytest.raises(UnsupportedModelError, match="Load it with BgeReranker"):
            BgeEncoder(bge_reranker_base)

    def test_equal_settings_share_one_model(self, reranker: BgeReranker, bge_reranker_base: Path) -> None:
        other = BgeReranker(str(bge_reranker_base), device="cpu", normalize=True, max_length=20)
        assert other.backend is reranker.backend

    def test_the_crossencoder_is_at_hand(self, bge_reranker_base: Path) -> None:
        from sentence_transformers import CrossEncoder

        assert isinstance(BgeReranker(bge_reranker_base, device="cpu", engine="torch").client, CrossEncoder)


class TestSettings:
    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"normalize": "yes"}, "normalize='yes'"),
            ({"max_length": 0}, "max_length=0"),
            ({"max_length": 65}, "more than the 64 positions"),
            ({"max_length": 5}, "give at least 6"),
            ({"prompt": "Is it?"}, "prompt='Is it.' is given, but .* takes none"),
            ({"cutoff_layers": 2}, "takes none"),
            ({"cutoff_layers": [1, 2]}, "names 2 layers"),
            ({"cutoff_layers": "28"}, "must be a list of whole numbers"),
            ({"compress_ratio": 2}, "takes none"),
            ({"device": "abacus"}, "abacus"),
        ],
    )
    def test_what_cant_be_honoured_is_named(
        self, bge_reranker_base: Path, settings: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(SettingsError, match=message):
            BgeReranker(bge_reranker_base, **settings)

    def test_pickles_and_copies_carry_settings_alone(self, reranker: BgeReranker) -> None:
        pickled = pickle.dumps(reranker)
        assert len(pickled) < 2000
        for other in (pickle.loads(pickled), copy.deepcopy(reranker)):
            np.testing.assert_array_equal(other.score(QUERY, PASSAGES), reranker.score(QUERY, PASSAGES))

    def test_use_after_close_is_refused(self, bge_reranker_base: Path) -> None:
        with BgeReranker(bge_reranker_base, device="cpu") as closing:
            closing.score(QUERY, PASSAGES)
        with pytest.raises(ModelClosedError, match="This BgeReranker of"):
            closing.score(QUERY, PASSAGES)


class TestAsync:
    async def test_gives_the_same(self, reranker: BgeReranker) -> None:
        found, pairs = await asyncio.gather(reranker.ascore(QUERY, PASSAGES), reranker.ascore_pairs(PAIRS))
        np.testing.assert_allclose(found, reranker.score(QUERY, PASSAGES), atol=1e-6)
        np.testing.assert_allclose(pairs, reranker.score_pairs(PAIRS), atol=1e-6)

    async def test_many_at_once_get_their_own_scores(self, reranker: BgeReranker) -> None:
        queries = [f"fox {number}" for number in range(30)]
        together = await asyncio.gather(*(reranker.ascore(query, PASSAGES) for query in queries))
        for query, found in zip(queries, together, strict=True):
            np.testing.assert_allclose(found, reranker.score(query, PASSAGES), atol=1e-5)


def test_a_prepared_reranker_scores_the_same_without_torch(
    bge_reranker_base: Path, reranker: BgeReranker, tmp_path: Path
) -> None:
    manifest = prepare(bge_reranker_base, tmp_path / "prepared")
    assert manifest.purpose == "scores"
    code = (
        "import sys; from bge_integrations import BgeReranker\n"
        f"found = BgeReranker({str(tmp_path / 'prepared')!r}).score({QUERY!r}, {PASSAGES!r})\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules\n"
        "print(*found.tolist())"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    np.testing.assert_allclose([float(one) for one in printed.split()], reranker.score(QUERY, PASSAGES), atol=1e-5)
    with pytest.raises(UnsupportedModelError, match="prepared for scores, not for vectors"):
        BgeEncoder(tmp_path / "prepared")
