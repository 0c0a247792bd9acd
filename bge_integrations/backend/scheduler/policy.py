"""What an engine computes next."""

from __future__ import annotations

from dataclasses import dataclass

from bge_integrations.backend.scheduler.job import Batch, Job, Priority
from bge_integrations.backend.scheduler.queue import Queue

INTERACTIVE_BATCHES_IN_A_ROW = 4
"""After so many, a bulk batch goes if one waits."""

_INTERACTIVE_IS_RECENT_S = 1.0
_SHARE_BETWEEN_INTERACTIVE = 4


@dataclass(frozen=True)
class Turn:
    """What an engine that asks for work is like, and what happens around it.

    Attributes:
        batch_tokens: Tokens, padding included, that it computes best in one batch.
        memory_limit: Tokens in a batch that fit into its memory, once a larger one did not.
        is_helper: Whether it only computes bulk batches.
        has_helpers: Whether helpers are ready to take bulk batches.
        all_idle: Whether neither the first engine nor a helper computes.
        first_batch_tokens: `batch_tokens` of the model's first engine.
        since_interactive: Seconds since the last interactive job came.
    """

    batch_tokens: int
    memory_limit: int | None = None
    is_helper: bool = False
    has_helpers: bool = False
    all_idle: bool = True
    first_batch_tokens: int = 0
    since_interactive: float = float("inf")


def next_batch(queue: Queue, turn: Turn) -> Batch | None:
    """Takes what an engine computes next out of the queue.

    - A batch takes as many texts as its budget of tokens allows, across callers. It never waits to be filled.
    - Interactive batches go before bulk ones; within a priority, first come, first served. After
      `INTERACTIVE_BATCHES_IN_A_ROW` interactive batches one bulk batch goes, if any waits, so that bulk never starves.
    - The budget is the caller's `batch_tokens`, else the engine's; never more than has fit into its memory. While
      interactive jobs arrive (one came within a second), an engine that computes both kinds takes a quarter of its
      budget of bulk texts at a time, so that an interactive job waits for a short batch only.
    - Helpers take bulk batches alone. Where they are ready, other engines leave bulk batches to them, unless so few
      texts wait that all cores together are the faster way, and nothing else is computed or waits.

    Args:
        queue: What waits.
        turn: The engine, and what happens around it.

    Returns:
        The batch; `None` if there is nothing that this engine may take.
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

    return queue.take(priority, budget)


def _may_take_bulk(queue: Queue, turn: Turn) -> bool:
    if not turn.has_helpers:
        return True
    are_few = turn.all_idle and not queue.has("interactive") and queue.bulk_tokens <= turn.first_batch_tokens
    return turn.is_helper != are_few
