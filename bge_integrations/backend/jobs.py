"""What waits in the queue: the texts of a call, and the batches that engines make of them."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bge_integrations.backend.engines import Head, Rows, ScoringOptions, TokenBatch
from bge_integrations.backend.logs import get_logger
from bge_integrations.backend.tokenization import TokenizedTexts

logger = get_logger(__name__)


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
    """Texts of one call, on their way through the queue.

    Attributes:
        head: Makes results of an engine's rows.
        done: Gets the results, one a text; cancelling it drops what still waits.
        notes: What the caller is to be warned of once it is done.
        waiting_tokens: Tokens that no engine has taken yet.
        queued_at: When it was made, by `time.perf_counter`.
        process: The id of the process that made it.
    """

    def __init__(
        self,
        tokens: TokenizedTexts,
        head: Head,
        results: NDArray[Any],
        *,
        is_query: bool,
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
            head: Makes results of an engine's rows, in the engine's thread.
            results: Room for them; its first axis is the texts.
            is_query: Whether somebody waits for a few short texts.
            prompt_length: Leading tokens of each text that come from an instruction.
            options: What a decoder is told beside the tokens.
            batch_tokens: Tokens, padding included, in one batch; None takes the engine's figure.
            max_texts: Upper limit on the texts in a batch.
            truncated: Texts of the call that were cut, for the statistics.
            on_batch: Called with the positions of each finished batch, from another thread.
        """
        self.tokens = tokens
        self.head = head
        self.is_query = is_query
        self.prompt_length = prompt_length
        self.options = options
        self.batch_tokens = batch_tokens
        self.max_texts = max_texts
        self.truncated = truncated
        self.done: Future[NDArray[Any]] = Future()
        self.notes: list[str] = []
        self._on_batch = on_batch
        self._results = results
        # Longest first: neighbours are of nearly equal length, and what needs most memory fails first, not last.
        self._order = np.argsort(-tokens.lengths, kind="stable")
        self._taken = 0
        self._finished = 0
        self._finishing = threading.Lock()
        self.waiting_tokens = int(tokens.lengths.sum())
        self.queued_at = time.perf_counter()
        self.process = os.getpid()

    @property
    def waiting_texts(self) -> int:
        """Texts that no engine has taken yet."""
        return len(self._order) - self._taken

    @property
    def next_length(self) -> int:
        """Tokens of the longest text that waits."""
        return max(int(self.tokens.lengths[self._order[self._taken]]), 1)

    def may_run_with(self, other: Job) -> bool:
        """Whether texts of both may share a batch."""
        mine, theirs = ((job.prompt_length, job.options, job.batch_tokens, job.max_texts) for job in (self, other))
        return mine == theirs

    def take(self, count: int) -> NDArray[np.int64]:
        """Takes the next texts, at most so many."""
        positions = self._order[self._taken : self._taken + count]
        self._taken += len(positions)
        self.waiting_tokens -= int(self.tokens.lengths[positions].sum())
        return positions

    def finish(self, positions: NDArray[np.int64], results: NDArray[Any]) -> None:
        """Stores the results of some texts."""
        self._results[positions] = results
        if self._on_batch is not None and not self.done.done():
            try:
                self._on_batch(positions)
            except Exception:
                logger.exception("a progress display failed; going on without it")
                self._on_batch = None
        with self._finishing:  # several engines may finish parts of it at once
            self._finished += len(positions)
            is_complete = self._finished == len(self._order)
        if is_complete:
            with contextlib.suppress(InvalidStateError):  # cancelled, or failed by another part
                self.done.set_result(self._results)

    def fail(self, error: BaseException) -> None:
        """Gives the caller an error instead of results."""
        with contextlib.suppress(InvalidStateError):
            self.done.set_exception(error)


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
    def kind(self) -> str:
        """Whether they are queries or documents."""
        return "query" if self.parts[0][0].is_query else "document"

    def waited(self, now: float) -> float:
        """Returns what its texts have waited together, in seconds."""
        return sum(len(positions) * (now - job.queued_at) for job, positions in self.parts)

    def without_finished_jobs(self) -> Batch:
        """Leaves out what nobody waits for any more."""
        return Batch([(job, positions) for job, positions in self.parts if not job.done.done()])

    def tokens(self) -> TokenBatch:
        """Returns it as engines take it."""
        first = [job.tokens.first_lengths for job, _ in self.parts]
        return TokenBatch(
            np.concatenate([job.tokens.of(positions) for job, positions in self.parts]),
            np.concatenate([job.tokens.lengths[positions] for job, positions in self.parts]),
            self.parts[0][0].prompt_length,
            np.concatenate(
                [lengths[places] for lengths, (_, places) in zip(first, self.parts, strict=True) if lengths is not None]
            )
            if first[0] is not None
            else None,
            self.parts[0][0].options,
        )

    def results(self, tokens: TokenBatch, rows: NDArray[np.float32], kind: Rows) -> list[NDArray[Any]]:
        """Has each job's head make results of its own rows.

        Args:
            tokens: What `tokens` returned.
            rows: What an engine gave for it.
            kind: What the engine gives.

        Returns:
            The results of each part.
        """
        if len(self.parts) == 1:
            return [self.parts[0][0].head(tokens, rows)]
        row_ends = np.cumsum(tokens.lengths) if kind == "tokens" else np.arange(1, self.texts + 1)
        results, start = [], 0
        for job, positions in self.parts:
            stop = start + len(positions)
            own_rows = rows[row_ends[start - 1] if start else 0 : row_ends[stop - 1]]
            results.append(job.head(tokens.part(start, stop), own_rows))
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
