"""Text to token ids: by the Rust tokenizer, without padding, with every truncation counted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from bge_integrations.backend.pieces import cut, safe_cuts
from bge_integrations.errors import UnsupportedModelError

# Longer texts are read in pieces. While the tokens of one are given back, other threads wait for about a millisecond.
_PIECE_CHARACTERS = 65536
# Tokenised at a time, side by side on the cores; their tokens take about 100 MB until only the ids are kept.
_CHARACTERS_AT_ONCE = 1 << 20

Side = Literal["left", "right"]


@dataclass(frozen=True)
class TokenizedTexts:
    """Token ids of a list of texts.

    Attributes:
        ids: Ids of all texts one after another, special tokens included, int32, shape [tokens].
        full_lengths: Tokens per text before anything was cut, shape [n], int64.
        lengths: Tokens per text in `ids`, no more than the limit asked for, shape [n], int64.
        first_lengths: Of pairs of texts, the leading tokens that are no part of the second one, shape [n], int64; None
            for single texts.
    """

    ids: NDArray[np.int32]
    full_lengths: NDArray[np.int64]
    lengths: NDArray[np.int64]
    first_lengths: NDArray[np.int64] | None = None

    def of(self, texts: NDArray[np.int64]) -> NDArray[np.int32]:
        """Returns the ids of some texts, one after another in the order asked for."""
        ends = np.cumsum(self.lengths)
        starts = ends - self.lengths
        return np.concatenate([self.ids[starts[text] : ends[text]] for text in texts])


class TextTokenizer:
    """A tokenizer of our own, which pads nothing and cuts nothing by itself.

    transformers' tokenizers keep padding and truncation as state on the Rust object and change it on every call, so
    a private copy is what makes this one safe to use from several threads, and beside a user's own calls.
    """

    def __init__(self, rust: Tokenizer, *, pad_id: int, truncation_side: Side = "right") -> None:
        """Takes over a Rust tokenizer.

        Args:
            rust: The tokenizer; nobody else may hold it.
            pad_id: The id that fills short texts.
            truncation_side: The end at which long texts are cut.
        """
        self._rust = rust
        self._rust.no_padding()
        self._rust.no_truncation()
        self.pad_id = pad_id
        self.truncation_side: Side = truncation_side
        sample = self._rust.encode("a")
        mask = sample.special_tokens_mask
        self._prefix = _leading_ones(mask)
        self._suffix = _leading_ones(mask[::-1]) if self._prefix < len(mask) else 0
        self._prefix_ids = sample.ids[: self._prefix]
        self._suffix_ids = sample.ids[len(mask) - self._suffix :]
        split = self._rust.pre_tokenizer.pre_tokenize_str("a") if self._rust.pre_tokenizer else [("a", (0, 1))]
        self._word_marks = sum(len(part) for part, _ in split) - 1
        self._safe_cuts = safe_cuts(self._rust)

    @classmethod
    def copy_of(cls, tokenizer: Any) -> TextTokenizer:  # noqa: ANN401 - transformers' tokenizers share no public base
        """Copies the one inside a transformers tokenizer.

        Raises:
            UnsupportedModelError: If it is not backed by the Rust library.
        """
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if not isinstance(backend, Tokenizer):
            raise UnsupportedModelError(
                f"The checkpoint's tokenizer ({type(tokenizer).__name__}) has no tokenizer.json; "
                "save one with `AutoTokenizer.from_pretrained(folder).save_pretrained(folder)`."
            )
        return cls(
            Tokenizer.from_str(backend.to_str()),
            pad_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0,
            truncation_side="left" if tokenizer.truncation_side == "left" else "right",
        )

    def to_json(self) -> str:
        """Returns the content of a tokenizer.json that gives this one again."""
        return self._rust.to_str()

    @property
    def special_tokens(self) -> int:
        """Special tokens that are added to every text."""
        return self._prefix + self._suffix

    @property
    def suffix_tokens(self) -> int:
        """Special tokens that are added after every text."""
        return self._suffix

    @property
    def word_marks(self) -> int:
        """Symbols that are written before a word: 1 for SentencePiece's `▁`, else 0."""
        return self._word_marks

    def count(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """Returns the tokens that texts take before anything is cut, special tokens included, shape [n]."""
        lengths = np.full(len(texts), self.special_tokens, dtype=np.int64)
        for index, encoding in self._encoded(texts):
            lengths[index] += len(encoding)
        return _at_least_one(lengths)

    def token(self, id_: int) -> str:
        """Returns the token of an id, as the vocabulary writes it; the id itself in words, if it has none."""
        return self._rust.id_to_token(id_) or str(id_)

    def contents(self, texts: Sequence[str]) -> list[NDArray[np.int32]]:
        """Returns the ids of texts without special tokens."""
        ids: list[list[NDArray[np.int32]]] = [[] for _ in texts]
        for index, encoding in self._encoded(texts):
            ids[index].append(np.array(encoding.ids, dtype=np.int32))
        return [np.concatenate(parts) for parts in ids]

    def sample_pair(self) -> tuple[list[int], NDArray[np.bool_]]:
        """Returns the ids of a pair of two equal texts, and which of them are special tokens."""
        encoding = self._rust.encode("a", "a")
        return list(encoding.ids), np.array(encoding.special_tokens_mask, dtype=bool)

    def content(self, text: str) -> list[int]:
        """Returns the ids of a text without special tokens."""
        ids: list[int] = self._rust.encode(text, add_special_tokens=False).ids
        return ids

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Returns the characters, from and to, that each token comes from, without special tokens."""
        offsets: list[tuple[int, int]] = self._rust.encode(text, add_special_tokens=False).offsets
        return offsets

    def symbols(self, text: str) -> int:
        """Returns how many characters a text has once it is normalised: no token of WordPiece or Unigram has less.

        Spaces are among them where marks of words take their place; the marks of the first word are not.
        """
        normalized = self._rust.normalizer.normalize_str(text) if self._rust.normalizer else text
        return len(normalized if self._word_marks else normalized.replace(" ", ""))

    def tokenize(self, texts: Sequence[str], max_length: int) -> TokenizedTexts:
        """Turns texts into ids, cutting each to `max_length` tokens but never its special tokens.

        Args:
            texts: The texts, instruction included; at least one.
            max_length: Tokens per text, special tokens included; more than `special_tokens`.
        """
        room = max_length - self.special_tokens
        ids: list[NDArray[np.int32]] = []
        full_lengths = np.full(len(texts), self.special_tokens, dtype=np.int64)
        # One by one, so that other threads get their turn in between.
        for index, encodings in groupby(self._encoded(texts), key=itemgetter(0)):
            content: list[int] = []
            for _, encoding in encodings:
                full_lengths[index] += len(encoding)
                self._keep(content, encoding, room)
            whole = [*self._prefix_ids, *content, *self._suffix_ids]
            ids.append(np.array(whole or [self.pad_id], dtype=np.int32))
        full_lengths = _at_least_one(full_lengths)
        return TokenizedTexts(
            ids=np.concatenate(ids), full_lengths=full_lengths, lengths=np.minimum(full_lengths, max_length)
        )

    def _encoded(self, texts: Sequence[str]) -> Iterator[tuple[int, Encoding]]:
        """Yields the encodings of texts in their order, without special tokens, each with the index of its text.

        A long text has several, one for each of its pieces.
        """
        waiting: list[tuple[int, str]] = []
        characters = 0
        for index, text in enumerate(texts):
            pieces = cut(text, self._safe_cuts, _PIECE_CHARACTERS) if len(text) > _PIECE_CHARACTERS else (text,)
            for piece in pieces:
                waiting.append((index, piece))
                characters += len(piece)
                if characters >= _CHARACTERS_AT_ONCE:
                    yield from self._encode_at_once(waiting)
                    waiting, characters = [], 0
        yield from self._encode_at_once(waiting)

    def _encode_at_once(self, pieces: Sequence[tuple[int, str]]) -> Iterator[tuple[int, Encoding]]:
        encodings = self._rust.encode_batch_fast([piece for _, piece in pieces], add_special_tokens=False)
        encodings.reverse()
        for index, _ in pieces:
            yield index, encodings.pop()  # freed one by one

    def _keep(self, kept: list[int], encoding: Encoding, room: int) -> None:
        """Adds the next ids of a text to those that are kept of it, as far as there is room."""
        if self.truncation_side == "left":
            kept += encoding.ids[-room:]
            del kept[:-room]
        elif len(kept) < room:
            kept += encoding.ids[: room - len(kept)]


def _leading_ones(mask: list[int]) -> int:
    return next((position for position, bit in enumerate(mask) if not bit), len(mask))


def _at_least_one(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    # A model must read at least one token, and only a tokenizer without special tokens can give none.
    return np.maximum(lengths, 1)
