"""The queue in front of a model: what goes first, what goes together, and who learns of a failure."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bge_integrations import BgeEncoder
from bge_integrations.backend import scheduling
from bge_integrations.backend.engines import Computed, EngineOutOfMemory, Rows, TokenBatch
from bge_integrations.backend.jobs import Job, TextFailedError
from bge_integrations.backend.scheduling import QUERY_BATCHES_IN_A_ROW, Scheduler
from bge_integrations.backend.tokenization import TokenizedTexts
from bge_integrations.errors import EncoderClosedError, EngineFailedError, InputTypeError
from tests.conftest import MakeCheckpoint

_LONG = 60.0


class _Engine:
    """Gives every text the sum of its ids, notes its batches, and waits or fails where it is told to."""

    name = "noting"
    rows: Rows = "cls"

    def __init__(self, batch_tokens: int = 32, parallel_batches: int = 1) -> None:
        self.batch_tokens = batch_tokens
        self.parallel_batches = parallel_batches
        self.batches: list[list[int]] = []
        self.may_go = threading.Event()
        self.may_go.set()
        self.entered = threading.Semaphore(0)
        self.trouble: Callable[[list[int]], None] = lambda _: None

    def submit(self, batch: TokenBatch) -> Computed:
        texts = np.split(batch.ids, np.cumsum(batch.lengths)[:-1])
        marks = [int(text[0]) for text in texts]
        self.batches.append(marks)
        self.entered.release()
        assert self.may_go.wait(_LONG)
        self.trouble(marks)
        return Computed(np.array([[text.sum(), len(text)] for text in texts], dtype=np.float32))


def _job(*marks: int, length: int = 4, is_query: bool = False, **more: Any) -> Job:  # noqa: ANN401
    """A job whose texts begin with their marks, all of one length."""
    ids = np.concatenate([np.array([mark, *[1] * (length - 1)], dtype=np.int32) for mark in marks])
    lengths = np.full(len(marks), length, dtype=np.int64)
    return Job(TokenizedTexts(ids, lengths, lengths), 2, is_query=is_query, **more)


def _sums(job: Job) -> list[float]:
    found: NDArray[np.float32] = job.done.result(_LONG)
    return [float(row[0] - row[1] + 1) for row in found]


@pytest.fixture
def engine() -> _Engine:
    return _Engine()


@pytest.fixture
def scheduler(engine: _Engine) -> Iterator[Scheduler]:
    made = Scheduler(engine, lambda _, rows: rows)
    yield made
    engine.may_go.set()
    made.close()


def _while_busy(scheduler: Scheduler, engine: _Engine, *jobs: Job) -> None:
    """Queues jobs while the engine computes something else, then lets it go."""
    engine.may_go.clear()
    first = _job(1)
    scheduler.submit(first)
    assert engine.entered.acquire(timeout=_LONG)
    for job in jobs:
        scheduler.submit(job)
    engine.batches.clear()
    engine.may_go.set()
    assert _sums(first) == [1]


class TestOrder:
    def test_results_come_back_in_place(self, scheduler: Scheduler) -> None:
        job = _job(*range(2, 50))
        scheduler.submit(job)
        assert _sums(job) == list(range(2, 50))

    def test_queries_go_before_documents(self, scheduler: Scheduler, engine: _Engine) -> None:
        documents, query = _job(*range(10, 42)), _job(7, is_query=True)
        _while_busy(scheduler, engine, documents, query)
        assert _sums(query) == [7]
        assert _sums(documents) == list(range(10, 42))
        assert engine.batches[0] == [7]

    def test_a_query_waits_for_one_batch_of_documents_at_most(self, scheduler: Scheduler, engine: _Engine) -> None:
        engine.may_go.clear()
        documents = _job(*range(100, 400))
        scheduler.submit(documents)
        assert engine.entered.acquire(timeout=_LONG)
        query = _job(7, is_query=True)
        scheduler.submit(query)
        engine.may_go.set()
        assert _sums(query) == [7]
        documents.done.result(_LONG)
        assert engine.batches[1] == [7]

    def test_documents_do_not_starve(self, scheduler: Scheduler, engine: _Engine) -> None:
        queries = [_job(mark, length=30, is_query=True) for mark in range(200, 220)]
        documents = _job(10, length=30)
        _while_busy(scheduler, engine, *queries, documents)
        for job in queries:
            job.done.result(_LONG)
        assert documents.done.done()
        assert engine.batches.index([10]) <= QUERY_BATCHES_IN_A_ROW

    def test_within_a_kind_first_come_first_served(self, scheduler: Scheduler, engine: _Engine) -> None:
        jobs = [_job(mark, length=30) for mark in range(2, 12)]
        _while_busy(scheduler, engine, *jobs)
        assert [_sums(job) for job in jobs] == [[mark] for mark in range(2, 12)]
        assert [batch[0] for batch in engine.batches] == list(range(2, 12))

    def test_callers_share_a_batch_within_the_budget(self, scheduler: Scheduler, engine: _Engine) -> None:
        jobs = [_job(mark, is_query=True) for mark in range(2, 20)]
        _while_busy(scheduler, engine, *jobs)
        assert [_sums(job) for job in jobs] == [[mark] for mark in range(2, 20)]
        assert [len(batch) for batch in engine.batches] == [8, 8, 2]  # 32 tokens of 4 each

    def test_padding_counts_when_lengths_differ(self, scheduler: Scheduler, engine: _Engine) -> None:
        jobs = [_job(2, length=4), _job(3, length=16), _job(4, length=4), _job(5, length=40), _job(6, length=4)]
        _while_busy(scheduler, engine, *jobs)
        assert [_sums(job) for job in jobs] == [[2], [3], [4], [5], [6]]
        assert engine.batches == [[2, 3], [4], [5], [6]]

    def test_texts_with_other_prompts_or_limits_run_apart(self, scheduler: Scheduler, engine: _Engine) -> None:
        jobs = [_job(2), _job(3, prompt_length=2), _job(4, 5, 6, max_texts=2), _job(7, 8, batch_tokens=4)]
        _while_busy(scheduler, engine, *jobs)
        assert [_sums(job) for job in jobs] == [[2], [3], [4, 5, 6], [7, 8]]
        assert engine.batches == [[2], [3], [4, 5], [6], [7], [8]]

    def test_documents_run_in_smaller_batches_while_queries_come(self, engine: _Engine, scheduler: Scheduler) -> None:
        query, documents = _job(7, is_query=True), _job(*range(20, 36))
        scheduler.submit(query)
        query.done.result(_LONG)
        scheduler.submit(documents)
        documents.done.result(_LONG)
        assert max(map(len, engine.batches)) == 2  # a quarter of 32 tokens

    def test_an_engine_that_takes_several_gets_several(self) -> None:
        engine = _Engine(parallel_batches=3)
        scheduler = Scheduler(engine, lambda _, rows: rows)
        jobs = [_job(*range(start, start + 30)) for start in (100, 200, 300)]
        for job in jobs:
            scheduler.submit(job)
        assert [_sums(job)[0] for job in jobs] == [100, 200, 300]
        scheduler.close()


class TestCancelling:
    def test_what_waits_is_dropped_at_once(self, scheduler: Scheduler, engine: _Engine) -> None:
        dropped, kept = _job(*range(10, 40)), _job(9)
        engine.may_go.clear()
        scheduler.submit(_job(1))
        assert engine.entered.acquire(timeout=_LONG)
        scheduler.submit(dropped)
        scheduler.submit(kept)
        assert dropped.done.cancel()
        engine.may_go.set()
        assert _sums(kept) == [9]
        assert engine.batches == [[1], [9]]

    def test_what_runs_ends_without_harm(self, scheduler: Scheduler, engine: _Engine) -> None:
        engine.may_go.clear()
        job = _job(*range(10, 40))
        scheduler.submit(job)
        assert engine.entered.acquire(timeout=_LONG)
        job.done.cancel()
        engine.may_go.set()
        after = _job(5)
        scheduler.submit(after)
        assert _sums(after) == [5]
        assert len(engine.batches) == 2

    def test_a_job_is_freed_without_the_garbage_collector(self, scheduler: Scheduler) -> None:
        job = _job(2, 3)
        scheduler.submit(job)
        job.done.result(_LONG)
        scheduler.submit(after := _job(4))  # the thread lets go of the one before
        after.done.result(_LONG)
        gone = weakref.ref(job)
        gc.disable()
        try:
            del job
            assert gone() is None
        finally:
            gc.enable()


class TestFaults:
    @staticmethod
    def _fails_on(engine: _Engine, bad: int, error: type[BaseException] = ValueError) -> None:
        def trouble(marks: list[int]) -> None:
            if bad in marks:
                raise error(f"bad {bad}")

        engine.trouble = trouble

    def test_only_the_caller_of_the_text_at_fault_gets_an_error(self, scheduler: Scheduler, engine: _Engine) -> None:
        self._fails_on(engine, 13)
        jobs = [_job(2, 3), _job(12, 13, 14), _job(4, 5)]
        _while_busy(scheduler, engine, *jobs)
        assert _sums(jobs[0]) == [2, 3]
        assert _sums(jobs[2]) == [4, 5]
        with pytest.raises(TextFailedError) as caught:
            jobs[1].done.result(_LONG)
        assert caught.value.position == 1
        assert isinstance(caught.value.__cause__, ValueError)
        assert not caught.value.out_of_memory

    def test_an_engine_that_always_fails_is_not_asked_for_every_text(
        self, scheduler: Scheduler, engine: _Engine
    ) -> None:
        engine.batch_tokens = 4096
        job = _job(*range(10, 500))
        self._fails_on(engine, 10)
        engine.trouble = lambda _: (_ for _ in ()).throw(ValueError("always"))
        scheduler.submit(job)
        with pytest.raises(TextFailedError):
            job.done.result(_LONG)
        scheduler.submit(after := _job(3))
        with pytest.raises(TextFailedError):
            after.done.result(_LONG)
        assert len(engine.batches) < 16

    def test_too_little_memory_halves_the_budget_and_goes_on(self, scheduler: Scheduler, engine: _Engine) -> None:
        engine.batch_tokens = 1024

        def trouble(marks: list[int]) -> None:
            if len(marks) > 10:
                raise EngineOutOfMemory("full")

        engine.trouble = trouble
        job = _job(*range(10, 210))
        scheduler.submit(job)
        assert _sums(job) == list(range(10, 210))
        assert engine.batch_tokens <= 48
        assert any("ran out of memory with" in note for note in job.notes)
        engine.batches.clear()
        scheduler.submit(after := _job(*range(10, 210), batch_tokens=2048))
        assert _sums(after) == list(range(10, 210))
        assert max(map(len, engine.batches)) <= 12

    @pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, GeneratorExit])
    def test_a_thread_that_dies_tells_everybody_and_is_replaced(
        self, scheduler: Scheduler, engine: _Engine, error: type[BaseException]
    ) -> None:
        self._fails_on(engine, 13, error)
        jobs = [_job(13), _job(*range(100, 140)), _job(5, is_query=True)]
        engine.may_go.clear()
        for job in jobs[:1]:
            scheduler.submit(job)
        assert engine.entered.acquire(timeout=_LONG)
        for job in jobs[1:]:
            scheduler.submit(job)
        engine.may_go.set()
        for job in jobs:
            with pytest.raises(EngineFailedError, match="died") as caught:
                job.done.result(_LONG)
            assert isinstance(caught.value.__cause__, error)
        scheduler.submit(after := _job(6))
        assert _sums(after) == [6]

    def test_a_failing_progress_display_harms_nobody(self, scheduler: Scheduler) -> None:
        calls: list[int] = []

        def failing(positions: NDArray[np.int64]) -> None:
            calls.append(len(positions))
            raise RuntimeError("no terminal")

        job = _job(*range(10, 60), on_batch=failing)
        scheduler.submit(job)
        assert _sums(job) == list(range(10, 60))
        assert len(calls) == 1

    def test_a_future_whose_callback_fails_harms_nobody(self, scheduler: Scheduler) -> None:
        def failing(_: Future[Any]) -> None:
            raise RuntimeError("callback trouble")

        job = _job(2)
        job.done.add_done_callback(failing)
        scheduler.submit(job)
        scheduler.submit(after := _job(3))
        assert _sums(job) == [2]
        assert _sums(after) == [3]


class TestClosing:
    def test_during_work(self, scheduler: Scheduler, engine: _Engine) -> None:
        engine.may_go.clear()
        running, waiting = _job(2), _job(*range(10, 90))
        scheduler.submit(running)
        assert engine.entered.acquire(timeout=_LONG)
        scheduler.submit(waiting)
        closing = threading.Thread(target=scheduler.close)
        closing.start()
        with pytest.raises(EncoderClosedError, match="while texts waited"):
            waiting.done.result(_LONG)
        engine.may_go.set()
        assert _sums(running) == [2]
        closing.join(_LONG)
        assert not closing.is_alive()

    def test_twice_and_then_use(self, scheduler: Scheduler) -> None:
        scheduler.close()
        scheduler.close()
        with pytest.raises(EncoderClosedError):
            scheduler.submit(_job(2))

    def test_ends_its_threads(self, engine: _Engine) -> None:
        before = threading.active_count()
        for _ in range(200):
            scheduler = Scheduler(engine, lambda _, rows: rows)
            scheduler.submit(job := _job(2))
            job.done.result(_LONG)
            scheduler.close()
        assert threading.active_count() == before


class TestHelpers:
    @pytest.fixture(autouse=True)
    def soon(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(scheduling, "_SECONDS_WORTH_HELPERS", 0.0)

    def test_do_the_documents_while_queries_have_an_engine_of_their_own(self, engine: _Engine) -> None:
        helpers = [_Engine(), _Engine()]
        scheduler = Scheduler(engine, lambda _, rows: rows, helpers=[lambda: helpers[0], lambda: helpers[1]])
        few = _job(*range(10, 18))
        scheduler.submit(few)
        few.done.result(_LONG)
        assert not any(helper.batches for helper in helpers)
        many = _job(*range(100, 3000))
        scheduler.submit(many)
        assert _sums(many) == list(range(100, 3000))
        assert all(helper.batches for helper in helpers)
        for helper in helpers:
            helper.may_go.clear()
            helper.entered = threading.Semaphore(0)
        engine.batches.clear()
        scheduler.submit(more := _job(*range(100, 3000)))
        for helper in helpers:
            assert helper.entered.acquire(timeout=_LONG)
        scheduler.submit(query := _job(7, is_query=True))
        assert _sums(query) == [7]
        assert engine.batches == [[7]]  # while both helpers are in the middle of a batch
        for helper in helpers:
            helper.may_go.set()
        assert _sums(more) == list(range(100, 3000))
        scheduler.close()

    def test_few_documents_get_all_cores(self, engine: _Engine) -> None:
        helper = _Engine()
        scheduler = Scheduler(engine, lambda _, rows: rows, helpers=[lambda: helper])
        scheduler.submit(many := _job(*range(100, 3000)))
        many.done.result(_LONG)
        scheduler.submit(more := _job(*range(100, 3000)))
        more.done.result(_LONG)
        assert helper.batches
        helper.batches.clear()
        for mark in range(10, 40):
            scheduler.submit(few := _job(mark))
            assert _sums(few) == [mark]
        assert helper.batches == []
        scheduler.close()

    def test_one_that_can_not_be_made_is_done_without(self, engine: _Engine, caplog: pytest.LogCaptureFixture) -> None:
        def failing() -> _Engine:
            raise OSError("no memory for it")

        scheduler = Scheduler(engine, lambda _, rows: rows, helpers=[failing])
        for _ in range(3):
            scheduler.submit(job := _job(*range(100, 3000)))
            assert _sums(job) == list(range(100, 3000))
        assert caplog.text.count("no memory for it") == 1
        scheduler.close()

    def test_one_that_dies_leaves_its_work_to_the_others(self, engine: _Engine) -> None:
        helper = _Engine()
        scheduler = Scheduler(engine, lambda _, rows: rows, helpers=[lambda: helper])

        def trouble(_: list[int]) -> None:
            if len(helper.batches) == 4:
                raise SystemExit

        helper.trouble = trouble
        lost = 0
        for _ in range(4):
            scheduler.submit(job := _job(*range(100, 3000)))
            try:
                assert _sums(job) == list(range(100, 3000))
            except EngineFailedError:
                lost += 1
        assert lost == 1
        scheduler.close()


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
        assert {thread.name for thread in threading.enumerate() if thread.name == "bge-engine"} == before

    def test_closing_while_others_wait_does_not_hang(self, make: MakeCheckpoint) -> None:
        folder = make("bge-small-en")
        encoder = BgeEncoder(folder, device="cpu", batch_tokens=64)
        with ThreadPoolExecutor(4) as pool:
            pending = [pool.submit(encoder.encode_documents, TEXTS) for _ in range(4)]
            encoder.close()
            for future in pending:
                with contextlib.suppress(EncoderClosedError):
                    assert future.result(_LONG).shape == (120, 32)


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
