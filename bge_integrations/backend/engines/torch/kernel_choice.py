"""The choice between fast kernels and torch's operations, by a trial on the device."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import cache
from typing import cast

import torch
from torch.nn import functional

from bge_integrations.backend.engines.torch.operations import Norm, Operations, TorchOperations
from bge_integrations.backend.guarantees.logs import get_logger

logger = get_logger(__name__)

# What may differ from float64, absolutely and in proportion: twice the rounding of a half precision, and what sums over
# a row of 1024 numbers lose in float32.
TOLERANCES = {torch.float32: 1e-5, torch.float16: 2 * 2.0**-11, torch.bfloat16: 2 * 2.0**-8}
_ROWS_OF_CHECK = 7
# Attention rounds its weights too, before it adds up the values.
_TOLERANCE_OF_ATTENTION = 8
_LENGTHS_OF_CHECK = (17, 1, 40)

AttentionKernel = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, int, int], torch.Tensor
]
"""Queries, keys and values, shape [tokens, heads, head size], where the texts of each end, and the longest of each."""


def fastest_operations(device: torch.device, dtype: torch.dtype, width: int) -> Operations:
    """Returns the kernels where they work, else torch's operations.

    The kernels are tried on a few rows first. If they fail or are wrong, a warning says so.

    Args:
        device: The device of the model.
        dtype: Its precision.
        width: Its hidden size.
    """
    if device.type != "cuda" or importlib.util.find_spec("triton") is None:
        return TorchOperations()
    try:
        from bge_integrations.backend.engines.torch.kernels import TritonOperations

        operations = TritonOperations()
        with torch.cuda.device(device):
            check(operations, device, dtype, width)
    except Exception as error:  # no C compiler, an unknown card, a fault of the kernels
        logger.warning("our kernels can't be used on %s; torch's operations compute instead: %r", device, error)
        return TorchOperations()
    return operations


def check(operations: Operations, device: torch.device, dtype: torch.dtype, width: int) -> None:
    """Compares operations with torch's in float64.

    Raises:
        ArithmeticError: A result differs by more than `TOLERANCES`.
    """
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(device, dtype)

    count, exact = _ROWS_OF_CHECK, TorchOperations()
    rows, residual, words, table = random(count, width), random(count, width), random(50, width), random(20, width)
    # the four parts of a feed-forward width, so that no product of this check is large
    linear = (random(width, width) * width**-0.5, random(width))
    norm = Norm(1 + random(width) / 10, random(width), 1e-12)
    ids, positions = (
        torch.randint(0, most, (count,), generator=generator, dtype=torch.int32).to(device) for most in (50, 20)
    )
    in_double = Norm(norm.weight.double(), norm.bias.double(), norm.eps)
    with torch.inference_mode():
        product = functional.linear(rows, linear[0]).double() + linear[1].double()
        pairs = {
            "embeddings": (
                operations.embedded(ids, positions, words, table, norm),
                exact.embedded(ids, positions, words.double(), table.double(), in_double),
            ),
            "residual": (
                operations.added(rows, residual, norm),
                exact.added(rows.double(), residual.double(), in_double),
            ),
            "activation": (operations.activated(rows, *linear), functional.gelu(product)),
        }
    tolerance = TOLERANCES[dtype]
    for name, (found, expected) in pairs.items():
        if not torch.allclose(found.double(), expected, rtol=tolerance, atol=tolerance):
            worst = float((found.double() - expected).abs().max())
            raise ArithmeticError(f"{name}: a result of the kernel differs by {worst:g} from float64")


@cache
def attention_kernel(device: torch.device, dtype: torch.dtype, head_size: int) -> AttentionKernel | None:
    """Returns torch's attention kernel for texts of different lengths; `None` where it does not work.

    It needs half precision, torch 2.10, a card from Ampere on, and a head size that is a multiple of 8. It is tried
    once for each device, precision and head size.

    Args:
        device: The device of the queries, keys and values.
        dtype: Their precision.
        head_size: Width of one attention head.
    """
    if device.type != "cuda" or dtype == torch.float32:
        return None
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    try:
        with torch.cuda.device(device):
            check_attention(cast("AttentionKernel", varlen_attn), device, dtype, head_size)
    except Exception as error:  # an old card, a build without the kernel, a head size that it does not know
        logger.info("texts are padded during attention on %s: %r", device, error)
        return None
    return cast("AttentionKernel", varlen_attn)  # it can return further numbers too


def check_attention(kernel: AttentionKernel, device: torch.device, dtype: torch.dtype, head_size: int) -> None:
    """Compares an attention kernel with torch's attention in float64: from all tokens, and from one token a text.

    Raises:
        ArithmeticError: A result differs by more than eight times `TOLERANCES`.
    """
    generator, lengths = torch.Generator().manual_seed(0), torch.tensor(_LENGTHS_OF_CHECK)
    packed = torch.randn(int(lengths.sum()), 3, 2, head_size, generator=generator).to(device, dtype)
    ends = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]).to(device, torch.int32)
    one_each = torch.arange(len(ends), dtype=torch.int32, device=device)
    longest, tolerance = int(lengths.max()), _TOLERANCE_OF_ATTENTION * TOLERANCES[dtype]
    with torch.inference_mode():
        query, key, value = packed.unbind(1)
        by_text = zip(
            *(torch.split(part.double(), list(_LENGTHS_OF_CHECK)) for part in (query, key, value)), strict=True
        )
        expected = [
            functional.scaled_dot_product_attention(*(part.transpose(0, 1) for part in parts)).transpose(0, 1)
            for parts in by_text
        ]
        first = query[ends[:-1]]
        pairs = {
            "all tokens": (kernel(query, key, value, ends, ends, longest, longest), torch.cat(expected)),
            "first tokens": (
                kernel(first, key, value, one_each, ends, 1, longest),
                torch.stack([rows[0] for rows in expected]),
            ),
        }
    for name, (found, right) in pairs.items():
        if not torch.allclose(found.double(), right, rtol=tolerance, atol=tolerance):
            worst = float((found.double() - right).abs().max())
            raise ArithmeticError(f"attention from {name} differs by {worst:g} from float64")
