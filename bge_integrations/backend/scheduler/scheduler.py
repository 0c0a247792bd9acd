"""One queue a loaded model, and the engines that work on it. What goes next is said in `policy`."""

from __future__ import annotations

import atexit
import os
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from queue import Empty

from bge_integrations.backend.engines.interface import Engine
from bge_integrations.backend.guarantees import forks
from bge_integrations.backend.guarantees.forks import in_child, native_code, notice_fork
from bge_integrations.backend.guarantees.interrupts import hand_over, is_interruptible, mailbox
from bge_integrations.backend.guarantees.logs import get_logger
from bge_integrations.backend.scheduler.admission import Admission
from bge_integrations.backend.scheduler.job import PRIORITIES, Batch, Job, Priority
from bge_integrations.backend.scheduler.policy import Turn, next_batch
from bge_integrations.backend.scheduler.queue import Queue
from bge_integrations.backend.scheduler.statistics import Meter
from bge_integrations.backend.scheduler.worker import EngineSlot, Worker
from bge_integrations.errors import EngineFailedError, ModelClosedError

logger = get_logger(__name__)

# Helpers take a second or two to start, and memory: only for a model that has worked on bulk jobs for so long in its
# life, when so many batches of them wait.
_SECONDS_WORTH_HELPERS = 5.0
_BATCHES_WORTH_HELPERS = 4
_LONGEST_WAIT_FOR_A_THREAD_S = 10.0


class Scheduler:
    """The queue of one model. Its threads start with the first work and end with `close`.

    Safe to use from any thread, also by finalisers that run in the middle of its own methods. Jobs come in by `submit`,
    which takes no lock, so that it can be interrupted. They lie in a mailbox until a thread that computes reads it.
    """

    def __init__(
        self, slots: Sequence[EngineSlot], meter: Meter, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Takes engines into service.

        Args:
            slots: Their places; the first engine is made already.
            meter: Counts what is done.
            clock: Gives the time in seconds.
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
        # Reentrant, since a finaliser that closes may run wherever memory is allocated.
        self._lock = threading.RLock()
        self._workers = [
            Worker(slot, engine, self, self._meter) for slot, engine in zip(self._slots, engines, strict=True)
        ]
        self._is_running = False
        self._mail = mailbox()
        self._queue = Queue()
        self._admissions: dict[Priority, Admission] = {priority: Admission() for priority in PRIORITIES}
        self._last_interactive = -float("inf")
        self._stuck: EngineFailedError | None = None

    def submit(self, job: Job, limit: int, *, may_lend: bool = False) -> None:
        """Queues a job as soon as there is room for its texts. Its `answer` gets the results, or the error.

        Args:
            job: The job. Its texts count until they are done.
            limit: Texts of its priority that may be in flight together.
            may_lend: Whether the calling thread is going to wait for this job, and may compute it meanwhile.
        """
        self._mail.put((job, limit))
        # An interrupt in the middle of a batch would leave the engine in an unknown state.
        workers = self._workers
        if may_lend and workers and not is_interruptible() and workers[0].lend() and not self._has_work():
            return
        self._call_workers(job.priority)

    @property
    def threads(self) -> list[threading.Thread]:
        """The threads that run its engines now."""
        return [worker.thread for worker in self._workers if worker.thread is not None]

    @property
    def engines(self) -> list[Engine]:
        """Its engines that are made."""
        return [worker.engine for worker in self._workers if worker.engine is not None]

    def texts_in_flight(self, priority: Priority) -> int:
        """Returns how many texts of a priority have been admitted and are not done yet."""
        with self._lock:
            return self._admissions[priority].texts

    def jobs_waiting(self, priority: Priority) -> int:
        """Returns how many jobs of a priority wait for an engine, or for room."""
        with self._lock:
            self._read_mail()
            return self._queue.jobs(priority) + len(self._admissions[priority].waiting)

    def cancel(self, job: Job) -> None:
        """Drops what still waits of a job; one that has ended stays as it is."""
        if job.process == os.getpid():  # of the parent's jobs a forked child knows nothing
            hand_over(job.cancel)

    def close(self) -> None:
        """Ends the threads after the batches they are computing; jobs that wait get an `ModelClosedError`."""
        notice_fork()
        self._closed = True
        self._turn_away()
        self._end_workers()
        # They and this object refer to each other: left to the garbage collector, an engine would end at any moment.
        with native_code():
            self._workers = []
        self._turn_away()  # what came in between

    def after_fork(self) -> None:
        """Forgets, in a forked child, all that belongs to the parent."""
        for worker in self._workers:
            if worker.engine is not None:
                worker.engine.abandon()
        self._is_forked = True
        self._start_afresh([None] * len(self._slots))

    # What workers ask for and report; see `worker.Board`.

    @property
    def is_closed(self) -> bool:
        """Whether no more work comes."""
        return self._closed

    def next_batch(self, worker: Worker) -> Batch | None:
        """Returns what a worker computes next; `None` if there is nothing for it now."""
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
        """Learns that a worker has its engine, or is not going to have one: who may take bulk batches depends on it."""
        with self._lock:
            if not worker.slot.is_helper:
                self._stuck = None
        self._call_workers("bulk")

    def start_is_late(self, worker: Worker) -> None:
        """Says that an engine's start takes long; in a forked process also to those who wait for it."""
        seconds = forks.LONGEST_START_S
        logger.warning("the start of an engine has not returned for %g s", seconds)
        if not self._is_forked or worker.slot.is_helper:
            return
        with self._lock:
            self._stuck = EngineFailedError(
                f"The start of the engine has not returned for {seconds:g} s in this forked process: the parent was in "
                "the middle of native work when it forked. Start processes by 'spawn' or 'forkserver', or load the "
                "model in the child.",
                None,
            )
        self._turn_away()

    def batch_has_ended(self, batch: Batch, seconds: float | None) -> None:
        """Learns that a batch was computed, in so many seconds; `None` if it failed."""
        if batch.priority == "bulk" and seconds is not None:
            with self._lock:
                self._bulk_seconds += seconds
                self._start_helpers()
        if len(self._workers) > 1 and self._queue.has("bulk"):  # who may take it depends on who is idle
            self._call_workers("bulk")

    def worker_died(self, worker: Worker, error: BaseException) -> None:
        """Tells all callers that wait for a thread that died."""
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
        """Has the workers that may compute a job look for it."""
        for worker in self._workers:
            if priority == "bulk" or not worker.slot.is_helper:
                worker.wake()
        if self._closed or self._stuck:
            hand_over(self._turn_away)
        elif not self._is_running:
            hand_over(self._start_workers)

    def _read_mail(self) -> None:
        """Lets the jobs that have come in ask for room, and queues those that get it."""
        while True:
            try:
                job, limit = self._mail.get_nowait()
            except Empty:
                break
            if job.truncated:
                self._meter.add(truncated_texts=job.truncated)
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
        """Takes a job out of all lists, which frees room for others."""
        with self._lock:
            self._queue.remove(job)
            self._admissions[job.priority].leave(job)
            before = self._queue.is_empty
            self._admit()
            is_new = before and not self._queue.is_empty
        if is_new:
            self._call_workers(job.priority)

    def _turn_away(self) -> None:
        """Tells all callers that wait that their jobs are not going to be computed."""
        with self._lock:
            self._read_mail()
            waiting = [job for admission in self._admissions.values() for job in admission.clear()]
            waiting += self._queue.clear()
            error = self._stuck
        for job in waiting:
            job.fail(error or ModelClosedError("The model was closed; make a new encoder."))

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
            is_helper=worker.slot.is_helper,
            has_helpers=bool(helpers),
            all_idle=not any(other.in_hand for other in (first, *helpers)),
            first_batch_tokens=first.engine.batch_tokens if first.engine else 0,
            since_interactive=self._clock() - self._last_interactive,
        )


_schedulers: weakref.WeakSet[Scheduler] = weakref.WeakSet()


@in_child
def _after_fork() -> None:
    for scheduler in list(_schedulers):
        scheduler.after_fork()


@atexit.register
def _close_all() -> None:
    """Ends all threads while the interpreter still stands: native code must not run beside its dismantling."""
    notice_fork()
    for scheduler in list(_schedulers):
        scheduler.close()
