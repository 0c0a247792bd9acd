"""Cuts texts into passages with LlamaIndex."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from bge_integrations._optional import require_package

__all__ = ["cut"]


def cut(size: int, *, tokens: Callable[[str], list[Any]] = list) -> Callable[[str], Sequence[str]]:
    """Returns a function that cuts a text.

    Args:
        size: Tokens of a passage, at most.
        tokens: Function that returns the tokens of a text; characters, unless given.

    Raises:
        MissingExtraError: The package is not installed.
    """
    require_package("llama_index.core", "llama-index-core")
    from llama_index.core.node_parser import SentenceSplitter

    return SentenceSplitter(chunk_size=size, chunk_overlap=0, tokenizer=tokens).split_text
