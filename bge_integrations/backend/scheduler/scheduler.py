"""The queue of a loaded model, and the engines that work on it. `policy` chooses the next batch."""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from queue import Empty

from bge_integrations.backend.engines.interface import Engine, Priority
from bge_integrations.backend.guarantees import forks
from bge_integrations.backend.guarantees.forks import in_child, native_code, notice_fork
from bge_integrations.backend.guarantees.interrupts import hand_over, is_interruptible, mailbox
from bge_integrations.backend.guarantees.logs import get_logger
from bge_integrations.backend.scheduler.admission import Admission
from bge_integrations.backend.scheduler.job import PRIORITIES, Batch, Job
from bge_integrations.backend.scheduler.policy import Turn, next_batch
from bge_integrations.backend.scheduler.queue import Queue
from bge_integrations.backend.scheduler.statistics import Meter
from bge_integrations.backend.scheduler.worker import EngineSlot, Worker
from bge_integrations.errors import EngineFailedError, ModelClosedError

logger = get_logger(__name__)

# Helpers cost memory and need one or two seconds to start. So they start only after the model has computed bulk batches
# for this time in total, and only when this many batches wait.
_SECONDS_WORTH_HELPERS = 5.0
_BATCHES_WORTH_HELPERS = 4
_LONGEST_WAIT_FOR_A_THREAD_S = 10.0


class Scheduler:
    """The queue of one model. Its threads start with the first work and end with `close`.

    Thread-safe, also for finalisers that run in the middle of its own methods. `submit` takes no lock, so an interrupt
    leaves nothing half done: it puts the job into a mailbox, which the computing threads read.
    """

    def __init__(
        self, slots: Sequence[EngineSlot], meter: Meter, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Prepares one worker for each engine.

        Args:
            slots: The engines. The first one is already created.
            meter: The statistics of the model.
            clock: The current time in seconds.
        """
        self._slots = slots
        self._meter = meter
        self._clock = clock
        self._bulk_seconds = 0.0
        self._closed = False
        self._is_forked = False
        self._start_afresh([slot.engine for slot in slots])
        _schedulers.add(self)

    def _start_afresh(self, engines: Sequence[Engine | None]) -> None:
        # Reentrant: a finaliser that calls `close` may run in any statement that allocates memory.
        self._lock = threading.RLock()
        self._workers = [
            Worker(slot, engine, self, self._meter) for slot, engine in zip(self._slots, engines, strict=True)
        ]
        self._is_running = False
        self._mail = mailbox()
        self._queue = Queue(partial(_count_truncated, self._meter))
        self._admissions: dict[Priority, Admission] = {priority: Admission() for priority in PRIORITIES}
        self._last_interactive = -float("inf")
        self._stuck: EngineFailedError | None = None

    def submit(self, job: Job, limit: int, *, may_lend: bool = False) -> None:
        """Queues a job as soon as there is room for its texts. `job.answer` gets the results or the error.

        Args:
            job: The job. Its texts are in flight until it ends.
            limit: Maximum number of texts in flight with the same priority.
            may_lend: Whether the calling thread waits for this job, so that it may compute the job itself.
        """
        self._mail.put((job, limit))
        # An interrupt during a batch would leave the engine in an unknown state.
        workers = self._workers
        if may_lend and workers and not is_interruptible() and workers[0].lend() and not self._has_work():
            return
        self._call_workers(job.priority)

    @property
    def threads(self) -> list[threading.Thread]:
        """The threads that currently run engines."""
        return [worker.thread for worker in self._workers if worker.thread is not None]

    @property
    def engines(self) -> list[Engine]:
        """The engines created so far."""
        return [worker.engine for worker in self._workers if worker.engine is not None]

    def texts_in_flight(self, priority: Priority) -> int:
        """Returns the number of texts of a priority that are admitted and not finished."""
        with self._lock:
            return self._admissions[priority].texts

    def jobs_waiting(self, priority: Priority) -> int:
        """Returns the number of jobs of a priority that wait for an engine or for room."""
        with self._lock:
            self._read_mail()
            return self._queue.jobs(priority) + len(self._admissions[priority].waiting)

    def cancel(self, job: Job) -> None:
        """Drops the waiting texts of a job. An ended job does not change."""
        if job.process == os.getpid():  # a forked child must not touch the parent's jobs
            hand_over(job.cancel)

    def close(self) -> None:
        """Ends the threads after their current batches. Waiting jobs fail with a `ModelClosedError`."""
        notice_fork()
        self._closed = True
        for slot in self._slots:
            slot.stop()
        self._turn_away()
        self._end_workers()
        # Workers and scheduler refer to each other. The garbage collector could free their engines at any moment.
        with native_code():
            self._workers = []
        self._turn_away()  # jobs that arrived in between

    def after_fork(self) -> None:
        """Forgets everything that belongs to the parent. Runs in a forked child."""
        for worker in self._workers:
            if worker.engine is not None:
                worker.engine.abandon()
        self._is_forked = True
        self._start_afresh([None] * len(self._slots))

    @property
    def is_closed(self) -> bool:
        """See `Board.is_closed`."""
        return self._closed

    def next_batch(self, worker: Worker) -> Batch | None:
        """See `Board.next_batch`."""
        with self._lock:
            self._read_mail()
            while True:
                if worker.again:
                    batch = worker.again.popleft().without_ended_jobs()
                elif self._closed:
                    return None
                elif taken := next_batch(self._queue, self._turn_of(worker)):
                    batch = taken
                else:
                    return None
                if batch.parts:
                    worker.in_hand.append(batch)
                    return batch

    def engine_is_made(self, worker: Worker) -> None:
        """See `Board.engine_is_made`. The choice of the worker for bulk batches depends on it."""
        with self._lock:
            if not worker.slot.is_helper:
                self._stuck = None
        self._call_workers("bulk")

    def start_is_late(self, worker: Worker) -> None:
        """See `Board.start_is_late`. In a forked process, jobs that wait for the engine fail."""
        seconds = forks.LONGEST_START_S
        logger.warning("the start of an engine has not returned for %g s", seconds)
        if not self._is_forked or worker.slot.is_helper:
            return
        with self._lock:
            self._stuck = EngineFailedError(
                f"The start of the engine has not returned for {seconds:g} s in this forked process: native code was "
                "running in the parent when it forked. Start processes with 'spawn' or 'forkserver', or load the model "
                "in the child.",
                None,
            )
        self._turn_away()

    def batch_has_ended(self, batch: Batch, seconds: float | None) -> None:
        """See `Board.batch_has_ended`."""
        if batch.priority == "bulk" and seconds is not None:
            with self._lock:
                self._bulk_seconds += seconds
                self._start_helpers()
        if len(self._workers) > 1 and self._queue.has("bulk"):  # the idle workers decide which worker may take it
            self._call_workers("bulk")

    def worker_died(self, worker: Worker, error: BaseException) -> None:
        """See `Board.worker_died`. Jobs that depended on the thread fail."""
        with self._lock:
            self._is_running = False
            if worker.thread is threading.current_thread():
                worker.thread = None
            jobs = [job for batch in (*worker.in_hand, *worker.again) for job, _ in batch.parts]
            worker.in_hand.clear()
            worker.again.clear()
            if not any(other.thread is not None and not other.slot.is_helper for other in self._workers):
                self._read_mail()
                jobs += self._queue.clear()
        for job in jobs:
            failure = EngineFailedError(f"The thread that ran the model died: {error!r}.", None)
            failure.__cause__ = error
            job.fail(failure)

    def _has_work(self) -> bool:
        return not (self._mail.empty() and self._queue.is_empty) or any(worker.again for worker in self._workers)

    def _call_workers(self, priority: Priority) -> None:
        """Wakes the workers that may compute jobs of a priority."""
        for worker in self._workers:
            if priority == "bulk" or not worker.slot.is_helper:
                worker.wake()
        if self._closed or self._stuck:
            hand_over(self._turn_away)
        elif not self._is_running:
            hand_over(self._start_workers)

    def _read_mail(self) -> None:
        """Moves new jobs from the mailbox to admission, and queues the admitted jobs."""
        while True:
            try:
                job, limit = self._mail.get_nowait()
            except Empty:
                break
            _count_truncated(self._meter, job)
            job.on_end = self._job_has_ended
            self._admissions[job.priority].ask(job, limit)
        self._admit()

    def _admit(self) -> None:
        for priority, admission in self._admissions.items():
            for job in admission.admitted():
                self._queue.add(job)
                if priority == "interactive":
                    self._last_interactive = self._clock()

    def _job_has_ended(self, job: Job) -> None:
        """Removes a job from all lists, which frees room for other jobs."""
        with self._lock:
            self._queue.remove(job)
            self._admissions[job.priority].leave(job)
            before = self._queue.is_empty
            self._admit()
            is_new = before and not self._queue.is_empty
        if is_new:
            self._call_workers(job.priority)

    def _turn_away(self) -> None:
        """Fails all waiting jobs."""
        with self._lock:
            self._read_mail()
            waiting = [job for admission in self._admissions.values() for job in admission.clear()]
            waiting += self._queue.clear()
            error = self._stuck
        for job in waiting:
            job.fail(error or ModelClosedError("The model was closed; create a new encoder."))

    def _start_workers(self) -> None:
        with self._lock:
            if self._closed:
                return
            for worker in self._workers:
                if not worker.slot.is_helper:
                    worker.start()
            self._start_helpers()
            self._is_running = True

    def _end_workers(self) -> None:
        for worker in self._workers:
            worker.wake()
        for worker in self._workers:
            worker.join(_LONGEST_WAIT_FOR_A_THREAD_S)

    def _start_helpers(self) -> None:
        first = self._workers[0].engine if self._workers else None
        if (
            first is None
            or self._closed
            or self._bulk_seconds < _SECONDS_WORTH_HELPERS
            or self._queue.bulk_tokens < _BATCHES_WORTH_HELPERS * first.batch_tokens
        ):
            return
        for worker in self._workers:
            if worker.slot.is_helper and not worker.is_unusable:
                worker.start()

    def _turn_of(self, worker: Worker) -> Turn:
        first, engine = self._workers[0], worker.engine
        helpers = [other for other in self._workers if other.slot.is_helper and other.is_ready]
        return Turn(
            batch_tokens=engine.batch_tokens if engine else 1,
            memory_limit=worker.memory_limit,
            most_texts=(engine.max_texts if engine else None) or sys.maxsize,
            is_helper=worker.slot.is_helper,
            has_helpers=bool(helpers),
            all_idle=not any(other.in_hand for other in (first, *helpers)),
            first_batch_tokens=first.engine.batch_tokens if first.engine else 0,
            since_interactive=self._clock() - self._last_interactive,
            limits=worker.slot.bulk_limits,
            tokens_per_second=worker.pace.tokens_per_second,
        )


def _count_truncated(meter: Meter, job: Job) -> None:
    if job.truncated:
        meter.add(truncated_texts=job.truncated)


_schedulers: weakref.WeakSet[Scheduler] = weakref.WeakSet()


@in_child
def _after_fork() -> None:
    for scheduler in list(_schedulers):
        scheduler.after_fork()


@atexit.register
def _close_all() -> None:
    """Ends all threads before the interpreter shuts down: native code must not run during the shutdown."""
    notice_fork()
    for scheduler in list(_schedulers):
        scheduler.close()
