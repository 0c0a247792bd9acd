"""What holds for any text, in any company, in any order."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from bge_integrations import BgeEncoder
from bge_integrations.errors import InvalidInputError
from tests.checkpoints import make_checkpoint

# Any text that UTF-8 can write, from control characters to emoji; and long ones, which random text seldom is.
texts = st.text(max_size=60) | st.sampled_from(["fox ", "样例", "x", "é"]).flatmap(
    lambda unit: st.integers(0, 90).map(lambda count: unit * count)
)
quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@cache
def _encoder(folder: str) -> BgeEncoder:
    return BgeEncoder(folder, device="cpu", on_truncation="ignore", batch_tokens=128)


@pytest.fixture(scope="module", params=["bert", "xlm-roberta"])
def encoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> BgeEncoder:
    folder = tmp_path_factory.mktemp("properties") / request.param / "bge-small-en"
    return _encoder(str(make_checkpoint(folder, request.param)))


@quick
@given(text=texts, neighbours=st.lists(texts, max_size=8), position=st.integers(0, 8))
@example(text="", neighbours=["fox " * 80, ""], position=1)
def test_a_vector_does_not_depend_on_its_neighbours(
    encoder: BgeEncoder, text: str, neighbours: list[str], position: int
) -> None:
    alone = encoder.encode_documents([text])[0]
    position = min(position, len(neighbours))
    together = encoder.encode_documents([*neighbours[:position], text, *neighbours[position:]])
    np.testing.assert_allclose(together[position], alone, atol=1e-5, rtol=0)


@quick
@given(st.lists(texts, min_size=1, max_size=12), st.randoms(use_true_random=False))
def test_rows_follow_the_order_of_the_texts(encoder: BgeEncoder, given_texts: list[str], random: object) -> None:
    order = list(range(len(given_texts)))
    random.shuffle(order)  # type: ignore[attr-defined]
    vectors = encoder.encode_queries(given_texts)
    shuffled = encoder.encode_queries([given_texts[index] for index in order])
    np.testing.assert_allclose(shuffled, vectors[order], atol=1e-5, rtol=0)


@quick
@given(st.lists(texts, min_size=1, max_size=6))
def test_vectors_are_finite_and_of_length_one(encoder: BgeEncoder, given_texts: list[str]) -> None:
    vectors = encoder.encode(given_texts)
    assert vectors.shape == (len(given_texts), encoder.dimension)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


@quick
@given(
    st.lists(
        st.text(st.characters(exclude_categories=()), max_size=10) | st.none() | st.integers() | st.binary(), max_size=5
    )
)
@example(["fox", "\ud83d"])
def test_whatever_is_passed_only_documented_errors_come_out(encoder: BgeEncoder, anything: list[object]) -> None:
    unfit = [
        not isinstance(text, str) or any("\ud800" <= character <= "\udfff" for character in text) for text in anything
    ]
    if any(unfit):
        with pytest.raises(InvalidInputError) as caught:
            encoder.encode(anything)  # type: ignore[arg-type]
        assert caught.value.index == unfit.index(True)
    else:
        assert len(encoder.encode(anything)) == len(anything)  # type: ignore[arg-type]
