"""One queue a loaded model: every caller's texts wait here, and the engines take them in batches.

The rules:

- A batch takes as many texts as its budget of tokens allows, across callers. Nobody waits for a batch to fill.
- Queries go before documents; within a kind, first come, first served. After `QUERY_BATCHES_IN_A_ROW` batches of
  queries one batch of documents goes, if any wait, so that documents never starve.
- An engine computes one batch after the other, so a query waits for at most the batch of documents that is running.
  Where the model can afford engines of their own for documents (helpers), it does not even wait for that.
- A batch that fails is cut in halves until the text at fault is alone. Only the caller of that text gets an error.
- In a forked child nothing waits, no thread runs and no engine of the parent is touched: they are made anew when the
  child first uses the model.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from numpy.typing import NDArray

from bge_integrations.backend import forking
from bge_integrations.backend.engines import Engine, EngineOutOfMemory, PendingRows, TokenBatch
from bge_integrations.backend.forking import in_child, notice_fork, watched
from bge_integrations.backend.gate import Gate
from bge_integrations.backend.interrupts import Outcome, Ticket, hand_over
from bge_integrations.backend.jobs import Batch, Job, TextFailedError
from bge_integrations.backend.logs import get_logger
from bge_integrations.backend.queueing import Done, Queue
from bge_integrations.backend.statistics import Meter
from bge_integrations.errors import EncoderClosedError, EngineFailedError

logger = get_logger(__name__)

# Helpers take a second or two to start, and memory: only for a model that has worked on documents for so long in its
# life, when so many batches of them wait.
_SECONDS_WORTH_HELPERS = 5.0
_BATCHES_WORTH_HELPERS = 4
# While queries arrive, an engine that has documents to do as well does them in smaller batches, for this long after.
_QUERIES_ARE_RECENT_S = 1.0
_SHARE_BETWEEN_QUERIES = 4
_LONGEST_WAIT_FOR_A_THREAD_S = 10.0


@dataclass(frozen=True)
class EngineSlot:
    """A place for an engine.

    Attributes:
        make: Makes the engine, in the thread that is to run it.
        engine: The engine, if it is made already.
        only_documents: Whether it is a helper, made with the first large amount of documents, to which alone
            documents are left from then on.
    """

    make: Callable[[], Engine]
    engine: Engine | None = None
    only_documents: bool = False


@dataclass(eq=False)
class _Lane:
    """An engine at work, and the thread that feeds it.

    Attributes:
        slot: What it is for.
        engine: The engine, once it is made.
        thread: Its thread, while one runs.
        in_hand: Batches taken and not finished yet.
        again: Parts of batches that failed, to be tried before anything else.
        is_unusable: Whether the engine could not be made.
        memory_limit: Tokens in a batch that fit, once a larger one did not.
    """

    slot: EngineSlot
    engine: Engine | None
    thread: threading.Thread | None = None
    in_hand: list[Batch] = field(default_factory=list)
    again: deque[Batch] = field(default_factory=deque)
    is_unusable: bool = False
    memory_limit: int | None = None

    @property
    def is_ready(self) -> bool:
        return self.engine is not None and self.thread is not None

    def running_engine(self) -> Engine:
        if self.engine is None:
            raise AssertionError("a lane works only with its engine")
        return self.engine


@dataclass(frozen=True)
class _Running:
    """A batch that an engine computes."""

    batch: Batch
    tokens: TokenBatch
    pending: PendingRows
    start: float


class Scheduler:
    """The queue of one model. Its threads start with the first work and end with `close`.

    Safe to use from any thread, also by finalisers that run in the middle of its own methods.
    """

    def __init__(
        self,
        slots: Sequence[EngineSlot],
        meter: Meter,
    ) -> None:
        """Takes engines into service.

        Args:
            slots: Their places; the first engine is made already.
            meter: Is told what was done.
        """
        self._meter = meter
        self._slots = slots
        self._document_seconds = 0.0
        self._closed = False
        self._is_forked = False
        self._start_afresh([slot.engine for slot in slots])
        _schedulers.add(self)

    def _start_afresh(self, engines: Sequence[Engine | None]) -> None:
        # Reentrant, since a finaliser that closes may run wherever memory is allocated.
        self._lock = threading.RLock()
        # Two, so that a query does not wake those who have nothing to do with queries.
        self._anything_changed = threading.Condition(self._lock)
        self._documents_changed = threading.Condition(self._lock)
        self._lanes = [_Lane(slot, engine) for slot, engine in zip(self._slots, engines, strict=True)]
        self._queue = Queue()
        self._gates = {True: Gate(), False: Gate()}  # of queries and of documents
        self._last_query = -_QUERIES_ARE_RECENT_S
        self._stuck: EngineFailedError | None = None

    def start(self, job: Job, limit: int, ticket: Ticket[NDArray[Any]]) -> None:
        """Queues a job as soon as there is room for its texts.

        Args:
            job: The job. Its texts count until they are done.
            limit: Texts of its kind, queries or documents, that may be in flight together.
            ticket: Gets the results, one a text, or the error.
        """
        hand_over(partial(self._start, job, limit, ticket))

    def cancel(self, job: Job) -> None:
        """Drops what still waits of a job; one that is done stays so."""
        if job.process == os.getpid():  # of the parent's jobs a forked child knows nothing
            hand_over(job.done.cancel)

    def _start(self, job: Job, limit: int, ticket: Ticket[NDArray[Any]]) -> None:
        job.done.add_done_callback(lambda done: ticket.give(Outcome.of(done.result)))
        if job.truncated:
            self._meter.add(truncated_texts=job.truncated)
        try:
            self._gates[job.is_query].enter(job.waiting_texts, limit, job.done, partial(self._enter, job))
        except EncoderClosedError as error:
            job.fail(error)

    def _enter(self, job: Job) -> None:
        try:
            self.submit(job)
        except (EncoderClosedError, EngineFailedError) as error:
            job.fail(error)

    def submit(self, job: Job) -> None:
        """Queues a job, which an engine takes as soon as it is free.

        Raises:
            EncoderClosedError: After `close`.
            EngineFailedError: In a forked process, the start of the engine does not return.
        """
        with self._lock:
            if self._closed:
                raise EncoderClosedError("The model was closed; make a new encoder.")
            if self._stuck is not None:
                raise self._stuck
            self._queue.add(job)
            if job.is_query:
                self._last_query = time.monotonic()
            self._start_workers()
            self._wake(helpers=not job.is_query)
        # By its future alone: a callback that held the job would make it a reference cycle.
        job.done.add_done_callback(self._forget)

    def close(self) -> None:
        """Ends the threads after the batches they are computing; jobs that wait get an `EncoderClosedError`."""
        notice_fork()
        with self._lock:
            self._closed = True
            waiting = self._queue.clear()
            threads = [lane.thread for lane in self._lanes if lane.thread is not None]
            self._wake(helpers=True)
        closed = EncoderClosedError("The model was closed while texts waited for it.")
        for gate in self._gates.values():
            gate.close(closed)
        for job in waiting:
            job.fail(closed)
        if threading.current_thread() not in threads:
            for thread in threads:
                thread.join(_LONGEST_WAIT_FOR_A_THREAD_S)

    def after_fork(self) -> None:
        """Forgets, in a forked child, all that belongs to the parent."""
        for lane in self._lanes:
            if lane.engine is not None:
                lane.engine.abandon()
        self._is_forked = True
        self._start_afresh([None] * len(self._slots))

    def _forget(self, done: Done) -> None:
        """Takes a job out of the queue that was cancelled or has failed."""
        with self._lock:
            self._queue.remove(done)

    def _wake(self, *, helpers: bool) -> None:
        self._anything_changed.notify_all()
        if helpers:
            self._documents_changed.notify_all()

    def _start_workers(self) -> None:
        if self._closed:
            return
        first = self._lanes[0].engine
        worth_helpers = (
            first is not None
            and self._document_seconds >= _SECONDS_WORTH_HELPERS
            and self._queue.document_tokens >= _BATCHES_WORTH_HELPERS * first.batch_tokens
        )
        for lane in self._lanes:
            if lane.thread is not None and lane.thread.is_alive():
                continue
            if lane.slot.only_documents and (lane.is_unusable or not worth_helpers):
                continue
            lane.thread = threading.Thread(target=self._work, args=(lane,), name="bge-engine", daemon=True)
            lane.thread.start()

    def _work(self, lane: _Lane) -> None:
        """Runs in a lane's thread."""
        running: deque[_Running] = deque()
        try:
            if not self._has_engine(lane):
                return
            while (started := self._start_next(lane, running)) or running:
                if running and (not started or len(running) >= lane.running_engine().parallel_batches):
                    self._complete(lane, running.popleft())
        except BaseException as error:
            logger.exception("the thread that runs a model died; the next call starts another")
            self._bury(lane, error)

    def _start_next(self, lane: _Lane, running: deque[_Running]) -> bool:
        """Hands the engine its next batch, waiting for one if it has none; whether there was one."""
        batch = self._next_batch(lane, may_wait=not running)
        if batch is not None:
            self._submit(lane, batch, running)
        return batch is not None

    def _has_engine(self, lane: _Lane) -> bool:
        """Makes an engine that is not there yet. Without a helper, the others do its work."""
        if lane.engine is not None:
            return True
        try:
            with watched(partial(self._despair, lane)):
                engine = lane.slot.make()
        except Exception as error:  # whatever a driver, a file or too little memory may raise
            if not lane.slot.only_documents:
                raise
            logger.warning("going on without a further engine for documents: %s", error)
            engine = None
        finally:
            if not lane.slot.only_documents:
                self._stuck = None
        with self._lock:
            lane.engine = engine
            if engine is None:
                lane.is_unusable, lane.thread = True, None
            self._wake(helpers=True)
        return engine is not None

    def _despair(self, lane: _Lane) -> None:
        """Says that an engine's start takes long; in a forked process also to those who wait for it."""
        seconds = forking.LONGEST_START_S
        logger.warning("the start of an engine has not returned for %g s", seconds)
        if not self._is_forked or lane.slot.only_documents:
            return
        self._stuck = EngineFailedError(
            f"The start of the engine has not returned for {seconds:g} s in this forked process: the parent was in the "
            "middle of native work when it forked. Start processes by 'spawn' or 'forkserver', or load the model in "
            "the child.",
            None,
        )
        with self._lock:
            waiting = self._queue.clear()
        for job in waiting:
            job.fail(self._stuck)

    def _bury(self, lane: _Lane, error: BaseException) -> None:
        """Tells everybody who waits for a thread that died."""
        with self._lock:
            lane.thread = None
            jobs = [job for batch in (*lane.in_hand, *lane.again) for job, _ in batch.parts]
            lane.in_hand.clear()
            lane.again.clear()
            if not any(other.thread is not None and not other.slot.only_documents for other in self._lanes):
                jobs += self._queue.clear()
        for job in jobs:
            job.fail(_caused_by(error, EngineFailedError(f"The thread that ran the model died: {error!r}.", None)))

    def _next_batch(self, lane: _Lane, *, may_wait: bool) -> Batch | None:
        """Returns what a lane is to do next; None if that is nothing, or if the model was closed."""
        with self._lock:
            while True:
                if lane.again:
                    batch = lane.again.popleft().without_finished_jobs()
                elif self._closed:
                    return None
                elif taken := self._take(lane):
                    batch = taken
                elif may_wait:
                    (self._documents_changed if lane.slot.only_documents else self._anything_changed).wait()
                    continue
                else:
                    return None
                if batch.parts:
                    lane.in_hand.append(batch)
                    return batch

    def _take(self, lane: _Lane) -> Batch | None:
        return self._queue.next_batch(
            lambda job: self._budget(job, lane),
            queries=not lane.slot.only_documents,
            documents=self._may_take_documents(lane),
        )

    def _may_take_documents(self, lane: _Lane) -> bool:
        """Leaves documents to the helpers, unless there are so few that all cores together are the faster way."""
        helpers = [other for other in self._lanes if other.slot.only_documents and other.is_ready]
        if not helpers:
            return True
        first = self._lanes[0]
        are_few = first.engine is not None and self._queue.document_tokens <= first.engine.batch_tokens
        all_idle = not self._queue.has_queries and not any(other.in_hand for other in (first, *helpers))
        return lane.slot.only_documents != (are_few and all_idle)

    def _budget(self, job: Job, lane: _Lane) -> int:
        budget = job.batch_tokens or lane.running_engine().batch_tokens
        # Documents make room for queries where both run on one engine.
        queries_are_recent = time.monotonic() - self._last_query < _QUERIES_ARE_RECENT_S
        if queries_are_recent and not job.is_query and not lane.slot.only_documents and job.batch_tokens is None:
            budget //= _SHARE_BETWEEN_QUERIES
        return min(budget, lane.memory_limit or budget)

    def _submit(self, lane: _Lane, batch: Batch, running: deque[_Running]) -> None:
        tokens = batch.tokens()
        start = time.perf_counter()
        try:
            running.append(_Running(batch, tokens, lane.running_engine().submit(tokens), start))
        except Exception as error:
            self._halve(lane, batch, tokens, error)

    def _complete(self, lane: _Lane, done: _Running) -> None:
        batch = done.batch
        try:
            results = batch.results(done.tokens, done.pending.result(), lane.running_engine().rows)
        except Exception as error:
            self._halve(lane, batch, done.tokens, error)
            return
        seconds = time.perf_counter() - done.start
        tokens = int(done.tokens.lengths.sum())
        self._meter.add(
            kind=batch.kind,
            batches=1,
            texts=batch.texts,
            tokens=tokens,
            padding_tokens=done.tokens.is_token.size - tokens,
            queue_seconds=batch.waited(done.start),
            engine_seconds=seconds,
        )
        for (job, positions), own in zip(batch.parts, results, strict=True):
            job.finish(positions, own)
        with self._lock:
            lane.in_hand.remove(batch)
            if batch.kind == "document":
                self._document_seconds += seconds
                self._start_workers()
            self._wake_for_documents()

    def _wake_for_documents(self) -> None:
        """Who may take documents depends on who is idle, so all look again when somebody has finished."""
        if self._queue.has_documents:
            self._wake(helpers=True)

    def _halve(self, lane: _Lane, batch: Batch, tokens: TokenBatch, error: Exception) -> None:
        """Looks for the text at fault, or the size that fits."""
        out_of_memory = isinstance(error, EngineOutOfMemory)
        if batch.texts == 1:
            job, positions = batch.parts[0]
            self._meter.add(kind=batch.kind, failed_texts=1)
            job.fail(_caused_by(error, TextFailedError(int(positions[0]), out_of_memory=out_of_memory)))
        elif out_of_memory:
            self._shrink(lane, batch, tokens)
        else:
            logger.warning("a batch of %d texts failed, trying its halves: %r", batch.texts, error)
        with self._lock:
            lane.in_hand.remove(batch)
            if batch.texts > 1:
                lane.again.extendleft(reversed(batch.halves()))
            self._wake_for_documents()

    def _shrink(self, lane: _Lane, batch: Batch, tokens: TokenBatch) -> None:
        """Halves the budget, so that later batches fit at once."""
        engine, size = lane.running_engine(), tokens.is_token.size
        engine.batch_tokens = lane.memory_limit = max(min(engine.batch_tokens, size // 2), 1)
        note = (
            f"ran out of memory with {size} tokens in a batch; going on with {engine.batch_tokens}. Set "
            f"batch_tokens={engine.batch_tokens} to start there."
        )
        for job, _ in batch.parts:
            job.notes.append(note)


def _caused_by(cause: BaseException, error: Exception) -> Exception:
    error.__cause__ = cause
    return error


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
