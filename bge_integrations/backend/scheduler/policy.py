"""The choice of the next batch for an engine."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from bge_integrations.backend.engines.interface import Priority
from bge_integrations.backend.scheduler.job import Batch, Job
from bge_integrations.backend.scheduler.queue import Queue

INTERACTIVE_BATCHES_IN_A_ROW = 4
"""After this many interactive batches in a row, a waiting bulk batch goes first."""

_INTERACTIVE_IS_RECENT_S = 1.0
_SHARE_BETWEEN_INTERACTIVE = 4


@dataclass(frozen=True)
class Turn:
    """An engine that asks for work, and the state of the other engines.

    Attributes:
        batch_tokens: The engine's best batch size in tokens, padding included.
        memory_limit: Tokens in a batch that fit into memory. `None`: no batch was too large yet.
        most_texts: Greatest number of texts in a batch.
        is_helper: Whether the engine only computes bulk batches.
        has_helpers: Whether helpers are ready to take bulk batches.
        all_idle: Whether the first engine and all helpers are idle.
        first_batch_tokens: `batch_tokens` of the model's first engine.
        since_interactive: Seconds since the last interactive job was queued.
    """

    batch_tokens: int
    memory_limit: int | None = None
    most_texts: int = sys.maxsize
    is_helper: bool = False
    has_helpers: bool = False
    all_idle: bool = True
    first_batch_tokens: int = 0
    since_interactive: float = float("inf")


def next_batch(queue: Queue, turn: Turn) -> Batch | None:
    """Takes the next batch of an engine out of the queue.

    - A batch holds as many texts as its token budget allows, also of several callers. It never waits to be filled.
    - Interactive batches go before bulk batches. Within a priority the order is first come, first served. After
      `INTERACTIVE_BATCHES_IN_A_ROW` interactive batches a waiting bulk batch goes first, so bulk jobs never starve.
    - The token budget is the caller's `batch_tokens` or else the engine's, and never above `memory_limit`. For one
      second after an interactive job, an engine that is no helper uses a quarter of its own budget for bulk batches.
      Then the next interactive job waits for a short batch only.
    - Helpers take only bulk batches. While helpers are ready, other engines leave bulk batches to them, with one
      exception: if all engines are idle, no interactive job waits and the bulk texts fit into one batch of the first
      engine, the helpers leave them to it, because a batch on all cores is faster then.

    Args:
        queue: The waiting jobs.
        turn: The engine, and the state of the other engines.

    Returns:
        The batch. `None`: no work for this engine.
    """
    interactive = not turn.is_helper and queue.has("interactive")
    bulk = queue.has("bulk") and _may_take_bulk(queue, turn)
    if interactive and bulk:
        interactive = queue.interactive_batches < INTERACTIVE_BATCHES_IN_A_ROW
    if not (interactive or bulk):
        return None
    priority: Priority = "interactive" if interactive else "bulk"
    own = turn.batch_tokens
    if priority == "bulk" and not turn.is_helper and turn.since_interactive < _INTERACTIVE_IS_RECENT_S:
        own = max(own // _SHARE_BETWEEN_INTERACTIVE, 1)

    def budget(job: Job) -> int:
        return min(job.batch_tokens or own, turn.memory_limit or job.batch_tokens or own)

    return queue.take(priority, budget, turn.most_texts)


def _may_take_bulk(queue: Queue, turn: Turn) -> bool:
    if not turn.has_helpers:
        return True
    are_few = turn.all_idle and not queue.has("interactive") and queue.bulk_tokens <= turn.first_batch_tokens
    return turn.is_helper != are_few
