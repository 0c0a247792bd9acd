"""Rows of all processes as one tensor, with the exact gradient. Imports torch."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["gather_rows", "process_count", "process_rank", "total", "wait_for_all"]


def process_count() -> int:
    """Returns the number of processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def process_rank() -> int:
    """Returns the number of this process, from 0."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def wait_for_all() -> None:
    """Returns when every process has come here."""
    if process_count() > 1:
        dist.barrier()


def total(number: float, device: torch.device) -> float:
    """Returns the sum of a number over all processes."""
    if process_count() == 1:
        return number
    sums = torch.tensor([number], dtype=torch.float64, device=device)
    dist.all_reduce(sums)
    return float(sums[0])


def gather_rows(rows: Tensor) -> tuple[Tensor, int]:
    """Returns the rows of all processes, those of the first process first.

    The gradient of a row is the sum of its gradients in all processes. So, with the mean of all processes' gradients
    that DistributedDataParallel takes, a loss over all rows has the gradient that one process with all rows has.
    Processes may have different numbers of rows.

    Args:
        rows: Shape [rows of this process, ...].

    Returns:
        The rows of all processes, and the place of this process's first row.
    """
    if process_count() == 1:
        return rows, 0
    counts = _counts(len(rows), rows.device)
    gathered: Tensor = _Gather.apply(rows, counts)  # type: ignore[no-untyped-call]
    return gathered, sum(counts[: process_rank()])


def _counts(count: int, device: torch.device) -> list[int]:
    own = torch.tensor([count], dtype=torch.int64, device=device)
    found = [torch.zeros_like(own) for _ in range(process_count())]
    dist.all_gather(found, own)
    return [int(one[0]) for one in found]


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, counts: list[int]) -> Tensor:  # noqa: ANN401 - torch's context
        ctx.counts = counts
        # Every process sends the same number of rows.
        padded = rows.new_zeros((max(counts), *rows.shape[1:]))
        padded[: len(rows)] = rows
        found = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(found, padded)
        return torch.cat([part[:count] for part, count in zip(found, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401 - torch's context
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        first = sum(ctx.counts[: process_rank()])
        return gradient[first : first + ctx.counts[process_rank()]], None
