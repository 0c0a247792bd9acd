"""Jobs, which are the texts of one call in the queue, and the batches that engines compute."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from bge_integrations.backend.engines.interface import EngineOptions, Head, Priority, Rows, TokenBatch
from bge_integrations.backend.guarantees.interrupts import Outcome, Ticket
from bge_integrations.backend.guarantees.logs import get_logger
from bge_integrations.backend.text.templates import Frame, tokenize_together
from bge_integrations.backend.text.tokenizer import TokenizedTexts

logger = get_logger(__name__)

_CHARACTERS_A_TOKEN = 4
"""Of English, for an estimate."""
_ONLY = np.zeros(1, dtype=np.int64)
"""The positions of a single text."""

PRIORITIES: tuple[Priority, ...] = ("interactive", "bulk")


class TextFailedError(Exception):
    """The engine failed on a text that was alone in its batch.

    Attributes:
        position: Index of the text in the job.
        out_of_memory: Whether the text needs more memory than the device has.
    """

    def __init__(self, position: int, *, out_of_memory: bool) -> None:
        super().__init__(position)
        self.position = position
        self.out_of_memory = out_of_memory


class Unread(Protocol):
    """Texts of a call that are tokenised when an engine is about to take them, together with those of other calls.

    Attributes:
        frame: What surrounds and limits the texts.
        texts: The texts, at least one.
        characters: Number of characters of the texts.
    """

    frame: Frame
    texts: list[str]
    characters: int

    def check(self, tokens: TokenizedTexts) -> int:
        """Returns the number of truncated texts. Raises an error if the texts must not be computed."""
        ...


class Job:
    """Texts of one call in the queue. A job ends exactly once: with results, with an error, or cancelled.

    Attributes:
        priority: The queue in which the job waits.
        unread: The texts, if they are not tokenised yet.
        tokens: The tokens. A job with unread texts lacks this attribute.
        texts: Number of texts.
        kind: What texts of other jobs must have in common with these texts to share a batch; see `may_run_with`.
        answer: The results, one per text, or the error. A forked child gives no answer to a job of its parent.
        notes: Warnings for the caller, complete when the job ends.
        waiting_tokens: Tokens that no engine has taken yet. An estimate, as long as the texts are unread.
        queued_at: Time of creation in seconds, from `time.perf_counter`.
        process: Id of the process that created the job.
        on_end: Callback that runs once when the job ends, before the caller gets the answer.
    """

    def __init__(
        self,
        content: TokenizedTexts | Unread,
        head: Head,
        *,
        priority: Priority,
        prompt_length: int = 0,
        options: EngineOptions | None = None,
        batch_tokens: int | None = None,
        max_texts: int | None = None,
        shares_batches: bool = True,
        truncated: int = 0,
        on_batch: Callable[[NDArray[np.int64]], None] | None = None,
    ) -> None:
        """Describes the work.

        Args:
            content: The tokens of the texts, or texts that are not tokenised yet.
            head: Computation of results from an engine's rows, run in the engine's thread.
            priority: The queue in which the job waits.
            prompt_length: Leading tokens of each text that come from an instruction.
            options: Further inputs of the engine.
            batch_tokens: Token budget of a batch, padding included. `None`: the engine's own budget.
            max_texts: Maximum number of texts in a batch. `None`: no limit.
            shares_batches: Whether texts of other jobs may be in its batches.
            truncated: Number of truncated texts, for the statistics.
            on_batch: Callback that gets the positions of each finished batch, in another thread.
        """
        self.head = head
        self.priority: Priority = priority
        self.prompt_length = prompt_length
        self.options = options
        self.batch_tokens = batch_tokens
        self.max_texts = max_texts
        self.kind = (prompt_length, options, batch_tokens, max_texts)
        self._shares_batches = shares_batches
        self.truncated = truncated
        self.answer: Ticket[NDArray[Any]] = Ticket()
        self.notes: list[str] = []
        self.on_end: Callable[[Job], None] | None = None
        self._on_batch = on_batch
        self._results: NDArray[Any] | None = None
        self._taken = 0
        self._finished = 0
        self._ending = threading.Lock()
        self._is_over = False
        self.queued_at = time.perf_counter()
        self.process = os.getpid()
        self.unread: Unread | None = None
        if isinstance(content, TokenizedTexts):
            self._take_over(content)
        else:
            self.unread, self.texts = content, len(content.texts)
            self.waiting_tokens = content.characters // _CHARACTERS_A_TOKEN + 1

    def _take_over(self, tokens: TokenizedTexts) -> None:
        self.tokens, self.unread = tokens, None
        self.texts = len(tokens.lengths)
        # Longest first: neighbours have nearly equal lengths, and the batch that needs most memory runs first.
        self._order = _ONLY if self.texts == 1 else np.argsort(-tokens.lengths, kind="stable")
        self.waiting_tokens = int(tokens.lengths.sum())

    def read(self, tokens: TokenizedTexts) -> None:
        """Takes over the tokens of the unread texts. The job ends with an error if they must not be computed."""
        if self.unread is None:
            raise AssertionError("only unread texts are read")
        try:
            self.truncated = self.unread.check(tokens)
        except Exception as error:
            self.fail(error)
        self._take_over(tokens)

    @property
    def waiting_texts(self) -> int:
        """Number of texts that no engine has taken yet."""
        return self.texts - self._taken

    @property
    def next_length(self) -> int:
        """Tokens of the longest waiting text."""
        return max(int(self.tokens.lengths[self._order[self._taken]]), 1)

    @property
    def is_over(self) -> bool:
        """Whether the job has ended."""
        return self._is_over

    def may_run_with(self, other: Job) -> bool:
        """Whether texts of both jobs may share a batch."""
        if self is other:
            return True
        return self._shares_batches and other._shares_batches and self.kind == other.kind

    def take(self, count: int) -> NDArray[np.int64]:
        """Takes up to `count` further texts and returns their positions."""
        positions = self._order[self._taken : self._taken + count]
        self._taken += len(positions)
        if self._taken == self.texts:
            self.waiting_tokens = 0
        else:
            self.waiting_tokens -= int(self.tokens.lengths[positions].sum())
        return positions

    def finish(self, positions: NDArray[np.int64], results: NDArray[Any]) -> Outcome[NDArray[Any]] | None:
        """Stores the results of some texts.

        Returns:
            The outcome for `answer`, if all results are stored now.
        """
        if self._on_batch is not None and not self._is_over:
            try:
                self._on_batch(positions)
            except Exception:
                logger.exception("a progress display failed; the call continues without it")
                self._on_batch = None
        with self._ending:  # several engines may finish parts of the job at the same time
            if self._is_over:
                return None
            if self.texts == 1:
                self._results = results.copy()
            else:
                if self._results is None:
                    self._results = self.head.empty(self.texts)
                self._results[positions] = results
            self._finished += len(positions)
            if self._finished < self.texts:
                return None
            outcome = Outcome(self._results)
            on_end = self._close()
        try:
            on_end(self)
        except BaseException:
            self.answer.give(outcome)
            raise
        return outcome

    def fail(self, error: BaseException) -> None:
        """Ends the job with an error."""
        with self._ending:
            if self._is_over:
                return
            on_end = self._close()
        try:
            on_end(self)
        finally:
            self.answer.give(Outcome(error=error))

    def cancel(self) -> None:
        """Ends the job without results, because its caller has stopped waiting."""
        self.fail(CancelledError())

    def _close(self) -> Callable[[Job], None]:
        """Marks the job as ended, and returns the function to call then."""
        on_end, self.on_end, self._results, self._is_over = self.on_end, None, None, True
        return on_end or _do_nothing


def _do_nothing(_: Job) -> None: ...


def read_together(jobs: Sequence[Job]) -> None:
    """Tokenises the unread texts of several jobs in one call of the tokenizer. Jobs with an error end with it."""
    unread = [(job, job.unread) for job in jobs if job.unread is not None]
    try:
        found = tokenize_together([(texts.frame, texts.texts) for _, texts in unread])
    except BaseException as error:  # a tokenizer may raise any error
        if len(unread) > 1:
            for job, _ in unread:
                read_together([job])
        else:
            unread[0][0].fail(error)
        return
    for (job, _), tokens in zip(unread, found, strict=True):
        job.read(tokens)


@dataclass(eq=False)
class Batch:
    """Texts of one or more jobs that are computed together.

    Attributes:
        parts: Jobs, each with the positions of its texts.
    """

    parts: list[tuple[Job, NDArray[np.int64]]]

    @property
    def texts(self) -> int:
        """Number of texts."""
        return sum(len(positions) for _, positions in self.parts)

    @property
    def priority(self) -> Priority:
        """The priority of all jobs in the batch."""
        return self.parts[0][0].priority

    def waited(self, now: float) -> float:
        """Returns the total waiting time of the texts, in seconds."""
        return sum(len(positions) * (now - job.queued_at) for job, positions in self.parts)

    def without_ended_jobs(self) -> Batch:
        """Returns the batch without the texts of ended jobs."""
        return Batch([(job, positions) for job, positions in self.parts if not job.is_over])

    def tokens(self) -> TokenBatch:
        """Returns the input for an engine."""
        job, positions = self.parts[0]
        if len(self.parts) == 1:
            return TokenBatch(
                job.tokens.of(positions),
                job.tokens.lengths[positions],
                job.prompt_length,
                _of(job.tokens.first_lengths, positions),
                job.options,
                _written(job, positions),
                self.priority,
            )
        firsts = [_of(job.tokens.first_lengths, positions) for job, positions in self.parts]
        return TokenBatch(
            np.concatenate([job.tokens.of(positions) for job, positions in self.parts]),
            np.concatenate([job.tokens.lengths[positions] for job, positions in self.parts]),
            job.prompt_length,
            np.concatenate([first for first in firsts if first is not None]) if firsts[0] is not None else None,
            job.options,
            tuple(text for job, positions in self.parts for text in _written(job, positions)),
            self.priority,
        )

    def results(self, tokens: TokenBatch, rows: NDArray[np.float32], kind: Rows) -> list[NDArray[Any]]:
        """Returns the results of each part, which its job's head computes from the engine's rows for `tokens()`."""
        results: list[NDArray[Any]] = []
        start = 0
        for head, parts in groupby(self.parts, key=_head_of):
            sizes = [len(positions) for _, positions in parts]
            stop = start + sum(sizes)
            if stop - start == len(tokens.lengths):
                found = head.apply(tokens, rows)
            else:
                ends = np.cumsum(tokens.lengths) if kind == "tokens" else np.arange(1, self.texts + 1)
                found = head.apply(tokens.part(start, stop), rows[ends[start - 1] if start else 0 : ends[stop - 1]])
            first = 0
            for size in sizes:
                results.append(found[first : first + size])
                first += size
            start = stop
        return results

    def halves(self) -> tuple[Batch, Batch]:
        """Splits a batch of at least two texts into two."""
        room = self.texts // 2
        first: list[tuple[Job, NDArray[np.int64]]] = []
        second: list[tuple[Job, NDArray[np.int64]]] = []
        for job, positions in self.parts:
            first += [(job, positions[:room])] if room else []
            second += [(job, positions[room:])] if len(positions) > room else []
            room = max(room - len(positions), 0)
        return Batch(first), Batch(second)


def _head_of(part: tuple[Job, NDArray[np.int64]]) -> Head:
    return part[0].head


def _written(job: Job, positions: NDArray[np.int64]) -> tuple[Any, ...]:
    written = job.tokens.written
    return () if written is None else tuple(written[position] for position in positions)


def _of(lengths: NDArray[np.int64] | None, positions: NDArray[np.int64]) -> NDArray[np.int64] | None:
    return None if lengths is None else lengths[positions]
