"""Texts are read from any iterable in slices, and vectors go to an array or a file, so that memory stays bounded."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from numpy.lib.format import open_memmap
from numpy.typing import NDArray
from tqdm import tqdm

from bge_integrations import BgeEncoder, TruncationWarning
from bge_integrations.backend.engines.interface import PendingRows, TokenBatch
from bge_integrations.calls import call, inputs, outputs
from bge_integrations.errors import (
    CorpusWriteError,
    InputTypeError,
    InputValueError,
    SettingsError,
    TruncationError,
)
from bge_integrations.langchain import HuggingFaceBgeEmbeddings
from bge_integrations.llama_index import HuggingFaceBgeEmbedding
from tests.checkpoints import reference_vectors
from tests.model_server import Models, running

pytestmark = pytest.mark.usefixtures("kept_small_en")

TEXTS = [f"fox {'dog ' * (index * 7 % 29)}{index % 5}" for index in range(100)]
SLICE = 16
LONG = 60.0


@pytest.fixture
def encoder(bge_small_en: Path) -> BgeEncoder:
    return BgeEncoder(bge_small_en)


@pytest.fixture
def expected(bge_small_en: Path) -> NDArray[np.float32]:
    return reference_vectors(bge_small_en, TEXTS)


@pytest.fixture(autouse=True)
def _small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(call, "ITEMS_A_SLICE", SLICE)


@pytest.fixture
def computed(encoder: BgeEncoder, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of texts of the batches that the engine gets."""
    submit, sizes = encoder.backend.engine.submit, []

    def noting(batch: TokenBatch) -> PendingRows:
        sizes.append(len(batch.lengths))
        return submit(batch)

    monkeypatch.setattr(encoder.backend.engine, "submit", noting)
    return sizes


def failing_at(index: int, error: Exception) -> Iterator[str]:
    yield from TEXTS[:index]
    raise error


def notes_of(error: BaseException) -> str:
    return " ".join(getattr(error, "__notes__", ()))


class Column(Sequence[str]):
    """A column as the library datasets has it: nothing is in memory. It counts what is read at once."""

    def __init__(self, texts: list[Any], length: int | None = None) -> None:
        self._texts = texts
        self._length = len(texts) if length is None else length
        self.read: list[int] = []

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: Any) -> Any:  # noqa: ANN401
        found = self._texts[index]
        self.read.append(len(found))
        return found


class TestIterables:
    def test_any_iterable_gives_what_a_list_gives(
        self, encoder: BgeEncoder, expected: NDArray[np.float32], tmp_path: Path
    ) -> None:
        class Streamed:
            """A column without a length, as the library datasets streams it."""

            def __iter__(self) -> Iterator[str]:
                return iter(TEXTS)

            def __getitem__(self, name: str) -> Streamed:
                raise KeyError(name)

        lines = tmp_path / "texts.txt"
        lines.write_text("\n".join(TEXTS), encoding="utf-8")
        with lines.open(encoding="utf-8") as file:
            given: dict[str, Any] = {
                "generator": (text for text in TEXTS),
                "file": file,
                "streamed column": Streamed(),
                "progress bar": tqdm(iter(TEXTS), disable=True),
                "column": Dataset.from_dict({"text": TEXTS})["text"],
            }
            for name, texts in given.items():
                np.testing.assert_allclose(encoder.encode_documents(texts), expected, atol=1e-5, err_msg=name)

    def test_a_progress_bar_moves_while_vectors_are_computed(self, encoder: BgeEncoder, computed: list[int]) -> None:
        read = 0

        def texts() -> Iterator[str]:
            nonlocal read
            for text in TEXTS:
                read += 1
                yield text

        class Bar:
            def __iter__(self) -> Iterator[str]:
                for text in texts():
                    if read > 4 * SLICE:
                        assert computed
                    yield text

            def __len__(self) -> int:
                return len(TEXTS)

        assert len(encoder.encode_documents(Bar())) == 100
        assert read == 100

    def test_a_column_is_read_by_slices_and_checked_before_any_work(
        self, encoder: BgeEncoder, computed: list[int], expected: NDArray[np.float32]
    ) -> None:
        column = Column(TEXTS)
        np.testing.assert_allclose(encoder.encode_documents(column), expected, atol=1e-5)
        assert max(column.read) == SLICE
        computed.clear()
        with pytest.raises(InputTypeError, match="Text 99 is a NoneType"):
            encoder.encode_documents(Column([*TEXTS[:99], None]))
        assert computed == []

    def test_a_column_that_has_not_its_length_is_refused(self, encoder: BgeEncoder) -> None:
        with pytest.raises(InputValueError, match="a Column of 103 items gave 4 items from 96 on, not 7") as caught:
            encoder.encode_documents(Column(TEXTS, 103))
        assert caught.value.index == 100

    def test_without_slices_it_is_read_one_by_one(self, encoder: BgeEncoder, expected: NDArray[np.float32]) -> None:
        class OneByOne(Column):
            def __getitem__(self, index: Any) -> Any:  # noqa: ANN401
                return self._texts[int(index)]

        np.testing.assert_allclose(encoder.encode_documents(OneByOne(TEXTS)), expected, atol=1e-5)

    def test_slices_of_very_long_texts_are_smaller(
        self, bge_small_en: Path, computed: list[int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(inputs, "_CHARACTERS_A_SLICE", 8000)
        read = 0

        def texts() -> Iterator[str]:
            nonlocal read
            for number in range(SLICE):
                if read == 9:  # in one slice, nothing would be computed before the last text is read
                    assert computed
                read += 1
                yield f"{number} {'dog ' * 1000}"

        encoder = BgeEncoder(bge_small_en, on_truncation="ignore")
        assert encoder.encode_documents(texts()).shape == (SLICE, 32)
        assert read == SLICE

    def test_equal_texts_are_computed_once_in_a_slice(self, encoder: BgeEncoder, computed: list[int]) -> None:
        vectors = encoder.encode_documents(text for _ in range(4 * SLICE) for text in ("fox", "dog"))
        assert sum(computed) == 2 * 8  # slices of two texts
        assert (
            vectors == vectors[:2].repeat(4 * SLICE, axis=0).reshape(2, 64, -1).swapaxes(0, 1).reshape(128, -1)
        ).all()

    def test_an_error_of_the_iterable_keeps_its_class_and_tells_the_position(self, encoder: BgeEncoder) -> None:
        trouble = ConnectionError("gone")
        with pytest.raises(ConnectionError) as caught:
            encoder.encode_documents(failing_at(70, trouble))
        assert caught.value is trouble
        assert "The iterable raised it in place of item 70." in notes_of(trouble)

    def test_too_long_texts_are_an_error_when_their_slice_comes(self, bge_small_en: Path, computed: list[int]) -> None:
        strict = BgeEncoder(bge_small_en, on_truncation="error")
        texts = iter([*TEXTS[:90], "dog " * 70, *TEXTS * 9])
        with pytest.raises(TruncationError, match="Text 90 has"):
            strict.encode_documents(texts)
        assert computed
        assert len(list(texts)) == 991 - 6 * SLICE

    def test_the_adapters_take_them(self, bge_small_en: Path, expected: NDArray[np.float32]) -> None:
        langchain = HuggingFaceBgeEmbeddings(model_name=str(bge_small_en))
        llama_index = HuggingFaceBgeEmbedding(str(bge_small_en))
        ways: list[Callable[[Any], Any]] = [
            langchain.embed_documents,
            lambda texts: asyncio.run(langchain.aembed_documents(texts)),
            llama_index.get_text_embedding_batch,
            lambda texts: asyncio.run(llama_index.aget_text_embedding_batch(texts)),
        ]
        for way in ways:
            np.testing.assert_allclose(way(text for text in TEXTS), expected, atol=1e-5)


class TestArrays:
    def test_vectors_go_into_it(self, encoder: BgeEncoder, expected: NDArray[np.float32]) -> None:
        array = np.full((100, 32), np.nan, dtype=np.float32)
        assert encoder.encode_documents(TEXTS, output=array) is array
        np.testing.assert_allclose(array, expected, atol=1e-5)

    def test_it_may_be_a_file_that_is_mapped(
        self, encoder: BgeEncoder, expected: NDArray[np.float32], tmp_path: Path
    ) -> None:
        for output in (
            open_memmap(tmp_path / "a.npy", mode="w+", dtype=np.float32, shape=(100, 32)),
            np.memmap(tmp_path / "b.bin", mode="w+", dtype=np.float32, shape=(100, 32)),
        ):
            assert encoder.encode_documents(iter(TEXTS), output=output) is output
        del output
        np.testing.assert_allclose(np.load(tmp_path / "a.npy"), expected, atol=1e-5)
        stored = np.fromfile(tmp_path / "b.bin", dtype=np.float32).reshape(100, 32)
        np.testing.assert_allclose(stored, expected, atol=1e-5)

    def test_it_may_be_a_part_of_a_larger_one(self, encoder: BgeEncoder, expected: NDArray[np.float32]) -> None:
        whole = np.zeros((3, 100, 40), dtype=np.float32, order="F")
        encoder.encode_documents(TEXTS, output=whole[1, :, 4:36])
        np.testing.assert_allclose(whole[1, :, 4:36], expected, atol=1e-5)
        whole[1, :, 4:36] = 0
        assert not whole.any()

    def test_rows_that_are_left_stay_as_they_are(self, encoder: BgeEncoder, expected: NDArray[np.float32]) -> None:
        array = np.full((120, 32), 7, dtype=np.float32)
        vectors = encoder.encode_documents(iter(TEXTS), output=array)
        assert vectors.shape == (100, 32)
        assert np.shares_memory(vectors, array)
        np.testing.assert_allclose(vectors, expected, atol=1e-5)
        assert (array[100:] == 7).all()

    @pytest.mark.parametrize("method", ["encode_queries", "encode_documents", "encode"])
    async def test_every_method_takes_it(self, encoder: BgeEncoder, method: str) -> None:
        found = getattr(encoder, method)(TEXTS)
        array, other = np.empty((2, 100, 32), dtype=np.float32)
        assert getattr(encoder, method)(TEXTS, output=array) is array
        assert await getattr(encoder, f"a{method}")(iter(TEXTS), output=other) is other
        np.testing.assert_allclose(array, found, atol=1e-6)
        np.testing.assert_allclose(other, found, atol=1e-6)

    def test_settings_hold_for_it(self, bge_small_en: Path, expected: NDArray[np.float32]) -> None:
        encoder = BgeEncoder(bge_small_en, truncate_dim=8)
        array = np.empty((100, 8), dtype=np.float32)
        encoder.encode_documents(TEXTS, output=array)
        cut = expected[:, :8] / np.linalg.norm(expected[:, :8], axis=1, keepdims=True)
        np.testing.assert_allclose(array, cut, atol=1e-5)
        array = np.empty((101, 8), dtype=np.float32)
        with pytest.warns(TruncationWarning, match="1 of 101 texts were cut: the longest, text 100,") as caught:
            encoder.encode_documents(iter([*TEXTS, "dog " * 70]), output=array)
        assert len(caught) == 1

    def test_a_server_fills_it(self, bge_small_en: Path, encoder: BgeEncoder, expected: NDArray[np.float32]) -> None:
        array = np.empty((100, 32), dtype=np.float32)
        with running(Models(encoder=encoder)) as server, BgeEncoder(bge_small_en, endpoint=server.url) as remote:
            remote.encode_documents(iter(TEXTS), output=array)
        np.testing.assert_allclose(array, expected, atol=1e-5)

    @pytest.mark.parametrize(
        ("output", "message"),
        [
            (np.empty((100, 32)), r"dtype float64, but vectors are float32; make it with dtype=np\.float32"),
            (np.empty((100, 32), dtype=">f4"), "dtype >f4, but vectors are float32"),
            (np.empty((100, 31), dtype=np.float32), r"shape \(100, 31\), but needs \(texts, 32\)"),
            (np.empty(3200, dtype=np.float32), r"shape \(3200,\), but needs \(texts, 32\)"),
            (np.broadcast_to(np.float32(0), (100, 32)), "output is read-only"),
            ([[0.0] * 32] * 100, r"output is a list; give a float32 array, or the path of a \.npy file"),
        ],
        ids=["dtype", "bytes swapped", "columns", "flat", "read-only", "list"],
    )
    async def test_what_does_not_fit_is_refused_before_a_text_is_read(
        self,
        encoder: BgeEncoder,
        output: Any,  # noqa: ANN401
        message: str,
    ) -> None:
        texts = iter(TEXTS)
        with pytest.raises(SettingsError, match=message):
            encoder.encode_documents(texts, output=output)
        with pytest.raises(SettingsError, match=message):
            await encoder.aencode_documents(texts, output=output)
        assert len(list(texts)) == 100

    @pytest.mark.parametrize("rows", [0, 99, 101])
    def test_other_rows_than_texts_are_refused_before_any_work(
        self, encoder: BgeEncoder, computed: list[int], rows: int
    ) -> None:
        array = np.empty((rows, 32), dtype=np.float32)
        with pytest.raises(SettingsError, match=rf"output has the shape \({rows}, 32\), but needs \(100, 32\)"):
            encoder.encode_documents(TEXTS, output=array)
        assert computed == []

    def test_the_text_without_a_row_is_named(self, encoder: BgeEncoder, expected: NDArray[np.float32]) -> None:
        array = np.empty((70, 32), dtype=np.float32)
        with pytest.raises(SettingsError, match="output has 70 rows, so there is none for text 70") as caught:
            encoder.encode_documents(iter(TEXTS), output=array)
        assert "The first 70 rows of output are written." in notes_of(caught.value)
        np.testing.assert_allclose(array, expected[:70], atol=1e-5)

    @pytest.mark.parametrize("kind", ["text", "iterable"])
    def test_after_an_error_the_rows_that_are_written_are_whole(
        self, encoder: BgeEncoder, expected: NDArray[np.float32], kind: str
    ) -> None:
        array = np.full((100, 32), np.nan, dtype=np.float32)
        bad: Any = failing_at(70, OSError("gone")) if kind == "iterable" else iter([*TEXTS[:70], None, *TEXTS[70:]])
        with pytest.raises((InputTypeError, OSError)) as caught:
            encoder.encode_documents(bad, output=array)
        assert "70" in str(caught.value) + notes_of(caught.value)
        written = int(np.isfinite(array).all(axis=1).sum())
        assert written >= 2 * SLICE
        assert f"The first {written} rows of output are written." in notes_of(caught.value)
        np.testing.assert_allclose(array[:written], expected[:written], atol=1e-5)
        assert np.isnan(array[written:]).all()


class TestFiles:
    def test_a_new_file_grows_and_is_mapped(
        self, encoder: BgeEncoder, expected: NDArray[np.float32], tmp_path: Path
    ) -> None:
        path = tmp_path / "vectors.npy"
        vectors = encoder.encode_documents((text for text in TEXTS), output=path)
        assert isinstance(vectors, np.memmap)
        assert not vectors.flags.writeable
        np.testing.assert_allclose(vectors, expected, atol=1e-5)
        np.testing.assert_array_equal(np.load(path), vectors)
        assert os.listdir(tmp_path) == ["vectors.npy"]

    @pytest.mark.parametrize("count", [0, 1, SLICE, 100])
    async def test_any_number_of_texts(self, encoder: BgeEncoder, tmp_path: Path, count: int) -> None:
        for texts in (TEXTS[:count], iter(TEXTS[:count])):
            found = await encoder.aencode_documents(texts, output=str(tmp_path / "vectors.npy"))
            assert found.shape == (count, 32)
            assert np.load(tmp_path / "vectors.npy").shape == (count, 32)

    def test_equal_texts_have_equal_rows(self, encoder: BgeEncoder, tmp_path: Path) -> None:
        vectors = encoder.encode_documents(["fox", "dog", "fox"], output=tmp_path / "vectors.npy")
        np.testing.assert_allclose(vectors, encoder.encode_documents(["fox", "dog", "fox"]), atol=1e-6)

    def test_an_older_file_is_replaced_only_by_a_complete_one(self, encoder: BgeEncoder, tmp_path: Path) -> None:
        path = tmp_path / "vectors.npy"
        encoder.encode_documents(["fox"], output=path)
        with pytest.raises(InputTypeError, match="Text 70"):
            encoder.encode_documents(iter([*TEXTS[:70], 3]), output=path)  # type: ignore[arg-type]
        assert np.load(path).shape == (1, 32)
        assert os.listdir(tmp_path) == ["vectors.npy"]
        encoder.encode_documents(TEXTS, output=path)
        assert np.load(path).shape == (100, 32)

    def test_a_full_disk_leaves_nothing(
        self, encoder: BgeEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(_: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr("os.fsync", full)
        with pytest.raises(CorpusWriteError, match=r"vectors\.npy can't be written: No space left on device"):
            encoder.encode_documents(TEXTS, output=tmp_path / "vectors.npy")
        assert os.listdir(tmp_path) == []

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("vectors.txt", r"is no name of a \.npy file"),
            (".", r"is no name of a \.npy file"),
            ("there/vectors.npy", "is in a folder that does not exist"),
        ],
    )
    def test_a_place_where_no_file_can_be_is_refused_before_a_text_is_read(
        self, encoder: BgeEncoder, tmp_path: Path, name: str, message: str
    ) -> None:
        texts = iter(TEXTS)
        with pytest.raises(SettingsError, match=message):
            encoder.encode_documents(texts, output=tmp_path / name)
        assert len(list(texts)) == 100

    @pytest.mark.parametrize("writes", [False, True], ids=["between writes", "in a write"])
    async def test_a_cancelled_call_leaves_nothing(
        self, encoder: BgeEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes: bool
    ) -> None:
        entered, may_go, over = asyncio.Event(), threading.Event(), threading.Event()
        loop = asyncio.get_running_loop()
        stream = outputs.VectorStream.to(tmp_path / "vectors.npy", 32)
        take = stream.take

        def held(vectors: NDArray[np.float32]) -> None:
            if writes:
                take(vectors)
            loop.call_soon_threadsafe(entered.set)
            assert may_go.wait(LONG)
            try:
                take(vectors)
            finally:
                over.set()

        monkeypatch.setattr(stream, "take", held)
        monkeypatch.setattr(outputs.VectorStream, "to", lambda *_: stream)
        task = asyncio.create_task(encoder.aencode_documents(iter(TEXTS), output=tmp_path / "vectors.npy"))
        await asyncio.wait_for(entered.wait(), LONG)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        may_go.set()
        assert await asyncio.to_thread(over.wait, LONG)
        assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("place", ["array", "file"])
def test_memory_does_not_grow_with_the_texts(
    encoder: BgeEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    slices = 512
    monkeypatch.setattr(call, "ITEMS_A_SLICE", slices)

    def peak(count: int) -> int:
        file = tmp_path / f"{count}.npy"
        output: Any = file
        if place == "array":
            output = open_memmap(file, mode="w+", dtype=np.float32, shape=(count, 32))
        tracemalloc.start()
        encoder.encode_documents((f"{'fox ' * 20}{index}" for index in range(count)), output=output)
        reached = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return reached

    peak(slices)
    once, later = peak(4 * slices), peak(16 * slices)
    # The vectors alone would add 12 * slices * 128 bytes, the texts about as much.
    assert later < once + 6 * slices * 128
