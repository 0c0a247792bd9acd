"""One engine of a model, and its thread."""

from __future__ import annotations

import copy
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from queue import Empty
from typing import Any, Protocol

from numpy.typing import NDArray

from bge_integrations.backend.engines.interface import Engine, EngineOutOfMemory, PendingRows, TokenBatch
from bge_integrations.backend.guarantees.forks import watched
from bge_integrations.backend.guarantees.interrupts import Outcome, Ticket, give_all, mailbox
from bge_integrations.backend.guarantees.logs import get_logger
from bge_integrations.backend.scheduler.job import Batch, TextFailedError
from bge_integrations.backend.scheduler.pace import Pace, TimeLimits
from bge_integrations.backend.scheduler.statistics import Meter
from bge_integrations.errors import EndpointError, EngineFailedError, ModelClosedError

logger = get_logger(__name__)


@dataclass(frozen=True)
class EngineSlot:
    """A place for an engine.

    Attributes:
        make: Function that creates the engine. It is called in the thread that runs the engine.
        engine: The engine, if it exists already.
        is_helper: Whether this engine only computes bulk batches. Helpers are created when many documents are queued;
            from then on the other engines leave bulk batches to them.
        stop: Function that ends the waits of an engine for something outside this process. It is called when no more
            work comes.
        bulk_limits: Longest computing times of its bulk batches. `None`: they are cut by tokens only.
    """

    make: Callable[[], Engine]
    engine: Engine | None = None
    is_helper: bool = False
    stop: Callable[[], None] = lambda: None
    bulk_limits: TimeLimits | None = None


class Board(Protocol):
    """The source of work for workers, and the receiver of their reports; see `Scheduler`."""

    def next_batch(self, worker: Worker) -> Batch | None:
        """Returns the next batch of a worker; `None` if there is no work for it now."""
        ...

    @property
    def is_closed(self) -> bool:
        """Whether no more work comes."""
        ...

    def engine_is_made(self, worker: Worker) -> None:
        """Called when a worker has created its engine, or cannot create it."""
        ...

    def start_is_late(self, worker: Worker) -> None:
        """Called when the creation of a worker's engine takes unusually long."""
        ...

    def batch_has_ended(self, batch: Batch, seconds: float | None) -> None:
        """Called after a batch, with its computing time; `None` if the batch failed."""
        ...

    def worker_died(self, worker: Worker, error: BaseException) -> None:
        """Called when an error has ended a worker's thread."""
        ...


@dataclass(frozen=True)
class _Running:
    """A batch that an engine computes."""

    batch: Batch
    tokens: TokenBatch
    pending: PendingRows
    start: float


class Worker:
    """Runs one engine in its own thread, which starts with the first work.

    The holder of the lock `_turn` feeds the engine: the worker's thread, or a calling thread for one batch.

    Attributes:
        slot: The place of the engine.
        engine: The engine; `None` until it is created.
        thread: The worker's thread, while it runs.
        in_hand: Batches that were taken and are not finished.
        again: Halves of failed batches. They are computed before other work.
        is_unusable: Whether the engine could not be created.
        memory_limit: Tokens in a batch that fit into memory. `None`: no batch was too large yet.
        pace: What the engine computes in a second.
    """

    def __init__(self, slot: EngineSlot, engine: Engine | None, board: Board, meter: Meter) -> None:
        """Prepares a worker that gets its work from `board` and counts it in `meter`. Its thread is started later."""
        self.slot = slot
        self.engine = engine
        self.thread: threading.Thread | None = None
        self.in_hand: list[Batch] = []
        self.again: deque[Batch] = deque()
        self.is_unusable = False
        self.memory_limit: int | None = None
        self.pace = Pace()
        self._board = board
        self._meter = meter
        self._calls = mailbox()
        self._turn = threading.Lock()
        self._holder: int | None = None
        self._last_jobs = 1

    @property
    def is_ready(self) -> bool:
        """Whether the engine can compute now."""
        return self.engine is not None and self.thread is not None

    def wake(self) -> None:
        """Wakes the thread to look for work. This is one operation in C, which no interrupt leaves half done."""
        self._calls.put(None)

    def start(self) -> None:
        """Starts the thread if it does not run."""
        if self.thread is None or not self.thread.is_alive():
            self.thread = threading.Thread(target=self._work, name="bge-engine", daemon=True)
            self.thread.start()

    def join(self, longest_wait: float) -> None:
        """Waits until the thread has ended and no caller feeds the engine, except in these threads themselves."""
        own = threading.get_ident()
        if self.thread is not None and self.thread.ident != own:
            self.thread.join(longest_wait)
        if self._holder != own and self._turn.acquire(timeout=longest_wait):
            self._turn.release()

    def lend(self) -> bool:
        """Computes the next batch in the calling thread, which saves the switch to the worker's thread.

        It does so only for a single caller. Texts of several callers wait while a batch runs and then share the next
        batch, which is faster for all of them.

        Returns:
            Whether the calling thread has looked for work.
        """
        engine = self.engine
        if engine is None or engine.parallel_batches > 1 or self._last_jobs > 1:
            return False
        if not self._turn.acquire(blocking=False):
            return False
        self._holder = threading.get_ident()
        try:
            batch = self._board.next_batch(self)
            if batch is not None:
                self._compute(batch)
        except BaseException as error:  # also raised in the calling thread
            self._die(error)
            raise
        finally:
            self._holder = None
            self._turn.release()
        return True

    def _work(self) -> None:
        """The loop of the worker's thread."""
        try:
            if not self._has_engine():
                return
            while not self._board.is_closed or self.again:
                with self._turn:
                    self._holder = threading.get_ident()
                    try:
                        self._feed()
                    finally:
                        self._holder = None
                if not self._board.is_closed:
                    self._calls.get()
                    with suppress(Empty):
                        while True:  # one look for work answers all calls so far
                            self._calls.get_nowait()
        except BaseException as error:
            self._die(error)

    def _feed(self) -> None:
        """Computes batches until no work is left."""
        running: deque[_Running] = deque()
        engine = self._running_engine()
        while True:
            batch = self._board.next_batch(self)
            if batch is not None:
                # An engine that takes several batches computes them in order. So these are nearly done, and a launch
                # before their callers have the rows would make them wait for it.
                while batch.priority == "bulk" and running and running[0].batch.priority == "interactive":
                    self._complete(running.popleft())
                self._submit(batch, running)
            if running and (batch is None or len(running) >= engine.parallel_batches):
                self._complete(running.popleft())
            elif batch is None:
                return

    def _compute(self, batch: Batch) -> None:
        running: deque[_Running] = deque()
        self._submit(batch, running)
        if running:
            self._complete(running.popleft())

    def _has_engine(self) -> bool:
        """Creates a missing engine. If a helper cannot be created, other engines do its work."""
        if self.engine is not None:
            return True
        try:
            with watched(partial(self._board.start_is_late, self)):
                self.engine = self.slot.make()
        except Exception as error:  # a driver, a file or too little memory may raise any error
            if not self.slot.is_helper:
                raise
            logger.warning("a further engine for documents could not be created; other engines do its work: %s", error)
            self.is_unusable, self.thread = True, None
        self._board.engine_is_made(self)
        return self.engine is not None

    def _running_engine(self) -> Engine:
        if self.engine is None:
            raise AssertionError("a worker computes only after its engine is created")
        return self.engine

    def _submit(self, batch: Batch, running: deque[_Running]) -> None:
        self._last_jobs = len(batch.parts)
        tokens = batch.tokens()
        start = time.perf_counter()
        try:
            running.append(_Running(batch, tokens, self._running_engine().submit(tokens), start))
        except Exception as error:
            self._halve(batch, tokens, error)

    def _complete(self, done: _Running) -> None:
        batch = done.batch
        try:
            results = batch.results(done.tokens, done.pending.result(), self._running_engine().rows)
        except Exception as error:
            self._halve(batch, done.tokens, error)
            return
        end = time.perf_counter()
        seconds = end - done.start
        self.pace.add(done.tokens.size if batch.priority == "bulk" else 0, done.start, end)
        tokens = int(done.tokens.lengths.sum())
        self._meter.add(
            priority=batch.priority,
            batches=1,
            texts=batch.texts,
            tokens=tokens,
            padding_tokens=done.tokens.size - tokens,
            queue_seconds=batch.waited(done.start),
            engine_seconds=seconds,
        )
        outcomes: list[tuple[Ticket[NDArray[Any]], Outcome[NDArray[Any]]]] = []
        try:
            for (job, positions), own in zip(batch.parts, results, strict=True):
                outcome = job.finish(positions, own)
                if outcome is not None:
                    outcomes.append((job.answer, outcome))
        finally:
            give_all(outcomes)
        self.in_hand.remove(batch)
        self._board.batch_has_ended(batch, seconds)

    def _halve(self, batch: Batch, tokens: TokenBatch, error: Exception) -> None:
        """Splits a failed batch, to find the text that fails or a size that fits into memory."""
        out_of_memory = isinstance(error, EngineOutOfMemory)
        if isinstance(error, (EndpointError, EngineFailedError, ModelClosedError)):
            self._give_up(batch, error)
            return
        if batch.texts == 1:
            job, positions = batch.parts[0]
            self._meter.add(priority=batch.priority, failed_texts=1)
            job.fail(_caused_by(error, TextFailedError(int(positions[0]), out_of_memory=out_of_memory)))
        elif out_of_memory:
            self._shrink(batch, tokens)
        else:
            logger.warning("a batch of %d texts failed; its halves are tried next: %r", batch.texts, error)
        self.in_hand.remove(batch)
        if batch.texts > 1:
            self.again.extendleft(reversed(batch.halves()))
        self._board.batch_has_ended(batch, None)

    def _give_up(self, batch: Batch, error: Exception) -> None:
        """Fails the jobs of a batch, for a reason that is not in the batch: its halves would fail too."""
        self._meter.add(priority=batch.priority, failed_texts=batch.texts)
        for job, _ in batch.parts:
            job.fail(_caused_by(error.__cause__, copy.copy(error)))  # each caller raises its own
        self.in_hand.remove(batch)
        self._board.batch_has_ended(batch, None)

    def _shrink(self, batch: Batch, tokens: TokenBatch) -> None:
        """Halves the token budget, so that later batches fit."""
        engine, size = self._running_engine(), tokens.size
        engine.batch_tokens = self.memory_limit = max(min(engine.batch_tokens, size // 2), 1)
        note = (
            f"ran out of memory with {size} tokens in a batch; the budget of a batch is now {engine.batch_tokens} "
            f"tokens. Set batch_tokens={engine.batch_tokens} to start with this budget."
        )
        for job, _ in batch.parts:
            job.notes.append(note)

    def _die(self, error: BaseException) -> None:
        logger.exception("the thread that runs a model died; the next call starts a new one")
        self._board.worker_died(self, error)


def _caused_by(cause: BaseException | None, error: Exception) -> Exception:
    error.__cause__ = cause
    return error
