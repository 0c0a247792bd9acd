"""One engine of a model, and the thread that feeds it."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from queue import Empty
from typing import Protocol

from bge_integrations.backend.engines.interface import Engine, EngineOutOfMemory, PendingRows, TokenBatch
from bge_integrations.backend.guarantees.forks import watched
from bge_integrations.backend.guarantees.interrupts import mailbox
from bge_integrations.backend.guarantees.logs import get_logger
from bge_integrations.backend.scheduler.job import Batch, TextFailedError
from bge_integrations.backend.scheduler.statistics import Meter

logger = get_logger(__name__)


@dataclass(frozen=True)
class EngineSlot:
    """A place for an engine.

    Attributes:
        make: Makes the engine, in the thread that is to run it.
        engine: The engine, if it is made already.
        is_helper: Whether this engine only computes bulk batches. Helpers are made when many documents are queued;
            from then on the other engines leave bulk batches to them.
    """

    make: Callable[[], Engine]
    engine: Engine | None = None
    is_helper: bool = False


class Board(Protocol):
    """Where workers find their work; see `Scheduler`."""

    def next_batch(self, worker: Worker) -> Batch | None:
        """Returns what a worker computes next; `None` if there is nothing for it now."""
        ...

    @property
    def is_closed(self) -> bool:
        """Whether no more work comes."""
        ...

    def engine_is_made(self, worker: Worker) -> None:
        """Learns that a worker has its engine, or is not going to have one."""
        ...

    def start_is_late(self, worker: Worker) -> None:
        """Learns that a worker's engine takes unusually long to be made."""
        ...

    def batch_has_ended(self, batch: Batch, seconds: float | None) -> None:
        """Learns that a batch was computed, in so many seconds; `None` if it failed."""
        ...

    def worker_died(self, worker: Worker, error: BaseException) -> None:
        """Learns that a worker's thread has ended by an error."""
        ...


@dataclass(frozen=True)
class _Running:
    """A batch that an engine computes."""

    batch: Batch
    tokens: TokenBatch
    pending: PendingRows
    start: float


class Worker:
    """Runs one engine, in a thread of its own that starts with the first work.

    Whoever holds `turn` feeds the engine: the worker's thread, or a caller that lends its own for one batch.

    Attributes:
        slot: What it is for.
        engine: The engine; `None` until it is made.
        thread: Its thread, while one runs.
        in_hand: Batches taken and not finished yet.
        again: Parts of batches that failed, to be tried before anything else.
        is_unusable: Whether the engine could not be made.
        memory_limit: Tokens in a batch that fit, once a larger one did not.
    """

    def __init__(self, slot: EngineSlot, engine: Engine | None, board: Board, meter: Meter) -> None:
        """Takes an engine into service.

        Args:
            slot: What it is for.
            engine: The engine, if it is made already.
            board: Where it finds its work.
            meter: Counts what it does.
        """
        self.slot = slot
        self.engine = engine
        self.thread: threading.Thread | None = None
        self.in_hand: list[Batch] = []
        self.again: deque[Batch] = deque()
        self.is_unusable = False
        self.memory_limit: int | None = None
        self._board = board
        self._meter = meter
        self._calls = mailbox()
        self._turn = threading.Lock()
        self._holder: int | None = None
        self._last_jobs = 1

    @property
    def is_ready(self) -> bool:
        """Whether its engine can be used."""
        return self.engine is not None and self.thread is not None

    def wake(self) -> None:
        """Has its thread look for work. One operation in C, which no interrupt leaves half done."""
        self._calls.put(None)

    def start(self) -> None:
        """Starts its thread, if none runs."""
        if self.thread is None or not self.thread.is_alive():
            self.thread = threading.Thread(target=self._work, name="bge-engine", daemon=True)
            self.thread.start()

    def join(self, longest_wait: float) -> None:
        """Waits until its thread has ended, and no caller feeds the engine; not from within either."""
        own = threading.get_ident()
        if self.thread is not None and self.thread.ident != own:
            self.thread.join(longest_wait)
        if self._holder != own and self._turn.acquire(timeout=longest_wait):
            self._turn.release()

    def lend(self) -> bool:
        """Computes the next batch in the calling thread, which need not wait for another one then.

        Only for a caller that is alone: where several come at once, texts that wait for each other's batches fill the
        next one together, which is faster for all of them.

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
        except BaseException as error:  # raised in the caller's thread, whose affair it is too
            self._die(error)
            raise
        finally:
            self._holder = None
            self._turn.release()
        return True

    def _work(self) -> None:
        """Runs in the worker's thread."""
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
                        while True:  # what came since is seen at once
                            self._calls.get_nowait()
        except BaseException as error:
            self._die(error)

    def _feed(self) -> None:
        """Has the engine compute what there is for it."""
        running: deque[_Running] = deque()
        engine = self._running_engine()
        while True:
            batch = self._board.next_batch(self)
            if batch is not None:
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
        """Makes an engine that is not there yet. Without a helper, the others do its work."""
        if self.engine is not None:
            return True
        try:
            with watched(partial(self._board.start_is_late, self)):
                self.engine = self.slot.make()
        except Exception as error:  # whatever a driver, a file or too little memory may raise
            if not self.slot.is_helper:
                raise
            logger.warning("going on without a further engine for documents: %s", error)
            self.is_unusable, self.thread = True, None
        self._board.engine_is_made(self)
        return self.engine is not None

    def _running_engine(self) -> Engine:
        if self.engine is None:
            raise AssertionError("a worker works only with its engine")
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
        seconds = time.perf_counter() - done.start
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
        for (job, positions), own in zip(batch.parts, results, strict=True):
            job.finish(positions, own)
        self.in_hand.remove(batch)
        self._board.batch_has_ended(batch, seconds)

    def _halve(self, batch: Batch, tokens: TokenBatch, error: Exception) -> None:
        """Looks for the text at fault, or the size that fits."""
        out_of_memory = isinstance(error, EngineOutOfMemory)
        if batch.texts == 1:
            job, positions = batch.parts[0]
            self._meter.add(priority=batch.priority, failed_texts=1)
            job.fail(_caused_by(error, TextFailedError(int(positions[0]), out_of_memory=out_of_memory)))
        elif out_of_memory:
            self._shrink(batch, tokens)
        else:
            logger.warning("a batch of %d texts failed, trying its halves: %r", batch.texts, error)
        self.in_hand.remove(batch)
        if batch.texts > 1:
            self.again.extendleft(reversed(batch.halves()))
        self._board.batch_has_ended(batch, None)

    def _shrink(self, batch: Batch, tokens: TokenBatch) -> None:
        """Halves the budget, so that later batches fit at once."""
        engine, size = self._running_engine(), tokens.size
        engine.batch_tokens = self.memory_limit = max(min(engine.batch_tokens, size // 2), 1)
        note = (
            f"ran out of memory with {size} tokens in a batch; going on with {engine.batch_tokens}. Set "
            f"batch_tokens={engine.batch_tokens} to start there."
        )
        for job, _ in batch.parts:
            job.notes.append(note)

    def _die(self, error: BaseException) -> None:
        logger.exception("the thread that runs a model died; the next call starts another")
        self._board.worker_died(self, error)


def _caused_by(cause: BaseException, error: Exception) -> Exception:
    error.__cause__ = cause
    return error
