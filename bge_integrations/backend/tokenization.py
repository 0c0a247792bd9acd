"""Text to token ids: by the Rust tokenizer, without padding, with every truncation counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from bge_integrations.errors import UnsupportedModelError


@dataclass(frozen=True)
class TokenizedTexts:
    """Token ids of a list of texts.

    Attributes:
        ids: One list a text, special tokens included, no longer than the limit asked for.
        full_lengths: Tokens per text before anything was cut, shape [n], int64.
        lengths: Tokens per text as in `ids`, shape [n], int64.
    """

    ids: list[list[int]]
    full_lengths: NDArray[np.int64]
    lengths: NDArray[np.int64]


class TextTokenizer:
    """A private copy of a checkpoint's tokenizer.

    transformers' tokenizers keep padding and truncation as state on the Rust object and change it on every call, so
    the copy is what makes this one safe to use from several threads, and beside a user's own calls.
    """

    def __init__(self, tokenizer: Any) -> None:  # noqa: ANN401 - transformers' tokenizers share no public base type
        """Copies the Rust tokenizer.

        Args:
            tokenizer: A transformers tokenizer.

        Raises:
            UnsupportedModelError: If it is not backed by the Rust library.
        """
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if not isinstance(backend, Tokenizer):
            raise UnsupportedModelError(
                f"The checkpoint's tokenizer ({type(tokenizer).__name__}) has no tokenizer.json; "
                "save one with `AutoTokenizer.from_pretrained(folder).save_pretrained(folder)`."
            )
        self._rust = Tokenizer.from_str(backend.to_str())
        self._rust.no_padding()
        self._rust.no_truncation()
        self.pad_id: int = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
        self._keep_end = tokenizer.truncation_side == "left"
        mask = self._rust.encode("a").special_tokens_mask
        self._prefix = _leading_ones(mask)
        self._suffix = _leading_ones(mask[::-1]) if self._prefix < len(mask) else 0

    @property
    def special_tokens(self) -> int:
        """Special tokens that are added to every text."""
        return self._prefix + self._suffix

    @property
    def suffix_tokens(self) -> int:
        """Special tokens that are added after every text."""
        return self._suffix

    def tokenize(self, texts: Sequence[str], max_length: int) -> TokenizedTexts:
        """Turns texts into ids, cutting each to `max_length` tokens but never its special tokens.

        Args:
            texts: The texts, instruction included.
            max_length: Tokens per text, special tokens included; more than `special_tokens`.
        """
        ids = [encoding.ids for encoding in self._rust.encode_batch_fast(list(texts))]
        full_lengths = np.fromiter(map(len, ids), dtype=np.int64, count=len(ids))
        for index in np.flatnonzero(full_lengths > max_length):
            ids[index] = self._cut(ids[index], max_length)
        if not self.special_tokens:
            # A model must read at least one token, and only a tokenizer without special tokens can give none.
            ids = [text_ids or [self.pad_id] for text_ids in ids]
            full_lengths = np.maximum(full_lengths, 1)
        return TokenizedTexts(ids=ids, full_lengths=full_lengths, lengths=np.minimum(full_lengths, max_length))

    def _cut(self, ids: list[int], max_length: int) -> list[int]:
        end = len(ids) - self._suffix
        room = max_length - self.special_tokens
        content = ids[self._prefix : end]
        content = content[len(content) - room :] if self._keep_end else content[:room]
        return ids[: self._prefix] + content + ids[end:]


def _leading_ones(mask: list[int]) -> int:
    return next((position for position, bit in enumerate(mask) if not bit), len(mask))
