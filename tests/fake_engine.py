"""An engine for tests of the queue: it counts, and it waits or fails where it is told to."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bge_integrations.backend.engines.interface import Computed, Head, PendingRows, Rows, TokenBatch
from bge_integrations.backend.scheduler import EngineSlot, Job, Meter, Priority, Scheduler
from bge_integrations.backend.text.tokenizer import TokenizedTexts

LONG = 60.0
NO_LIMIT = 10**9


class FakeEngine:
    """Gives every text the sum of its ids and their number, and notes the first id of each text, batch by batch.

    Attributes:
        batches: The batches, each as the marks (first ids) of its texts.
        threads: The threads that they came from.
        may_go: Cleared, it keeps all batches waiting.
        entered: Released once a batch has come.
        trouble: Called with the marks of each batch; may raise.
    """

    name = "fake"
    rows: Rows = "cls"
    max_texts: int | None = None

    def __init__(self, batch_tokens: int = 32, parallel_batches: int = 1) -> None:
        self.batch_tokens = batch_tokens
        self.parallel_batches = parallel_batches
        self.batches: list[list[int]] = []
        self.threads: list[int] = []
        self.may_go = threading.Event()
        self.may_go.set()
        self.entered = threading.Semaphore(0)
        self.trouble: Callable[[list[int]], None] = lambda _: None

    def abandon(self) -> None:
        """See `Engine.abandon`."""

    def submit(self, batch: TokenBatch) -> PendingRows:
        """See `Engine.submit`."""
        texts = np.split(batch.ids, np.cumsum(batch.lengths)[:-1])
        marks = [int(text[0]) for text in texts]
        self.batches.append(marks)
        self.threads.append(threading.get_ident())
        self.entered.release()
        assert self.may_go.wait(LONG)
        self.trouble(marks)
        return Computed(np.array([[text.sum(), len(text)] for text in texts], dtype=np.float32))


HEAD = Head(
    lambda _, rows: rows,
    lambda count: np.empty((count, 2), dtype=np.float32),
    lambda found: np.asarray(np.isfinite(found).all(axis=1)),
)


class FakeClock:
    """A clock that stands still until it is told otherwise."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        """Returns the time in seconds."""
        return self.now


def make_job(*marks: int, length: int = 4, priority: Priority = "bulk", **more: Any) -> Job:  # noqa: ANN401
    """Returns a job whose texts begin with their marks, all of one length."""
    ids = np.concatenate([np.array([mark, *[1] * (length - 1)], dtype=np.int32) for mark in marks])
    lengths = np.full(len(marks), length, dtype=np.int64)
    return Job(TokenizedTexts(ids, lengths, lengths), HEAD, priority=priority, **more)


def make_scheduler(engine: FakeEngine, *helpers: Callable[[], FakeEngine]) -> Scheduler:
    """Returns a scheduler with one engine, and helpers that are made when they are worth it."""
    slots = [EngineSlot(lambda: engine, engine), *(EngineSlot(make, is_helper=True) for make in helpers)]
    return Scheduler(slots, Meter("a model", "cpu"))


def result(job: Job) -> NDArray[Any]:
    """Waits for a job's results."""
    until = time.monotonic() + LONG
    while not job.is_over:
        assert time.monotonic() < until, "it never ends"
        time.sleep(0.0005)
    return job.answer.wait()


def sums(job: Job) -> list[float]:
    """Waits for a job, and returns the marks that its results stand for."""
    return [float(row[0] - row[1] + 1) for row in result(job)]
