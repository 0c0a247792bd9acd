"""What a row gives to an epoch: one positive and some negatives, drawn from the seed, the epoch and the row's position.

The draw uses no generator with a state. So it does not depend on the order of the rows, on the process that asks, or on
what was drawn before, and training that is resumed draws the same.
"""

from __future__ import annotations

import hashlib
import itertools
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bge_integrations.errors import SettingsError
from bge_integrations.training.data import TrainingRow

__all__ = ["Drawn", "draw", "draw_examples"]

_NUMBERS = struct.Struct("<8Q")  # in a digest of 64 bytes


@dataclass(frozen=True)
class Drawn:
    """Passages drawn from a row. No text is there twice.

    Attributes:
        positive: The positive.
        negatives: The negatives; fewer than wanted if the row has fewer.
        positive_score: The teacher's score of the positive, if the row has one.
        negative_scores: The teacher's scores of the negatives, if the row has them.
    """

    positive: str
    negatives: tuple[str, ...]
    positive_score: float | None = None
    negative_scores: tuple[float, ...] | None = None


def draw(row: TrainingRow, seed: int, epoch: int, index: int, negatives: int) -> Drawn:
    """Draws one positive and up to `negatives` negatives without repetition, all with equal chances.

    A row of the type `"only_1neg"` gives at most one negative.

    Args:
        row: The row.
        seed: The seed of the training.
        epoch: The number of the epoch.
        index: The row's position in the data.
        negatives: Number of negatives to draw. A row with fewer gives all of them.

    Raises:
        SettingsError: `negatives` is below 0.
    """
    if negatives < 0:
        raise SettingsError(f"negatives={negatives} must be 0 or more.")
    if row.type == "only_1neg":
        negatives = min(negatives, 1)
    numbers = _numbers(seed, epoch, index)
    (chosen,) = _choose(_distinct(row.pos, ()), 1, numbers)
    positive = row.pos[chosen]
    picked = _choose(_distinct(row.neg, (positive,)), negatives, numbers)
    return Drawn(
        positive,
        tuple(row.neg[position] for position in picked),
        None if row.pos_scores is None else row.pos_scores[chosen],
        None if row.neg_scores is None else tuple(row.neg_scores[position] for position in picked),
    )


def draw_examples(count: int, seed: int, epoch: int, index: int, most: int) -> list[int]:
    """Draws a number from 0 to `most`, and as many different places, all with equal chances.

    Args:
        count: The number of places; fewer places than drawn are all taken.
        seed: The seed of the training.
        epoch: The number of the epoch.
        index: The row's position in the data.
        most: The greatest number.
    """
    numbers = _numbers(seed, epoch, ~index)  # others than those of `draw`
    wanted = next(numbers) * (most + 1) >> 64
    return _choose(list(range(count)), wanted, numbers)


def _distinct(texts: Sequence[str], without: Sequence[str]) -> list[int]:
    """Returns the position of the first of each text."""
    first: dict[str, int] = {}
    for position, text in enumerate(texts):
        if text not in without:
            first.setdefault(text, position)
    return list(first.values())


def _choose(positions: list[int], count: int, numbers: Iterator[int]) -> list[int]:
    """Draws positions without repetition: the first steps of the shuffle by Fisher and Yates."""
    count = min(count, len(positions))
    for place in range(count):
        other = place + (next(numbers) * (len(positions) - place) >> 64)
        positions[place], positions[other] = positions[other], positions[place]
    return positions[:count]


def _numbers(seed: int, epoch: int, index: int) -> Iterator[int]:
    """Yields whole numbers from 0 to 2**64 - 1, evenly distributed."""
    for block in itertools.count():
        yield from _NUMBERS.unpack(hashlib.blake2b(f"{seed},{epoch},{index},{block}".encode()).digest())
