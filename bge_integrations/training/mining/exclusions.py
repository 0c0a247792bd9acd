"""Passages that can't be negatives of a row, since they say what one of its positives says."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["REASONS", "Reason", "TextRules", "contains", "normalised", "overlap"]

Reason = Literal["equal_query", "copy", "near_duplicate", "contains", "document", "rank", "margin"]

REASONS: dict[Reason, str] = {
    "equal_query": "positive of an equal query",
    "copy": "copy of a positive",
    "near_duplicate": "near-duplicate of a positive",
    "contains": "contains a positive, or is part of one",
    "document": "from the document of a positive",
    "rank": "before the first rank",
    "margin": "too near to the positive",
}
"""Why a passage is left out, in words."""

_SHINGLE = 3
"""Characters of a shingle. Three code points of 21 bits fit into 64 bits, so that no two shingles are confused."""
_CODE_BITS = 21
_NEAR = 0.9
"""Share of common shingles from which two texts are near-duplicates: about one word in a hundred differs."""
_WITHOUT_BLANKS = 0x0E00
"""The first code point of Thai. Before it are alphabets whose words are separated; after it, most are not."""
_KEPT_TEXTS, _KEPT_SHINGLES, _KEPT_VERDICTS = 1 << 16, 1 << 13, 1 << 18

Shingles = tuple[NDArray[np.uint64], NDArray[np.int64]]
"""The different shingles of a text, sorted, and how often each is there."""


@lru_cache(maxsize=_KEPT_TEXTS)
def normalised(text: str) -> str:
    """Returns a text by which equal texts are recognised: NFKC, case folded, every white space one blank."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def overlap(one: str, other: str) -> float:
    """Returns the Jaccard similarity of two texts by their shingles of three characters, repeated ones counted.

    It is 0 for a text with fewer than three characters.
    """
    smaller, larger = sorted((len(one), len(other)))
    if smaller < _SHINGLE:
        return 0.0
    shingles, counts = _shingles(one)
    other_shingles, other_counts = _shingles(other)
    _, mine, theirs = np.intersect1d(shingles, other_shingles, assume_unique=True, return_indices=True)
    common = int(np.minimum(counts[mine], other_counts[theirs]).sum())
    return common / (smaller + larger - 2 * (_SHINGLE - 1) - common)


def contains(text: str, part: str) -> bool:
    """Returns whether a text contains another one that does not begin or end within a word: "art", but not in "party".

    Scripts without blanks between words, such as Chinese, have no such limit.
    """
    if not part:
        return True
    place = text.find(part)
    while place >= 0:
        end = place + len(part)
        before, after = text[place - 1 : place], text[end : end + 1]
        if not (_within_word(before, part[0]) or _within_word(part[-1], after)):
            return True
        place = text.find(part, place + 1)
    return False


class TextRules:
    """Compares passages with positives: near-duplicates, and texts that contain each other."""

    def __init__(self, texts: Sequence[str]) -> None:
        """Takes the passages, positives among them."""
        self._texts = texts
        self._verdict = lru_cache(maxsize=_KEPT_VERDICTS)(self._compare)

    def reason(self, place: int, positives: Sequence[int]) -> Reason | None:
        """Returns why a passage can't be a negative, or `None`."""
        return next((found for positive in positives if (found := self._verdict(place, positive))), None)

    def _compare(self, place: int, positive: int) -> Reason | None:
        one, other = normalised(self._texts[place]), normalised(self._texts[positive])
        if one == other:
            return "copy"
        shorter, longer = sorted((one, other), key=len)
        if contains(longer, shorter):
            return "contains"
        # Of texts whose lengths differ by more, even equal shingles would be too few.
        if len(shorter) - _SHINGLE + 1 < _NEAR * (len(longer) - _SHINGLE + 1):
            return None
        return "near_duplicate" if overlap(one, other) >= _NEAR else None


@lru_cache(maxsize=_KEPT_SHINGLES)
def _shingles(text: str) -> Shingles:
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4").astype(np.uint64)
    packed = np.zeros(len(codes) - _SHINGLE + 1, dtype=np.uint64)
    for shift in range(_SHINGLE):
        packed = (packed << np.uint64(_CODE_BITS)) | codes[shift : shift + len(packed)]
    shingles, counts = np.unique(packed, return_counts=True)
    return shingles, counts


def _within_word(before: str, after: str) -> bool:
    return before.isalnum() and after.isalnum() and max(ord(before), ord(after)) < _WITHOUT_BLANKS
