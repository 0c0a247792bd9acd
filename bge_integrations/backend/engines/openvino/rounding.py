"""Rounds weights to int8."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_LARGEST_INT8 = np.float32(127)


def rounded_to_int8(values: NDArray[np.float32], axis: int = -1) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Rounds values to the nearest of 255 steps, with one scale for all values along an axis.

    Args:
        values: The values, any shape.
        axis: The axis.

    Returns:
        The rounded values, int8, and their scales, float32, whose length along the axis is 1. Their product is near the
        values.
    """
    largest = np.abs(values).max(axis=axis, keepdims=True)
    scale = np.where(largest > 0, largest / _LARGEST_INT8, np.float32(1))
    return np.rint(values / scale).astype(np.int8), scale
