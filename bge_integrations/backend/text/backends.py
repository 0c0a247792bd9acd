"""Tokenizer backends: the Rust library tokenizers, or a tokenizer of transformers that exists only in Python."""

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

# Longer texts are read in pieces. Other threads wait for about a millisecond while the tokens of a piece are returned.
_PIECE_CHARACTERS = 65536
# Tokenised at once, in parallel on the cores. Their tokens take about 100 MB until only the ids are kept.
_CHARACTERS_AT_ONCE = 1 << 20


class Encoded(Protocol):
    """The ids of a text, or of a piece of a text, without special tokens."""

    @property
    def ids(self) -> list[int]:
        """The ids."""
        ...

    def __len__(self) -> int:
        """Number of ids."""
        ...


@dataclass(frozen=True)
class Sample:
    """A short text, or a pair of two equal texts, with special tokens.

    Attributes:
        ids: Token ids.
        is_special: Mask of the special tokens, shape [tokens].
        types: Token type of each token: 1 in the second text if the tokenizer distinguishes the texts, else 0.
    """

    ids: list[int]
    is_special: NDArray[np.bool_]
    types: list[int]


class TokenizerBackend(Protocol):
    """Turns texts into ids, without padding and truncation. Thread-safe.

    Attributes:
        word_marks: Number of symbols that mark the start of a word: 1 for SentencePiece's `▁`, else 0.
        splits_special_tokens: Whether the names of special tokens in a text are read as plain text.
    """

    @property
    def word_marks(self) -> int: ...  # noqa: D102 - above

    @property
    def splits_special_tokens(self) -> bool: ...  # noqa: D102 - above

    def encode(self, texts: Sequence[str]) -> Iterator[tuple[int, Encoded]]:
        """Yields pairs of a text's index and its ids, in the order of the texts. A long text may have several pairs."""
        ...

    def sample(self) -> Sample:
        """Returns a text with its special tokens."""
        ...

    def sample_pair(self) -> Sample:
        """Returns a pair of two equal texts with its special tokens."""
        ...

    def token(self, id_: int) -> str | None:
        """Returns the token of an id, as in the vocabulary; `None` if the id has no token."""
        ...

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Returns the start and end of each token in the text, in characters, without special tokens."""
        ...

    def normalized(self, text: str) -> str:
        """Returns the normalised text."""
        ...

    def to_json(self) -> str | None:
        """Returns the content of a tokenizer.json; `None` if the tokenizer has no such form."""
        ...


class RustBackend:
    """A tokenizer of the library tokenizers."""

    def __init__(self, rust: Tokenizer) -> None:
        """Takes over a tokenizer. No other code may use it."""
        rust.no_padding()
        rust.no_truncation()
        self._rust = rust
        split = rust.pre_tokenizer.pre_tokenize_str("a") if rust.pre_tokenizer else [("a", (0, 1))]
        self.word_marks = sum(len(part) for part, _ in split) - 1
        self._safe_cuts = safe_cuts(rust)
        self._added = dict(rust.get_added_tokens_decoder())

    @property
    def splits_special_tokens(self) -> bool:
        """See `TokenizerBackend`. A tokenizer.json does not contain this setting."""
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
            yield index, encodings.pop()  # `pop` frees them one by one

    def sample(self) -> Sample:
        """See `TokenizerBackend.sample`."""
        return _sample_of(self._rust.encode("a"))

    def sample_pair(self) -> Sample:
        """See `TokenizerBackend.sample_pair`."""
        return _sample_of(self._rust.encode("a", "a"))

    def token(self, id_: int) -> str | None:
        """See `TokenizerBackend.token`."""
        # The library returns an added token in its normalised form, not as it was added.
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

    It is not copied, because some of them hold objects that cannot be copied. So it takes one text at a time.
    """

    word_marks = 0

    def __init__(self, tokenizer: Any, *, splits_special_tokens: bool, adds_special_tokens: bool) -> None:  # noqa: ANN401
        """Takes a tokenizer of transformers; for the arguments see `TextTokenizer.copy_of`."""
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
        """See `TokenizerBackend.spans`. One span per character, because these tokenizers return no spans."""
        return [(start, start + 1) for start in range(len(text))]

    def normalized(self, text: str) -> str:
        """See `TokenizerBackend.normalized`. The longest form that is known: these tokenizers do not return it."""
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
