"""Kernels of Triton for what an encoder computes between its matrix products. Each reads and writes its rows once.

All of them compute in float32 and round once, at the end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from bge_integrations.backend.engines.torch.operations import Norm

try:
    import triton
    import triton.language as tl
except ImportError:  # it comes with torch's builds for GPUs; without it, `kernel_choice` does not use this module
    triton = tl = None

# Blocks have a power of two as their width, so a row of 384 numbers takes 512. Four rows are the work of four warps.
_ROWS_A_PROGRAM = 4
_COLUMNS_A_PROGRAM = 1024

_any_value = ("count", "ids", "positions")
"""Arguments whose values do not lead to further compilations, which would take place during a query."""
_jit: Callable[[Callable[..., Any]], Any] = (
    triton.jit(do_not_specialize=_any_value) if triton else lambda kernel: kernel
)


@_jit
def _places(
    count: tl.tensor, width: tl.constexpr, block: tl.constexpr, rows_a_program: tl.constexpr
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Returns the rows of a program, its columns, and which pairs of them there are."""
    row = tl.program_id(0).to(tl.int64) * rows_a_program + tl.arange(0, rows_a_program)
    columns = tl.arange(0, block)
    return row, columns, (row < count)[:, None] & (columns < width)[None, :]


@_jit
def _store_normed(
    sums: tl.tensor,
    inside: tl.tensor,
    places: tl.tensor,
    columns: tl.tensor,
    out: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    eps: tl.tensor,
    width: tl.constexpr,
) -> None:
    """Normalises the rows of a block and writes them."""
    centred = tl.where(inside, sums - (tl.sum(sums, axis=1) / width)[:, None], 0.0)
    scale = 1.0 / tl.sqrt(tl.sum(centred * centred, axis=1) / width + eps)
    factors = tl.load(weight + columns, mask=columns < width, other=0.0).to(tl.float32)
    shifts = tl.load(bias + columns, mask=columns < width, other=0.0).to(tl.float32)
    normed = centred * scale[:, None] * factors[None, :] + shifts[None, :]
    tl.store(out + places, normed.to(out.dtype.element_ty), mask=inside)


@_jit
def _add_and_norm(
    out: tl.tensor,
    rows: tl.tensor,
    residual: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    eps: tl.tensor,
    count: tl.tensor,
    width: tl.constexpr,
    block: tl.constexpr,
    rows_a_program: tl.constexpr,
) -> None:
    row, columns, inside = _places(count, width, block, rows_a_program)
    places = row[:, None] * width + columns[None, :]
    sums = tl.load(rows + places, mask=inside, other=0.0).to(tl.float32)
    sums += tl.load(residual + places, mask=inside, other=0.0).to(tl.float32)
    _store_normed(sums, inside, places, columns, out, weight, bias, eps, width)


@_jit
def _embed_and_norm(
    out: tl.tensor,
    ids: tl.tensor,
    positions: tl.tensor,
    words: tl.tensor,
    table: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    eps: tl.tensor,
    count: tl.tensor,
    width: tl.constexpr,
    block: tl.constexpr,
    rows_a_program: tl.constexpr,
) -> None:
    row, columns, inside = _places(count, width, block, rows_a_program)
    # The table of words may have more than 2**31 numbers.
    word = tl.load(ids + row, mask=row < count, other=0).to(tl.int64)
    position = tl.load(positions + row, mask=row < count, other=0).to(tl.int64)
    sums = tl.load(words + word[:, None] * width + columns[None, :], mask=inside, other=0.0).to(tl.float32)
    sums += tl.load(table + position[:, None] * width + columns[None, :], mask=inside, other=0.0).to(tl.float32)
    places = row[:, None] * width + columns[None, :]
    _store_normed(sums, inside, places, columns, out, weight, bias, eps, width)


@_jit
def _bias_and_gelu(
    rows: tl.tensor, bias: tl.tensor, width: tl.constexpr, block: tl.constexpr, blocks: tl.constexpr
) -> None:
    row = (tl.program_id(0) // blocks).to(tl.int64)
    columns = tl.program_id(0) % blocks * block + tl.arange(0, block)
    places = row * width + columns
    sums = tl.load(rows + places, mask=columns < width, other=0.0).to(tl.float32)
    sums += tl.load(bias + columns, mask=columns < width, other=0.0).to(tl.float32)
    activated = 0.5 * sums * (1.0 + tl.erf(sums * 0.7071067811865476))
    tl.store(rows + places, activated.to(rows.dtype.element_ty), mask=columns < width)


class TritonOperations:
    """One kernel for each of `Operations`. No gradient passes them."""

    def embedded(
        self, ids: torch.Tensor, positions: torch.Tensor, words: torch.Tensor, table: torch.Tensor, norm: Norm
    ) -> torch.Tensor:
        """See `Operations.embedded`."""
        out = words.new_empty(len(ids), words.shape[1])
        _embed_and_norm[_grid(out)](out, ids, positions, words, table, *_of_norm(out, norm))
        return out

    def added(self, rows: torch.Tensor, residual: torch.Tensor, norm: Norm) -> torch.Tensor:
        """See `Operations.added`."""
        out = torch.empty(rows.shape, dtype=rows.dtype, device=rows.device)
        _add_and_norm[_grid(out)](out, rows.contiguous(), residual.contiguous(), *_of_norm(out, norm))
        return out

    def activated(self, rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """See `Operations.activated`. The product is overwritten, so that no second tensor of this size is needed."""
        product = functional.linear(rows, weight)
        count, width = product.shape
        block = min(triton.next_power_of_2(width), _COLUMNS_A_PROGRAM)
        blocks = triton.cdiv(width, block)
        _bias_and_gelu[(count * blocks,)](product, bias, width, block, blocks)
        return product


def _grid(out: torch.Tensor) -> tuple[int]:
    return (triton.cdiv(len(out), _ROWS_A_PROGRAM),)


def _of_norm(out: torch.Tensor, norm: Norm) -> tuple[object, ...]:
    """Returns the last arguments of a kernel that normalises rows."""
    count, width = out.shape
    return norm.weight, norm.bias, norm.eps, count, width, triton.next_power_of_2(width), _ROWS_A_PROGRAM
