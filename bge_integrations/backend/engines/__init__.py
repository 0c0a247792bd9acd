"""What computes: one small class an engine, all behind the same interface."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["Engine", "TokenBatch"]


@dataclass(frozen=True)
class TokenBatch:
    """One forward pass worth of texts.

    Attributes:
        ids: Token ids, one list a text, special tokens included, not padded.
        prompt_length: Tokens at the start of every text that come from an instruction, special tokens before it
            included. Only checkpoints that leave the instruction out of their mean look at it.
    """

    ids: list[list[int]]
    prompt_length: int = 0


class Engine(Protocol):
    """Runs a loaded model."""

    name: str
    default_batch_tokens: int

    def pool(self, batch: TokenBatch) -> NDArray[np.float32]:
        """Runs one batch.

        Returns:
            The pooled vector of each text, before normalisation, float32, shape [len(batch.ids), dimension].
        """
        ...
