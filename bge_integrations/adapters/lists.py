"""From arrays to the lists of Python floats that both frameworks want."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bge_integrations.backend.guarantees.interrupts import in_thread

# `tolist` keeps every other thread, an event loop's too, waiting while it runs: this many numbers take about 2 ms.
_NUMBERS_AT_ONCE = 65536


def to_lists(vectors: NDArray[np.float32]) -> list[list[float]]:
    """Returns the rows of an array of shape [n, dimension]."""
    rows = max(_NUMBERS_AT_ONCE // max(vectors.shape[1], 1), 1)
    return [row for start in range(0, len(vectors), rows) for row in vectors[start : start + rows].tolist()]


async def to_lists_async(vectors: NDArray[np.float32]) -> list[list[float]]:
    """As `to_lists`, without blocking the event loop."""
    if vectors.size <= _NUMBERS_AT_ONCE:
        return to_lists(vectors)
    return await in_thread(lambda: to_lists(vectors))
