"""The queue in front of a model: what goes first, what goes together, and who learns of a failure."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future
from functools import partial
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bge_integrations.backend import forking, scheduling
from bge_integrations.backend.engines import Computed, EngineOutOfMemory, Rows, TokenBatch
from bge_integrations.backend.gate import Gate
from bge_integrations.backend.interrupts import Ticket
from bge_integrations.backend.jobs import Job, TextFailedError
from bge_integrations.backend.queueing import QUERY_BATCHES_IN_A_ROW
from bge_integrations.backend.scheduling import EngineSlot, Scheduler
from bge_integrations.backend.statistics import Meter
from bge_integrations.backend.tokenization import TokenizedTexts
from bge_integrations.errors import EncoderClosedError, EngineFailedError

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

    def abandon(self) -> None:
        pass

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
    results = np.empty((len(marks), 2), dtype=np.float32)
    return Job(TokenizedTexts(ids, lengths, lengths), lambda _, rows: rows, results, is_query=is_query, **more)


def _scheduler(engine: _Engine, *helpers: Callable[[], _Engine]) -> Scheduler:
    slots = [EngineSlot(lambda: engine, engine), *(EngineSlot(make, only_documents=True) for make in helpers)]
    return Scheduler(slots, Meter("a model", "cpu"))


def _sums(job: Job) -> list[float]:
    found: NDArray[np.float32] = job.done.result(_LONG)
    return [float(row[0] - row[1] + 1) for row in found]


@pytest.fixture
def engine() -> _Engine:
    return _Engine()


@pytest.fixture
def scheduler(engine: _Engine) -> Iterator[Scheduler]:
    made = _scheduler(engine)
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
        scheduler = _scheduler(engine)
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
        gone = weakref.ref(job)
        gc.disable()
        try:
            del job
            for _ in range(1000):  # the thread may still be on its way back to the queue
                if gone() is None:
                    break
                time.sleep(0.01)
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
            scheduler = _scheduler(engine)
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
        scheduler = _scheduler(engine, lambda: helpers[0], lambda: helpers[1])
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
        scheduler = _scheduler(engine, lambda: helper)
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

    def test_one_that_can_not_be_made_is_done_without_and_not_tried_again(self, engine: _Engine) -> None:
        tried = []

        def failing() -> _Engine:
            tried.append(True)
            raise OSError("no memory for it")

        scheduler = _scheduler(engine, failing)
        for _ in range(3):
            scheduler.submit(job := _job(*range(100, 3000)))
            assert _sums(job) == list(range(100, 3000))
            while not scheduler._lanes[1].is_unusable:
                time.sleep(0.01)
        assert len(tried) == 1
        scheduler.close()

    def test_one_that_dies_leaves_its_work_to_the_others(self, engine: _Engine) -> None:
        helper = _Engine()
        scheduler = _scheduler(engine, lambda: helper)

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


class TestRoom:
    @staticmethod
    def _enter(gate: Gate, *sizes: int) -> tuple[list[Future[None]], list[int]]:
        """Has groups of texts ask to be let in where 8 may be; the sizes that were let in are noted."""
        done: list[Future[None]] = [Future() for _ in sizes]
        inside: list[int] = []
        for size, future in zip(sizes, done, strict=True):
            gate.enter(size, 8, future, partial(inside.append, size))
        return done, inside

    def test_callers_beyond_the_limit_wait_in_their_order(self) -> None:
        done, inside = self._enter(Gate(), 6, 5, 2, 1)
        assert inside == [6]
        done[0].set_result(None)
        assert inside == [6, 5, 2, 1]

    @pytest.mark.parametrize("who", [1, 2])
    def test_who_gives_up_leaves_the_room_to_others(self, who: int) -> None:
        done, inside = self._enter(Gate(), 6, 10, 3, 2)
        assert done[who].cancel()
        assert inside == [6]
        done[0].cancel()
        assert inside == ([6, 3, 2] if who == 1 else [6, 10])

    def test_who_gives_up_at_the_head_makes_way_at_once(self) -> None:
        done, inside = self._enter(Gate(), 6, 10, 2)
        done[1].cancel()
        assert inside == [6, 2]

    def test_what_is_done_is_held_by_nobody(self, scheduler: Scheduler) -> None:
        gc.collect()
        gc.disable()  # which would also find what holds itself
        try:
            job = _job(*range(10, 16))
            _start(scheduler, job).wait()
            done, results = weakref.ref(job.done), weakref.ref(job._results)
            del job
            until = time.monotonic() + _LONG
            while (done() or results()) is not None and time.monotonic() < until:
                time.sleep(0.001)  # until the engine's thread has let go of it
            assert done() is None
            assert results() is None
        finally:
            gc.enable()

    def test_more_than_the_limit_goes_alone(self) -> None:
        _, inside = self._enter(Gate(), 50, 1)
        assert inside == [50]

    def test_what_is_done_before_it_comes_takes_no_room(self) -> None:
        gate = Gate()
        done: Future[None] = Future()
        done.cancel()
        gate.enter(8, 8, done, lambda: pytest.fail("it was let in"))
        _, inside = self._enter(gate, 8)
        assert inside == [8]

    def test_a_thread_that_dies_makes_room(self, scheduler: Scheduler, engine: _Engine) -> None:
        def dying(_: list[int]) -> None:
            engine.trouble = lambda _: None
            raise SystemExit

        engine.trouble = dying
        first, second = _start(scheduler, _job(*range(10, 16))), _start(scheduler, _job(*range(20, 25)))
        with pytest.raises(EngineFailedError, match="died"):
            first.wait()
        assert [row[0] - row[1] + 1 for row in second.wait()] == list(range(20, 25))

    def test_queries_have_room_of_their_own(self, scheduler: Scheduler, engine: _Engine) -> None:
        engine.may_go.clear()
        tickets = [_start(scheduler, _job(*range(10, 60)))]
        assert engine.entered.acquire(timeout=_LONG)
        tickets.append(_start(scheduler, _job(5, is_query=True)))
        while not scheduler._queue.has_queries:
            time.sleep(0.001)
        engine.may_go.set()
        assert [len(ticket.wait()) for ticket in tickets] == [50, 1]

    def test_closing_tells_those_who_wait(self, scheduler: Scheduler, engine: _Engine) -> None:
        engine.may_go.clear()
        _start(scheduler, _job(*range(10, 60)))
        waiting = _start(scheduler, _job(5))
        assert engine.entered.acquire(timeout=_LONG)
        closing = threading.Thread(target=scheduler.close)
        closing.start()
        with pytest.raises(EncoderClosedError):
            waiting.wait()
        engine.may_go.set()
        closing.join()
        with pytest.raises(EncoderClosedError):
            _start(scheduler, _job(5)).wait()

    def test_a_cancelled_job_is_never_computed(self, scheduler: Scheduler, engine: _Engine) -> None:
        engine.may_go.clear()
        first, dropped, kept = _job(1), _job(2), _job(3)
        tickets = [_start(scheduler, job, limit=1) for job in (first, dropped, kept)]
        scheduler.cancel(dropped)
        engine.may_go.set()
        with pytest.raises(CancelledError):
            tickets[1].wait()
        assert len(tickets[2].wait()) == 1
        assert [2] not in engine.batches


def _start(scheduler: Scheduler, job: Job, limit: int = 8) -> Ticket[NDArray[Any]]:
    ticket: Ticket[NDArray[Any]] = Ticket()
    scheduler.start(job, limit, ticket)
    return ticket


class TestStartsThatDoNotReturn:
    def test_in_a_forked_process_those_who_wait_are_told(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(forking, "LONGEST_START_S", 0.05)
        may_go, engine = threading.Event(), _Engine()

        def make() -> _Engine:
            assert may_go.wait(_LONG)
            return engine

        scheduler = Scheduler([EngineSlot(make, engine)], Meter("a model", "cpu"))
        scheduler.after_fork()
        for job in (_job(1), _job(2)):  # the second one meets a start that is known not to return
            with pytest.raises(EngineFailedError, match=r"has not returned for 0\.05 s in this forked process"):
                _start(scheduler, job).wait()
        assert "the start of an engine has not returned" in caplog.text
        may_go.set()
        while scheduler._lanes[0].engine is None:
            time.sleep(0.001)
        assert len(_start(scheduler, _job(3)).wait()) == 1
        scheduler.close()

    def test_elsewhere_it_is_said_and_waited_for(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(forking, "LONGEST_START_S", 0.05)
        engine = _Engine()

        def make() -> _Engine:
            while "has not returned" not in caplog.text:
                time.sleep(0.001)
            return engine

        scheduler = Scheduler([EngineSlot(make)], Meter("a model", "cpu"))
        assert len(_start(scheduler, _job(1)).wait()) == 1
        scheduler.close()
