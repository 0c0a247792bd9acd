"""The computations between the matrix products of an encoder: by torch, or on CUDA by one kernel each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch.nn import functional


@dataclass(frozen=True)
class Norm:
    """A layer normalisation.

    Attributes:
        weight: Shape [width].
        bias: Shape [width].
        eps: Number added to the variance.
    """

    weight: torch.Tensor
    bias: torch.Tensor
    eps: float


class Operations(Protocol):
    """The computations between the matrix products. Rows have the shape [tokens, width]."""

    def embedded(
        self, ids: torch.Tensor, positions: torch.Tensor, words: torch.Tensor, table: torch.Tensor, norm: Norm
    ) -> torch.Tensor:
        """Returns the normalised sums of the rows `ids` of `words` and the rows `positions` of `table`."""
        ...

    def added(self, rows: torch.Tensor, residual: torch.Tensor, norm: Norm) -> torch.Tensor:
        """Returns the normalised sums of two tensors of rows."""
        ...

    def activated(self, rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """Returns GELU, by the error function, of a linear map."""
        ...


class TorchOperations:
    """Torch's own operations, which gradients pass."""

    def embedded(
        self, ids: torch.Tensor, positions: torch.Tensor, words: torch.Tensor, table: torch.Tensor, norm: Norm
    ) -> torch.Tensor:
        """See `Operations.embedded`."""
        return self.added(functional.embedding(ids, words), functional.embedding(positions, table), norm)

    def added(self, rows: torch.Tensor, residual: torch.Tensor, norm: Norm) -> torch.Tensor:
        """See `Operations.added`."""
        return functional.layer_norm(rows + residual, norm.weight.shape, norm.weight, norm.bias, norm.eps)

    def activated(self, rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """See `Operations.activated`."""
        return functional.gelu(functional.linear(rows, weight, bias))
