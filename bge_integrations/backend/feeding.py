"""Keeps an engine busy: the next texts are tokenised while it computes, and it always has the next batch at hand."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from bge_integrations.backend.batching import plan_batches
from bge_integrations.backend.engines import EngineOutOfMemory, PendingRows, TokenBatch

if TYPE_CHECKING:
    from bge_integrations.backend.loading import LoadedModel
    from bge_integrations.backend.tokenization import TokenizedTexts

Slice = TypeVar("Slice")
Done = TypeVar("Done")


class TextTooLargeError(Exception):
    """One text alone does not fit into the device's memory.

    Attributes:
        position: Which one.
    """

    def __init__(self, position: int, cause: str) -> None:
        super().__init__(cause)
        self.position = position


def one_ahead(slices: Iterable[Slice], work: Callable[[Slice], Done]) -> Iterator[tuple[Done, bool]]:
    """Works on each slice in another thread while the caller uses the one before it.

    The slices themselves are taken in the caller's thread, since a user's generator may be bound to it. Where there is
    only one slice, no thread is started.

    Yields:
        What `work` returned, and whether it is the last one.
    """
    iterator = iter(slices)
    end = object()
    current, following = next(iterator, end), next(iterator, end)
    if current is end:
        return
    if following is end:
        yield work(current), True  # type: ignore[arg-type]
        return
    with ThreadPoolExecutor(1, thread_name_prefix="bge-tokenizer") as thread:
        done = work(current)  # type: ignore[arg-type]
        while following is not end:
            pending = thread.submit(work, following)  # type: ignore[arg-type]
            yield done, False
            following = next(iterator, end)
            done = pending.result()
        yield done, True


def run_batches(
    model: LoadedModel,
    tokens: TokenizedTexts,
    *,
    prompt_length: int = 0,
    batch_tokens: int | None = None,
    max_texts: int | None = None,
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """Runs texts through a model in batches.

    When the device runs out of memory, the batch is halved, and so is the budget of all that follow.

    Args:
        model: The model.
        tokens: The texts.
        prompt_length: Leading tokens of each text that come from an instruction.
        batch_tokens: Tokens, padding included, in one batch; None takes the model's figure.
        max_texts: Upper limit on the texts in a batch.

    Yields:
        Positions of some texts and their pooled vectors, shape [positions, dimension]; every position once.

    Raises:
        TextTooLargeError: One text alone does not fit.
    """
    waiting = deque(plan_batches(tokens.lengths, batch_tokens=batch_tokens or model.batch_tokens, max_texts=max_texts))
    at_once = model.engine.parallel_batches
    running: deque[tuple[NDArray[np.int64], TokenBatch, PendingRows]] = deque()
    while waiting or running:
        positions = running[0][0] if running else waiting[0]
        try:
            while waiting and len(running) < at_once:
                positions = waiting[0]
                batch = TokenBatch(tokens.of(positions), tokens.lengths[positions], prompt_length)
                running.append((positions, batch, model.engine.submit(batch)))
                waiting.popleft()
            positions, batch, pending = running.popleft()
            rows = pending.result()
        except EngineOutOfMemory as error:
            if len(waiting) and waiting[0] is positions:
                waiting.popleft()
            waiting.extendleft(reversed(_smaller(model, tokens, positions, str(error))))
            at_once = 1
            continue
        yield positions, model.pooled(batch, rows)


def _smaller(
    model: LoadedModel, tokens: TokenizedTexts, positions: NDArray[np.int64], cause: str
) -> list[NDArray[np.int64]]:
    """Halves a batch that did not fit, and the model's budget, so that later batches fit at once."""
    if len(positions) == 1:
        raise TextTooLargeError(int(positions[0]), cause)
    size = len(positions) * int(tokens.lengths[positions].max())
    model.batch_tokens = max(min(model.batch_tokens, size // 2), 1)
    warnings.warn(
        f"{model.request.device} ran out of memory with {size} tokens in a batch; going on with {model.batch_tokens}. "
        f"Set batch_tokens={model.batch_tokens} to start there.",
        RuntimeWarning,
        stacklevel=2,
    )
    return np.array_split(positions, 2)
