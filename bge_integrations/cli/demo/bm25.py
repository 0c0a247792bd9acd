"""BM25, the search by words that the demo's models are compared with."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

__all__ = ["Bm25"]

_K1, _B = 1.5, 0.75
"""How soon a word's repetitions stop to count, and how much a text's length does: bm25s' own figures."""

_WORD = re.compile(r"\w\w+")
_STOP_WORDS = {
    *("a", "an", "and", "are", "as", "at", "be", "but", "by", "for", "if", "in", "into", "is", "it", "no", "not"),
    *(
        "of",
        "on",
        "or",
        "such",
        "that",
        "the",
        "their",
        "then",
        "there",
        "these",
        "they",
        "this",
        "to",
        "was",
        "will",
        "with",
    ),
}
"""Those of Lucene's English analyser."""


class Bm25:
    """An index of texts by their words, without stemming, scored by Lucene's formula.

    A text's score is the sum over the question's words, repeated ones included, of
    `log(1 + (N - n + 0.5) / (n + 0.5)) * f / (f + K)`, where n of N texts hold the word, this one f times, and K is
    `k1 * (1 - b + b * its length / the mean length)`. It is the default of the library bm25s (Kamphuis et al. 2020,
    "Which BM25 do you mean?").

    Args:
        texts: What is searched.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        counts = [Counter(_words(text)) for text in texts]
        mean_length = sum(map(Counter.total, counts)) / max(len(counts), 1)
        self._postings: dict[str, list[tuple[int, float]]] = {}
        for position, words in enumerate(counts):
            damping = _K1 * (1 - _B + _B * words.total() / mean_length) if words else _K1
            for word, count in words.items():
                self._postings.setdefault(word, []).append((position, count / (count + damping)))
        self._weights = {
            word: math.log(1 + (len(counts) - len(found) + 0.5) / (len(found) + 0.5))
            for word, found in self._postings.items()
        }

    def search(self, question: str, count: int) -> list[tuple[int, float]]:
        """Returns the positions and scores of the best texts, best first; of equal ones the first comes first.

        Texts that share no word with the question are left out.
        """
        scores: dict[int, float] = {}
        for word in _words(question):
            for position, frequency in self._postings.get(word, ()):
                scores[position] = scores.get(position, 0.0) + self._weights[word] * frequency
        return sorted(scores.items(), key=lambda found: (-found[1], found[0]))[:count]


def _words(text: str) -> list[str]:
    return [word for word in _WORD.findall(text.lower()) if word not in _STOP_WORDS]
