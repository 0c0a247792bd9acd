"""The choice between our kernels and torch's operations, by a trial on the device."""

from __future__ import annotations

import importlib.util

import torch
from torch.nn import functional

from bge_integrations.backend.engines.torch.operations import Norm, Operations, TorchOperations
from bge_integrations.backend.guarantees.logs import get_logger

logger = get_logger(__name__)

# What may differ from float64, absolutely and in proportion: twice the rounding of a half precision, and what sums over
# a row of 1024 numbers lose in float32.
TOLERANCES = {torch.float32: 1e-5, torch.float16: 2 * 2.0**-11, torch.bfloat16: 2 * 2.0**-8}
_ROWS_OF_CHECK = 7


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
