"""What the encoder must tell, and what each position of the decoder sees. Imports torch."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bge_integrations.training.retromae.words import WordTable

__all__ = ["chosen_tokens", "replaced_ids", "visible_tokens"]

_MASKED, _OTHER_TOKEN = 0.8, 0.1


def chosen_tokens(
    words: NDArray[np.int64], lengths: NDArray[np.int64], rate: float, draws: np.random.Generator
) -> NDArray[np.bool_]:
    """Chooses the words of each text that the encoder must tell.

    Words are taken in random order. One with which there would be more than `rate` times the length of the text
    (rounded, at least 1) is passed over. So a text whose words are all longer than that has none.

    Args:
        words: Number of each token's word, 0 for tokens that are never chosen; shape [texts, longest].
        lengths: Tokens of each text with special tokens, shape [texts].
        rate: The part of the tokens.
        draws: The source of chance.

    Returns:
        Shape [texts, longest].
    """
    texts, count = len(words), int(words.max()) + 1
    flat = (words + np.arange(texts)[:, None] * count).ravel()
    sizes = np.bincount(flat, minlength=texts * count).reshape(texts, count)
    sizes[:, 0] = 0
    order = np.argsort(draws.random((texts, count)), axis=1)
    sizes = np.take_along_axis(sizes, order, axis=1)
    left = np.maximum(1, np.rint(rate * lengths)).astype(np.int64)
    taken = np.zeros(sizes.shape, dtype=bool)
    while True:
        # What does not fit now does not fit later. Those that fit are taken up to the first that does not fit any more.
        fits = (sizes > 0) & ~taken & (sizes <= left[:, None])
        if not fits.any():
            break
        fits &= np.cumsum(sizes * fits, axis=1) <= left[:, None]
        taken |= fits
        left -= (sizes * fits).sum(axis=1)
    chosen = np.zeros_like(taken)
    np.put_along_axis(chosen, order, taken, axis=1)
    found: NDArray[np.bool_] = np.take_along_axis(chosen, words, axis=1)
    return found


def replaced_ids(
    ids: NDArray[np.int64], chosen: NDArray[np.bool_], table: WordTable, draws: np.random.Generator
) -> NDArray[np.int64]:
    """Returns what the encoder reads: of the chosen tokens, 80 % masked, 10 % replaced at random, 10 % as they are.

    Each token has its own chance, as in BERT.

    Args:
        ids: Token ids, shape [texts, longest].
        chosen: The chosen tokens, same shape.
        table: Of the vocabulary.
        draws: The source of chance.
    """
    chances = draws.random(ids.shape)
    others = table.replacements[draws.integers(len(table.replacements), size=ids.shape)]
    is_other = chosen & (chances >= _MASKED) & (chances < _MASKED + _OTHER_TOKEN)
    return np.where(chosen & (chances < _MASKED), table.mask_id, np.where(is_other, others, ids))


def visible_tokens(words: Tensor, is_token: Tensor, rate: float, draws: torch.Generator) -> Tensor:
    """Draws what each position of the decoder sees.

    Each position has a sample of its own: a word is visible to it as a whole, or not at all. It never sees itself. It
    always sees the first column, which has the vector of the text, and special tokens.

    Args:
        words: Number of each token's word, 0 for tokens that are always visible; int64, shape [texts, longest].
        is_token: Mask of tokens that are not padding, same shape.
        rate: The chance of a word to be hidden.
        draws: The source of chance, on the device of the tensors.

    Returns:
        bool, shape [texts, longest, longest]: whether the position of the second axis sees the token of the third one.
    """
    texts, longest = words.shape
    count = int(words.max()) + 1
    by_word = torch.rand((texts, longest, count), generator=draws, device=words.device) >= rate
    by_word[:, :, 0] = True
    seen = by_word.gather(2, words[:, None].expand(texts, longest, longest))
    seen &= is_token[:, None]
    seen.diagonal(dim1=1, dim2=2).fill_(False)
    seen[:, :, 0] = True
    return seen
