"""The slices of a call, and the report about the lengths of their texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from bge_integrations.backend.guarantees.forks import cached
from bge_integrations.backend.text.tokenizer import TokenizedTexts
from bge_integrations.calls.progress import warn_user
from bge_integrations.errors import TruncationError, TruncationWarning
from bge_integrations.settings import OnTruncation

Item = TypeVar("Item", str, tuple[str, str])


class Slice(Generic[Item]):
    """Some items of a call. Each distinct item is tokenised once.

    Attributes:
        start: Index of the first item in the call.
        count: Number of items.
        distinct: The distinct items, until they are tokenised.
        is_distinct: Whether all items are distinct.
        tokens: The tokens of the distinct items, as soon as they are tokenised.
        cut: Number of truncated items.
    """

    tokens: TokenizedTexts

    def __init__(self, start: int, items: Sequence[Item]) -> None:
        places: dict[Item, int] = {}
        self._places = [places.setdefault(item, len(places)) for item in items]
        self.start = start
        self.count = len(items)
        self.distinct: list[Item] = list(places)
        self.is_distinct = len(places) == len(items)
        self.cut = 0

    def take_over(self, tokens: TokenizedTexts) -> None:
        """Keeps the tokens of the distinct items, in place of the items."""
        self.tokens, self.distinct = tokens, []

    @cached
    def inverse(self) -> NDArray[np.int64]:
        """For each item, its position among the distinct items, int64, shape [items]."""
        return np.array(self._places, dtype=np.int64)

    def of_items(self, numbers: NDArray[np.int64]) -> list[int]:
        """Returns a number of each item, from those of the distinct items."""
        listed: list[int] = numbers.tolist()
        return listed if self.is_distinct else [listed[place] for place in self._places]

    @property
    def repeats(self) -> NDArray[np.int64]:
        """The number of occurrences of each distinct item, shape [distinct items]."""
        counts: NDArray[np.int64] = np.bincount(self.inverse)
        return counts

    def first_index(self, positions: NDArray[np.int64]) -> int:
        """Returns the index in the call of the first item that has one of these positions among the distinct items."""
        return self.start + int(np.flatnonzero(np.isin(self.inverse, positions))[0])


class LengthReport:
    """Counts items, tokens and truncated items.

    Attributes:
        items: Number of items.
        tokens: Number of tokens after truncation.
        cut: Number of truncated items.
    """

    def __init__(self, limit: int, on_truncation: OnTruncation, item: str, instruction_tokens: int = 0) -> None:
        """Starts at zero.

        Args:
            limit: Maximum number of tokens per item.
            on_truncation: The setting for longer items.
            item: The word for an item in messages.
            instruction_tokens: Tokens of the instruction in each item.
        """
        self._limit = limit
        self._instruction_tokens = instruction_tokens
        self._on_truncation = on_truncation
        self._item = item
        self.items = 0
        self.tokens = 0
        self.cut = 0
        self._longest = (0, 0, item)  # tokens, index negated, what it is

    def add(self, part: Slice[Any]) -> int:
        """Counts a slice, and returns the number of its truncated items.

        Raises:
            TruncationError: An item exceeds the limit, and `on_truncation` is "error".
        """
        # Plain numbers: most calls have one text.
        tokens, lengths = part.of_items(part.tokens.lengths), part.of_items(part.tokens.full_lengths)
        longest, cut = max(lengths), 0
        if longest > self._limit:
            cut = sum(length > self._limit for length in lengths)
            if self._on_truncation == "error":
                raise self._too_long(part.start, lengths)
        self._longest = max(self._longest, (longest, -(part.start + lengths.index(longest)), self._item))
        self.cut += cut
        self.items += len(lengths)
        self.tokens += sum(tokens)
        return cut

    def _too_long(self, start: int, lengths: Sequence[int]) -> TruncationError:
        """Returns the error about the first truncated item."""
        first = next(place for place, length in enumerate(lengths) if length > self._limit)
        return TruncationError(
            f"{self._item.capitalize()} {start + first} has {lengths[first]} tokens, the limit is "
            f"{self._limit}{self._about_instruction()}; {self._remedy('split it')}, or set on_truncation='warn'.",
            start + first,
        )

    def include(self, part: LengthReport) -> None:
        """Adds the counts of another report, which covers a part of the call."""
        if part._longest > self._longest:
            self._longest, self._instruction_tokens = part._longest, part._instruction_tokens
        self.cut += part.cut
        self.items += part.items
        self.tokens += part.tokens

    def add_to(self, attributes: dict[str, int]) -> None:
        """Adds the counts to a span's attributes."""
        for name, count in (("texts", self.items), ("tokens", self.tokens), ("texts.truncated", self.cut)):
            attributes[f"bge.{name}"] = attributes.get(f"bge.{name}", 0) + count

    def count_for_caller(self) -> None:
        """Adds the counts to those of `counted_lengths`, if the call runs inside it."""
        counts = _counts.get()
        if counts is not None:
            counts.items += self.items
            counts.tokens += self.tokens
            counts.cut += self.cut

    def warn(self) -> None:
        """Warns the user if items were truncated and `on_truncation` is "warn"."""
        if not self.cut or self._on_truncation != "warn":
            return
        tokens, index, item = self._longest
        warn_user(
            f"{self.cut} of {self.items} {self._item}s were cut: the longest, {item} {-index}, has {tokens} "
            f"tokens, the limit is {self._limit}{self._about_instruction()}. "
            f"{self._remedy('Split long texts before encoding')}, or set on_truncation='ignore'.",
            TruncationWarning,
        )

    def _about_instruction(self) -> str:
        if not self._instruction_tokens:
            return ""
        return f", and the instruction takes {self._instruction_tokens} of the {self._limit} tokens"

    def _remedy(self, usual: str) -> str:
        """Returns the fix. A shorter text does not help if the instruction takes most of the room."""
        if 2 * self._instruction_tokens < self._limit:
            return usual
        return f"{'Give' if usual[0].isupper() else 'give'} a shorter instruction or a larger max_length"


@dataclass
class LengthCounts:
    """The counts of all calls inside `counted_lengths`.

    Attributes:
        items: Number of texts or pairs.
        tokens: Number of tokens after truncation.
        cut: Number of truncated texts or pairs.
    """

    items: int = 0
    tokens: int = 0
    cut: int = 0


@contextmanager
def counted_lengths() -> Iterator[LengthCounts]:
    """A block that counts the tokens of the calls in it, also of calls that it awaits."""
    counts = LengthCounts()
    token = _counts.set(counts)
    try:
        yield counts
    finally:
        _counts.reset(token)


_counts: ContextVar[LengthCounts | None] = ContextVar("bge_integrations_length_counts", default=None)
