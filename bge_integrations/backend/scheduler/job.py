"""What waits in the queue: the texts of a call, and the batches that engines make of them."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from bge_integrations.backend.engines.interface import Head, Rows, ScoringOptions, TokenBatch
from bge_integrations.backend.guarantees.interrupts import Outcome, Ticket
from bge_integrations.backend.guarantees.logs import get_logger
from bge_integrations.backend.text.tokenizer import TokenizedTexts

logger = get_logger(__name__)

Priority = Literal["interactive", "bulk"]
"""Interactive batches go before bulk ones: a user waits for a query, and nobody for one batch of an ingestion."""

PRIORITIES: tuple[Priority, ...] = ("interactive", "bulk")


class TextFailedError(Exception):
    """The engine fails on one text, even alone.

    Attributes:
        position: Which text of the job.
        out_of_memory: Whether the device's memory is too small for it.
    """

    def __init__(self, position: int, *, out_of_memory: bool) -> None:
        super().__init__(position)
        self.position = position
        self.out_of_memory = out_of_memory


class Job:
    """Texts of one call, on their way through the queue. It ends once: with results, with an error, or cancelled.

    Attributes:
        priority: Which queue it waits in.
        texts: How many texts it has.
        answer: The results, one a text, or the error. A forked child gives no answer to a job of its parent.
        notes: Warnings for the caller, complete when the job ends.
        waiting_tokens: Tokens that no engine has taken yet.
        queued_at: When it was made, by `time.perf_counter`.
        process: The id of the process that made it.
        on_end: Called once when the job ends, before its caller learns of it.
    """

    def __init__(
        self,
        tokens: TokenizedTexts,
        head: Head,
        *,
        priority: Priority,
        prompt_length: int = 0,
        options: ScoringOptions | None = None,
        batch_tokens: int | None = None,
        max_texts: int | None = None,
        truncated: int = 0,
        on_batch: Callable[[NDArray[np.int64]], None] | None = None,
    ) -> None:
        """Describes the work.

        Args:
            tokens: The texts.
            head: Computes results from an engine's rows, in the engine's thread.
            priority: Which queue it waits in.
            prompt_length: Leading tokens of each text that come from an instruction.
            options: What a decoder is told beside the tokens.
            batch_tokens: Tokens, padding included, in one batch. `None`: the engine's own figure.
            max_texts: Upper limit on the texts in a batch.
            truncated: Texts of the call that were cut, for the statistics.
            on_batch: Called with the positions of each finished batch, from another thread.
        """
        self.tokens = tokens
        self.head = head
        self.priority: Priority = priority
        self.prompt_length = prompt_length
        self.options = options
        self.batch_tokens = batch_tokens
        self.max_texts = max_texts
        self.truncated = truncated
        self.texts = len(tokens.lengths)
        self.answer: Ticket[NDArray[Any]] = Ticket()
        self.notes: list[str] = []
        self.on_end: Callable[[Job], None] | None = None
        self._on_batch = on_batch
        self._results: NDArray[Any] | None = None
        # Longest first: neighbours are of nearly equal length, and what needs most memory fails first, not last.
        self._order = np.argsort(-tokens.lengths, kind="stable")
        self._taken = 0
        self._finished = 0
        self._ending = threading.Lock()
        self._is_over = False
        self.waiting_tokens = int(tokens.lengths.sum())
        self.queued_at = time.perf_counter()
        self.process = os.getpid()

    @property
    def waiting_texts(self) -> int:
        """Texts that no engine has taken yet."""
        return self.texts - self._taken

    @property
    def next_length(self) -> int:
        """Tokens of the longest text that waits."""
        return max(int(self.tokens.lengths[self._order[self._taken]]), 1)

    @property
    def is_over(self) -> bool:
        """Whether it has ended."""
        return self._is_over

    def may_run_with(self, other: Job) -> bool:
        """Whether texts of both may share a batch."""
        mine, theirs = ((job.prompt_length, job.options, job.batch_tokens, job.max_texts) for job in (self, other))
        return mine == theirs

    def take(self, count: int) -> NDArray[np.int64]:
        """Takes the next texts, at most `count`; returns their positions."""
        positions = self._order[self._taken : self._taken + count]
        self._taken += len(positions)
        self.waiting_tokens -= int(self.tokens.lengths[positions].sum())
        return positions

    def finish(self, positions: NDArray[np.int64], results: NDArray[Any]) -> None:
        """Stores the results of some texts; the last ones end the job."""
        if self._on_batch is not None and not self._is_over:
            try:
                self._on_batch(positions)
            except Exception:
                logger.exception("a progress display failed; going on without it")
                self._on_batch = None
        with self._ending:  # several engines may finish parts of it at once
            if self._is_over:
                return
            if self._results is None:
                self._results = self.head.empty(self.texts)
            self._results[positions] = results
            self._finished += len(positions)
            is_complete = self._finished == self.texts
        if is_complete:
            self._end(Outcome(self._results))

    def fail(self, error: BaseException) -> None:
        """Ends it with an error instead of results."""
        self._end(Outcome(error=error))

    def cancel(self) -> None:
        """Ends it without results: nobody waits for it any more."""
        self._end(Outcome(error=CancelledError()))

    def _end(self, outcome: Outcome[NDArray[Any]]) -> None:
        with self._ending:
            if self._is_over:
                return
            self._is_over = True
            on_end, self.on_end, self._results = self.on_end, None, None
        try:
            if on_end is not None:
                on_end(self)
        finally:
            self.answer.give(outcome)


@dataclass(eq=False)
class Batch:
    """Texts of one or more jobs that run together.

    Attributes:
        parts: Jobs, with the positions of their texts.
    """

    parts: list[tuple[Job, NDArray[np.int64]]]

    @property
    def texts(self) -> int:
        """How many texts."""
        return sum(len(positions) for _, positions in self.parts)

    @property
    def priority(self) -> Priority:
        """That of its jobs."""
        return self.parts[0][0].priority

    def waited(self, now: float) -> float:
        """Returns what its texts have waited together, in seconds."""
        return sum(len(positions) * (now - job.queued_at) for job, positions in self.parts)

    def without_ended_jobs(self) -> Batch:
        """Returns it without the texts of jobs that have ended."""
        return Batch([(job, positions) for job, positions in self.parts if not job.is_over])

    def tokens(self) -> TokenBatch:
        """Returns it as engines take it."""
        job, positions = self.parts[0]
        if len(self.parts) == 1:
            return TokenBatch(
                job.tokens.of(positions),
                job.tokens.lengths[positions],
                job.prompt_length,
                _of(job.tokens.first_lengths, positions),
                job.options,
            )
        firsts = [_of(job.tokens.first_lengths, positions) for job, positions in self.parts]
        return TokenBatch(
            np.concatenate([job.tokens.of(positions) for job, positions in self.parts]),
            np.concatenate([job.tokens.lengths[positions] for job, positions in self.parts]),
            job.prompt_length,
            np.concatenate([first for first in firsts if first is not None]) if firsts[0] is not None else None,
            job.options,
        )

    def results(self, tokens: TokenBatch, rows: NDArray[np.float32], kind: Rows) -> list[NDArray[Any]]:
        """Has each job's head compute results from its own rows.

        Args:
            tokens: What `tokens` returned.
            rows: What an engine gave for it.
            kind: What the engine gives.

        Returns:
            The results of each part.
        """
        if len(self.parts) == 1:
            return [self.parts[0][0].head.apply(tokens, rows)]
        row_ends = np.cumsum(tokens.lengths) if kind == "tokens" else np.arange(1, self.texts + 1)
        results, start = [], 0
        for job, positions in self.parts:
            stop = start + len(positions)
            own_rows = rows[row_ends[start - 1] if start else 0 : row_ends[stop - 1]]
            results.append(job.head.apply(tokens.part(start, stop), own_rows))
            start = stop
        return results

    def halves(self) -> tuple[Batch, Batch]:
        """Cuts it in two; of at least two texts."""
        room = self.texts // 2
        first: list[tuple[Job, NDArray[np.int64]]] = []
        second: list[tuple[Job, NDArray[np.int64]]] = []
        for job, positions in self.parts:
            first += [(job, positions[:room])] if room else []
            second += [(job, positions[room:])] if len(positions) > room else []
            room = max(room - len(positions), 0)
        return Batch(first), Batch(second)


def _of(lengths: NDArray[np.int64] | None, positions: NDArray[np.int64]) -> NDArray[np.int64] | None:
    return None if lengths is None else lengths[positions]
