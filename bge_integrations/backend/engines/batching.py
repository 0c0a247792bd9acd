"""Groups texts into batches with a token budget, longest first, so that padding stays small."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray


def plan_batches(
    lengths: NDArray[np.int64], *, batch_tokens: int, max_texts: int | None = None
) -> Iterator[NDArray[np.int64]]:
    """Splits texts into batches whose padded size stays within a token budget.

    The longest texts come first. So the first batch needs the most memory, and a too large budget fails at once instead
    of after an hour. Neighbours have nearly equal lengths, so there is little padding.

    Args:
        lengths: Tokens per text, shape [n].
        batch_tokens: Maximum of (texts in the batch) x (tokens of the longest). A longer text is alone in its batch.
        max_texts: Maximum number of texts in a batch.

    Yields:
        Indices into `lengths`, one array per batch. Every index occurs exactly once.
    """
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        longest = max(int(lengths[order[start]]), 1)
        count = max(batch_tokens // longest, 1)
        if max_texts is not None:
            count = min(count, max_texts)
        yield order[start : start + count]
        start += count
