"""From texts to token ids, without padding. The full length of every truncated text is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from bge_integrations.backend.text.backends import Encoded, PythonBackend, RustBackend, Sample, TokenizerBackend
from bge_integrations.backend.text.estimate import EstimateBackend
from bge_integrations.errors import UnsupportedModelError

Side = Literal["left", "right"]
Written = tuple[str, ...] | tuple[tuple[str, str], ...]
"""Texts, or pairs of a query and a passage, as a server reads them."""


@dataclass(frozen=True)
class TokenizedTexts:
    """Token ids of a list of texts.

    Attributes:
        ids: Concatenated ids of all texts, special tokens included, int32, shape [tokens].
        full_lengths: Tokens per text before truncation, int64, shape [n].
        lengths: Tokens per text in `ids`, after truncation, int64, shape [n].
        first_lengths: Tokens of each pair before its second text, int64, shape [n]; `None` for single texts.
        written: The texts, or pairs of texts, for an engine that reads them instead of `ids`, which are empty then.
    """

    ids: NDArray[np.int32]
    full_lengths: NDArray[np.int64]
    lengths: NDArray[np.int64]
    first_lengths: NDArray[np.int64] | None = None
    written: Written | None = None

    def of(self, texts: NDArray[np.int64]) -> NDArray[np.int32]:
        """Returns the concatenated ids of the texts at some indices, in the order of the indices."""
        if len(self.lengths) == 1:
            return self.ids
        ends = np.cumsum(self.lengths)
        starts = ends - self.lengths
        return np.concatenate([self.ids[starts[text] : ends[text]] for text in texts])


class TextTokenizer:
    """A private tokenizer without padding or truncation as state.

    transformers' tokenizers keep padding and truncation as state of the Rust object and change it in every call. A
    private copy is safe to use in several threads, also while the user calls the original.
    """

    def __init__(self, backend: Tokenizer | TokenizerBackend, *, pad_id: int, truncation_side: Side = "right") -> None:
        """Takes over a tokenizer.

        Args:
            backend: The tokenizer, which no other code may use.
            pad_id: Token id of padding.
            truncation_side: The end at which long texts are cut.
        """
        self._backend: TokenizerBackend = RustBackend(backend) if isinstance(backend, Tokenizer) else backend
        self.pad_id = pad_id
        self.truncation_side: Side = truncation_side
        sample = self._backend.sample()
        mask = sample.is_special.tolist()
        self._prefix = _leading_ones(mask)
        self._suffix = _leading_ones(mask[::-1]) if self._prefix < len(mask) else 0
        self._prefix_ids = sample.ids[: self._prefix]
        self._suffix_ids = sample.ids[len(mask) - self._suffix :]

    @classmethod
    def copy_of(
        cls,
        tokenizer: Any,  # noqa: ANN401 - transformers' tokenizers share no public base
        *,
        splits_special_tokens: bool | None = None,
        adds_special_tokens: bool = True,
    ) -> TextTokenizer:
        """Copies the Rust tokenizer inside a tokenizer of transformers, or wraps a tokenizer without a Rust form.

        Args:
            tokenizer: A tokenizer of transformers.
            splits_special_tokens: Whether the names of special tokens in a text are read as plain text. `None`: the
                tokenizer's own setting.
            adds_special_tokens: Whether a text gets the tokenizer's special tokens.

        Raises:
            UnsupportedModelError: `tokenizer` does not tokenize texts.
        """
        if not callable(tokenizer):
            raise UnsupportedModelError(f"The checkpoint has no tokenizer of texts but a {type(tokenizer).__name__}.")
        if splits_special_tokens is None:
            splits_special_tokens = bool(getattr(tokenizer, "split_special_tokens", False))
        backend: TokenizerBackend
        rust = _rust_form(tokenizer)
        if rust is None:
            backend = PythonBackend(
                tokenizer, splits_special_tokens=splits_special_tokens, adds_special_tokens=adds_special_tokens
            )
        else:
            rust.encode_special_tokens = splits_special_tokens
            if not adds_special_tokens:
                rust.post_processor = None
            backend = RustBackend(rust)
        return cls(
            backend,
            pad_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0,
            truncation_side="left" if tokenizer.truncation_side == "left" else "right",
        )

    @classmethod
    def estimate(cls) -> TextTokenizer:
        """Returns a tokenizer that only estimates counts, for a model whose tokenizer is not on this machine."""
        return cls(EstimateBackend(), pad_id=0)

    @property
    def is_estimate(self) -> bool:
        """Whether counts are estimated."""
        return isinstance(self._backend, EstimateBackend)

    @property
    def has_rust_form(self) -> bool:
        """Whether the tokenizer can be saved as tokenizer.json."""
        return isinstance(self._backend, RustBackend)

    def to_json(self) -> str:
        """Returns the content of a tokenizer.json. It describes all of the tokenizer except `splits_special_tokens`.

        Raises:
            UnsupportedModelError: The tokenizer has no such form.
        """
        content = self._backend.to_json()
        if content is None:
            raise UnsupportedModelError("This tokenizer exists in Python only and can't be saved as tokenizer.json.")
        return content

    @property
    def splits_special_tokens(self) -> bool:
        """Whether the names of special tokens in a text are read as plain text."""
        return self._backend.splits_special_tokens

    @property
    def special_tokens(self) -> int:
        """Number of special tokens of every text."""
        return self._prefix + self._suffix

    @property
    def suffix_tokens(self) -> int:
        """Number of special tokens after every text."""
        return self._suffix

    @property
    def word_marks(self) -> int:
        """Number of symbols that mark the start of a word: 1 for SentencePiece's `▁`, else 0."""
        return self._backend.word_marks

    def count(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """Returns the token count of each text before truncation, special tokens included, shape [n]."""
        lengths = np.full(len(texts), self.special_tokens, dtype=np.int64)
        for index, encoding in self._backend.encode(texts):
            lengths[index] += len(encoding)
        return _at_least_one(lengths)

    def token(self, id_: int) -> str:
        """Returns the token of an id, as in the vocabulary. Without a token, it returns the id as a string."""
        return self._backend.token(id_) or str(id_)

    def contents(self, texts: Sequence[str]) -> list[NDArray[np.int32]]:
        """Returns the ids of texts without special tokens."""
        ids: list[list[NDArray[np.int32]]] = [[] for _ in texts]
        for index, encoding in self._backend.encode(texts):
            ids[index].append(np.array(encoding.ids, dtype=np.int32))
        return [np.concatenate(parts) for parts in ids]

    def sample_pair(self) -> Sample:
        """Returns a pair of two equal texts with its special tokens."""
        return self._backend.sample_pair()

    def content(self, text: str) -> list[int]:
        """Returns the ids of a text without special tokens."""
        ids: list[int] = self.contents([text])[0].tolist()
        return ids

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Returns the start and end of each token in the text, in characters, without special tokens."""
        return self._backend.spans(text)

    def symbols(self, text: str) -> int:
        """Returns the number of characters of a normalised text. Each token of WordPiece or Unigram has at least one.

        Spaces count if the tokenizer replaces them by marks of words. The mark of the first word does not count.
        """
        normalized = self._backend.normalized(text)
        return len(normalized if self.word_marks else normalized.replace(" ", ""))

    def tokenize(self, texts: Sequence[str], max_length: int | Sequence[int]) -> TokenizedTexts:
        """Turns texts into ids, and truncates each text to `max_length` tokens. Special tokens are never cut.

        Args:
            texts: At least one text, instruction included.
            max_length: Maximum number of tokens per text, special tokens included; more than `special_tokens`. A
                sequence has a number for each text.
        """
        limits = [max_length] * len(texts) if isinstance(max_length, int) else max_length
        special_tokens = self.special_tokens
        ids: list[NDArray[np.int32]] = []
        full_lengths: list[int] = []
        # One by one, so that other threads can run in between.
        for index, encodings in groupby(self._backend.encode(texts), key=itemgetter(0)):
            content: list[int] = []
            full_length, room = special_tokens, limits[index] - special_tokens
            for _, encoding in encodings:
                full_length += len(encoding)
                self._keep(content, encoding, room)
            whole = [*self._prefix_ids, *content, *self._suffix_ids]
            ids.append(np.array(whole or [self.pad_id], dtype=np.int32))
            full_lengths.append(full_length)
        counted = _at_least_one(np.array(full_lengths, dtype=np.int64))
        return TokenizedTexts(ids=np.concatenate(ids), full_lengths=counted, lengths=np.minimum(counted, max_length))

    def _keep(self, kept: list[int], encoding: Encoded, room: int) -> None:
        """Adds further ids of a text to the kept ids, as far as there is room."""
        if self.truncation_side == "left":
            kept += encoding.ids[-room:]
            del kept[:-room]
        elif len(kept) < room:
            kept += encoding.ids[: room - len(kept)]


def _leading_ones(mask: list[int]) -> int:
    return next((position for position, bit in enumerate(mask) if not bit), len(mask))


def _at_least_one(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    # A model must read at least one token. Only a tokenizer without special tokens can return no token.
    return np.maximum(lengths, 1)


def _rust_form(tokenizer: Any) -> Tokenizer | None:  # noqa: ANN401 - see `TextTokenizer.copy_of`
    """Returns a private copy of the Rust tokenizer inside; `None` without one, or if it cannot be copied."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        return None
    try:
        return Tokenizer.from_str(backend.to_str())
    except Exception:  # components written in Python cannot be copied
        return None
