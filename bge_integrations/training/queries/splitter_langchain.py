"""Cuts texts into passages with langchain-text-splitters."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bge_integrations._optional import require_package

__all__ = ["cut"]

_SEPARATORS = ("\n\n", "\n", "(?<=[。！？；])", "(?<=[.!?]) ", " ", "(?<=[，、])", "")
"""Where a text is cut, the best place first. Chinese has no blanks between words or sentences."""


def cut(characters: int, *, is_markdown: bool) -> Callable[[str], Sequence[str]]:
    """Returns a function that cuts a text.

    Args:
        characters: Characters of a passage, at most.
        is_markdown: Whether passages begin with headings where possible.

    Raises:
        MissingExtraError: The package is not installed.
    """
    require_package("langchain_text_splitters", "langchain-text-splitters")
    from langchain_text_splitters import Language, RecursiveCharacterTextSplitter

    headings = RecursiveCharacterTextSplitter.get_separators_for_language(Language.MARKDOWN) if is_markdown else []
    separators = [*(one for one in headings if one.strip()), *_SEPARATORS]
    splitter = RecursiveCharacterTextSplitter(
        separators, is_separator_regex=True, chunk_size=characters, chunk_overlap=0
    )
    return splitter.split_text
