"""How sure a mean, or the difference of two means, is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Interval", "bootstrap_interval", "detectable_difference", "holm", "randomization_p"]

_DRAWS = 10_000
# Numbers that are drawn at once, 64 MiB of them.
_DRAWN_AT_ONCE = 1 << 23


class Interval(NamedTuple):
    """The ends of an interval."""

    low: float
    high: float


def bootstrap_interval(values: Sequence[float], *, percent: float = 95, draws: int = _DRAWS, seed: int = 0) -> Interval:
    """Returns the percentile bootstrap interval of a mean.

    Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.

    Args:
        values: One value a query; for a difference, one difference a query.
        percent: The part of the distribution that lies within.
        draws: The number of bootstrap samples.
        seed: Of the random numbers.

    Raises:
        ValueError: There is no value.
    """
    numbers = _numbers(values)
    generator = np.random.default_rng(seed)
    means = [
        numbers[generator.integers(len(numbers), size=(count, len(numbers)))].mean(axis=1)
        for count in _counts(draws, len(numbers))
    ]
    tail = (100 - percent) / 2
    low, high = np.percentile(np.concatenate(means), (tail, 100 - tail))
    return Interval(float(low), float(high))


def randomization_p(differences: Sequence[float], *, draws: int = _DRAWS, seed: int = 0) -> float:
    """Returns the p value of a two-sided paired randomisation test of the mean difference.

    In each draw, every difference gets a random sign. p = (1 + draws at least as far from 0) / (1 + draws). Smucker,
    Allan and Carterette, CIKM 2007, https://doi.org/10.1145/1321440.1321528, compare it with other tests.

    Args:
        differences: One difference a query.
        draws: The number of draws.
        seed: Of the random numbers.

    Raises:
        ValueError: There is no difference.
    """
    numbers = _numbers(differences)
    observed = abs(numbers.mean())
    generator = np.random.default_rng(seed)
    hits = 0
    for count in _counts(draws, len(numbers)):
        signs = generator.integers(2, size=(count, len(numbers)), dtype=np.int8) * 2 - 1
        # A rounding error must not make an equal mean smaller.
        hits += int((np.abs(signs @ numbers) / len(numbers) >= observed * (1 - 1e-12)).sum())
    return (1 + hits) / (1 + draws)


def holm(p_values: Sequence[float]) -> list[float]:
    """Returns p values adjusted for several tests, by Holm 1979, https://www.jstor.org/stable/4615733."""
    order = np.argsort(p_values, kind="stable")
    adjusted = np.empty(len(p_values))
    highest = 0.0
    for rank, place in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = highest
    return [float(value) for value in adjusted]


def detectable_difference(differences: Sequence[float]) -> float:
    """Returns the mean difference that so many queries would show in four of five cases, at 5 %, two-sided.

    2.8 standard errors: 1.96 for the test, and 0.84 for a power of 0.8.
    """
    numbers = _numbers(differences)
    deviation = numbers.std(ddof=1) if len(numbers) > 1 else 0.0
    return float((1.959964 + 0.841621) * deviation / np.sqrt(len(numbers)))


def _numbers(values: Sequence[float]) -> NDArray[np.float64]:
    numbers = np.asarray(values, dtype=np.float64)
    if not len(numbers):
        raise ValueError("a mean needs at least one value")
    return numbers


def _counts(draws: int, size: int) -> list[int]:
    step = max(1, min(draws, _DRAWN_AT_ONCE // size))
    return [step] * (draws // step) + ([draws % step] if draws % step else [])
