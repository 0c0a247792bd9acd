"""The jobs that wait for an engine, in their order."""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from bge_integrations.backend.engines.interface import Priority
from bge_integrations.backend.scheduler.job import PRIORITIES, Batch, Job


class Queue:
    """Jobs of each priority, in the order of their arrival. Not thread-safe."""

    def __init__(self) -> None:
        self._jobs: dict[Priority, dict[Job, None]] = {priority: {} for priority in PRIORITIES}
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
        self._jobs[job.priority][job] = None
        if job.priority == "bulk":
            self.bulk_tokens += job.waiting_tokens

    def remove(self, job: Job) -> None:
        """Removes a job if it still waits."""
        if self._jobs[job.priority].pop(job, job) is None and job.priority == "bulk":
            self.bulk_tokens -= job.waiting_tokens

    def clear(self) -> list[Job]:
        """Removes all jobs and returns them."""
        jobs = [job for waiting in self._jobs.values() for job in waiting]
        for waiting in self._jobs.values():
            waiting.clear()
        self.bulk_tokens = 0
        return jobs

    def take(self, priority: Priority, budget: Callable[[Job], int], most_texts: int = sys.maxsize) -> Batch:
        """Takes texts of the first job of a priority and of the jobs behind it, as many as fit into one batch.

        Args:
            priority: A priority with at least one waiting job.
            budget: Function that returns the token budget, padding included, of a batch with texts of a job.
            most_texts: Greatest number of texts in the batch.

        Returns:
            The batch. It has at least one text, even if this text exceeds the budget.
        """
        self.interactive_batches = self.interactive_batches + 1 if priority == "interactive" else 0
        waiting = self._jobs[priority]
        parts: list[tuple[Job, NDArray[np.int64]]] = []
        head = next(iter(waiting))
        count = longest = 0
        while waiting:
            job = next(iter(waiting))
            if not job.may_run_with(head):
                break
            longest = max(longest, job.next_length)
            room = min(budget(job) // longest, job.max_texts or most_texts, most_texts) - count
            if room < 1 and parts:
                break
            positions = self._take(job, max(room, 1))
            parts.append((job, positions))
            count += len(positions)
        return Batch(parts)

    def _take(self, job: Job, count: int) -> NDArray[np.int64]:
        before = job.waiting_tokens
        positions = job.take(count)
        if job.priority == "bulk":
            self.bulk_tokens -= before - job.waiting_tokens
        if not job.waiting_texts:
            del self._jobs[job.priority][job]
        return positions
