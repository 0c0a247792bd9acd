"""The words and scripts of a text: how long it is, in which script it is, and what it has in common with another."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

from bge_integrations.training.mining.exclusions import normalised
from bge_integrations.training.rows.overlaps import NO_BLANKS

__all__ = ["Piece", "copied", "main_script", "pieces", "script_share", "size"]

Piece = str
"""A word with what is in it (`os.path.join`, `don't`), or a character of a script without blanks between words."""

_PIECES = re.compile(rf"[{NO_BLANKS}]|[^\s{NO_BLANKS}]+")
_WITHOUT_BLANKS = re.compile(rf"[{NO_BLANKS}]")
_EDGES = re.compile(r"^\W+|\W+$")
_JAPANESE = "HIRAGANA", "KATAKANA"
_HAN = "CJK"
_RUN = 3
"""Words in a row that count as copied where they make up much of a question."""


@lru_cache(maxsize=4096)
def pieces(text: str) -> tuple[Piece, ...]:
    """Returns the pieces of a text, case folded, without punctuation around them."""
    found = (_EDGES.sub("", piece) for piece in _PIECES.findall(normalised(text)))
    return tuple(piece for piece in found if piece)


def size(some: Sequence[Piece]) -> float:
    """Returns the number of words. A character of a script without blanks counts as half a word."""
    return sum(0.5 if _WITHOUT_BLANKS.fullmatch(piece) else 1.0 for piece in some)


def main_script(text: str) -> str | None:
    """Returns the script of most pieces of a text by Unicode's name, such as "LATIN" or "CJK", or `None` without any.

    Japanese is "HIRAGANA", also for its Chinese characters.
    """
    counts = _scripts(text)
    if not counts:
        return None
    japanese = sum(counts[kind] for kind in _JAPANESE)
    script = max(counts, key=lambda kind: (counts[kind], kind))
    return _JAPANESE[0] if script in (_HAN, *_JAPANESE) and japanese * 4 >= counts[_HAN] else script


def script_share(text: str, script: str) -> float:
    """Returns the share of a text's pieces that are in a script; Japanese is written in three."""
    counts = _scripts(text)
    kinds = (*_JAPANESE, _HAN) if script in _JAPANESE else (script,)
    return sum(counts[kind] for kind in kinds) / max(1, sum(counts.values()))


def copied(text: str, source: str) -> tuple[str, float]:
    """Returns what a text has copied.

    Returns:
        The longest run of pieces that both have, and the share of the text that lies in common runs of three words or
        more. A single term, such as the name of a function, is no run.
    """
    mine, theirs = pieces(text), pieces(source)
    places: dict[Piece, list[int]] = {}
    for place, piece in enumerate(theirs):
        places.setdefault(piece, []).append(place)
    longest: tuple[Piece, ...] = ()
    in_runs: set[int] = set()
    lengths: dict[int, int] = {}
    for end, piece in enumerate(mine):
        lengths = {place: lengths.get(place - 1, 0) + 1 for place in places.get(piece, ())}
        length = max(lengths.values(), default=0)
        run = mine[end + 1 - length : end + 1]
        if size(run) > size(longest):
            longest = run
        if size(run) >= _RUN:
            in_runs.update(range(end + 1 - length, end + 1))
    share = size([mine[place] for place in in_runs]) / size(mine) if mine else 0.0
    return _joined(longest), share


def _joined(run: Sequence[Piece]) -> str:
    text = " ".join(run)
    return re.sub(rf"(?<=[{NO_BLANKS}]) (?=[{NO_BLANKS}])", "", text)


def _scripts(text: str) -> Counter[str]:
    """Returns how many pieces of a text are in each script, by the first letter of a piece."""
    counts: Counter[str] = Counter()
    for piece in pieces(text):
        letter = next((character for character in piece if character.isalpha()), None)
        if letter is not None:
            counts[unicodedata.name(letter, "UNKNOWN").split()[0]] += 1
    return counts
