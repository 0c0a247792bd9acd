"""Progress bars and warnings: shown where they are wanted, and never at the price of a result."""

from __future__ import annotations

import asyncio
import io
import logging
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub.utils.tqdm import tqdm as hub_tqdm
from llama_index.core.embeddings import BaseEmbedding
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from tqdm.auto import tqdm

from bge_integrations import BgeEncoder, BgeM3Encoder, BgeReranker, PoolingWarning, TruncationWarning
from bge_integrations.backend.display.bars import steady
from bge_integrations.langchain import HuggingFaceBgeEmbeddings
from bge_integrations.llama_index import HuggingFaceBgeEmbedding
from tests.conftest import MakeCheckpoint

TEXTS = ["fox", "dog " * 10, "fox", "cat"]
PAIRS = [("fox", text) for text in TEXTS]

Result = NDArray[np.float32] | list[list[float]]


class _Broken(io.StringIO):
    """A pipe whose reader has gone, after so many writes."""

    def __init__(self, error: Exception, after: int = 0) -> None:
        super().__init__()
        self._error = error
        self._left = after

    def write(self, text: str) -> int:
        self._left -= 1
        if self._left < 0:
            raise self._error
        return super().write(text)


class _BrokenFlush(io.StringIO):
    def flush(self) -> None:
        raise OSError("no space left")


class _OnlyWrites:
    """What some applications put in the place of standard error."""

    def write(self, text: str) -> None:
        raise ValueError("I/O operation on closed file.")


def _closed() -> io.StringIO:
    stream = io.StringIO()
    stream.close()
    return stream


BAD: dict[str, Callable[[], Any]] = {
    "none": lambda: None,
    "closed": _closed,
    "broken pipe": lambda: _Broken(BrokenPipeError("the reader has gone")),
    "breaks after the first write": lambda: _Broken(BrokenPipeError("the reader has gone"), after=1),
    "breaks after some writes": lambda: _Broken(OSError(5, "Input/output error"), after=4),
    "another encoding": lambda: _Broken(UnicodeEncodeError("ascii", "█", 0, 1, "ordinal not in range(128)")),
    "an error of its own": lambda: _Broken(RuntimeError("wrapped C/C++ object has been deleted")),
    "cannot be flushed": _BrokenFlush,
    "has nothing but write": _OnlyWrites,
    "no stream": object,
}


@pytest.fixture
def lock_is_free() -> Iterator[None]:
    """Afterwards another thread shows bars, ours and others'."""
    yield

    def show() -> None:
        for kind in (steady(tqdm), steady(hub_tqdm), tqdm):
            with kind(total=1, file=io.StringIO()) as bar:
                bar.update(1)

    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    thread.join(30)
    assert not thread.is_alive()


def _encoder(folders: dict[str, Path]) -> Callable[[], Result]:
    encoder = BgeEncoder(folders["en"], device="cpu", show_progress=True)
    return lambda: encoder.encode_documents(TEXTS)


def _encoder_async(folders: dict[str, Path]) -> Callable[[], Result]:
    encoder = BgeEncoder(folders["en"], device="cpu", show_progress=True)
    return lambda: asyncio.run(encoder.aencode_documents(TEXTS))


def _reranker(folders: dict[str, Path]) -> Callable[[], Result]:
    reranker = BgeReranker(folders["reranker"], device="cpu", show_progress=True)
    return lambda: reranker.score_pairs(PAIRS)


def _m3(folders: dict[str, Path]) -> Callable[[], Result]:
    m3 = BgeM3Encoder(folders["m3"], device="cpu", show_progress=True)
    return lambda: m3.score_pairs(PAIRS)


def _langchain(folders: dict[str, Path]) -> Callable[[], Result]:
    embeddings = HuggingFaceBgeEmbeddings(model_name=str(folders["en"]), show_progress=True)
    return lambda: embeddings.embed_documents(TEXTS)


def _llama_index(folders: dict[str, Path]) -> Callable[[], Result]:
    embedding = HuggingFaceBgeEmbedding(str(folders["en"]), device="cpu")
    return lambda: embedding.get_text_embedding_batch(TEXTS, show_progress=True)


def _llama_index_async(folders: dict[str, Path]) -> Callable[[], Result]:
    embedding = HuggingFaceBgeEmbedding(str(folders["en"]), device="cpu", embed_batch_size=2, num_workers=2)
    return lambda: asyncio.run(embedding.aget_text_embedding_batch(TEXTS, show_progress=True))


USES = (_encoder, _encoder_async, _reranker, _m3, _langchain, _llama_index, _llama_index_async)


@pytest.fixture(scope="module")
def folders(bge_small_en: Path, bge_m3: Path, bge_reranker_base: Path) -> dict[str, Path]:
    return {"en": bge_small_en, "m3": bge_m3, "reranker": bge_reranker_base}


@pytest.mark.usefixtures("lock_is_free")
@pytest.mark.parametrize("use", USES)
def test_results_come_whatever_standard_error_is(
    use: Callable[[dict[str, Path]], Callable[[], Result]], folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    compute = use(folders)
    expected = compute()
    for stream in BAD.values():
        monkeypatch.setattr(sys, "stderr", stream())
        found = compute()
        monkeypatch.undo()
        np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.usefixtures("lock_is_free")
@pytest.mark.parametrize("kind", [tqdm, hub_tqdm])
@pytest.mark.parametrize("stream", BAD)
def test_bars_raise_nothing_and_release_their_lock(kind: Any, stream: str, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ANN401
    """Of the hub's bars as well, which are shown while a model is fetched."""
    monkeypatch.setattr(sys, "stderr", BAD[stream]())
    bar = steady(kind)(total=3, desc="Fetching")
    bar.update(1)
    bar.refresh()
    bar.clear()
    bar.close()


@pytest.mark.usefixtures("lock_is_free")
@pytest.mark.parametrize("stream", ["none", "closed", "broken pipe"])
def test_models_load_whatever_the_standard_streams_are(
    stream: str, make: MakeCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make("bge-small-en")
    file = folder / "model.safetensors"
    weights = {name: value for name, value in load_file(file).items() if "pooler" not in name}
    save_file(weights, file, metadata={"format": "pt"})  # transformers has something to say about it
    monkeypatch.setattr(sys, "stderr", BAD[stream]())
    monkeypatch.setattr(sys, "stdout", BAD[stream]())
    found = BgeEncoder(folder, device="cpu", engine="torch", show_progress=True).encode_documents(TEXTS)
    monkeypatch.undo()
    assert found.shape == (4, 32)


@pytest.mark.usefixtures("lock_is_free")
def test_a_lock_that_another_librarys_bar_left_held_holds_nobody_up(
    bge_small_en: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = BgeEncoder(bge_small_en, device="cpu", show_progress=True)
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with tqdm.get_lock():  # type: ignore[no-untyped-call]
            held.set()
            done.wait(60)

    holder = threading.Thread(target=hold)
    holder.start()
    try:
        assert held.wait(30)
        worker = threading.Thread(target=encoder.encode_documents, args=(TEXTS,), daemon=True)
        worker.start()
        worker.join(30)
        assert not worker.is_alive()
    finally:
        done.set()
        holder.join()


def test_a_bar_below_another_one_stays_below_it() -> None:
    with tqdm(total=2) as outer, steady(tqdm)(total=1) as inner:
        assert abs(inner.pos) == abs(outer.pos) + 1


class TestWarnings:
    @pytest.fixture
    def encoder(self, bge_small_en: Path) -> BgeEncoder:
        return BgeEncoder(bge_small_en, device="cpu", max_queued_texts=3)

    @pytest.mark.parametrize("stream", BAD)
    def test_one_that_cannot_be_shown_costs_no_result(
        self, stream: str, encoder: BgeEncoder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            monkeypatch.setattr(warnings, "_showwarnmsg_impl", _show_on_standard_error)
            monkeypatch.setattr(sys, "stderr", BAD[stream]())
            assert encoder.encode_documents(["cat " * 90]).shape == (1, 32)

    def test_one_that_is_an_error_reaches_the_caller_and_leaves_the_model_usable(self, encoder: BgeEncoder) -> None:
        expected = encoder.encode_documents(TEXTS)
        for _ in range(3):  # more texts than may be in flight, if they stayed there
            with pytest.raises(TruncationWarning):
                encoder.encode_documents(["cat " * 90, "dog " * 90])
            with pytest.raises(TruncationWarning):
                asyncio.run(encoder.aencode_documents(["cat " * 90, "dog " * 90]))
        assert np.array_equal(encoder.encode_documents(TEXTS), expected)
        assert not encoder.backend.scheduler.texts_in_flight("bulk")

    def test_one_about_pooling_that_is_an_error_lets_the_model_be_loaded_later(self, make: MakeCheckpoint) -> None:
        folder = make("a-model-of-ones-own")
        for _ in range(2):
            with pytest.raises(PoolingWarning):
                BgeEncoder(folder, device="cpu")
        with pytest.warns(PoolingWarning):
            encoder = BgeEncoder(folder, device="cpu")
        assert encoder.encode_documents(TEXTS).shape == (4, 32)


def _show_on_standard_error(message: warnings.WarningMessage) -> None:
    sys.stderr.write(str(message))


def test_log_records_on_a_closed_standard_error_cost_no_result(
    bge_small_en: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python's own handlers raise there."""
    encoder = BgeEncoder(bge_small_en, device="cpu")
    handler = logging.StreamHandler(_closed())
    logging.getLogger("bge_integrations").addHandler(handler)
    monkeypatch.setattr(sys, "stderr", _closed())
    submit = encoder.backend.engine.submit

    def failing_once(batch: Any) -> Any:  # noqa: ANN401
        monkeypatch.setattr(encoder.backend.engine, "submit", submit)
        raise ValueError("engine trouble, which is logged")

    monkeypatch.setattr(encoder.backend.engine, "submit", failing_once)
    try:
        assert encoder.encode_documents(TEXTS).shape == (4, 32)
    finally:
        logging.getLogger("bge_integrations").removeHandler(handler)


class TestLlamaIndex:
    """Its own bar would move once a batch of up to 2048 texts."""

    @pytest.fixture
    def embedding(self, bge_small_en: Path) -> BaseEmbedding:
        return HuggingFaceBgeEmbedding(str(bge_small_en), device="cpu", batch_tokens=8)

    def _shown(
        self, embedding: BaseEmbedding, monkeypatch: pytest.MonkeyPatch, texts: list[str], way: str
    ) -> list[str]:
        """What the bars show, one entry a drawing."""
        stream = io.StringIO()
        monkeypatch.setattr(sys, "stderr", stream)
        monkeypatch.setattr(steady(tqdm), "update", _always_drawn)
        if way == "async":
            asyncio.run(embedding.aget_text_embedding_batch(texts, show_progress=True))
        else:
            embedding.get_text_embedding_batch(texts, show_progress=True)
        return [drawn for drawn in stream.getvalue().split("\r") if "/" in drawn]

    @pytest.mark.parametrize("way", ["sync", "async"])
    def test_bar_moves_within_a_batch_and_there_is_one(
        self, way: str, embedding: BaseEmbedding, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        texts = [f"fox {number}" for number in range(10)]
        shown = self._shown(embedding, monkeypatch, texts, way)
        assert {drawn.split(":")[0] for drawn in shown} == {"Generating embeddings"}
        seen = [next(part for part in drawn.split() if part.endswith("/10")) for drawn in shown]
        for count in (0, 2, 4, 6, 8, 10):
            assert f"{count}/10" in seen

    def test_there_is_one_also_where_the_settings_ask_for_another(
        self, bge_small_en: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        embedding = HuggingFaceBgeEmbedding(str(bge_small_en), device="cpu", embed_batch_size=2, show_progress_bar=True)
        shown = self._shown(embedding, monkeypatch, ["fox", "dog", "cat"], "sync")
        assert {drawn.split(":")[0] for drawn in shown} == {"Generating embeddings"}
        assert "3/3" in shown[-1]

    def test_vectors_from_a_cache_are_counted_too(self, bge_small_en: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from llama_index.core.storage.kvstore import SimpleKVStore

        embedding = HuggingFaceBgeEmbedding(str(bge_small_en), device="cpu", embeddings_cache=SimpleKVStore())
        embedding.get_text_embedding_batch(["fox", "dog"])
        assert "3/3" in self._shown(embedding, monkeypatch, ["fox", "dog", "cat"], "sync")[-1]
        assert "2/2" in self._shown(embedding, monkeypatch, ["fox", "dog"], "sync")[-1]

    @pytest.mark.parametrize("way", ["sync", "async"])
    def test_nothing_is_shown_for_no_texts(
        self, way: str, embedding: BaseEmbedding, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert not self._shown(embedding, monkeypatch, [], way)

    def test_an_error_ends_the_bar_and_later_calls_show_none(
        self, embedding: BaseEmbedding, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        limiter = type("Limiter", (), {"acquire": lambda _: (_ for _ in ()).throw(RuntimeError("over the limit"))})()
        object.__setattr__(embedding, "rate_limiter", limiter)
        with pytest.raises(RuntimeError, match="over the limit"):
            embedding.get_text_embedding_batch(TEXTS, show_progress=True)
        object.__setattr__(embedding, "rate_limiter", None)
        capfd.readouterr()
        embedding.get_text_embedding_batch(TEXTS)
        assert capfd.readouterr().err == ""


def _always_drawn(bar: Any, count: int = 1) -> None:  # noqa: ANN401
    bar.n += count
    bar.refresh()
