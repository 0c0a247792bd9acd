"""Limits the texts in flight. Jobs beyond the limit wait for room, first come, first served."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from bge_integrations.backend.scheduler.job import Job


class Admission:
    """The texts in flight, and the jobs that wait for room. Not thread-safe."""

    def __init__(self) -> None:
        self._inside: set[Job] = set()
        self.waiting: deque[tuple[Job, int]] = deque()
        """Jobs that wait for room, each with its limit."""
        self.texts = 0
        """Texts in flight."""

    def ask(self, job: Job, limit: int) -> None:
        """Puts a job at the end of the waiting jobs.

        Args:
            job: The job.
            limit: Maximum number of texts in flight. A job with more texts is admitted when nothing else is in flight.
        """
        self.waiting.append((job, limit))

    def admitted(self) -> Iterator[Job]:
        """Yields the jobs that now have room, in the order of their `ask`."""
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
        """Frees the room of an ended job."""
        if job in self._inside:
            self._inside.remove(job)
            self.texts -= job.texts

    def clear(self) -> list[Job]:
        """Removes all waiting jobs and returns them."""
        waiting = [job for job, _ in self.waiting]
        self.waiting.clear()
        return waiting
