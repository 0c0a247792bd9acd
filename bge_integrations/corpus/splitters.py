"""Cuts texts into passages, with the splitter that is installed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from bge_integrations._optional import is_installed
from bge_integrations.corpus import splitter_langchain, splitter_llama_index
from bge_integrations.encoder import BgeEncoder

__all__ = ["Cut", "cut_by_characters", "cut_by_tokens"]

Cut = Callable[[str], Sequence[str]]

_MARKDOWN = (".md", ".markdown")


def cut_by_characters(characters: int, file: Path) -> Cut:
    """Returns a function that cuts the text of a file into passages of at most so many characters.

    Raises:
        MissingExtraError: Neither langchain-text-splitters nor LlamaIndex is installed.
    """
    if _has_only_llama_index():
        return splitter_llama_index.cut(characters)
    return splitter_langchain.cut(characters, is_markdown=file.suffix.lower() in _MARKDOWN)


def cut_by_tokens(encoder: BgeEncoder, file: Path) -> Cut:
    """Returns a function that cuts the text of a file into passages that an encoder takes whole.

    Raises:
        MissingExtraError: Neither langchain-text-splitters nor LlamaIndex is installed.
        SettingsError: The encoder's `max_length` leaves no room for text.
    """
    if _has_only_llama_index():
        return splitter_llama_index.cut(encoder.chunk_size, tokens=encoder.chunk_tokens)
    is_markdown = file.suffix.lower() in _MARKDOWN
    return splitter_langchain.cut(encoder.chunk_size, length=encoder.chunk_length, is_markdown=is_markdown)


def _has_only_llama_index() -> bool:
    return is_installed("llama_index.core") and not is_installed("langchain_text_splitters")
