"""Words and Markdown that reports share."""

from __future__ import annotations

__all__ = ["counted", "escaped", "shown_in_markdown"]

_SHOWN_CHARACTERS = 300


def counted(count: int, noun: str) -> str:
    """Returns a number with its noun: "1 row", "1,000 rows"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def escaped(text: str) -> str:
    """Returns a text without characters that Markdown would read as its own."""
    return "".join(f"\\{character}" if character in "\\`*_[]<>|#" else character for character in text)


def shown_in_markdown(text: str) -> str:
    """Returns the beginning of a text as one line of Markdown."""
    line = " ".join(text.split())
    return escaped(line if len(line) <= _SHOWN_CHARACTERS else f"{line[:_SHOWN_CHARACTERS]}…")
