"""Texts and arguments that nobody sane would send: right vectors, or an error that is documented."""

from __future__ import annotations

import asyncio
import contextlib
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bge_integrations import BgeEncoder
from bge_integrations.errors import BgeError
from bge_integrations.langchain import HuggingFaceBgeEmbeddings
from bge_integrations.llama_index import HuggingFaceBgeEmbedding


@pytest.fixture(scope="module")
def encoder(bge_small_en: Path) -> BgeEncoder:
    return BgeEncoder(bge_small_en, device="cpu", on_truncation="ignore")


class TestAmounts:
    def test_a_text_of_ten_megabytes(self, encoder: BgeEncoder) -> None:
        long = "the fox and the dog " * 500_000
        assert len(long) == 10_000_000
        vectors = encoder.encode_documents([long, "fox"])
        # Only what the model reads counts.
        np.testing.assert_allclose(vectors[0], encoder.encode_documents([long[:2000]])[0], atol=1e-5)
        np.testing.assert_allclose(vectors[1], encoder.encode_documents(["fox"])[0], atol=1e-5)

    def test_a_million_empty_texts(self, encoder: BgeEncoder) -> None:
        vectors = encoder.encode_documents([""] * 1_000_000)
        assert vectors.shape == (1_000_000, 32)
        expected = encoder.encode_documents([""])[0]
        assert np.abs(vectors - expected).max() < 1e-5

    def test_a_hundred_thousand_texts_of_one_word(self, encoder: BgeEncoder) -> None:
        texts = [f"{number:x}" for number in range(100_000)]
        vectors = encoder.encode_documents(texts)
        some = [0, 1, 4095, 4096, 50_000, 99_999]
        np.testing.assert_allclose(vectors[some], encoder.encode_documents([texts[i] for i in some]), atol=1e-5)

    @pytest.mark.parametrize("unit", ["a", "犬", "é", "\u0301", "#", "👩\u200d👩\u200d👧"])
    def test_one_token_without_an_end(self, encoder: BgeEncoder, unit: str) -> None:
        vectors = encoder.encode_documents([unit * 200_000, "fox"])
        assert np.isfinite(vectors).all()
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
        np.testing.assert_allclose(vectors[1], encoder.encode_documents(["fox"])[0], atol=1e-5)


@pytest.mark.parametrize(
    "text",
    [
        "\x00\x01\x02\x1f\x7f\x80\x9f",
        "\u202eright to left\u202c",
        "שלום עולם، مرحبا بالعالم",
        "👨‍👩‍👧‍👦🏳️‍🌈🇩🇪👍🏽",
        "the fox 狐狸 and 犬 dog",
        "\ufeffbyte order mark",
        "\ufffe\uffff\U0010ffff",
        "a\u0301\u0302\u0303" * 20,
        " \t\r\n\u00a0\u2003\u3000",
    ],
)
def test_odd_texts_leave_their_neighbours_alone(encoder: BgeEncoder, text: str) -> None:
    vectors = encoder.encode_documents(["fox", text, "dog"])
    np.testing.assert_allclose(vectors[[0, 2]], encoder.encode_documents(["fox", "dog"]), atol=1e-5)
    np.testing.assert_allclose(vectors[1], encoder.encode_documents([text])[0], atol=1e-5)


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.binary(max_size=8)
    | st.text(max_size=20)
    | st.just("\ud800"),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=2) | st.tuples(inner)
    ),
    max_leaves=6,
)
quick = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@cache
def _langchain(folder: Path) -> HuggingFaceBgeEmbeddings:
    return HuggingFaceBgeEmbeddings(model_name=str(folder), device="cpu")


@cache
def _llama_index(folder: Path) -> HuggingFaceBgeEmbedding:
    return HuggingFaceBgeEmbedding(str(folder), device="cpu")


class TestFuzz:
    """Whatever is passed, only documented errors come out, and a good call afterwards works."""

    @quick
    @given(value=anything)
    def test_langchain(self, bge_small_en: Path, value: Any) -> None:  # noqa: ANN401
        embeddings = _langchain(bge_small_en)
        self._try(lambda: embeddings.embed_documents(value), lambda: embeddings.embed_query(value))
        self._try(
            lambda: asyncio.run(embeddings.aembed_documents(value)), lambda: asyncio.run(embeddings.aembed_query(value))
        )
        assert len(embeddings.embed_query("fox")) == 32

    @quick
    @given(value=anything)
    def test_llama_index(self, bge_small_en: Path, value: Any) -> None:  # noqa: ANN401
        embedding = _llama_index(bge_small_en)
        self._try(
            lambda: embedding._get_text_embeddings(value),
            lambda: embedding._get_query_embedding(value),
            lambda: embedding._get_text_embedding(value),
            lambda: asyncio.run(embedding._aget_text_embeddings(value)),
            lambda: asyncio.run(embedding._aget_query_embedding(value)),
        )
        assert len(embedding.get_query_embedding("fox")) == 32

    @staticmethod
    def _try(*calls: Any) -> None:  # noqa: ANN401
        for call in calls:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                with contextlib.suppress(BgeError):
                    call()
