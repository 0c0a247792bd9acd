"""The jobs that wait for an engine, in their order."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from bge_integrations.backend.engines.interface import Priority
from bge_integrations.backend.scheduler.job import PRIORITIES, Batch, Job, read_together

_CHARACTERS_AT_ONCE = 32768
"""Characters of unread texts that are tokenised in one call, in some milliseconds. Other engines wait meanwhile."""


class Queue:
    """Jobs of each priority, in the order of their arrival. Not thread-safe."""

    def __init__(self, on_read: Callable[[Job], None] = lambda _: None) -> None:
        """Starts empty.

        Args:
            on_read: Function that is called with each job whose unread texts were tokenised.
        """
        self._jobs: dict[Priority, dict[Job, int]] = {priority: {} for priority in PRIORITIES}
        self._on_read = on_read
        self.bulk_tokens = 0
        """Tokens of waiting bulk jobs."""
        self.interactive_batches = 0
        """Interactive batches taken since the last bulk batch."""

    def has(self, priority: Priority) -> bool:
        """Whether a job of this priority waits."""
        return bool(self._jobs[priority])

    def jobs(self, priority: Priority) -> int:
        """Returns the number of waiting jobs of a priority."""
        return len(self._jobs[priority])

    @property
    def is_empty(self) -> bool:
        """Whether no job waits."""
        return not any(self._jobs.values())

    def add(self, job: Job) -> None:
        """Puts a job at the end."""
        self._count(job, job.waiting_tokens)

    def remove(self, job: Job) -> None:
        """Removes a job if it still waits."""
        if job in self._jobs[job.priority]:
            self._count(job, 0)
            del self._jobs[job.priority][job]

    def clear(self) -> list[Job]:
        """Removes all jobs and returns them."""
        jobs = [job for waiting in self._jobs.values() for job in waiting]
        for waiting in self._jobs.values():
            waiting.clear()
        self.bulk_tokens = 0
        return jobs

    def take(self, priority: Priority, budget: Callable[[Job], int], most_texts: int = sys.maxsize) -> Batch:
        """Takes texts of the first job of a priority and of the jobs behind it, as many as fit into one batch.

        Unread texts are tokenised when their turn comes.

        Args:
            priority: A priority with at least one waiting job.
            budget: Function that returns the token budget, padding included, of a batch with texts of a job.
            most_texts: Greatest number of texts in the batch.

        Returns:
            The batch. It has at least one text, even if this text exceeds the budget. It is empty if no waiting job is
            left, because their texts must not be computed.
        """
        self.interactive_batches = self.interactive_batches + 1 if priority == "interactive" else 0
        waiting = self._jobs[priority]
        parts: list[tuple[Job, NDArray[np.int64]]] = []
        count = longest = 0
        while waiting:
            job = next(iter(waiting))
            if job.unread is not None:
                self._read_first(waiting)
                continue
            if parts and not job.may_run_with(parts[0][0]):
                break
            longest = max(longest, job.next_length)
            room = min(budget(job) // longest, job.max_texts or most_texts, most_texts) - count
            if room < 1 and parts:
                break
            positions = job.take(max(room, 1))
            self._count(job, job.waiting_tokens)
            if not job.waiting_texts:
                del waiting[job]
            parts.append((job, positions))
            count += len(positions)
        return Batch(parts)

    def _count(self, job: Job, tokens: int) -> None:
        """Notes the number of tokens with which a job waits."""
        waiting = self._jobs[job.priority]
        if job.priority == "bulk":
            self.bulk_tokens += tokens - waiting.get(job, 0)
        waiting[job] = tokens

    def _read_first(self, waiting: Mapping[Job, int]) -> None:
        """Tokenises the unread texts of the first job and of the jobs behind it. Jobs that fail leave the queue."""
        unread, characters = [], 0
        for job in waiting:
            if job.unread is None or characters >= _CHARACTERS_AT_ONCE:
                break
            unread.append(job)
            characters += job.unread.characters
        read_together(unread)
        for job in unread:
            self._on_read(job)
            if job.is_over:
                self.remove(job)
