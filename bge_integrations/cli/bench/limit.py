"""How fast a device could run an encoder if it did nothing but the encoder's matrix products, each at its best."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bge_integrations.backend.engines.architecture import EncoderShape
from bge_integrations.backend.machine.cpu import usable_threads

__all__ = ["Peak", "Product", "flops_a_token", "measure_peaks", "products_of", "rows_of", "tokens_per_second"]

_ROWS_ON_CPU = (512, 1024)
_ROWS_ON_GPU = (16384, 65536)
"""So many that they fill a card."""

_LEAST_REPETITIONS = 2
_LAUNCHES = 20
"""Between two waits for a GPU, so that it never waits for the next launch."""

_OPENVINO_PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}


@dataclass(frozen=True)
class Product:
    """One of the matrix products of a layer: rows of width `wide` become rows of width `out`."""

    name: str
    wide: int
    out: int

    def flops(self, rows: int) -> int:
        """Returns the number of multiplications and additions for some rows."""
        return 2 * rows * self.wide * self.out


@dataclass(frozen=True)
class Peak:
    """The best measured speed of a product.

    Attributes:
        flops_per_s: Multiplications and additions in a second.
        kernel: Library that computed it: "torch" or "openvino".
        rows: Number of rows.
    """

    flops_per_s: float
    kernel: str
    rows: int


def products_of(shape: EncoderShape) -> tuple[Product, ...]:
    """Returns the matrix products of a layer."""
    width, inner = shape.hidden_size, shape.feed_forward_size
    return (
        Product("queries, keys, values", width, 3 * width),
        Product("attention output", width, width),
        Product("feed-forward in", width, inner),
        Product("feed-forward out", inner, width),
    )


def flops_a_token(shape: EncoderShape, length: float) -> float:
    """Returns the number of multiplications and additions for one token of a text, in all layers.

    To those of the products, attention adds 4 for each token of the text and number of the width: scores and context.

    Args:
        shape: The encoder's shape.
        length: Tokens of the text; of several texts, the mean length weighted by tokens.
    """
    return shape.layers * (sum(product.flops(1) for product in products_of(shape)) + 4 * shape.hidden_size * length)


def tokens_per_second(shape: EncoderShape, length: float, flops_per_s: Mapping[str, float]) -> float:
    """Returns the limit: each product at its own peak, and attention at the best of them.

    Args:
        shape: The encoder's shape.
        length: As for `flops_a_token`.
        flops_per_s: The peak of each product, by name.
    """
    layer = sum(product.flops(1) / flops_per_s[product.name] for product in products_of(shape))
    attention = 4 * shape.hidden_size * length / max(flops_per_s.values())
    return 1 / (shape.layers * (layer + attention))


def rows_of(device: str) -> tuple[int, ...]:
    """Returns the numbers of rows at which a device computes products well."""
    return _ROWS_ON_CPU if device == "cpu" else _ROWS_ON_GPU


def measure_peaks(
    shape: EncoderShape, precision: str, device: str, *, rows: Sequence[int], seconds: float
) -> dict[str, Peak]:
    """Measures each product of a layer, and returns its best speed by name.

    Float32 on a GPU is computed with torch's own setting for TF32, which leaves it off.

    Args:
        shape: The encoder's shape.
        precision: "float32", "bfloat16" or "float16".
        device: A device of this machine.
        rows: Numbers of rows to try.
        seconds: Least time for each product, library and number of rows.
    """
    kernels: dict[str, Callable[[Product, int], float]] = {}
    if importlib.util.find_spec("torch"):
        kernels["torch"] = lambda product, count: _torch_seconds(product, count, precision, device, seconds)
    if device == "cpu" and precision in _OPENVINO_PRECISIONS and importlib.util.find_spec("openvino"):
        kernels["openvino"] = lambda product, count: _openvino_seconds(product, count, precision, seconds)
    return {
        product.name: max(
            (
                Peak(product.flops(count) / time_one(product, count), name, count)
                for name, time_one in kernels.items()
                for count in rows
            ),
            key=lambda peak: peak.flops_per_s,
        )
        for product in products_of(shape)
    }


def _torch_seconds(product: Product, rows: int, precision: str, device: str, seconds: float) -> float:
    """Times `F.linear`: all cores on one product, or launches one after the other."""
    import torch

    dtype = getattr(torch, precision)
    inputs = torch.randn(rows, product.wide, device=device).to(dtype)
    weights = torch.randn(product.out, product.wide, device=device).to(dtype)
    if device == "cpu":
        with torch.inference_mode():
            return _least_seconds(lambda: torch.nn.functional.linear(inputs, weights), seconds)

    def launch() -> None:
        for _ in range(_LAUNCHES):
            torch.nn.functional.linear(inputs, weights)
        torch.accelerator.synchronize(device)

    with torch.inference_mode():
        return _least_seconds(launch, seconds) / _LAUNCHES


def _openvino_seconds(product: Product, rows: int, precision: str, seconds: float) -> float:
    """Times a graph of one `MatMul`, one product beside the other as the plugin thinks best."""
    from bge_integrations.backend.engines.openvino.library import op as ops
    from bge_integrations.backend.engines.openvino.library import openvino_core, ov

    random = np.random.default_rng(0)
    inputs = ops.parameter([rows, product.wide], np.float32)
    weights = ops.constant(random.standard_normal((product.out, product.wide), dtype=np.float32))
    graph = ov.Model([ops.matmul(inputs, weights, False, True)], [inputs])
    settings = {
        "PERFORMANCE_HINT": "THROUGHPUT",
        "INFERENCE_NUM_THREADS": str(usable_threads()),
        "INFERENCE_PRECISION_HINT": _OPENVINO_PRECISIONS[precision],
    }
    with openvino_core() as core:
        queue = ov.AsyncInferQueue(core.compile_model(graph, "CPU", settings))
    data = random.standard_normal((rows, product.wide), dtype=np.float32)
    jobs = 2 * len(queue)

    def run_jobs() -> None:
        for _ in range(jobs):
            queue.start_async({0: data}, share_inputs=True)
        queue.wait_all()

    return _least_seconds(run_jobs, seconds) / jobs


def _least_seconds(work: Callable[[], object], seconds: float) -> float:
    """Repeats some work for a while. A limit is what the machine can do when nothing disturbs it."""
    work()
    taken: list[float] = []
    end = time.perf_counter() + seconds
    while len(taken) < _LEAST_REPETITIONS or time.perf_counter() < end:
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return min(taken)
