"""How fast this machine could run a model if it did nothing but the model's matrix products, each at its best."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from benchmarks.noise import Reference, judge
from benchmarks.shapes import Shape
from bge_integrations.backend.machine.cpu import usable_threads

PRECISIONS = ("float32", "bfloat16")

_ROWS = (512, 1024)
_LEAST_REPETITIONS = 2


@dataclass(frozen=True)
class Product:
    """One of the matrix products that a layer is made of: rows of width `wide` become rows of width `out`."""

    name: str
    wide: int
    out: int

    def flops(self, rows: int) -> int:
        """Multiplications and additions for so many rows."""
        return 2 * rows * self.wide * self.out


def products_of(width: int) -> tuple[Product, ...]:
    """Returns the matrix products of a layer, which are 24 d² a token together."""
    return (
        Product("queries, keys, values", width, 3 * width),
        Product("attention output", width, width),
        Product("feed-forward in", width, 4 * width),
        Product("feed-forward out", 4 * width, width),
    )


def measure(
    shape: Shape,
    mixes: Mapping[str, Mapping[str, float]],
    throughput: Mapping[str, Mapping[str, Any]],
    precisions: Mapping[str, str],
    *,
    seconds: float,
    reference: Reference,
) -> dict[str, Any]:
    """Measures the peak, and sets what was achieved against it.

    Args:
        shape: The model's.
        mixes: Statistics of the texts of each mix.
        throughput: The throughput part by mix; those that were not measured are missing.
        precisions: How each contender computes. There is no limit for int8.
        seconds: For each product and kernel.
        reference: Timed around everything.

    Returns:
        Plain data: `noise`, `peaks` by precision and product, and by mix `flops_a_token`, `tokens_per_s` and `achieved`
        (a part of the limit, by contender).
    """
    reference.seconds.clear()
    reference.time()
    peaks: dict[str, dict[str, dict[str, Any]]] = {}
    for precision in PRECISIONS:
        peaks[precision] = {}
        for product in products_of(shape.width):
            peaks[precision][product.name] = _best(product, precision, seconds)
            reference.time()
    rates = {
        precision: {name: float(peak["flops_per_s"]) for name, peak in of_precision.items()}
        for precision, of_precision in peaks.items()
    }
    limits = {}
    for mix, statistics in mixes.items():
        length = statistics["token_weighted_mean"]
        tokens = {precision: tokens_per_second(shape, length, rates[precision]) for precision in PRECISIONS}
        results = throughput.get(mix, {}).get("results", {})
        achieved = {
            name: result["tokens_per_s"] / tokens[precisions[name]]
            for name, result in results.items()
            if precisions[name] in tokens
        }
        flops = shape.flops_a_token(length)
        limits[mix] = {"flops_a_token": flops, "tokens_per_s": tokens, "achieved": achieved}
    return {"noise": asdict(judge(reference.seconds)), "peaks": peaks, "mixes": limits}


def tokens_per_second(shape: Shape, length: float, flops_per_s: Mapping[str, float]) -> float:
    """Returns the limit: each product at its own peak, attention's at the best of them.

    Args:
        shape: The model's.
        length: Token-weighted mean of the texts' lengths.
        flops_per_s: The peak of each product by name.
    """
    layer = sum(product.flops(1) / flops_per_s[product.name] for product in products_of(shape.width))
    attention = 4 * shape.width * length / max(flops_per_s.values())
    return 1 / (shape.layers * (layer + attention))


def _best(product: Product, precision: str, seconds: float) -> dict[str, Any]:
    kernels: dict[str, Callable[[Product, int, str, float], float]] = {"torch": _torch_seconds}
    if importlib.util.find_spec("openvino"):
        kernels["openvino"] = _openvino_seconds
    measured = [
        {"flops_per_s": product.flops(rows) / time_one(product, rows, precision, seconds), "kernel": name, "rows": rows}
        for name, time_one in kernels.items()
        for rows in _ROWS
    ]
    return max(measured, key=lambda peak: float(peak["flops_per_s"]))


def _torch_seconds(product: Product, rows: int, precision: str, seconds: float) -> float:
    """Times `F.linear`, all cores on one product."""
    import torch

    dtype = getattr(torch, precision)
    inputs = torch.randn(rows, product.wide).to(dtype)
    weights = torch.randn(product.out, product.wide).to(dtype)
    with torch.inference_mode():
        return _least_seconds(lambda: torch.nn.functional.linear(inputs, weights), seconds)


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
        "INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[precision],
    }
    with openvino_core() as core:
        queue = ov.AsyncInferQueue(core.compile_model(graph, "CPU", settings))
    data = random.standard_normal((rows, product.wide), dtype=np.float32)
    jobs = 8 * len(queue)

    def run_jobs() -> None:
        for _ in range(jobs):
            queue.start_async({0: data}, share_inputs=True)
        queue.wait_all()

    return _least_seconds(run_jobs, seconds) / jobs


def _least_seconds(work: Callable[[], object], seconds: float) -> float:
    """Repeats something for a while; a limit is what the machine can do when nothing disturbs it."""
    work()
    taken: list[float] = []
    end = time.perf_counter() + seconds
    while len(taken) < _LEAST_REPETITIONS or time.perf_counter() < end:
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return min(taken)
