"""How texts become the token ids of pieces. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bge_integrations.errors import UnsupportedModelError
from bge_integrations.training.retromae.words import WordTable

if TYPE_CHECKING:
    from bge_integrations.training.trainer.starting import Start

__all__ = ["Tokens", "tokens_of"]


@dataclass(frozen=True)
class Tokens:
    """How texts become token ids.

    Attributes:
        identity: Digest of the tokenizer's files.
        encode: Function from texts to their token ids, without special tokens and without a limit.
        before: Special tokens before each piece.
        after: Special tokens after it.
        table: Of the vocabulary.
        limit: Tokens of a piece, at most, with special tokens.
    """

    identity: str
    encode: Callable[[list[str]], list[list[int]]]
    before: tuple[int, ...]
    after: tuple[int, ...]
    table: WordTable
    limit: int

    def pieces(self, ids: Sequence[int]) -> Iterator[NDArray[np.int64]]:
        """Yields the pieces of a text: as few as there can be, of similar length, cut between words."""
        tokens = np.asarray(ids, dtype=np.int64)
        room = self.limit - len(self.before) - len(self.after)
        begins = self.table.begin_words(tokens)
        start = 0
        while start < len(tokens):
            left = len(tokens) - start
            end = start + -(-left // -(-left // room))
            if end < len(tokens):
                words = np.flatnonzero(begins[start + 1 : end + 1])
                end = start + 1 + int(words[-1]) if len(words) else end  # a word may be longer than a piece
            yield np.concatenate([self.before, tokens[start:end], self.after]).astype(np.int64)
            start = end


def tokens_of(start: Start, length: int | None, name: str) -> Tokens:
    """Returns how a model's tokenizer makes pieces.

    Raises:
        UnsupportedModelError: It does not put one special token before a text and one after it, or has no mask.
    """
    tokenizer = start.model.tokenizer
    options = {"return_attention_mask": False, "return_token_type_ids": False, "truncation": False, "verbose": False}

    def encode(texts: list[str]) -> list[list[int]]:
        found: list[list[int]] = tokenizer(texts, add_special_tokens=False, **options)["input_ids"]
        return found

    around = tokenizer("", **options)["input_ids"]
    if len(around) != 2:
        raise UnsupportedModelError(
            f"The tokenizer of {name} puts {len(around)} special tokens around a text; pre-training needs one before "
            "and one after it."
        )
    limit = start.max_length if length is None else min(length, start.max_length)
    return Tokens(start.identity, encode, tuple(around[:1]), tuple(around[1:]), WordTable.of(tokenizer, name), limit)
