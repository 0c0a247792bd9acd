"""Cuts texts into passages with langchain-text-splitters."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bge_integrations._optional import require_package

__all__ = ["cut"]

_SEPARATORS = ("\n\n", "\n", "(?<=[。！？；])", "(?<=[.!?]) ", " ", "(?<=[，、])", "")
"""Where a text is cut, the best place first. Chinese has no blanks between words or sentences."""


def cut(size: int, *, length: Callable[[str], int] = len, is_markdown: bool) -> Callable[[str], Sequence[str]]:
    """Returns a function that cuts a text.

    Args:
        size: Length of a passage, at most.
        length: Function that returns the length of a text; characters, unless given.
        is_markdown: Whether passages begin with headings where possible.

    Raises:
        MissingExtraError: The package is not installed.
    """
    require_package("langchain_text_splitters", "langchain-text-splitters")
    from langchain_text_splitters import Language, RecursiveCharacterTextSplitter

    headings = RecursiveCharacterTextSplitter.get_separators_for_language(Language.MARKDOWN) if is_markdown else []
    separators = [*(one for one in headings if one.strip()), *_SEPARATORS]
    splitter = RecursiveCharacterTextSplitter(
        separators, is_separator_regex=True, chunk_size=size, chunk_overlap=0, length_function=length
    )
    return splitter.split_text
