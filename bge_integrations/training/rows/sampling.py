"""What a row gives to an epoch: one positive and some negatives, drawn from the seed, the epoch and the row's position.

The draw uses no generator with a state. So it does not depend on the order of the rows, on the process that asks, or on
what was drawn before, and training that is resumed draws the same.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import struct
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass

from bge_integrations.errors import SettingsError
from bge_integrations.training.rows.data import TrainingRow

__all__ = ["Drawn", "draw", "draw_examples", "draw_mixed"]

_NUMBERS = struct.Struct("<8Q")  # in a digest of 64 bytes


@dataclass(frozen=True)
class Drawn:
    """Passages drawn from a row. No text is there twice.

    Attributes:
        positive: The positive.
        negatives: The negatives; fewer than wanted if the row has fewer.
        positive_score: The teacher's score of the positive, if the row has one.
        negative_scores: The teacher's scores of the negatives, if the row has them.
        others: Passages of other rows that are negatives too. They have no scores.
    """

    positive: str
    negatives: tuple[str, ...]
    positive_score: float | None = None
    negative_scores: tuple[float, ...] | None = None
    others: tuple[str, ...] = ()


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


def draw_mixed(
    row: TrainingRow,
    seed: int,
    epoch: int,
    index: int,
    negatives: int,
    *,
    pool: Sequence[str],
    answers: Set[str],
    share: float,
) -> Drawn:
    """Draws as `draw`, and takes a part of the negatives from other rows. Most of these are easy to tell.

    A row with too few negatives of its own gets more of the others, and where the others are too few it gets more of
    its own. A row with `no_in_batch_neg` gets its own only.

    Args:
        row: The row.
        seed: The seed of the training.
        epoch: The number of the epoch.
        index: The row's position in the data.
        negatives: Number of negatives to draw.
        pool: Different passages of all rows.
        answers: Texts that are no negatives of the row's query.
        share: Part of the negatives that others are; 0: none.

    Raises:
        SettingsError: `negatives` is below 0.
    """
    drawn = draw(row, seed, epoch, index, negatives)
    if not share or row.no_in_batch_neg:
        return drawn
    wanted = min(negatives, 1) if row.type == "only_1neg" else negatives
    own = min(len(drawn.negatives), wanted - round(wanted * share))
    without = {*row.pos, *row.neg, *answers}
    places = _numbers(seed, epoch, index, "others")
    others: dict[str, None] = {}
    free = len(pool) - sum(text in without for text in pool) if len(pool) <= wanted + len(without) else wanted
    while len(others) < min(free, wanted - own):
        text = pool[next(places) * len(pool) >> 64]
        if text not in without:
            others[text] = None
    own = min(len(drawn.negatives), wanted - len(others))
    scores = drawn.negative_scores
    return dataclasses.replace(
        drawn,
        negatives=drawn.negatives[:own],
        negative_scores=None if scores is None else scores[:own],
        others=tuple(others),
    )


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


def _numbers(seed: int, epoch: int, index: int, purpose: str = "") -> Iterator[int]:
    """Yields whole numbers from 0 to 2**64 - 1, evenly distributed; others for another purpose."""
    for block in itertools.count():
        yield from _NUMBERS.unpack(hashlib.blake2b(f"{purpose}{seed},{epoch},{index},{block}".encode()).digest())
