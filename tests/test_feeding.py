"""Texts reach the engine in slices, tokenised ahead, and a batch that does not fit is made smaller."""

from __future__ import annotations

import threading
import tracemalloc
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bge_integrations import BgeEncoder, TruncationWarning
from bge_integrations.backend.engines.interface import EngineOutOfMemory, PendingRows, TokenBatch
from bge_integrations.calls import call
from bge_integrations.errors import DeviceMemoryError, InputTypeError, NonFiniteOutputError, TruncationError
from tests.conftest import MakeCheckpoint

TEXTS = [f"fox {'dog ' * (index * 7 % 29)}{index % 5}" for index in range(100)]


@pytest.fixture
def encoder(bge_small_en: Path) -> BgeEncoder:
    return BgeEncoder(bge_small_en, device="cpu")


@pytest.fixture
def small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(call, "ITEMS_A_SLICE", 16)


@pytest.mark.usefixtures("small_slices")
class TestSlices:
    def test_many_slices_give_what_one_gives(self, bge_small_en: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        encoder = BgeEncoder(bge_small_en, device="cpu")
        sliced = encoder.encode_documents(TEXTS)
        monkeypatch.setattr(call, "ITEMS_A_SLICE", 1000)
        np.testing.assert_allclose(sliced, encoder.encode_documents(TEXTS), atol=1e-5)

    @pytest.mark.parametrize("count", [0, 1, 15, 16, 17, 100])
    def test_an_iterator_gives_what_a_list_gives(self, encoder: BgeEncoder, count: int) -> None:
        vectors = encoder.encode_documents(text for text in TEXTS[:count])
        assert vectors.shape == (count, 32)
        assert vectors.flags.c_contiguous
        np.testing.assert_allclose(vectors, encoder.encode_documents(TEXTS[:count]), atol=1e-6)

    def test_an_iterator_is_read_in_slices_and_in_the_callers_thread(
        self, make: MakeCheckpoint, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        encoder = BgeEncoder(make("bge-small-en"), device="cpu")
        read, threads, seen = 0, set(), []

        def texts() -> Iterator[str]:
            nonlocal read
            for text in TEXTS:
                read += 1
                threads.add(threading.current_thread())
                yield text

        submit = encoder.backend.engine.submit

        def noting(batch: TokenBatch) -> PendingRows:
            seen.append(read)
            return submit(batch)

        monkeypatch.setattr(encoder.backend.engine, "submit", noting)
        encoder.encode_documents(texts())
        assert threads == {threading.current_thread()}
        assert seen[0] <= 3 * 16  # the slice that runs, the one that is tokenised, and the one after it
        assert seen[-1] == 100

    def test_errors_name_the_index_in_the_whole_call(self, encoder: BgeEncoder) -> None:
        with pytest.raises(InputTypeError, match="Text 70 is a NoneType") as caught:
            encoder.encode_documents(iter([*TEXTS[:70], None]))  # type: ignore[arg-type]
        assert caught.value.index == 70

    def test_a_list_is_checked_as_a_whole_before_any_work(
        self, encoder: BgeEncoder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        calls: list[object] = []
        monkeypatch.setattr(encoder.backend.engine, "submit", calls.append)
        with pytest.raises(InputTypeError, match="Text 99"):
            encoder.encode_documents([*TEXTS[:99], 3])  # type: ignore[list-item]
        assert calls == []

    def test_too_long_texts_are_refused_before_any_work(
        self, bge_small_en: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        encoder = BgeEncoder(bge_small_en, device="cpu", on_truncation="error", max_length=33)
        calls: list[object] = []
        monkeypatch.setattr(encoder.backend.engine, "submit", calls.append)
        with pytest.raises(TruncationError, match=r"Text 90 has 6\d tokens, the limit is 33") as caught:
            encoder.encode_documents([*TEXTS[:90], "dog " * 60, *TEXTS[90:]])
        assert caught.value.index == 90
        assert calls == []

    def test_one_warning_counts_all_slices(self, encoder: BgeEncoder) -> None:
        texts = ["dog " * 70, *TEXTS, "dog " * 90, *TEXTS, "dog " * 80]
        with pytest.warns(TruncationWarning, match=r"3 of 203 texts were cut: the longest, text 101,") as caught:
            encoder.encode_documents(texts)
        assert len(caught) == 1

    def test_nan_names_the_text_in_the_whole_call(self, encoder: BgeEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
        head = encoder.backend.vectors

        def damaged(batch: TokenBatch, rows: Any) -> Any:  # noqa: ANN401
            result = head(batch, rows).copy()
            result[batch.lengths > 50] = np.nan
            return result

        monkeypatch.setattr(encoder.backend, "vectors", damaged)
        with pytest.raises(NonFiniteOutputError, match="text 40 ") as caught:
            encoder.encode_documents([*TEXTS[:40], "dog " * 60, *TEXTS[40:], "dog " * 60])
        assert caught.value.index == 40


def test_memory_does_not_grow_with_the_corpus_beyond_ids_and_vectors(encoder: BgeEncoder) -> None:
    def peak(count: int) -> int:
        texts = (f"{'fox ' * 20}{index}" for index in range(count))
        tracemalloc.start()
        vectors = encoder.encode_documents(texts)
        reached = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return reached - vectors.nbytes

    encoder.encode_documents(TEXTS)
    slices = call.ITEMS_A_SLICE
    once, thrice = peak(2 * slices), peak(6 * slices)
    # Texts alone would add 4 * slices * 90 bytes, and tokenised ones over ten times that.
    assert thrice < once + 4 * slices * 32 * 4 + 400_000


class TestOutOfMemory:
    @staticmethod
    def _limit(encoder: BgeEncoder, tokens: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
        """Lets the engine refuse batches over a size, as a full device would."""
        submit, sizes = encoder.backend.engine.submit, []

        def limited(batch: TokenBatch) -> PendingRows:
            if batch.is_token.size > tokens:
                raise EngineOutOfMemory("full")
            sizes.append(batch.is_token.size)
            return submit(batch)

        monkeypatch.setattr(encoder.backend.engine, "submit", limited)
        return sizes

    def test_a_batch_that_does_not_fit_is_halved_and_nothing_is_lost(
        self, make: MakeCheckpoint, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        encoder = BgeEncoder(make("bge-small-en"), device="cpu")
        expected = encoder.encode_documents(TEXTS)
        sizes = self._limit(encoder, 100, monkeypatch)
        with pytest.warns(RuntimeWarning, match=r"cpu ran out of memory with \d+ tokens in a batch; the budget of a"):
            vectors = encoder.encode_documents(TEXTS)
        np.testing.assert_allclose(vectors, expected, atol=1e-5)
        assert max(sizes) <= 100
        assert encoder.backend.engine.batch_tokens <= 128

    def test_the_smaller_budget_is_kept(self, make: MakeCheckpoint, monkeypatch: pytest.MonkeyPatch) -> None:
        encoder = BgeEncoder(make("bge-small-en"), device="cpu")
        self._limit(encoder, 100, monkeypatch)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            encoder.encode_documents(TEXTS)
        limit = encoder.backend.engine.batch_tokens
        sizes = self._limit(encoder, limit, monkeypatch)
        encoder.encode_documents(TEXTS)  # warnings are errors here
        assert max(sizes) <= limit

    def test_memory_that_runs_out_later_is_caught_too(
        self, make: MakeCheckpoint, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        encoder = BgeEncoder(make("bge-small-en"), device="cpu", batch_tokens=256)
        expected = encoder.encode_documents(TEXTS)
        submit, failures = encoder.backend.engine.submit, iter([False, False, True, False, True])

        class _Failing:
            def result(self) -> Any:  # noqa: ANN401
                raise EngineOutOfMemory("full")

        monkeypatch.setattr(
            encoder.backend.engine, "submit", lambda batch: _Failing() if next(failures, False) else submit(batch)
        )
        with pytest.warns(RuntimeWarning, match="out of memory"):
            vectors = encoder.encode_documents(TEXTS)
        np.testing.assert_allclose(vectors, expected, atol=1e-5)

    def test_one_text_that_does_not_fit_is_named(self, make: MakeCheckpoint, monkeypatch: pytest.MonkeyPatch) -> None:
        encoder = BgeEncoder(make("bge-small-en"), device="cpu")
        self._limit(encoder, 40, monkeypatch)
        texts = [*["fox"] * 30, "dog " * 50, "fox"]
        with (
            pytest.warns(RuntimeWarning, match="out of memory"),
            pytest.raises(DeviceMemoryError, match=r"Text 30, of 52 tokens, does not fit.*cpu") as caught,
        ):
            encoder.encode_documents(texts)
        assert caught.value.index == 30
        assert isinstance(caught.value, MemoryError)
