"""What waits for a model, and what goes next. Knows nothing of threads and engines."""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bge_integrations.backend.jobs import Batch, Job

Done = Future[NDArray[Any]]

QUERY_BATCHES_IN_A_ROW = 4
"""After so many, a batch of documents goes if one waits."""


class Queue:
    """Jobs in the order in which they came, queries apart from documents. For one thread at a time."""

    def __init__(self) -> None:
        self._queries: OrderedDict[Done, Job] = OrderedDict()
        self._documents: OrderedDict[Done, Job] = OrderedDict()
        self._query_batches = 0
        self.document_tokens = 0
        """Tokens of documents that wait."""

    @property
    def has_queries(self) -> bool:
        """Whether any wait."""
        return bool(self._queries)

    @property
    def has_documents(self) -> bool:
        """Whether any wait."""
        return bool(self._documents)

    def add(self, job: Job) -> None:
        """Puts a job at the end."""
        self._of(job)[job.done] = job
        if not job.is_query:
            self.document_tokens += job.waiting_tokens

    def remove(self, done: Done) -> None:
        """Takes a job out, if it still waits."""
        self._queries.pop(done, None)
        job = self._documents.pop(done, None)
        if job is not None:
            self.document_tokens -= job.waiting_tokens

    def clear(self) -> list[Job]:
        """Takes everything out."""
        jobs = [*self._queries.values(), *self._documents.values()]
        self._queries.clear()
        self._documents.clear()
        self.document_tokens = 0
        return jobs

    def next_batch(self, budget: Callable[[Job], int], *, queries: bool = True, documents: bool = True) -> Batch | None:
        """Takes texts from the head of the queue, from as many jobs as fit together.

        Args:
            budget: Gives the tokens, padding included, that a batch with texts of this job may have.
            queries: Whether queries may be taken.
            documents: Whether documents may be taken.

        Returns:
            The batch; None if nothing waits that may be taken.
        """
        queries, documents = queries and self.has_queries, documents and self.has_documents
        if queries and documents:
            queries = self._query_batches < QUERY_BATCHES_IN_A_ROW
        if not (queries or documents):
            return None
        self._query_batches = self._query_batches + 1 if queries else 0
        return self._gather(self._queries if queries else self._documents, budget)

    def _gather(self, jobs: OrderedDict[Done, Job], budget: Callable[[Job], int]) -> Batch:
        parts: list[tuple[Job, NDArray[np.int64]]] = []
        head = next(iter(jobs.values()))
        count = longest = 0
        while jobs:
            job = next(iter(jobs.values()))
            if not job.may_run_with(head):
                break
            longest = max(longest, job.next_length)
            room = min(budget(job) // longest, job.max_texts or sys.maxsize) - count
            if room < 1 and parts:
                break
            positions = self._take(job, max(room, 1))
            parts.append((job, positions))
            count += len(positions)
        return Batch(parts)

    def _take(self, job: Job, count: int) -> NDArray[np.int64]:
        before = job.waiting_tokens
        positions = job.take(count)
        if not job.is_query:
            self.document_tokens -= before - job.waiting_tokens
        if not job.waiting_texts:
            del self._of(job)[job.done]
        return positions

    def _of(self, job: Job) -> OrderedDict[Done, Job]:
        return self._queries if job.is_query else self._documents
