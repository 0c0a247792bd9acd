"""The arithmetic of every part: medians, percentiles, spreads, ratios, and who goes when."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Iterator, Sequence
from typing import TypeVar

Item = TypeVar("Item")


def percentile(values: Sequence[float], percent: float) -> float:
    """Returns a percentile, interpolated linearly between the two nearest values.

    Args:
        values: At least one, in any order.
        percent: 0 to 100.
    """
    ordered = sorted(values)
    position = (len(ordered) - 1) * percent / 100
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def spread(values: Sequence[float]) -> float:
    """Returns the largest of some positive values over the smallest; 1.0 is none."""
    return max(values) / min(values)


def ratio_of_medians(values: Sequence[float], baseline: Sequence[float]) -> float:
    """Returns how many times as fast as a baseline somebody is, both given in seconds for the same work."""
    return statistics.median(baseline) / statistics.median(values)


def growth_exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Returns the exponent p of the best fit `value = c * size ** p`: 1 is proportional growth, 2 is by the square.

    It is the slope of the straight line through the logarithms, by least squares.

    Args:
        sizes: At least two different ones, all positive.
        values: As many, all positive.
    """
    return statistics.linear_regression([*map(math.log, sizes)], [*map(math.log, values)]).slope


def token_weighted_mean(lengths: Sequence[int]) -> float:
    """Returns the mean length of the text that a token stands in: sum of squares over sum.

    With it, attention's share of the work of all texts is exactly what one token of this length would cost, times the
    number of tokens.
    """
    return sum(length * length for length in lengths) / sum(lengths)


def interleaved(items: Sequence[Item], rounds: int, seed: int = 0) -> Iterator[tuple[int, list[Item]]]:
    """Yields each round's number and its order: everybody once, shuffled anew, the same in every run.

    Nobody then always runs after the same other one, or when the machine is warmest.
    """
    shuffler = random.Random(seed)
    for number in range(rounds):
        order = list(items)
        shuffler.shuffle(order)
        yield number, order


def representative(lengths: Sequence[int], count: int, block: int = 32) -> list[int]:
    """Picks about so many texts that stand for all of them.

    Most contenders sort by length and run batches of 32. A random sample would leave them fewer neighbours of equal
    length, so more padding, the fewer texts they are given. So whole blocks of neighbours are picked, evenly spaced:
    lengths and padding are as in all of them.

    Args:
        lengths: Of all texts, in tokens.
        count: How many are wanted.
        block: Neighbours that stay together.

    Returns:
        Their positions, ascending; all of them where `count` is no less.
    """
    if count >= len(lengths):
        return list(range(len(lengths)))
    size = min(block, count)
    longest_first = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    blocks, wanted = len(lengths) // size, count // size  # whole ones; of the shortest, a few may belong to none
    starts = [(2 * number + 1) * blocks // (2 * wanted) * size for number in range(wanted)]
    return sorted(index for start in starts for index in longest_first[start : start + size])
