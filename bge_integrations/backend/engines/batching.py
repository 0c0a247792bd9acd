"""Groups texts into batches by a budget of tokens, longest first, so that padding stays small."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray


def plan_batches(
    lengths: NDArray[np.int64], *, batch_tokens: int, max_texts: int | None = None
) -> Iterator[NDArray[np.int64]]:
    """Splits texts of known token counts into batches whose padded size stays within a budget.

    Texts are taken longest first: the first batch then needs the most memory (a budget that is too large fails at
    once, not after an hour), and neighbours have nearly equal lengths, so little is padded.

    Args:
        lengths: Tokens per text, shape [n].
        batch_tokens: Upper limit on (texts in the batch) x (longest of them). A single text above it goes alone.
        max_texts: Upper limit on the texts in a batch.

    Yields:
        Indices into `lengths`, one array a batch; together every index exactly once.
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
