"""Whether the machine was quiet enough to conclude anything: a fixed computation, timed again and again."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from benchmarks.stats import spread

MOST_SPREAD = 1.25
"""Slowest over fastest, of the reference computation or of a typical contender, beyond which nothing is concluded."""

_SIZE, _REPETITIONS, _RUNS = 512, 8, 5
# Threads of onnxruntime and OpenMP go on looking for work after a call: for 50 ms the reference took 1.5 to 5 times as
# long, after 200 ms as long as ever.
REST_S = 0.25

Item = TypeVar("Item")


@dataclass(frozen=True)
class Noise:
    """How quiet the machine was during one part.

    Attributes:
        reference_seconds: Each timing of the reference computation.
        reference_spread: The slowest of them over the fastest.
        contender_spread: The median of the contenders' own spreads; None where nothing was repeated.
        noisy: Whether either is too large to conclude from.
        verdict: The same in words.
    """

    reference_seconds: list[float]
    reference_spread: float
    contender_spread: float | None
    noisy: bool
    verdict: str


class Reference:
    """A fixed computation, the same before, between and after the rounds."""

    def __init__(self, rest_seconds: float = REST_S) -> None:
        self.seconds: list[float] = []
        self._rest_seconds = rest_seconds
        random = np.random.default_rng(0)
        self._left = random.standard_normal((_SIZE, _SIZE), dtype=np.float32)
        self._right = random.standard_normal((_SIZE, _SIZE), dtype=np.float32)
        self._compute()  # the first matrix product also starts threads

    def time(self) -> None:
        """Times it once more, after a rest: the median of five runs, since one run is too short to tell."""
        time.sleep(self._rest_seconds)
        taken = []
        for _ in range(_RUNS):
            start = time.perf_counter()
            self._compute()
            taken.append(time.perf_counter() - start)
        self.seconds.append(statistics.median(taken))

    def rested(self, order: Iterable[Item]) -> Iterator[Item]:
        """Yields each contender of a round after a rest, in which the threads of the one before fall asleep."""
        for item in order:
            time.sleep(self._rest_seconds)
            yield item

    def _compute(self) -> None:
        for _ in range(_REPETITIONS):
            np.matmul(self._left, self._right)


def judge(reference_seconds: Sequence[float], contender_spreads: Sequence[float] = ()) -> Noise:
    """Decides whether a part can be concluded from.

    Args:
        reference_seconds: Timings of the reference computation, at least one.
        contender_spreads: Slowest over fastest round of each contender; those of a single round are left out.
    """
    reference = spread(reference_seconds)
    repeated = [value for value in contender_spreads if value > 1]
    typical = statistics.median(repeated) if repeated else None
    reasons = []
    if reference > MOST_SPREAD:
        reasons.append(f"a fixed computation took between 1 and {reference:.2f} times its least time")
    if typical is not None and typical > MOST_SPREAD:
        reasons.append(f"rounds of one contender typically differ by a factor of {typical:.2f}")
    verdict = f"too noisy to conclude: {' and '.join(reasons)}" if reasons else "quiet enough"
    return Noise(list(reference_seconds), reference, typical, bool(reasons), verdict)
