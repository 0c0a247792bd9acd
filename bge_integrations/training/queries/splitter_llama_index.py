"""Cuts texts into passages with LlamaIndex."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bge_integrations._optional import require_package

__all__ = ["cut"]


def cut(characters: int) -> Callable[[str], Sequence[str]]:
    """Returns a function that cuts a text.

    Args:
        characters: Characters of a passage, at most.

    Raises:
        MissingExtraError: The package is not installed.
    """
    require_package("llama_index.core", "llama-index-core")
    from llama_index.core.node_parser import SentenceSplitter

    # It counts tokens; with this tokenizer, a token is a character.
    splitter = SentenceSplitter(chunk_size=characters, chunk_overlap=0, tokenizer=list)
    return splitter.split_text
