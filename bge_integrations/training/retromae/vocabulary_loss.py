"""Cross entropy over a vocabulary, without a tensor of all logits. Imports torch.

The logits of 16,384 tokens over 30,522 words are 2 GB in float32, and their gradient too. Here the loss and its
gradients are computed together, for some rows at a time.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["vocabulary_loss"]

_LOGITS_AT_ONCE = 1 << 24
"""Logits in memory; two tensors of them have 64 MiB each in float32."""
_LEAST_ROWS = 256
"""Fewer rows at once would spend the time on adding up the gradient of a large vocabulary."""


def vocabulary_loss(rows: Tensor, weight: Tensor, bias: Tensor, wanted: Tensor) -> Tensor:
    """Returns the sum of the cross entropies of some rows.

    Args:
        rows: Shape [rows, width].
        weight: The table of words, shape [vocabulary, width].
        bias: Shape [vocabulary].
        wanted: The right token id of each row.
    """
    kind = rows.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
    found: Tensor = _VocabularyLoss.apply(rows, weight, bias, wanted, dtype)  # type: ignore[no-untyped-call]
    return found


class _VocabularyLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor, wanted: Tensor, dtype: torch.dtype) -> Tensor:  # noqa: ANN401 - torch's context
        at_once = max(_LEAST_ROWS, _LOGITS_AT_ONCE // len(weight))
        table = weight.to(dtype)
        of_rows, of_weight, of_bias = torch.empty_like(rows), torch.zeros_like(weight), torch.zeros_like(bias)
        total = rows.new_zeros((), dtype=bias.dtype)
        with torch.autocast(rows.device.type, enabled=False):
            for begin in range(0, len(rows), at_once):
                part = slice(begin, begin + at_once)
                given, right = rows[part].to(dtype), wanted[part, None]
                logits = functional.linear(given, table).to(bias.dtype).add_(bias)
                logs = torch.log_softmax(logits, dim=-1)
                total -= logs.gather(1, right).sum()
                # The gradient of the logits: the probabilities, less 1 for the right token.
                slopes = logs.exp_()
                slopes.scatter_add_(1, right, slopes.new_full(right.shape, -1.0))
                of_bias += slopes.sum(0)
                slopes = slopes.to(dtype)
                of_rows[part] = slopes @ table
                of_weight += slopes.T @ given
        ctx.save_for_backward(of_rows, of_weight, of_bias)
        return total

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:  # noqa: ANN401 - torch's context
        of_rows, of_weight, of_bias = ctx.saved_tensors
        return of_rows * slope, of_weight * slope, of_bias * slope, None, None
