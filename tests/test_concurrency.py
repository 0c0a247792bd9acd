"""Encoders used by many at once: threads, coroutines, several devices, forked and spawned processes."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from numpy.typing import NDArray

from bge_integrations import BgeEncoder
from bge_integrations.backend.engines.interface import Engine, PendingRows, TokenBatch
from bge_integrations.backend.machine import devices
from bge_integrations.backend.scheduler import scheduler
from bge_integrations.calls import call
from bge_integrations.errors import EngineFailedError, InputTypeError, ModelClosedError, SettingsError
from bge_integrations.langchain import HuggingFaceBgeEmbeddings
from bge_integrations.llama_index import HuggingFaceBgeEmbedding
from bge_integrations.settings import EngineName
from tests.conftest import MakeCheckpoint
from tests.model_server import wait_until_idle

_LONG = 60.0
_A_FEW_MIB = 8 * 2**20


@pytest.fixture
def encoder(bge_small_en: Path) -> BgeEncoder:
    return BgeEncoder(bge_small_en, device="cpu", on_truncation="ignore")


TEXTS = [f"fox {'dog ' * (index * 13 % 55)}{index}" for index in range(120)]


class TestEncoders:
    def test_many_threads_get_what_they_would_get_alone(self, encoder: BgeEncoder) -> None:
        queries = encoder.encode_queries(TEXTS)
        documents = encoder.encode_documents(TEXTS)

        def work(thread: int) -> None:
            source = np.random.default_rng(thread)
            for _ in range(8):
                chosen = source.integers(len(TEXTS), size=source.integers(1, 20))
                texts = [TEXTS[index] for index in chosen]
                np.testing.assert_allclose(encoder.encode_queries(texts), queries[chosen], atol=1e-5)
                np.testing.assert_allclose(encoder.encode_documents(texts), documents[chosen], atol=1e-5)

        with ThreadPoolExecutor(32) as pool:
            list(pool.map(work, range(32)))

    @pytest.mark.slow
    @pytest.mark.parametrize("engine", ["openvino", "torch"])
    def test_many_threads_get_it_for_as_long_as_one_likes(self, bge_small_en: Path, engine: EngineName) -> None:
        """Runs for `BGE_SOAK_SECONDS`, 2 where that is not set."""
        encoder = BgeEncoder(bge_small_en, device="cpu", engine=engine, on_truncation="ignore")
        queries, documents = encoder.encode_queries(TEXTS), encoder.encode_documents(TEXTS)
        until = time.monotonic() + float(os.environ.get("BGE_SOAK_SECONDS", "2"))

        def work(thread: int) -> int:
            source, texts = np.random.default_rng(thread), 0
            while not texts or time.monotonic() < until:
                chosen = source.integers(len(TEXTS), size=source.choice([1, 1, 1, 8, 200]))
                is_query = bool(source.integers(2))
                encode, expected = (
                    (encoder.encode_queries, queries) if is_query else (encoder.encode_documents, documents)
                )
                np.testing.assert_allclose(encode([TEXTS[i] for i in chosen]), expected[chosen], atol=1e-5)
                texts += len(chosen)
            return texts

        with ThreadPoolExecutor(32) as pool:
            texts = sum(pool.map(work, range(32)))
        assert encoder.stats().failed_texts == 0
        print(f"{engine}: {texts} texts, {encoder.stats()}")  # noqa: T201 - for those who ran it for minutes

    def test_many_coroutines_get_what_they_would_get_alone(self, encoder: BgeEncoder) -> None:
        queries = encoder.encode_queries(TEXTS)
        documents = encoder.encode_documents(TEXTS)

        async def all_at_once() -> tuple[list[NDArray[np.float32]], NDArray[np.float32]]:
            single = asyncio.gather(*(encoder.aencode_queries([text]) for text in TEXTS))
            return await single, await encoder.aencode_documents(iter(TEXTS))

        before = threading.active_count()
        found, bulk = asyncio.run(all_at_once())
        np.testing.assert_allclose(np.concatenate(found), queries, atol=1e-5)
        np.testing.assert_allclose(bulk, documents, atol=1e-5)
        assert threading.active_count() <= before + 4

    def test_bad_input_hurts_only_its_caller(self, encoder: BgeEncoder) -> None:
        async def together() -> list[Any]:
            calls = [encoder.aencode_queries([text]) for text in ("fox", None, "dog")]  # type: ignore[list-item]
            return await asyncio.gather(*calls, return_exceptions=True)

        good, bad, other = asyncio.run(together())
        assert isinstance(bad, InputTypeError)
        assert good.shape == other.shape == (1, 32)

    def test_cancelling_a_task_drops_its_queued_work(
        self, make: MakeCheckpoint, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        encoder = BgeEncoder(make("bge-small-en"), device="cpu", batch_tokens=64)
        submit, go, batches = encoder.backend.engine.submit, threading.Event(), 0
        entered = threading.Event()

        def slow(batch: TokenBatch) -> Any:  # noqa: ANN401
            nonlocal batches
            batches += 1
            entered.set()
            assert go.wait(_LONG)
            return submit(batch)

        monkeypatch.setattr(encoder.backend.engine, "submit", slow)

        async def cancel() -> None:
            task = asyncio.create_task(encoder.aencode_documents(TEXTS))
            await asyncio.to_thread(entered.wait, _LONG)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        asyncio.run(cancel())
        wait_until_idle(encoder.backend.scheduler)
        go.set()
        encoder.encode_queries(["fox"])
        assert batches == 2

    def test_an_interrupt_drops_queued_work(self, make: MakeCheckpoint, monkeypatch: pytest.MonkeyPatch) -> None:
        encoder = BgeEncoder(make("bge-small-en"), device="cpu", batch_tokens=64)
        submit, go, batches = encoder.backend.engine.submit, threading.Event(), 0

        main = threading.get_ident()
        before = signal.signal(signal.SIGINT, signal.default_int_handler)  # others may have changed it

        def interrupted(batch: TokenBatch) -> Any:  # noqa: ANN401
            nonlocal batches
            batches += 1
            if batches == 1:
                signal.pthread_kill(main, signal.SIGINT)
                assert go.wait(_LONG)
            return submit(batch)

        monkeypatch.setattr(encoder.backend.engine, "submit", interrupted)
        try:
            with pytest.raises(KeyboardInterrupt):
                encoder.encode_documents(TEXTS)
        finally:
            signal.signal(signal.SIGINT, before)
        wait_until_idle(encoder.backend.scheduler)
        go.set()
        encoder.encode_queries(["fox"])
        assert batches == 2

    def test_an_engine_error_names_the_text_and_keeps_its_cause(
        self, make: MakeCheckpoint, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        encoder = BgeEncoder(make("bge-small-en"), device="cpu")
        submit = encoder.backend.engine.submit

        def failing(batch: TokenBatch) -> Any:  # noqa: ANN401
            if 42 in batch.lengths:
                raise ValueError("engine trouble")
            return submit(batch)

        monkeypatch.setattr(encoder.backend.engine, "submit", failing)
        texts = ["fox", "dog " * 40, "fox", "cat"]
        with pytest.raises(EngineFailedError, match=r"Text 1, of 42 tokens, makes the engine fail.*trouble") as caught:
            encoder.encode_documents(texts)
        assert caught.value.index == 1
        assert isinstance(caught.value.__cause__, ValueError)
        assert encoder.encode_documents(["fox"]).shape == (1, 32)

    def test_letting_go_of_an_encoder_ends_its_threads(self, make: MakeCheckpoint) -> None:
        folder = make("bge-small-en")
        before = {thread.name for thread in threading.enumerate() if thread.name == "bge-engine"}
        count = threading.active_count()
        for _ in range(5):
            encoder = BgeEncoder(folder, device="cpu")
            encoder.encode_queries(["fox"])
            del encoder
        assert threading.active_count() <= count
        assert {thread.name for thread in threading.enumerate() if thread.name == "bge-engine"} <= before

    @pytest.mark.parametrize("in_thread", [False, True], ids=["queued", "lent"])
    def test_letting_go_of_an_encoder_ends_its_engine_at_once(self, make: MakeCheckpoint, in_thread: bool) -> None:
        """Left to the garbage collector, OpenVINO's threads would end at any moment, in the middle of a fork too."""
        folder = make("bge-small-en")
        gc.collect()
        gc.disable()
        try:
            encoder = BgeEncoder(folder, device="cpu", engine="openvino")
            if in_thread:
                with ThreadPoolExecutor(1) as pool:
                    pool.submit(encoder.encode_queries, ["fox"]).result(_LONG)
            else:
                encoder.encode_queries(["fox"])
            engine, scheduler = weakref.ref(encoder.backend.engine), weakref.ref(encoder.backend.scheduler)
            encoder.close()
            assert engine() is None
            assert scheduler() is None
        finally:
            gc.enable()

    @pytest.mark.slow
    def test_two_thousand_that_come_and_go_leave_nothing_behind(self, encoder: BgeEncoder) -> None:
        def come_and_go(times: int) -> None:
            for number in range(times):
                other = BgeEncoder(encoder.settings.model_name, device="cpu", query_instruction=str(number % 7))
                assert other.backend is encoder.backend
                if number % 20 == 0:
                    other.encode_queries(["fox"])
                other.close()

        self._assert_keeps_its_size(come_and_go, 200, 2000)

    def test_models_loaded_and_closed_leave_nothing_behind(self, make: MakeCheckpoint) -> None:
        folder = make("bge-small-en", layers=1, hidden_size=8, heads=1)

        def come_and_go(times: int) -> None:
            for _ in range(times):
                with BgeEncoder(folder, device="cpu") as encoder:
                    encoder.encode_queries(["fox"])

        self._assert_keeps_its_size(come_and_go, 20, 60)

    @staticmethod
    def _assert_keeps_its_size(come_and_go: Callable[[int], None], warm_up: int, times: int) -> None:
        process = psutil.Process()
        come_and_go(warm_up)
        gc.collect()
        threads, memory = process.num_threads(), process.memory_info().rss
        come_and_go(times)
        gc.collect()
        if process.num_threads() > threads:  # a library's own thread comes once, one that is left behind comes again
            threads = process.num_threads()
            come_and_go(times)
            gc.collect()
        assert process.num_threads() <= threads
        assert process.memory_info().rss - memory < _A_FEW_MIB

    def test_closing_while_others_wait_does_not_hang(self, make: MakeCheckpoint) -> None:
        folder = make("bge-small-en")
        encoder = BgeEncoder(folder, device="cpu", batch_tokens=64)
        with ThreadPoolExecutor(4) as pool:
            pending = [pool.submit(encoder.encode_documents, TEXTS) for _ in range(4)]
            encoder.close()
            for future in pending:
                with contextlib.suppress(ModelClosedError):
                    assert future.result(_LONG).shape == (120, 32)

    def test_an_encoder_keeps_to_it_and_loses_nothing(
        self, make: MakeCheckpoint, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(call, "ITEMS_A_SLICE", 16)
        encoder = BgeEncoder(make("bge-small-en"), device="cpu", max_queued_texts=20)
        expected = BgeEncoder(encoder.settings.model_name, device="cpu").encode_documents(TEXTS)
        scheduler, most = encoder.backend.scheduler, 0
        admit = scheduler._admit

        def noting() -> None:
            nonlocal most
            admit()
            most = max(most, scheduler.texts_in_flight("bulk"))

        monkeypatch.setattr(scheduler, "_admit", noting)
        with ThreadPoolExecutor(8) as pool:
            for vectors in pool.map(encoder.encode_documents, [TEXTS] * 8):
                np.testing.assert_allclose(vectors, expected, atol=1e-5)
        assert 16 <= most <= 20
        assert scheduler.texts_in_flight("bulk") == 0


def test_documents_for_many_batches_get_engines_of_their_own(
    make: MakeCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make("bge-small-en")
    alone = BgeEncoder(folder, device="cpu")
    expected = alone.encode_documents(TEXTS)
    monkeypatch.setattr(scheduler, "_SECONDS_WORTH_HELPERS", 0.0)
    with BgeEncoder(folder, device="cpu", threads=2, batch_tokens=64) as encoder:
        for _ in range(100):  # their start takes longer than the first documents
            vectors = encoder.encode_documents(TEXTS)
            np.testing.assert_allclose(vectors, expected, atol=1e-5)
            if len(encoder.backend.scheduler.engines) == 3:
                break
        first, *others = encoder.backend.scheduler.engines
        assert len(others) == 2
        batches = dict.fromkeys((first, *others), 0)

        def count(engine: Engine, batch: TokenBatch, submit: Callable[[TokenBatch], PendingRows]) -> PendingRows:
            batches[engine] += 1
            return submit(batch)

        for engine in batches:
            monkeypatch.setattr(engine, "submit", partial(count, engine, submit=engine.submit))
        np.testing.assert_allclose(encoder.encode_documents(TEXTS), expected, atol=1e-5)
        assert all(batches[other] for other in others)
        np.testing.assert_allclose(encoder.encode_queries(["fox"]), alone.encode_queries(["fox"]), atol=1e-5)
        assert batches[first]


class TestDevices:
    @pytest.mark.parametrize("engine", ["openvino", "torch", "sentence-transformers"])
    def test_a_processor_named_twice_gives_what_one_gives(self, bge_small_en: Path, engine: EngineName) -> None:
        alone = BgeEncoder(bge_small_en, device="cpu", engine=engine)
        both = BgeEncoder(bge_small_en, device=["cpu", "cpu"], engine=engine, batch_tokens=64)
        assert both.backend is not alone.backend
        assert len(both.backend.scheduler.engines) == 2
        np.testing.assert_allclose(both.encode_documents(TEXTS), alone.encode_documents(TEXTS), atol=1e-5)

    @pytest.mark.parametrize("where", ["model_kwargs", "encode_kwargs"])
    def test_as_the_frameworks_users_say_it(self, bge_small_en: Path, where: str) -> None:
        twice = ("cpu", "cpu")
        langchain = HuggingFaceBgeEmbeddings(model_name=str(bge_small_en), **{where: {"device": [*twice]}})
        llama_index = HuggingFaceBgeEmbedding(str(bge_small_en), parallel_process=True, target_devices=[*twice])
        assert langchain.encoder.backend.request.devices == twice
        assert langchain.encoder.backend is llama_index.encoder.backend
        alone = HuggingFaceBgeEmbeddings(model_name=str(bge_small_en), device="cpu")
        np.testing.assert_allclose(langchain.embed_documents(TEXTS), alone.embed_documents(TEXTS), atol=1e-5)

    def test_all_of_them_are_the_processor_where_there_is_nothing_else(
        self, bge_small_en: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(devices, "available_devices", lambda: ["cpu"])
        assert BgeEncoder(bge_small_en, device="all").backend is BgeEncoder(bge_small_en, device="cpu").backend

    def test_all_of_them_are_every_gpu_where_there_are_some(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(devices, "available_devices", lambda: ["cuda:0", "cuda:1", "cpu"])
        assert devices.resolve_devices("all") == ("cuda:0", "cuda:1")
        assert devices.resolve_devices(["cuda:1", "cuda"]) == ("cuda:1", "cuda:0")

    @pytest.mark.parametrize(
        ("device", "message"),
        [
            (["cuda:0", "cpu"], "names devices of several kinds"),
            (["cuda", "cuda:0"], "names one device twice"),
            (["cuda:2"], "is not on this machine"),
            ([], "names no device"),
            (["cpu", 3], "a list of them, or 'all'"),
            ({"cpu": 1}, "a list of them, or 'all'"),
        ],
    )
    def test_lists_that_make_no_sense_are_refused(
        self,
        bge_small_en: Path,
        monkeypatch: pytest.MonkeyPatch,
        device: Any,  # noqa: ANN401
        message: str,
    ) -> None:
        monkeypatch.setattr(devices, "available_devices", lambda: ["cuda:0", "cuda:1", "cpu"])
        with pytest.raises(SettingsError, match=message):
            BgeEncoder(bge_small_en, device=device)

    @pytest.mark.gpu
    def test_gpu_and_processor_agree(self, bge_small_en: Path) -> None:
        expected = BgeEncoder(bge_small_en, device="cpu").encode_documents(TEXTS)
        found = BgeEncoder(bge_small_en, device="all", precision="float32", batch_tokens=128).encode_documents(TEXTS)
        np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("how", ["thread", "task"])
def test_the_interpreter_ends_with_work_pending(bge_small_en: Path, how: str) -> None:
    script = """
import asyncio, sys, threading, time
from bge_integrations import BgeEncoder

encoder = BgeEncoder(sys.argv[1], device="cpu", on_truncation="ignore", batch_tokens=64)
texts = [f"fox {index} " + "dog " * (index % 60) for index in range(20000)]
if sys.argv[2] == "thread":
    threading.Thread(target=encoder.encode_documents, args=(texts,), daemon=True).start()
    encoder.encode_queries(["fox"])
else:
    async def main():
        asyncio.create_task(encoder.aencode_documents(texts))
        await encoder.aencode_queries(["fox"])

    asyncio.run(main())
print("end of the script")
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(bge_small_en), how], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout) == (0, "end of the script\n"), done.stderr
