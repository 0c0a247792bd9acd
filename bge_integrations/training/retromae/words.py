"""Which tokens of a text are one word, by a table over the vocabulary."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bge_integrations.errors import UnsupportedModelError

__all__ = ["WordTable"]

_SPACE = "▁"  # SentencePiece's sign for a blank
# Blocks of Chinese characters, as BERT's tokenizers know them.
_CHINESE = (
    *((0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F), (0x2B740, 0x2B81F)),
    *((0x2B820, 0x2CEAF), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F)),
)
# Other scripts without blanks between words: Thai, Lao, Tibetan, Burmese, Khmer, Japanese kana. BERT joins their pieces
# with `##`, but in SentencePiece a whole sentence would be one word.
_WITHOUT_BLANKS = (
    *((0x0E00, 0x0EFF), (0x0F00, 0x0FFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3040, 0x30FF), (0x31F0, 0x31FF)),
    *((0xFF66, 0xFF9F),),
)


@dataclass(frozen=True)
class WordTable:
    """What is known of each token of a vocabulary.

    A token begins a word if it is marked so, or if it follows a token that is a word of its own.

    Attributes:
        begins: bool, shape [vocabulary]: whether a token always begins a word.
        is_alone: bool, shape [vocabulary]: whether a token is a word of its own: a Chinese character, punctuation, or a
            piece in a script without blanks.
        is_fixed: bool, shape [vocabulary]: whether a token is never masked: special tokens, but not the unknown one.
        replacements: int64: ids that a masked token may be replaced by at random.
        mask_id: Token id of the mask.
    """

    begins: NDArray[np.bool_]
    is_alone: NDArray[np.bool_]
    is_fixed: NDArray[np.bool_]
    replacements: NDArray[np.int64]
    mask_id: int

    @classmethod
    def of(cls, tokenizer: Any, name: str) -> WordTable:  # noqa: ANN401 - a tokenizer of transformers
        """Makes the table of a tokenizer.

        Raises:
            UnsupportedModelError: It has no mask, or marks words in another way than WordPiece and SentencePiece.
        """
        if tokenizer.mask_token_id is None:
            raise UnsupportedModelError(f"The tokenizer of {name} has no mask token, so words can't be masked.")
        vocabulary: dict[str, int] = tokenizer.get_vocab()
        backend = tokenizer.backend_tokenizer
        inside = backend.model.continuing_subword_prefix if type(backend.model).__name__ == "WordPiece" else None
        if inside is None and "Metaspace" not in repr(backend.pre_tokenizer):
            raise UnsupportedModelError(
                f"The tokenizer of {name} marks words neither as BERT (WordPiece) nor as XLM-RoBERTa (SentencePiece); "
                "pre-training needs to know them. Take a model of these two kinds."
            )
        size = max(vocabulary.values()) + 1
        begins, is_alone, is_fixed = (np.zeros(size, dtype=bool) for _ in range(3))
        for piece, number in vocabulary.items():
            if inside is None:
                begins[number] = piece.startswith(_SPACE)
                is_alone[number] = _is_word_of_its_own(piece.removeprefix(_SPACE))
            else:
                begins[number] = not piece.startswith(inside)
                is_alone[number] = _is_of(piece.removeprefix(inside), _CHINESE)
        is_fixed[[number for number in tokenizer.all_special_ids if number != tokenizer.unk_token_id]] = True
        is_ordinary = np.zeros(size, dtype=bool)
        is_ordinary[list(vocabulary.values())] = True
        is_ordinary[tokenizer.all_special_ids] = False
        return cls(begins, is_alone, is_fixed, np.flatnonzero(is_ordinary), int(tokenizer.mask_token_id))

    def begin_words(self, ids: NDArray[np.integer]) -> NDArray[np.bool_]:
        """Returns whether each token begins a word.

        Args:
            ids: Token ids, shape [..., tokens]. The first token of a row begins one.
        """
        apart = self.is_alone[ids] | self.is_fixed[ids]
        found: NDArray[np.bool_] = self.begins[ids] | apart
        found[..., 1:] |= apart[..., :-1]
        found[..., :1] = True
        return found

    def word_numbers(self, ids: NDArray[np.integer], is_token: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Returns the number of each token's word in its text, from 1; 0 for tokens that are never masked, and padding.

        Args:
            ids: Token ids, shape [texts, longest].
            is_token: Mask of tokens that are not padding, same shape.
        """
        can_be_masked = is_token & ~self.is_fixed[ids]
        numbers = np.cumsum(self.begin_words(ids) & can_be_masked, axis=1, dtype=np.int64)
        numbers[~can_be_masked] = 0
        return numbers


def _is_word_of_its_own(piece: str) -> bool:
    """Returns whether a piece without its sign for a blank is punctuation, or of a script without blanks."""
    if not piece:
        return False
    is_text = any(unicodedata.category(character)[0] in "LNM" for character in piece)
    return not is_text or _is_of(piece, (*_CHINESE, *_WITHOUT_BLANKS))


def _is_of(piece: str, blocks: tuple[tuple[int, int], ...]) -> bool:
    return any(first <= ord(character) <= last for character in piece for first, last in blocks)
