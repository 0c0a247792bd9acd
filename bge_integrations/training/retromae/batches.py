"""Makes batches of pieces, with what the encoder must tell of them. Imports torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from bge_integrations.training.retromae.masks import chosen_tokens, replaced_ids
from bge_integrations.training.retromae.pieces import Pieces
from bge_integrations.training.retromae.words import WordTable
from bge_integrations.training.rows.batches import Epochs

__all__ = ["PieceCollator"]

_SEEDS = 1 << 62


class PieceCollator:
    """Reads the pieces of a batch, and masks words of them for the encoder.

    What is drawn depends on the seed, the epoch and the pieces of the batch alone. So a run that is resumed draws the
    same.
    """

    def __init__(
        self, pieces: Pieces, table: WordTable, *, masking: float, pad_id: int, seed: int, epochs: Epochs
    ) -> None:
        """Describes the batches."""
        self._pieces = pieces
        self._table = table
        self._masking = masking
        self._pad_id = pad_id
        self._seed = seed
        self._epochs = epochs

    def __call__(self, chosen: Sequence[Mapping[str, int]]) -> dict[str, Tensor]:
        """Returns the texts of a batch, shortest first, each tensor of shape [texts, longest] but the seed.

        Returns:
            `input_ids`, `attention_mask`; `read_ids` (what the encoder reads), `is_chosen` (which tokens it must tell),
            `words` (the number of each token's word, 0 for tokens that are never masked), and `seed` (of what the
            decoder draws, shape [1]).
        """
        rows = [one["row"] for one in chosen]
        draws = np.random.default_rng((self._seed, self._epochs.current, *rows))
        texts = sorted((self._pieces[row] for row in rows), key=len)
        lengths = np.array([len(text) for text in texts])
        is_token = np.arange(lengths[-1]) < lengths[:, None]
        ids = np.full(is_token.shape, self._pad_id, dtype=np.int64)
        ids[is_token] = np.concatenate(texts)
        words = self._table.word_numbers(ids, is_token)
        is_chosen = chosen_tokens(words, lengths, self._masking, draws)
        return {
            "input_ids": torch.from_numpy(ids),
            "attention_mask": torch.from_numpy(is_token.astype(np.int64)),
            "read_ids": torch.from_numpy(replaced_ids(ids, is_chosen, self._table, draws)),
            "is_chosen": torch.from_numpy(is_chosen),
            "words": torch.from_numpy(words),
            "seed": torch.from_numpy(draws.integers(_SEEDS, size=1)),
        }
