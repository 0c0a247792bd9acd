"""One queue a loaded model: every caller's texts wait here, and the engines take them in batches.

The rules:

- A batch takes as many texts as its budget of tokens allows, across callers. Nobody waits for a batch to fill.
- Queries go before documents; within a kind, first come, first served. After `QUERY_BATCHES_IN_A_ROW` batches of
  queries one batch of documents goes, if any wait, so that documents never starve.
- An engine computes one batch after the other, so a query waits for at most the batch of documents that is running.
  Where the model can afford engines of their own for documents (helpers), it does not even wait for that.
- A batch that fails is cut in halves until the text at fault is alone. Only the caller of that text gets an error.
"""

from __future__ import annotations

import atexit
import logging
import sys
import threading
import time
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from bge_integrations.backend.engines import Engine, EngineOutOfMemory, PendingRows, TokenBatch
from bge_integrations.backend.jobs import Batch, Job, TextFailedError
from bge_integrations.errors import EncoderClosedError, EngineFailedError

logger = logging.getLogger(__name__)

_Queue = OrderedDict["Future[NDArray[np.float32]]", Job]

QUERY_BATCHES_IN_A_ROW = 4

# Helpers take a second or two to start, and memory: only for a model that has worked on documents for so long in its
# life, when so many batches of them wait.
_SECONDS_WORTH_HELPERS = 5.0
_BATCHES_WORTH_HELPERS = 4
# While queries arrive, an engine that has documents to do as well does them in smaller batches, for this long after.
_QUERIES_ARE_RECENT_S = 1.0
_SHARE_BETWEEN_QUERIES = 4
_LONGEST_WAIT_FOR_A_THREAD_S = 10.0


@dataclass(eq=False)
class _Lane:
    """An engine, and the thread that feeds it.

    Attributes:
        make: Makes the engine.
        only_documents: Whether queries are left to others.
        engine: The engine, once it is made.
        thread: Its thread, while one runs.
        in_hand: Batches taken and not finished yet.
        again: Parts of batches that failed, to be tried before anything else.
        is_unusable: Whether the engine could not be made.
        memory_limit: Tokens in a batch that fit, once a larger one did not.
    """

    make: Callable[[], Engine]
    only_documents: bool = False
    engine: Engine | None = None
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
        engine: Engine,
        pool: Callable[[TokenBatch, NDArray[np.float32]], NDArray[np.float32]],
        *,
        helpers: Sequence[Callable[[], Engine]] = (),
    ) -> None:
        """Takes an engine into service.

        Args:
            engine: Does queries and documents.
            pool: Turns an engine's rows of a batch into one vector a text.
            helpers: Make further engines, which do documents only; each is called in its own thread once there is
                enough work, and documents are then left to them.
        """
        self._pool = pool
        # Reentrant, since a finaliser that closes may run wherever memory is allocated.
        self._changed = threading.Condition(threading.RLock())
        self._lanes = [_Lane(lambda: engine, engine=engine), *(_Lane(make, only_documents=True) for make in helpers)]
        self._queries: _Queue = OrderedDict()
        self._documents: _Queue = OrderedDict()
        self._document_seconds = 0.0
        self._waiting_document_tokens = 0
        self._query_batches = 0
        self._last_query = -_QUERIES_ARE_RECENT_S
        self._closed = False
        _schedulers.add(self)

    def submit(self, job: Job) -> None:
        """Queues a job, which an engine takes as soon as it is free.

        Raises:
            EncoderClosedError: After `close`.
        """
        with self._changed:
            if self._closed:
                raise EncoderClosedError("The model was closed; make a new encoder.")
            self._queue_of(job)[job.done] = job
            if job.is_query:
                self._last_query = time.monotonic()
            else:
                self._waiting_document_tokens += job.waiting_tokens
            self._start_workers()
            self._changed.notify_all()
        # By its future alone: a callback that held the job would make it a reference cycle.
        job.done.add_done_callback(self._forget)

    def close(self) -> None:
        """Ends the threads after the batches they are computing; jobs that wait get an `EncoderClosedError`."""
        with self._changed:
            self._closed = True
            waiting = self._drop_waiting()
            threads = [lane.thread for lane in self._lanes if lane.thread is not None]
            self._changed.notify_all()
        for job in waiting:
            job.fail(EncoderClosedError("The model was closed while texts waited for it."))
        if threading.current_thread() not in threads:
            for thread in threads:
                thread.join(_LONGEST_WAIT_FOR_A_THREAD_S)

    def _queue_of(self, job: Job) -> _Queue:
        return self._queries if job.is_query else self._documents

    def _drop_waiting(self) -> list[Job]:
        waiting = [*self._queries.values(), *self._documents.values()]
        self._queries.clear()
        self._documents.clear()
        self._waiting_document_tokens = 0
        return waiting

    def _forget(self, done: Future[NDArray[np.float32]]) -> None:
        """Takes a job out of the queue that was cancelled or has failed."""
        with self._changed:
            self._queries.pop(done, None)
            job = self._documents.pop(done, None)
            if job is not None:
                self._waiting_document_tokens -= job.waiting_tokens

    def _start_workers(self) -> None:
        many = _BATCHES_WORTH_HELPERS * self._lanes[0].running_engine().batch_tokens
        worth_helpers = self._document_seconds >= _SECONDS_WORTH_HELPERS and self._waiting_document_tokens >= many
        for lane in self._lanes:
            if lane.thread is not None and lane.thread.is_alive():
                continue
            if lane.only_documents and (lane.is_unusable or not worth_helpers):
                continue
            lane.thread = threading.Thread(target=self._work, args=(lane,), name="bge-engine", daemon=True)
            lane.thread.start()

    def _work(self, lane: _Lane) -> None:
        """Runs in a lane's thread."""
        running: deque[_Running] = deque()
        try:
            if not self._has_engine(lane):
                return
            while (batch := self._next_batch(lane, may_wait=not running)) is not None or running:
                if batch is not None:
                    self._submit(lane, batch, running)
                if running and (batch is None or len(running) >= lane.running_engine().parallel_batches):
                    self._complete(lane, running.popleft())
        except BaseException as error:
            logger.exception("the thread that runs a model died; the next call starts another")
            self._bury(lane, error)

    def _has_engine(self, lane: _Lane) -> bool:
        """Makes a helper's engine. If that fails, the others do its work."""
        if lane.engine is not None:
            return True
        try:
            engine = lane.make()
        except Exception as error:  # whatever a driver, a file or too little memory may raise
            logger.warning("going on without a further engine for documents: %s", error)
            engine = None
        with self._changed:
            lane.engine = engine
            if engine is None:
                lane.is_unusable, lane.thread = True, None
            self._changed.notify_all()
        return engine is not None

    def _bury(self, lane: _Lane, error: BaseException) -> None:
        """Tells everybody who waits for a thread that died."""
        with self._changed:
            lane.thread = None
            jobs = [job for batch in (*lane.in_hand, *lane.again) for job, _ in batch.parts]
            lane.in_hand.clear()
            lane.again.clear()
            if not any(other.thread is not None and not other.only_documents for other in self._lanes):
                jobs += self._drop_waiting()
        for job in jobs:
            job.fail(_caused_by(error, EngineFailedError(f"The thread that ran the model died: {error!r}.", None)))

    def _next_batch(self, lane: _Lane, *, may_wait: bool) -> Batch | None:
        """Returns what a lane is to do next; None if that is nothing, or if the model was closed."""
        with self._changed:
            while True:
                if lane.again:
                    batch = lane.again.popleft().without_finished_jobs()
                elif self._closed:
                    return None
                elif queue := self._queue_for(lane):
                    self._query_batches = self._query_batches + 1 if queue is self._queries else 0
                    batch = self._gather(queue, lane)
                elif may_wait:
                    self._changed.wait()
                    continue
                else:
                    return None
                if batch.parts:
                    lane.in_hand.append(batch)
                    return batch

    def _queue_for(self, lane: _Lane) -> _Queue | None:
        documents = self._documents if self._documents and self._may_take_documents(lane) else None
        if lane.only_documents or not self._queries:
            return documents
        return documents if documents and self._query_batches >= QUERY_BATCHES_IN_A_ROW else self._queries

    def _may_take_documents(self, lane: _Lane) -> bool:
        """Leaves documents to the helpers, unless there are so few that all cores together are the faster way."""
        helpers = [other for other in self._lanes if other.only_documents and other.is_ready]
        if not helpers:
            return True
        first = self._lanes[0]
        are_few = self._waiting_document_tokens <= first.running_engine().batch_tokens
        all_idle = not self._queries and not first.in_hand and not any(helper.in_hand for helper in helpers)
        return lane.only_documents != (are_few and all_idle)

    def _gather(self, queue: _Queue, lane: _Lane) -> Batch:
        """Takes texts from the head of a queue, from as many jobs as fit together."""
        parts: list[tuple[Job, NDArray[np.int64]]] = []
        head = next(iter(queue.values()))
        count = longest = 0
        while queue:
            job = next(iter(queue.values()))
            if not job.may_run_with(head):
                break
            longest = max(longest, job.next_length)
            room = min(self._budget(job, lane) // longest, job.max_texts or sys.maxsize) - count
            if room < 1 and parts:
                break
            positions = self._take(job, max(room, 1))
            parts.append((job, positions))
            count += len(positions)
        return Batch(parts)

    def _take(self, job: Job, count: int) -> NDArray[np.int64]:
        before = job.waiting_tokens
        positions = job.take(count)
        if not job.is_query:
            self._waiting_document_tokens -= before - job.waiting_tokens
        if not job.waiting_texts:
            del self._queue_of(job)[job.done]
        return positions

    def _budget(self, job: Job, lane: _Lane) -> int:
        budget = job.batch_tokens or lane.running_engine().batch_tokens
        # Documents make room for queries where both run on one engine.
        queries_are_recent = time.monotonic() - self._last_query < _QUERIES_ARE_RECENT_S
        if queries_are_recent and not job.is_query and not lane.only_documents and job.batch_tokens is None:
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
            rows = self._pool(done.tokens, done.pending.result())
        except Exception as error:
            self._halve(lane, batch, done.tokens, error)
            return
        seconds = time.perf_counter() - done.start
        start = 0
        for job, positions in batch.parts:
            job.finish(positions, rows[start : start + len(positions)])
            start += len(positions)
        with self._changed:
            lane.in_hand.remove(batch)
            if not batch.parts[0][0].is_query:
                self._document_seconds += seconds
                self._start_workers()
            # Who may take documents depends on who is idle.
            self._changed.notify_all()

    def _halve(self, lane: _Lane, batch: Batch, tokens: TokenBatch, error: Exception) -> None:
        """Looks for the text at fault, or the size that fits."""
        out_of_memory = isinstance(error, EngineOutOfMemory)
        if batch.texts == 1:
            job, positions = batch.parts[0]
            job.fail(_caused_by(error, TextFailedError(int(positions[0]), out_of_memory=out_of_memory)))
        elif out_of_memory:
            self._shrink(lane, batch, tokens)
        else:
            logger.warning("a batch of %d texts failed, trying its halves: %r", batch.texts, error)
        with self._changed:
            lane.in_hand.remove(batch)
            if batch.texts > 1:
                lane.again.extendleft(reversed(batch.halves()))
            self._changed.notify_all()

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


@atexit.register
def _close_all() -> None:
    """Ends all threads while the interpreter still stands: native code must not run beside its dismantling."""
    for scheduler in list(_schedulers):
        scheduler.close()
