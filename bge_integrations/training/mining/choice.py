"""Chooses the negatives of one row from what a search has found."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Literal, get_args

from bge_integrations.errors import SettingsError
from bge_integrations.training.mining.exclusions import Reason, TextRules, normalised
from bge_integrations.training.mining.pool import Groups, Pool
from bge_integrations.training.mining.search import Found
from bge_integrations.training.rows.data import TrainingRow

__all__ = ["DISTANCE_STEP", "Chooser", "MiningSettings", "Nearest", "Negative", "RowResult"]

Sampling = Literal["top", "random"]
Source = Literal["vectors", "words"]

DISTANCE_STEP = 0.005
"""Width of a bin of distances to the positive, as a share of its score."""
_FARTHEST = 2.0
_NEAREST_SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class MiningSettings:
    """What is mined; see `mine_hard_negatives`."""

    count: int = 7
    ranks: tuple[int, int] = (2, 200)
    relative_margin: float | None = 0.05
    absolute_margin: float | None = None
    sampling: Sampling = "top"
    seed: int = 0
    lexical: bool = False

    def __post_init__(self) -> None:
        """Checks the settings.

        Raises:
            SettingsError: One is wrong.
        """
        if self.count < 1:
            raise SettingsError(f"count={self.count} leaves no negatives; give at least 1.")
        first, last = self.ranks
        if not 1 <= first <= last:
            raise SettingsError(
                f"ranks {first}-{last} are no window; give the first and the last rank, counted from 1, such as 2-200."
            )
        for name, margin in (("relative_margin", self.relative_margin), ("absolute_margin", self.absolute_margin)):
            if margin is not None and not (0 <= margin < math.inf):
                raise SettingsError(f"{name}={margin} is no margin; give 0 or more, such as 0.05.")
        if self.sampling not in get_args(Sampling):
            raise SettingsError(f"sampling={self.sampling!r} is unknown; choose 'top' or 'random'.")

    def limit(self, positive: float) -> float:
        """Returns the highest score of a negative, for the lowest score of a row's positives."""
        relative = 0.0 if self.relative_margin is None else self.relative_margin * abs(positive)
        has_margin = self.relative_margin is not None or self.absolute_margin is not None
        return positive - max(relative, self.absolute_margin or 0.0) if has_margin else math.inf


@dataclass(frozen=True)
class Negative:
    """A negative that was found.

    Attributes:
        place: The place of its text among the passages.
        score: Its cosine with the query.
        rank: Its rank in its source.
        source: The search that found it.
    """

    place: int
    score: float
    rank: int
    source: Source


@dataclass(frozen=True)
class Nearest:
    """A passage near to the query that was left out."""

    place: int
    score: float
    reason: Reason


@dataclass(frozen=True)
class RowResult:
    """What was found for a row.

    Attributes:
        row: The row's number, from 0.
        positives: Cosines of its positives.
        given: Cosines of the negatives that it had.
        negatives: What was found, nearest first.
        left_out: The number of passages that were left out, by reason.
        candidates: The number of passages at the ranks of the window, margins not regarded.
        distances: By number of the bin, how many of them are so far below the lowest positive.
        nearest: The nearest passages that were left out.
    """

    row: int
    positives: Sequence[float]
    given: Sequence[float]
    negatives: Sequence[Negative]
    left_out: Mapping[Reason, int] = field(default_factory=dict)
    candidates: int = 0
    distances: Mapping[int, int] = field(default_factory=dict)
    nearest: Sequence[Nearest] = ()

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data for JSON."""
        content = dataclasses.asdict(self)
        return {**content, "distances": sorted(self.distances.items())}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> RowResult:
        """Returns the result that `to_dict` wrote."""
        return cls(
            **{
                **content,
                "negatives": [Negative(**one) for one in content["negatives"]],
                "nearest": [Nearest(**one) for one in content["nearest"]],
                "distances": dict(content["distances"]),
            }
        )


class Chooser:
    """Chooses negatives by rules, ranks and margins."""

    def __init__(self, pool: Pool, groups: Groups, settings: MiningSettings) -> None:
        """Takes what all rows share."""
        self._pool = pool
        self._groups = groups
        self._settings = settings
        self._rules = TextRules(pool.texts)

    def choose(self, number: int, row: TrainingRow, found: Found, words: Sequence[int]) -> RowResult:
        """Chooses the negatives of a row."""
        settings, places = self._settings, self._pool.places
        positives = [found.wanted[places[text]] for text in row.pos]
        given = [found.wanted[places[text]] for text in row.neg]
        lowest = min(positives)
        limit = settings.limit(lowest)
        left_out: Counter[Reason] = Counter()
        distances: Counter[int] = Counter()
        nearest: list[Nearest] = []
        near: list[Negative] = []
        last_score = -math.inf
        for candidate, reason in self._ranked(row, found.places, found.scores, "vectors"):
            if reason is None:
                distances[_distance(lowest, candidate.score)] += 1
                last_score = candidate.score
                reason = None if candidate.score <= limit else "margin"
            if reason is None:
                near.append(candidate)
            else:
                left_out[reason] += 1
                nearest.append(Nearest(candidate.place, candidate.score, reason))
        own = {places[text] for text in row.pos}
        window_is_full = sum(distances.values()) == settings.ranks[1] - settings.ranks[0] + 1
        for place, reason in self._groups.excluded(row.query).items():
            # Those that would have had a rank of the window, or before it.
            is_near = not window_is_full or found.wanted[place] >= last_score
            if place not in own and place < self._pool.candidates and is_near:
                left_out[reason] += 1
                nearest.append(Nearest(place, found.wanted[place], reason))
        scores = [found.wanted[place] for place in words]
        by_words = [
            candidate
            for candidate, reason in self._ranked(row, words, scores, "words")
            if reason is None and candidate.score <= limit
        ]
        nearest.sort(key=lambda one: (-one.score, one.place))
        return RowResult(
            row=number,
            positives=positives,
            given=given,
            negatives=self._drawn(row, near, by_words),
            left_out=dict(left_out),
            candidates=sum(distances.values()),
            distances=dict(distances),
            nearest=nearest[:_NEAREST_SHOWN],
        )

    def _ranked(
        self, row: TrainingRow, places: Sequence[int], scores: Sequence[float], source: Source
    ) -> Iterator[tuple[Negative, Reason | None]]:
        """Yields passages to the end of the window, and why one is left out. Those with a text rule have no rank."""
        first, last = self._settings.ranks
        positives = self._groups.positives(row.query)
        excluded = self._groups.excluded(row.query)
        seen = {normalised(text) for text in row.neg}
        rank = 0
        for place, score in zip(places, scores, strict=True):
            text = normalised(self._pool.texts[place])
            if place in excluded or text in seen:
                continue
            reason = self._rules.reason(place, positives)
            if reason is None:
                seen.add(text)
                rank += 1
                if rank > last:
                    return
                reason = "rank" if rank < first else None
            yield Negative(place, score, rank, source), reason

    def _drawn(self, row: TrainingRow, near: Sequence[Negative], by_words: Sequence[Negative]) -> list[Negative]:
        """Takes from both sources in turn, and from one alone where the other has no more."""
        settings = self._settings
        needed = settings.count - len(row.neg)
        sources = [iter(near), iter(by_words)]
        if settings.sampling == "random":
            sources = [iter(sorted(some, key=lambda one: self._draw(row, one))) for some in (near, by_words)]
        chosen: dict[str, Negative] = {}
        while sources and len(chosen) < needed:
            source = sources.pop(0)
            candidate = next(
                (one for one in source if normalised(self._pool.texts[one.place]) not in chosen),
                None,
            )
            if candidate is not None:
                chosen[normalised(self._pool.texts[candidate.place])] = candidate
                sources.append(source)
        return sorted(chosen.values(), key=lambda one: (-one.score, one.place))

    def _draw(self, row: TrainingRow, candidate: Negative) -> bytes:
        """Returns a random key for the order of candidates. It depends on the seed and the texts only."""
        text = f"{self._settings.seed}\0{row.query}\0{self._pool.texts[candidate.place]}"
        return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _distance(positive: float, score: float) -> int:
    """Returns the bin of a distance: its number, below 0 for a score above the positive's."""
    share = (positive - score) / abs(positive) if positive else math.copysign(_FARTHEST, positive - score)
    return math.floor(min(max(share, -_FARTHEST), _FARTHEST) / DISTANCE_STEP)
