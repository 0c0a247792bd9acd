"""Converts arrays to the lists of Python floats that both frameworks need."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bge_integrations.backend.guarantees.interrupts import in_thread

# All other threads, the event loop's too, wait while `tolist` runs. It takes about 2 ms for this many numbers.
_NUMBERS_AT_ONCE = 65536


def to_lists(vectors: NDArray[np.float32]) -> list[list[float]]:
    """Returns the rows of an array of shape [n, dimension]."""
    rows = max(_NUMBERS_AT_ONCE // max(vectors.shape[1], 1), 1)
    return [row for start in range(0, len(vectors), rows) for row in vectors[start : start + rows].tolist()]


async def to_lists_async(vectors: NDArray[np.float32]) -> list[list[float]]:
    """Async form of `to_lists`. It does not block the event loop."""
    if vectors.size <= _NUMBERS_AT_ONCE:
        return to_lists(vectors)
    return await in_thread(lambda: to_lists(vectors))
