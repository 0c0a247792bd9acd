"""The choice of the next batch for an engine."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from bge_integrations.backend.engines.interface import Priority
from bge_integrations.backend.scheduler.job import Batch, Job
from bge_integrations.backend.scheduler.pace import TimeLimits
from bge_integrations.backend.scheduler.queue import Queue

INTERACTIVE_BATCHES_IN_A_ROW = 4
"""After this many interactive batches in a row, a waiting bulk batch goes first."""

_INTERACTIVE_IS_RECENT_S = 1.0
_SHARE_BETWEEN_INTERACTIVE = 4
# Below, a GPU computes for less time than its launches take.
_LEAST_TIMED_TOKENS = 1024


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
        limits: Longest computing times of the engine's bulk batches; `None`: they are cut by tokens only.
        tokens_per_second: The engine's pace; `None` if it is not known yet.
    """

    batch_tokens: int
    memory_limit: int | None = None
    most_texts: int = sys.maxsize
    is_helper: bool = False
    has_helpers: bool = False
    all_idle: bool = True
    first_batch_tokens: int = 0
    since_interactive: float = float("inf")
    limits: TimeLimits | None = None
    tokens_per_second: float | None = None


def next_batch(queue: Queue, turn: Turn) -> Batch | None:
    """Takes the next batch of an engine out of the queue.

    - A batch holds as many texts as its token budget allows, also of several callers. It never waits to be filled.
    - Interactive batches go before bulk batches. Within a priority the order is first come, first served. After
      `INTERACTIVE_BATCHES_IN_A_ROW` interactive batches a waiting bulk batch goes first, so bulk jobs never starve.
    - The token budget is the caller's `batch_tokens` or else the engine's, and never above `memory_limit`. The engine's
      budget for bulk batches is what `bulk_tokens` returns.
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
    own = turn.batch_tokens if interactive else bulk_tokens(turn)

    def budget(job: Job) -> int:
        return min(job.batch_tokens or own, turn.memory_limit or job.batch_tokens or own)

    return queue.take(priority, budget, turn.most_texts)


def bulk_tokens(turn: Turn) -> int:
    """Returns an engine's own token budget for a bulk batch.

    For one second after an interactive job, interactive jobs are expected. Then the next one should wait for a short
    batch only. Helpers take no interactive jobs, so they always use the whole budget.

    - Without time limits: the whole budget, or a quarter of it while interactive jobs are expected.
    - With time limits: as many tokens as the engine computes in `alone`, or in `between_interactive` while interactive
      jobs are expected; at least 1,024, and at most the whole budget. While the pace is not known, a quarter.

    Args:
        turn: The engine, and the state of the other engines.
    """
    whole, quarter = turn.batch_tokens, max(turn.batch_tokens // _SHARE_BETWEEN_INTERACTIVE, 1)
    is_expected = turn.since_interactive < _INTERACTIVE_IS_RECENT_S
    if turn.is_helper:
        return whole
    if turn.limits is None:
        return quarter if is_expected else whole
    if turn.tokens_per_second is None:
        return quarter
    seconds = turn.limits.between_interactive if is_expected else turn.limits.alone
    return min(max(int(turn.tokens_per_second * seconds), _LEAST_TIMED_TOKENS), whole)


def _may_take_bulk(queue: Queue, turn: Turn) -> bool:
    if not turn.has_helpers:
        return True
    are_few = turn.all_idle and not queue.has("interactive") and queue.bulk_tokens <= turn.first_batch_tokens
    return turn.is_helper != are_few
