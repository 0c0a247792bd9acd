"""The memory layout of the texts of an unpadded batch during attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from bge_integrations.backend.engines.interface import TokenBatch


class Layout(Protocol):
    """Converts rows of tokens into blocks of whole texts, and back."""

    def blocks(self, rows: torch.Tensor) -> list[torch.Tensor]:
        """Splits rows, shape [tokens, width], into blocks, each of shape [texts, longest, width]."""
        ...

    def join(self, blocks: Sequence[torch.Tensor]) -> torch.Tensor:
        """Reverses `blocks`."""
        ...

    @property
    def mask(self) -> torch.Tensor | None:
        """Mask of tokens that are not padding, shape [texts, 1, 1, longest]; `None` without padding."""
        ...


class EqualLengths:
    """One block for each run of texts with equal lengths: a view without padding or mask. Best on the CPU.

    Batches are sorted by length, so there are few runs.
    """

    mask = None

    def __init__(self, lengths: NDArray[np.int64]) -> None:
        ends = np.flatnonzero(np.diff(lengths, append=-1)) + 1
        self._runs = [
            (int(count), int(lengths[end - 1])) for count, end in zip(np.diff(ends, prepend=0), ends, strict=True)
        ]
        self._sizes = [count * length for count, length in self._runs]

    def blocks(self, rows: torch.Tensor) -> list[torch.Tensor]:
        """See `Layout.blocks`."""
        parts = torch.split(rows, self._sizes)
        return [part.view(*run, rows.shape[1]) for part, run in zip(parts, self._runs, strict=True)]

    def join(self, blocks: Sequence[torch.Tensor]) -> torch.Tensor:
        """See `Layout.join`."""
        flat = [block.reshape(-1, block.shape[-1]) for block in blocks]
        return flat[0] if len(flat) == 1 else torch.cat(flat)


class OneBlock:
    """All texts in one padded block. A few large operations instead of many small ones are faster on a GPU."""

    def __init__(self, batch: TokenBatch, device: torch.device) -> None:
        self._shape = batch.is_token.shape
        self._places = torch.from_numpy(np.flatnonzero(batch.is_token)).to(device)
        full = batch.lengths.min() == batch.lengths.max()
        self.mask = None if full else torch.from_numpy(batch.is_token).to(device)[:, None, None]

    def blocks(self, rows: torch.Tensor) -> list[torch.Tensor]:
        """See `Layout.blocks`."""
        padded = rows.new_zeros(self._shape[0] * self._shape[1], rows.shape[1])
        padded[self._places] = rows
        return [padded.view(*self._shape, rows.shape[1])]

    def join(self, blocks: Sequence[torch.Tensor]) -> torch.Tensor:
        """See `Layout.join`."""
        (block,) = blocks
        return block.reshape(-1, block.shape[-1])[self._places]
