"""The queue in front of a model: what goes first, what goes together, and who learns of a failure."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from bge_integrations.backend.engines.interface import EngineOutOfMemory, PendingRows, TokenBatch
from bge_integrations.backend.guarantees import forks as forking
from bge_integrations.backend.scheduler import EngineSlot, Job, Meter, Scheduler, TextFailedError
from bge_integrations.backend.scheduler import scheduler as module
from bge_integrations.backend.scheduler.admission import Admission
from bge_integrations.backend.scheduler.policy import INTERACTIVE_BATCHES_IN_A_ROW, Turn, next_batch
from bge_integrations.backend.scheduler.queue import Queue
from bge_integrations.errors import EngineFailedError, ModelClosedError
from tests.fake_engine import LONG, NO_LIMIT, FakeClock, FakeEngine, make_job, make_scheduler, result, sums


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def scheduler(engine: FakeEngine) -> Iterator[Scheduler]:
    made = make_scheduler(engine)
    yield made
    engine.may_go.set()
    made.close()


def _while_busy(scheduler: Scheduler, engine: FakeEngine, *jobs: Job) -> None:
    """Queues jobs while the engine computes something else, then lets it go."""
    engine.may_go.clear()
    first = make_job(1)
    scheduler.submit(first, NO_LIMIT)
    assert engine.entered.acquire(timeout=LONG)
    for job in jobs:
        scheduler.submit(job, NO_LIMIT)
    engine.batches.clear()
    engine.may_go.set()
    assert sums(first) == [1]


class TestOrder:
    def test_results_come_back_in_place(self, scheduler: Scheduler) -> None:
        job = make_job(*range(2, 50))
        scheduler.submit(job, NO_LIMIT)
        assert sums(job) == list(range(2, 50))

    def test_queries_go_before_documents(self, scheduler: Scheduler, engine: FakeEngine) -> None:
        documents, query = make_job(*range(10, 42)), make_job(7, priority="interactive")
        _while_busy(scheduler, engine, documents, query)
        assert sums(query) == [7]
        assert sums(documents) == list(range(10, 42))
        assert engine.batches[0] == [7]

    def test_a_query_waits_for_one_batch_of_documents_at_most(self, scheduler: Scheduler, engine: FakeEngine) -> None:
        engine.may_go.clear()
        documents = make_job(*range(100, 400))
        scheduler.submit(documents, NO_LIMIT)
        assert engine.entered.acquire(timeout=LONG)
        query = make_job(7, priority="interactive")
        scheduler.submit(query, NO_LIMIT)
        engine.may_go.set()
        assert sums(query) == [7]
        result(documents)
        assert engine.batches[1] == [7]

    def test_documents_do_not_starve(self, scheduler: Scheduler, engine: FakeEngine) -> None:
        queries = [make_job(mark, length=30, priority="interactive") for mark in range(200, 220)]
        documents = make_job(10, length=30)
        _while_busy(scheduler, engine, *queries, documents)
        for job in queries:
            result(job)
        assert documents.is_over
        assert engine.batches.index([10]) <= INTERACTIVE_BATCHES_IN_A_ROW

    def test_within_a_kind_first_come_first_served(self, scheduler: Scheduler, engine: FakeEngine) -> None:
        jobs = [make_job(mark, length=30) for mark in range(2, 12)]
        _while_busy(scheduler, engine, *jobs)
        assert [sums(job) for job in jobs] == [[mark] for mark in range(2, 12)]
        assert [batch[0] for batch in engine.batches] == list(range(2, 12))

    def test_callers_share_a_batch_within_the_budget(self, scheduler: Scheduler, engine: FakeEngine) -> None:
        jobs = [make_job(mark, priority="interactive") for mark in range(2, 20)]
        _while_busy(scheduler, engine, *jobs)
        assert [sums(job) for job in jobs] == [[mark] for mark in range(2, 20)]
        assert [len(batch) for batch in engine.batches] == [8, 8, 2]  # 32 tokens of 4 each

    def test_padding_counts_when_lengths_differ(self, scheduler: Scheduler, engine: FakeEngine) -> None:
        jobs = [
            make_job(2, length=4),
            make_job(3, length=16),
            make_job(4, length=4),
            make_job(5, length=40),
            make_job(6, length=4),
        ]
        _while_busy(scheduler, engine, *jobs)
        assert [sums(job) for job in jobs] == [[2], [3], [4], [5], [6]]
        assert engine.batches == [[2, 3], [4], [5], [6]]

    def test_texts_with_other_prompts_or_limits_run_apart(self, scheduler: Scheduler, engine: FakeEngine) -> None:
        jobs = [
            make_job(2),
            make_job(3, prompt_length=2),
            make_job(4, 5, 6, max_texts=2),
            make_job(7, 8, batch_tokens=4),
        ]
        _while_busy(scheduler, engine, *jobs)
        assert [sums(job) for job in jobs] == [[2], [3], [4, 5, 6], [7, 8]]
        assert engine.batches == [[2], [3], [4, 5], [6], [7], [8]]

    def test_documents_run_in_smaller_batches_while_queries_come(
        self, engine: FakeEngine, scheduler: Scheduler
    ) -> None:
        query, documents = make_job(7, priority="interactive"), make_job(*range(20, 36))
        scheduler.submit(query, NO_LIMIT)
        result(query)
        scheduler.submit(documents, NO_LIMIT)
        result(documents)
        assert max(map(len, engine.batches)) == 2  # a quarter of 32 tokens

    def test_an_engine_that_takes_several_gets_several(self) -> None:
        engine = FakeEngine(parallel_batches=3)
        scheduler = make_scheduler(engine)
        jobs = [make_job(*range(start, start + 30)) for start in (100, 200, 300)]
        for job in jobs:
            scheduler.submit(job, NO_LIMIT)
        assert [sums(job)[0] for job in jobs] == [100, 200, 300]
        scheduler.close()

    def test_a_query_has_its_rows_before_the_next_documents_are_launched(self) -> None:
        engine = _LateEngine(parallel_batches=2)
        scheduler = make_scheduler(engine)
        documents, queries = make_job(*range(10, 26)), [make_job(mark, 4, priority="interactive") for mark in (7, 8)]
        _while_busy(scheduler, engine, *queries, documents)
        assert [sums(query) for query in queries] == [[7, 4], [8, 4]]
        assert sums(documents) == list(range(10, 26))
        launched = [[1], [7, 4, 8, 4], *([mark, mark + 1] for mark in range(10, 26, 2))]
        assert [marks for what, marks in engine.events if what == "launch"] == launched
        assert engine.events[:5] == [
            *(("launch", marks) for marks in launched[:2]),
            *(("rows", marks) for marks in launched[:2]),
            ("launch", [10, 11]),
        ]
        # Documents are launched while the ones before them are computed.
        assert engine.events[5:8] == [("launch", [12, 13]), ("rows", [10, 11]), ("launch", [14, 15])]
        scheduler.close()

    def test_queries_are_launched_while_others_are_computed(self) -> None:
        engine = _LateEngine(batch_tokens=4, parallel_batches=2)
        scheduler = make_scheduler(engine)
        queries = [make_job(mark, priority="interactive") for mark in (7, 8)]
        _while_busy(scheduler, engine, *queries)
        assert [sums(query) for query in queries] == [[7], [8]]
        assert engine.events[:4] == [("launch", [1]), ("launch", [7]), ("rows", [1]), ("launch", [8])]
        scheduler.close()


class _LateEngine(FakeEngine):
    """Notes when batches are launched and when their rows are awaited, as an engine on a GPU is used."""

    def __init__(self, batch_tokens: int = 32, parallel_batches: int = 1) -> None:
        super().__init__(batch_tokens, parallel_batches)
        self.events: list[tuple[str, list[int]]] = []

    def submit(self, batch: TokenBatch) -> PendingRows:
        """See `Engine.submit`."""
        self.events.append(("launch", batch.ids[np.cumsum(batch.lengths) - batch.lengths].tolist()))
        return _Late(super().submit(batch).result(), self.events, self.events[-1][1])


@dataclass(frozen=True)
class _Late:
    rows: NDArray[np.float32]
    events: list[tuple[str, list[int]]]
    marks: list[int]

    def result(self) -> NDArray[np.float32]:
        """See `PendingRows.result`."""
        self.events.append(("rows", self.marks))
        return self.rows


class TestCancelling:
    def test_what_waits_is_dropped_at_once(self, scheduler: Scheduler, engine: FakeEngine) -> None:
        dropped, kept = make_job(*range(10, 40)), make_job(9)
        engine.may_go.clear()
        scheduler.submit(make_job(1), NO_LIMIT)
        assert engine.entered.acquire(timeout=LONG)
        scheduler.submit(dropped, NO_LIMIT)
        scheduler.submit(kept, NO_LIMIT)
        dropped.cancel()
        engine.may_go.set()
        assert sums(kept) == [9]
        assert engine.batches == [[1], [9]]

    def test_what_runs_ends_without_harm(self, scheduler: Scheduler, engine: FakeEngine) -> None:
        engine.may_go.clear()
        job = make_job(*range(10, 40))
        scheduler.submit(job, NO_LIMIT)
        assert engine.entered.acquire(timeout=LONG)
        job.cancel()
        engine.may_go.set()
        after = make_job(5)
        scheduler.submit(after, NO_LIMIT)
        assert sums(after) == [5]
        assert len(engine.batches) == 2

    def test_a_job_is_freed_without_the_garbage_collector(self, scheduler: Scheduler) -> None:
        job = make_job(2, 3)
        scheduler.submit(job, NO_LIMIT)
        result(job)
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
    def _fails_on(engine: FakeEngine, bad: int, error: type[BaseException] = ValueError) -> None:
        def trouble(marks: list[int]) -> None:
            if bad in marks:
                raise error(f"bad {bad}")

        engine.trouble = trouble

    def test_only_the_caller_of_the_text_at_fault_gets_an_error(self, scheduler: Scheduler, engine: FakeEngine) -> None:
        self._fails_on(engine, 13)
        jobs = [make_job(2, 3), make_job(12, 13, 14), make_job(4, 5)]
        _while_busy(scheduler, engine, *jobs)
        assert sums(jobs[0]) == [2, 3]
        assert sums(jobs[2]) == [4, 5]
        with pytest.raises(TextFailedError) as caught:
            result(jobs[1])
        assert caught.value.position == 1
        assert isinstance(caught.value.__cause__, ValueError)
        assert not caught.value.out_of_memory

    def test_an_engine_that_always_fails_is_not_asked_for_every_text(
        self, scheduler: Scheduler, engine: FakeEngine
    ) -> None:
        engine.batch_tokens = 4096
        job = make_job(*range(10, 500))
        self._fails_on(engine, 10)
        engine.trouble = lambda _: (_ for _ in ()).throw(ValueError("always"))
        scheduler.submit(job, NO_LIMIT)
        with pytest.raises(TextFailedError):
            result(job)
        scheduler.submit(after := make_job(3), NO_LIMIT)
        with pytest.raises(TextFailedError):
            result(after)
        assert len(engine.batches) < 16

    def test_a_device_that_is_lost_fails_all_jobs_of_a_batch_at_once(
        self, scheduler: Scheduler, engine: FakeEngine
    ) -> None:
        cause = RuntimeError("an assert in a kernel")

        def lost(marks: list[int]) -> None:
            if marks != [1]:  # the batch that keeps the engine busy meanwhile
                raise EngineFailedError("the device is lost", None) from cause

        engine.trouble = lost
        jobs = [make_job(2, 3), make_job(4, 5), make_job(6, 7)]
        _while_busy(scheduler, engine, *jobs)
        for job in jobs:
            with pytest.raises(EngineFailedError, match="the device is lost") as caught:
                result(job)
            assert caught.value.__cause__ is cause
        assert engine.batches == [[2, 3, 4, 5, 6, 7]]
        engine.trouble = lambda _: None
        scheduler.submit(after := make_job(8), NO_LIMIT)
        assert sums(after) == [8]

    def test_too_little_memory_halves_the_budget_and_goes_on(self, scheduler: Scheduler, engine: FakeEngine) -> None:
        engine.batch_tokens = 1024

        def trouble(marks: list[int]) -> None:
            if len(marks) > 10:
                raise EngineOutOfMemory("full")

        engine.trouble = trouble
        job = make_job(*range(10, 210))
        scheduler.submit(job, NO_LIMIT)
        assert sums(job) == list(range(10, 210))
        assert engine.batch_tokens <= 48
        assert any("ran out of memory with" in note for note in job.notes)
        engine.batches.clear()
        scheduler.submit(after := make_job(*range(10, 210), batch_tokens=2048), NO_LIMIT)
        assert sums(after) == list(range(10, 210))
        assert max(map(len, engine.batches)) <= 12

    @pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, GeneratorExit])
    def test_a_thread_that_dies_tells_everybody_and_is_replaced(
        self, scheduler: Scheduler, engine: FakeEngine, error: type[BaseException]
    ) -> None:
        self._fails_on(engine, 13, error)
        jobs = [make_job(13), make_job(*range(100, 140)), make_job(5, priority="interactive")]
        engine.may_go.clear()
        for job in jobs[:1]:
            scheduler.submit(job, NO_LIMIT)
        assert engine.entered.acquire(timeout=LONG)
        for job in jobs[1:]:
            scheduler.submit(job, NO_LIMIT)
        engine.may_go.set()
        for job in jobs:
            with pytest.raises(EngineFailedError, match="died") as caught:
                result(job)
            assert isinstance(caught.value.__cause__, error)
        scheduler.submit(after := make_job(6), NO_LIMIT)
        assert sums(after) == [6]

    def test_a_failing_progress_display_harms_nobody(self, scheduler: Scheduler) -> None:
        calls: list[int] = []

        def failing(positions: NDArray[np.int64]) -> None:
            calls.append(len(positions))
            raise RuntimeError("no terminal")

        job = make_job(*range(10, 60), on_batch=failing)
        scheduler.submit(job, NO_LIMIT)
        assert sums(job) == list(range(10, 60))
        assert len(calls) == 1


class TestClosing:
    def test_during_work(self, scheduler: Scheduler, engine: FakeEngine) -> None:
        engine.may_go.clear()
        running, waiting = make_job(2), make_job(*range(10, 90))
        scheduler.submit(running, NO_LIMIT)
        assert engine.entered.acquire(timeout=LONG)
        scheduler.submit(waiting, NO_LIMIT)
        closing = threading.Thread(target=scheduler.close)
        closing.start()
        with pytest.raises(ModelClosedError, match="was closed"):
            result(waiting)
        engine.may_go.set()
        assert sums(running) == [2]
        closing.join(LONG)
        assert not closing.is_alive()

    def test_twice_and_then_use(self, scheduler: Scheduler) -> None:
        scheduler.close()
        scheduler.close()
        scheduler.submit(job := make_job(2), NO_LIMIT)
        with pytest.raises(ModelClosedError):
            result(job)

    def test_ends_its_threads(self, engine: FakeEngine) -> None:
        before = threading.active_count()
        for _ in range(200):
            scheduler = make_scheduler(engine)
            scheduler.submit(job := make_job(2), NO_LIMIT)
            result(job)
            scheduler.close()
        assert threading.active_count() == before


class TestHelpers:
    @pytest.fixture(autouse=True)
    def soon(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "_SECONDS_WORTH_HELPERS", 0.0)

    def _compute_until_all_work(self, scheduler: Scheduler, helpers: list[FakeEngine]) -> None:
        for _ in range(100):  # on a busy machine, the others may be done before the thread of a helper runs
            scheduler.submit(many := make_job(*range(100, 3000)), NO_LIMIT)
            assert sums(many) == list(range(100, 3000))
            if all(helper.batches for helper in helpers):
                return
        raise AssertionError("a helper never got a batch")

    def test_do_the_documents_while_queries_have_an_engine_of_their_own(self, engine: FakeEngine) -> None:
        helpers = [FakeEngine(), FakeEngine()]
        scheduler = make_scheduler(engine, lambda: helpers[0], lambda: helpers[1])
        few = make_job(*range(10, 18))
        scheduler.submit(few, NO_LIMIT)
        result(few)
        assert not any(helper.batches for helper in helpers)
        self._compute_until_all_work(scheduler, helpers)
        for helper in helpers:
            helper.may_go.clear()
            helper.entered = threading.Semaphore(0)
        engine.batches.clear()
        scheduler.submit(more := make_job(*range(100, 3000)), NO_LIMIT)
        for helper in helpers:
            assert helper.entered.acquire(timeout=LONG)
        scheduler.submit(query := make_job(7, priority="interactive"), NO_LIMIT)
        assert sums(query) == [7]
        assert engine.batches == [[7]]  # while both helpers are in the middle of a batch
        for helper in helpers:
            helper.may_go.set()
        assert sums(more) == list(range(100, 3000))
        scheduler.close()

    def test_few_documents_get_all_cores(self, engine: FakeEngine) -> None:
        helper = FakeEngine()
        scheduler = make_scheduler(engine, lambda: helper)
        self._compute_until_all_work(scheduler, [helper])
        helper.batches.clear()
        for mark in range(10, 40):
            scheduler.submit(few := make_job(mark), NO_LIMIT)
            assert sums(few) == [mark]
        assert helper.batches == []
        scheduler.close()

    def test_one_that_can_not_be_made_is_done_without_and_not_tried_again(self, engine: FakeEngine) -> None:
        tried = []

        def failing() -> FakeEngine:
            tried.append(True)
            raise OSError("no memory for it")

        scheduler = make_scheduler(engine, failing)
        for _ in range(3):
            scheduler.submit(job := make_job(*range(100, 3000)), NO_LIMIT)
            assert sums(job) == list(range(100, 3000))
            while not scheduler._workers[1].is_unusable:
                time.sleep(0.01)
        assert len(tried) == 1
        scheduler.close()

    def test_one_that_dies_leaves_its_work_to_the_others(self, engine: FakeEngine) -> None:
        helper = FakeEngine()
        scheduler = make_scheduler(engine, lambda: helper)

        def trouble(_: list[int]) -> None:
            if len(helper.batches) == 4:
                raise SystemExit

        helper.trouble = trouble
        lost = 0
        for _ in range(4):
            scheduler.submit(job := make_job(*range(100, 3000)), NO_LIMIT)
            try:
                assert sums(job) == list(range(100, 3000))
            except EngineFailedError:
                lost += 1
        assert lost == 1
        scheduler.close()


class TestAdmission:
    @staticmethod
    def _ask(admission: Admission, *sizes: int) -> list[Job]:
        """Has jobs of some sizes ask for room where 8 texts may be in flight."""
        jobs = [make_job(*range(1, size + 1)) for size in sizes]
        for job in jobs:
            admission.ask(job, 8)
        return jobs

    @staticmethod
    def _sizes(admission: Admission) -> list[int]:
        return [job.texts for job in admission.admitted()]

    def test_jobs_beyond_the_limit_wait_in_their_order(self) -> None:
        admission = Admission()
        jobs = self._ask(admission, 6, 5, 2, 1)
        assert self._sizes(admission) == [6]
        admission.leave(jobs[0])
        assert self._sizes(admission) == [5, 2, 1]
        assert admission.texts == 8

    @pytest.mark.parametrize(("which", "rest"), [(1, [3, 2]), (2, [10])])
    def test_a_job_that_is_given_up_leaves_its_room_to_others(self, which: int, rest: list[int]) -> None:
        admission = Admission()
        jobs = self._ask(admission, 6, 10, 3, 2)
        assert self._sizes(admission) == [6]
        jobs[which].cancel()
        assert self._sizes(admission) == []
        admission.leave(jobs[0])
        assert self._sizes(admission) == rest

    def test_a_job_that_is_given_up_at_the_head_makes_way_at_once(self) -> None:
        admission = Admission()
        jobs = self._ask(admission, 6, 10, 2)
        assert self._sizes(admission) == [6]
        jobs[1].cancel()
        assert self._sizes(admission) == [2]

    def test_more_than_the_limit_goes_alone(self) -> None:
        admission = Admission()
        jobs = self._ask(admission, 50, 1)
        assert self._sizes(admission) == [50]
        admission.leave(jobs[0])
        assert self._sizes(admission) == [1]

    def test_leaving_twice_or_without_having_come_changes_nothing(self) -> None:
        admission = Admission()
        (job,) = self._ask(admission, 6)
        admission.leave(job)
        assert self._sizes(admission) == [6]
        for _ in range(2):
            admission.leave(job)
        assert admission.texts == 0


class TestRoom:
    def test_texts_in_flight_keep_to_the_limit(self, scheduler: Scheduler, engine: FakeEngine) -> None:
        engine.may_go.clear()
        jobs = [make_job(*range(10 * number, 10 * number + 5)) for number in range(1, 5)]
        for job in jobs:
            scheduler.submit(job, 12)
        assert engine.entered.acquire(timeout=LONG)
        assert scheduler.jobs_waiting("bulk") == 3
        assert scheduler.texts_in_flight("bulk") == 10
        engine.may_go.set()
        assert [sums(job)[0] for job in jobs] == [10, 20, 30, 40]
        assert scheduler.texts_in_flight("bulk") == 0

    def test_what_is_done_is_held_by_nobody(self, scheduler: Scheduler) -> None:
        gc.collect()
        gc.disable()  # which would also find what holds itself
        try:
            job = make_job(*range(10, 16))
            scheduler.submit(job, 8)
            found = result(job)
            done, results = weakref.ref(job), weakref.ref(found)
            del job, found
            until = time.monotonic() + LONG
            while (done() or results()) is not None and time.monotonic() < until:
                time.sleep(0.001)  # until the engine's thread has let go of it
            assert done() is None
            assert results() is None
        finally:
            gc.enable()

    def test_a_thread_that_dies_makes_room(self, scheduler: Scheduler, engine: FakeEngine) -> None:
        def dying(_: list[int]) -> None:
            engine.trouble = lambda _: None
            raise SystemExit

        engine.trouble = dying
        first, second = make_job(*range(10, 16)), make_job(*range(20, 25))
        for job in (first, second):
            scheduler.submit(job, 8)
        with pytest.raises(EngineFailedError, match="died"):
            result(first)
        assert sums(second) == list(range(20, 25))

    def test_each_priority_has_room_of_its_own(self, scheduler: Scheduler, engine: FakeEngine) -> None:
        engine.may_go.clear()
        bulk, interactive = make_job(*range(10, 60)), make_job(5, priority="interactive")
        scheduler.submit(bulk, 8)
        assert engine.entered.acquire(timeout=LONG)
        scheduler.submit(interactive, 8)
        assert scheduler.jobs_waiting("interactive") == 1
        assert scheduler.texts_in_flight("interactive") == 1
        engine.may_go.set()
        assert [len(result(job)) for job in (bulk, interactive)] == [50, 1]

    def test_closing_tells_those_that_wait(self, scheduler: Scheduler, engine: FakeEngine) -> None:
        engine.may_go.clear()
        scheduler.submit(make_job(*range(10, 60)), 8)
        scheduler.submit(waiting := make_job(5), 8)
        assert engine.entered.acquire(timeout=LONG)
        closing = threading.Thread(target=scheduler.close)
        closing.start()
        with pytest.raises(ModelClosedError):
            result(waiting)
        engine.may_go.set()
        closing.join()
        scheduler.submit(late := make_job(5), 8)
        with pytest.raises(ModelClosedError):
            result(late)

    def test_a_cancelled_job_is_never_computed(self, scheduler: Scheduler, engine: FakeEngine) -> None:
        engine.may_go.clear()
        first, dropped, kept = make_job(1), make_job(2), make_job(3)
        for job in (first, dropped, kept):
            scheduler.submit(job, 1)
        scheduler.cancel(dropped)
        with pytest.raises(CancelledError):  # while the engine is still at the first one
            result(dropped)
        engine.may_go.set()
        assert sums(kept) == [3]
        assert [2] not in engine.batches


class TestPolicy:
    """What an engine takes, without threads."""

    @staticmethod
    def _queue(*jobs: Job) -> Queue:
        queue = Queue()
        for job in jobs:
            queue.add(job)
        return queue

    @staticmethod
    def _marks(queue: Queue, turn: Turn) -> list[float] | None:
        batch = next_batch(queue, turn)
        if batch is None:
            return None
        return [float(job.tokens.ids[4 * place]) for job, positions in batch.parts for place in positions]

    def test_an_empty_queue_gives_nothing(self) -> None:
        assert next_batch(Queue(), Turn(batch_tokens=32)) is None

    @pytest.mark.parametrize(("since", "texts"), [(0.0, 2), (0.99, 2), (1.0, 8), (float("inf"), 8)])
    def test_bulk_batches_are_short_while_interactive_jobs_arrive(self, since: float, texts: int) -> None:
        queue = self._queue(make_job(*range(10, 40)))
        assert len(self._marks(queue, Turn(batch_tokens=32, since_interactive=since)) or ()) == texts

    def test_helpers_leave_interactive_jobs_alone(self) -> None:
        queue = self._queue(make_job(1, priority="interactive"))
        assert self._marks(queue, Turn(batch_tokens=32, is_helper=True, has_helpers=True)) is None
        assert self._marks(queue, Turn(batch_tokens=32, has_helpers=True)) == [1]

    @pytest.mark.parametrize(("texts", "first", "helper"), [(8, True, False), (9, False, True)])
    def test_few_bulk_texts_go_to_the_first_engine_and_many_to_helpers(
        self, texts: int, first: bool, helper: bool
    ) -> None:
        turn = Turn(batch_tokens=32, has_helpers=True, first_batch_tokens=32)
        helpers_turn = Turn(batch_tokens=32, has_helpers=True, first_batch_tokens=32, is_helper=True)
        marks = range(10, 10 + texts)
        assert (self._marks(self._queue(make_job(*marks)), turn) is not None) is first
        assert (self._marks(self._queue(make_job(*marks)), helpers_turn) is not None) is helper

    def test_few_bulk_texts_go_to_helpers_where_the_first_engine_is_needed(self) -> None:
        busy = Turn(batch_tokens=32, has_helpers=True, first_batch_tokens=32, all_idle=False, is_helper=True)
        assert self._marks(self._queue(make_job(10)), busy) == [10]
        idle = Turn(batch_tokens=32, has_helpers=True, first_batch_tokens=32, is_helper=True)
        assert self._marks(self._queue(make_job(10), make_job(1, priority="interactive")), idle) == [10]

    @pytest.mark.parametrize(("own", "memory", "texts"), [(None, None, 8), (80, None, 20), (80, 24, 6), (None, 24, 6)])
    def test_the_budget_is_the_callers_but_never_more_than_has_fit(
        self, own: int | None, memory: int | None, texts: int
    ) -> None:
        queue = self._queue(make_job(*range(10, 40), batch_tokens=own))
        assert len(self._marks(queue, Turn(batch_tokens=32, memory_limit=memory)) or ()) == texts

    def test_the_clock_says_how_long_ago_the_last_interactive_job_was(self, engine: FakeEngine) -> None:
        clock = FakeClock()
        scheduler = Scheduler([EngineSlot(lambda: engine, engine)], Meter("a model", "cpu"), clock=clock)
        scheduler.submit(query := make_job(7, priority="interactive"), NO_LIMIT)
        result(query)
        for now, largest in [(0.5, 2), (1.5, 8)]:
            clock.now = now
            engine.batches.clear()
            scheduler.submit(bulk := make_job(*range(20, 36)), NO_LIMIT)
            result(bulk)
            assert max(map(len, engine.batches)) == largest
        scheduler.close()


class TestLending:
    """A caller that waits may compute its own batch."""

    @staticmethod
    def _in_thread(work: Callable[[], object]) -> int:
        thread = threading.Thread(target=work)
        thread.start()
        ident = thread.ident
        thread.join(LONG)
        assert not thread.is_alive()
        assert ident is not None
        return ident

    def test_a_thread_that_is_alone_computes_its_own_batch(self, scheduler: Scheduler, engine: FakeEngine) -> None:
        job = make_job(2, 3)
        caller = self._in_thread(lambda: scheduler.submit(job, NO_LIMIT, may_lend=True))
        assert sums(job) == [2, 3]
        assert engine.threads == [caller]
        assert scheduler.threads == []  # none was needed
        assert scheduler.texts_in_flight("bulk") == 0

    def test_the_main_thread_never_does(self, scheduler: Scheduler, engine: FakeEngine) -> None:
        scheduler.submit(job := make_job(2), NO_LIMIT, may_lend=True)
        assert sums(job) == [2]
        assert threading.get_ident() not in engine.threads

    def test_it_computes_what_the_rules_say_is_next(self, scheduler: Scheduler, engine: FakeEngine) -> None:
        engine.may_go.clear()
        scheduler.submit(make_job(1), NO_LIMIT)
        assert engine.entered.acquire(timeout=LONG)
        bulk, query = make_job(*range(10, 40)), make_job(7, priority="interactive")
        scheduler.submit(query, NO_LIMIT)
        caller = threading.Thread(target=lambda: scheduler.submit(bulk, NO_LIMIT, may_lend=True))
        caller.start()
        caller.join(LONG)  # the engine is taken, so that it only queues
        engine.may_go.set()
        assert sums(query) == [7]
        assert sums(bulk) == list(range(10, 40))
        assert engine.batches[1] == [7]
        assert caller.ident not in engine.threads

    def test_what_is_left_goes_to_the_engines_own_thread(self, scheduler: Scheduler, engine: FakeEngine) -> None:
        bulk = make_job(*range(10, 40))
        caller = self._in_thread(lambda: scheduler.submit(bulk, NO_LIMIT, may_lend=True))
        assert sums(bulk) == list(range(10, 40))
        assert engine.threads[0] == caller
        assert caller not in engine.threads[1:]

    def test_a_batch_that_fails_there_is_halved_as_elsewhere(self, scheduler: Scheduler, engine: FakeEngine) -> None:
        def trouble(marks: list[int]) -> None:
            if 13 in marks:
                raise ValueError("bad")

        engine.trouble = trouble
        job = make_job(12, 13, 14)
        self._in_thread(lambda: scheduler.submit(job, NO_LIMIT, may_lend=True))
        with pytest.raises(TextFailedError) as caught:
            result(job)
        assert caught.value.position == 1

    def test_an_error_that_ends_the_callers_thread_is_its_own(self, scheduler: Scheduler, engine: FakeEngine) -> None:
        def dying(_: list[int]) -> None:
            engine.trouble = lambda _: None
            raise SystemExit

        engine.trouble = dying
        job = make_job(2)

        def call() -> None:
            with pytest.raises(SystemExit):
                scheduler.submit(job, NO_LIMIT, may_lend=True)

        self._in_thread(call)
        with pytest.raises(EngineFailedError, match="died"):
            result(job)
        scheduler.submit(after := make_job(3), NO_LIMIT)
        assert sums(after) == [3]

    def test_where_several_come_at_once_they_share_batches(self, scheduler: Scheduler, engine: FakeEngine) -> None:
        """A thread that went ahead with one text would leave the others to a batch of their own."""
        jobs = [make_job(mark, priority="interactive") for mark in range(2, 8)]
        _while_busy(scheduler, engine, *jobs)
        assert [sums(job) for job in jobs] == [[mark] for mark in range(2, 8)]
        caller = self._in_thread(lambda: scheduler.submit(make_job(9, priority="interactive"), NO_LIMIT, may_lend=True))
        assert caller not in engine.threads

    def test_closing_waits_for_it(self, engine: FakeEngine) -> None:
        scheduler, order = make_scheduler(engine), []
        engine.may_go.clear()
        job = make_job(2)
        caller = threading.Thread(target=lambda: scheduler.submit(job, NO_LIMIT, may_lend=True))
        caller.start()
        assert engine.entered.acquire(timeout=LONG)

        def close() -> None:
            scheduler.close()
            order.append("closed")

        closing = threading.Thread(target=close)
        closing.start()
        time.sleep(0.05)
        order.append("may go")
        engine.may_go.set()
        closing.join(LONG)
        assert order == ["may go", "closed"]
        assert sums(job) == [2]


class TestStartsThatDoNotReturn:
    def test_in_a_forked_process_those_who_wait_are_told(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(forking, "LONGEST_START_S", 0.05)
        may_go, engine = threading.Event(), FakeEngine()

        def make() -> FakeEngine:
            assert may_go.wait(LONG)
            return engine

        scheduler = Scheduler([EngineSlot(make, engine)], Meter("a model", "cpu"))
        scheduler.after_fork()
        for job in (make_job(1), make_job(2)):  # the second one meets a start that is known not to return
            scheduler.submit(job, NO_LIMIT)
            with pytest.raises(EngineFailedError, match=r"has not returned for 0\.05 s in this forked process"):
                result(job)
        assert "the start of an engine has not returned" in caplog.text
        may_go.set()
        while not scheduler.engines:
            time.sleep(0.001)
        scheduler.submit(job := make_job(3), NO_LIMIT)
        assert len(result(job)) == 1
        scheduler.close()

    def test_elsewhere_it_is_said_and_waited_for(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(forking, "LONGEST_START_S", 0.05)
        engine = FakeEngine()

        def make() -> FakeEngine:
            while "has not returned" not in caplog.text:
                time.sleep(0.001)
            return engine

        scheduler = Scheduler([EngineSlot(make)], Meter("a model", "cpu"))
        scheduler.submit(job := make_job(1), NO_LIMIT)
        assert len(result(job)) == 1
        scheduler.close()
