"""What turns a text into ids: the Rust library, or a tokenizer of transformers that exists in Python only."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from bge_integrations.backend.guarantees.forks import ForkSafeLock, native_code
from bge_integrations.backend.guarantees.interrupts import uninterrupted
from bge_integrations.backend.text.long_texts import cut, safe_cuts

# Longer texts are read in pieces. While the tokens of one are given back, other threads wait for about a millisecond.
_PIECE_CHARACTERS = 65536
# Tokenised at a time, side by side on the cores; their tokens take about 100 MB until only the ids are kept.
_CHARACTERS_AT_ONCE = 1 << 20


class Encoded(Protocol):
    """A text, or a piece of one, as ids without special tokens."""

    @property
    def ids(self) -> list[int]:
        """The ids."""
        ...

    def __len__(self) -> int:
        """How many there are."""
        ...


@dataclass(frozen=True)
class Sample:
    """A short text, or a pair of two equal ones, with the special tokens around it.

    Attributes:
        ids: Token ids.
        is_special: Marks the special tokens, shape [tokens].
        types: The kind of each token: 1 for those of a second text where the tokenizer tells them apart.
    """

    ids: list[int]
    is_special: NDArray[np.bool_]
    types: list[int]


class TokenizerBackend(Protocol):
    """Turns texts into ids, without padding and truncation. May be used from several threads.

    Attributes:
        word_marks: Symbols that are written before a word: 1 for SentencePiece's `▁`, else 0.
        splits_special_tokens: Whether special tokens that are written in a text are read as plain text.
    """

    @property
    def word_marks(self) -> int: ...  # noqa: D102 - above

    @property
    def splits_special_tokens(self) -> bool: ...  # noqa: D102 - above

    def encode(self, texts: Sequence[str]) -> Iterator[tuple[int, Encoded]]:
        """Yields the ids of texts in their order, each with the index of its text; a long text may have several."""
        ...

    def sample(self) -> Sample:
        """Returns one text as the tokenizer gives it with its special tokens."""
        ...

    def sample_pair(self) -> Sample:
        """Returns a pair of two equal texts with its special tokens."""
        ...

    def token(self, id_: int) -> str | None:
        """Returns the token of an id, as the vocabulary writes it; None for an id without one."""
        ...

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Returns the characters, from and to, that each token comes from, without special tokens."""
        ...

    def normalized(self, text: str) -> str:
        """Returns what the vocabulary is asked for."""
        ...

    def to_json(self) -> str | None:
        """Returns the content of a tokenizer.json; None where it has no such form."""
        ...


class RustBackend:
    """A tokenizer of the library tokenizers."""

    def __init__(self, rust: Tokenizer) -> None:
        """Takes over a tokenizer; nobody else may hold it."""
        rust.no_padding()
        rust.no_truncation()
        self._rust = rust
        split = rust.pre_tokenizer.pre_tokenize_str("a") if rust.pre_tokenizer else [("a", (0, 1))]
        self.word_marks = sum(len(part) for part, _ in split) - 1
        self._safe_cuts = safe_cuts(rust)
        self._added = dict(rust.get_added_tokens_decoder())

    @property
    def splits_special_tokens(self) -> bool:
        """See `TokenizerBackend`. It is no part of a tokenizer.json."""
        return bool(self._rust.encode_special_tokens)

    def encode(self, texts: Sequence[str]) -> Iterator[tuple[int, Encoding]]:
        """See `TokenizerBackend.encode`."""
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
        with native_code():
            encodings = self._rust.encode_batch_fast([piece for _, piece in pieces], add_special_tokens=False)
        encodings.reverse()
        for index, _ in pieces:
            yield index, encodings.pop()  # freed one by one

    def sample(self) -> Sample:
        """See `TokenizerBackend.sample`."""
        return _sample_of(self._rust.encode("a"))

    def sample_pair(self) -> Sample:
        """See `TokenizerBackend.sample_pair`."""
        return _sample_of(self._rust.encode("a", "a"))

    def token(self, id_: int) -> str | None:
        """See `TokenizerBackend.token`."""
        # The library gives an added token as its normaliser writes it, not as it was added.
        token: str | None = self._added[id_].content if id_ in self._added else self._rust.id_to_token(id_)
        return token

    def spans(self, text: str) -> list[tuple[int, int]]:
        """See `TokenizerBackend.spans`."""
        offsets: list[tuple[int, int]] = self._rust.encode(text, add_special_tokens=False).offsets
        return offsets

    def normalized(self, text: str) -> str:
        """See `TokenizerBackend.normalized`."""
        normalized: str = self._rust.normalizer.normalize_str(text) if self._rust.normalizer else text
        return normalized

    def to_json(self) -> str:
        """See `TokenizerBackend.to_json`."""
        json: str = self._rust.to_str()
        return json


class PythonBackend:
    """A tokenizer of transformers that has no Rust form, such as those for Japanese and Vietnamese.

    It is not copied, since some hold what can't be: one text at a time goes through it.
    """

    word_marks = 0

    def __init__(self, tokenizer: Any, *, splits_special_tokens: bool, adds_special_tokens: bool) -> None:  # noqa: ANN401
        """Takes a tokenizer.

        Args:
            tokenizer: Of transformers.
            splits_special_tokens: Read special tokens that are written in a text as plain text.
            adds_special_tokens: Put its own special tokens around a text.
        """
        self._tokenizer = tokenizer
        self.splits_special_tokens = splits_special_tokens
        self._adds_special_tokens = adds_special_tokens
        self._turn = ForkSafeLock()

    def encode(self, texts: Sequence[str]) -> Iterator[tuple[int, Encoded]]:
        """See `TokenizerBackend.encode`."""
        yield from enumerate(
            uninterrupted(lambda: [_Ids(self._call(text, add_special_tokens=False)["input_ids"]) for text in texts])
        )

    def sample(self) -> Sample:
        """See `TokenizerBackend.sample`."""
        return self._sample("a")

    def sample_pair(self) -> Sample:
        """See `TokenizerBackend.sample_pair`."""
        return self._sample("a", "a")

    def token(self, id_: int) -> str | None:
        """See `TokenizerBackend.token`."""
        token: str | None = self._tokenizer.convert_ids_to_tokens(id_)
        return token

    def spans(self, text: str) -> list[tuple[int, int]]:
        """See `TokenizerBackend.spans`; a character a token, since these tokenizers don't say where one is from."""
        return [(start, start + 1) for start in range(len(text))]

    def normalized(self, text: str) -> str:
        """See `TokenizerBackend.normalized`; the longest that they make of a text, as far as is known."""
        return max(text, unicodedata.normalize("NFKC", text), key=len)

    def to_json(self) -> None:
        """See `TokenizerBackend.to_json`."""
        return

    def _sample(self, *texts: str) -> Sample:
        found = self._call(*texts, add_special_tokens=self._adds_special_tokens, return_token_type_ids=True)
        ids = list(found["input_ids"])
        is_special = np.ones(len(ids), dtype=bool)
        content = self._call("a", add_special_tokens=False)["input_ids"]
        start = 0
        for _ in texts:
            start = next(at for at in range(start, len(ids)) if ids[at : at + len(content)] == content)
            is_special[start : start + len(content)] = False
            start += len(content)
        return Sample(ids, is_special, list(found.get("token_type_ids", [0] * len(ids))))

    def _call(self, *texts: str, **how: bool) -> Any:  # noqa: ANN401 - transformers' BatchEncoding
        with self._turn:
            return self._tokenizer(*texts, split_special_tokens=self.splits_special_tokens, verbose=False, **how)


@dataclass(frozen=True)
class _Ids:
    """See `Encoded`."""

    ids: list[int]

    def __len__(self) -> int:
        return len(self.ids)


def _sample_of(encoding: Encoding) -> Sample:
    return Sample(list(encoding.ids), np.array(encoding.special_tokens_mask, dtype=bool), list(encoding.type_ids))
