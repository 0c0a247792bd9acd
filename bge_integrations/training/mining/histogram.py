"""Counts of numbers by bins."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["SCORE_STEP", "Histogram"]

SCORE_STEP = 0.01
"""Width of a bin of cosines."""
_QUANTILES = (5, 25, 50, 75, 95)


@dataclass(frozen=True)
class Histogram:
    """Numbers by the bin that they fall into.

    Attributes:
        step: The width of a bin; bin n is from n times the step to (n + 1) times the step.
        counts: How many fall into each bin, by its number.
        quantiles: The numbers below which 5, 25, 50, 75 and 95 % lie; empty if there are no numbers.
    """

    step: float
    counts: Mapping[int, int]
    quantiles: Mapping[int, float]

    @classmethod
    def of(cls, values: Sequence[float], step: float = SCORE_STEP) -> Histogram:
        """Counts some numbers."""
        bins = np.floor(np.asarray(values, dtype=np.float64) / step + 1e-9).astype(int)
        counts = dict(sorted(Counter(bins.tolist()).items()))
        found = np.percentile(values, _QUANTILES).tolist() if len(values) else []
        return cls(step, counts, dict(zip(_QUANTILES, found, strict=False)))

    @classmethod
    def of_bins(cls, counts: Mapping[int, int], step: float) -> Histogram:
        """Takes counted bins. The quantiles are then lower ends of bins."""
        ordered = dict(sorted(counts.items()))
        edges = np.repeat([number * step for number in ordered], list(ordered.values())) if ordered else np.empty(0)
        found = np.percentile(edges, _QUANTILES, method="inverted_cdf").tolist() if len(edges) else []
        return cls(step, ordered, dict(zip(_QUANTILES, found, strict=False)))

    @property
    def total(self) -> int:
        """The number of numbers."""
        return sum(self.counts.values())

    def share_below(self, value: float) -> float:
        """Returns the share of the numbers in bins that end at a value, or before it."""
        edge = round(value / self.step)
        return sum(count for number, count in self.counts.items() if number < edge) / max(self.total, 1)
