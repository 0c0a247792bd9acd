"""Keeps the texts in flight within a limit: jobs beyond it wait for room, first come, first served."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from bge_integrations.backend.scheduler.job import Job


class Admission:
    """The texts in flight, and the jobs that wait for room. For one thread at a time."""

    def __init__(self) -> None:
        self._inside: set[Job] = set()
        self.waiting: deque[tuple[Job, int]] = deque()
        """Jobs that wait for room, each with its limit."""
        self.texts = 0
        """Texts in flight."""

    def ask(self, job: Job, limit: int) -> None:
        """Puts a job at the end of those that wait.

        Args:
            job: The job.
            limit: Texts that may be in flight together. A job with more texts goes when nothing else is in flight.
        """
        self.waiting.append((job, limit))

    def admitted(self) -> Iterator[Job]:
        """Yields the jobs that there is room for now, in the order in which they asked."""
        while self.waiting:
            job, limit = self.waiting[0]
            if not job.is_over:
                if self._inside and self.texts + job.texts > limit:
                    return
                self._inside.add(job)
                self.texts += job.texts
            self.waiting.popleft()
            if not job.is_over:
                yield job

    def leave(self, job: Job) -> None:
        """Frees the room of a job that has ended."""
        if job in self._inside:
            self._inside.remove(job)
            self.texts -= job.texts

    def clear(self) -> list[Job]:
        """Returns the jobs that wait for room, which don't wait any more."""
        waiting = [job for job, _ in self.waiting]
        self.waiting.clear()
        return waiting
