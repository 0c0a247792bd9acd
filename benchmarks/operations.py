"""Measures where OpenVINO's time goes: products, attention, normalisation, and moves between layouts and precisions.

The weights are random and the shapes true. Everything runs on one thread, as the engines for many documents do on two
cores. A run's time is the median of its processor time, which a busy machine hardly changes. OpenVINO's own times of
operations are wall times; the median of all runs counts, since most runs of a short operation are undisturbed. Products
are too long for that, so they get what the other operations leave of the processor time. Prints tables, and saves JSON.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from benchmarks import machine
from benchmarks.command import names, parser_of, save
from benchmarks.shapes import SHAPES, Shape
from benchmarks.stats import interleaved
from benchmarks.table_parts import make_table
from bge_integrations.backend.engines.architecture import EncoderShape, weight_shapes
from bge_integrations.cli.bench.limit import Product, products_of, tokens_per_second

if TYPE_CHECKING:
    from bge_integrations.backend.engines.openvino.library import ov

PRECISIONS = ("float32", "bfloat16", "int8")
PRODUCTS = "products, with bias and GELU"
ATTENTION = "attention, with its softmax"
NORM = "LayerNorm and residuals"
GELU = "GELU outside products"
MOVES = "transposes, splits, conversions"
OTHERS = "others"
KINDS = (PRODUCTS, ATTENTION, NORM, GELU, MOVES, OTHERS)

_KIND_OF_TYPE = {
    **dict.fromkeys(("FullyConnected", "FullyConnectedCompressed"), PRODUCTS),
    **dict.fromkeys(("Subgraph", "ScaledDotProductAttention", "MatMul", "Softmax", "PowerStatic"), ATTENTION),
    **dict.fromkeys(("MVN", "Add", "Multiply"), NORM),
    **dict.fromkeys(("Gelu", "Erf"), GELU),
    **dict.fromkeys(("Transpose", "Split", "Reorder", "Convert", "FakeQuantize", "Reshape"), MOVES),
}
_PRODUCT_ROWS = 512
_PRODUCT_REPETITIONS = 8
_THREADS = 1


def measure(
    shape: Shape, precisions: Sequence[str], batches: Sequence[tuple[int, int]], *, rounds: int
) -> list[dict[str, Any]]:
    """Measures one model.

    Args:
        shape: The model's.
        precisions: Those to compare.
        batches: Numbers of texts, and of tokens in each.
        rounds: How often each precision computes each batch, in turns.

    Returns:
        Plain data by batch: `texts`, `tokens` (of a text), and by precision `processor_ms`, `kinds` (milliseconds),
        `operations` (milliseconds, number and kernels by type of operation), and `achieved`: the part of the limit for
        the matrix products of this shape, in one thread; `None` for int8.
    """
    encoder = shape.encoder
    peaks = {
        precision: {
            product.name: product.flops(_PRODUCT_ROWS) / _product_seconds(product, precision, rounds)
            for product in products_of(encoder)
        }
        for precision in precisions
        if precision != "int8"
    }
    found = []
    for texts, tokens in batches:
        # Compiled for each batch, since the operations' times are means of all runs of a compiled model.
        requests = {precision: _request(encoder, precision) for precision in precisions}
        spent: dict[str, list[float]] = {precision: [] for precision in precisions}
        clocks = {precision: OperationClock() for precision in precisions}
        inputs = _inputs(texts, tokens, encoder.hidden_size)
        for _, order in interleaved(list(requests), rounds + 1):
            for precision in order:
                start = time.process_time()
                requests[precision].infer(inputs)
                spent[precision].append((time.process_time() - start) * 1000)
                clocks[precision].add(requests[precision].profiling_info)
        results = {}
        for precision in precisions:
            milliseconds = spent[precision][1:]  # the first run makes kernels for this batch
            rate = texts * tokens / statistics.median(milliseconds) * 1000
            results[precision] = {
                "processor_ms": statistics.median(milliseconds),
                **summarize(clocks[precision].medians(), statistics.median(milliseconds)),
                "achieved": rate / tokens_per_second(encoder, tokens, peaks[precision]) if precision in peaks else None,
            }
        found.append({"texts": texts, "tokens": tokens, "results": results})
    return found


Operation = tuple[str, str, float]
"""The type of an operation, its kernel, and milliseconds."""


def summarize(operations: Mapping[str, Operation], processor_ms: float) -> dict[str, Any]:
    """Adds up operations by kind and by type.

    Args:
        operations: Each operation that ran, by name.
        processor_ms: Processor time of one run.
    """
    by_type: dict[str, dict[str, Any]] = {}
    kinds = dict.fromkeys(KINDS, 0.0)
    for name, kernel, milliseconds in operations.values():
        row = by_type.setdefault(name, {"ms": 0.0, "operations": 0, "kernels": []})
        row["ms"] += milliseconds
        row["operations"] += 1
        row["kernels"] = sorted({*row["kernels"], kernel})
        kinds[_KIND_OF_TYPE.get(name, OTHERS)] += milliseconds
    kinds[PRODUCTS] = max(processor_ms - sum(kinds.values()) + kinds[PRODUCTS], 0.0)
    return {"kinds": kinds, "operations": by_type}


class OperationClock:
    """The time of each operation in each run, from the means of all runs so far that OpenVINO gives."""

    def __init__(self) -> None:
        self._kinds: dict[str, tuple[str, str]] = {}
        self._totals: dict[str, float] = {}
        self._times: dict[str, list[float]] = defaultdict(list)

    def add(self, profile: Sequence[ov.ProfilingInfo]) -> None:
        """Adds one run."""
        for info in profile:
            if info.status == info.Status.EXECUTED:
                name, times = info.node_name, self._times[info.node_name]
                total = info.real_time.total_seconds() * 1000 * (len(times) + 1)
                times.append(total - self._totals.get(name, 0.0))
                self._totals[name], self._kinds[name] = total, (info.node_type, info.exec_type)

    def medians(self) -> dict[str, Operation]:
        """Returns the median of each operation's runs after the first; operations that ran only once are left out."""
        return {
            name: (*self._kinds[name], statistics.median(times[1:]))
            for name, times in self._times.items()
            if len(times) > 1
        }


def _request(encoder: EncoderShape, precision: str) -> ov.InferRequest:
    from bge_integrations.backend.engines.openvino.graph import build_graph

    random = np.random.default_rng(0)
    weights = {
        name: random.standard_normal(size, dtype=np.float32) * np.float32(encoder.hidden_size**-0.5)
        for name, size in weight_shapes(encoder, words=1, types=1).items()
    }
    graph = build_graph(weights, encoder, cls_only=True, int8="all" if precision == "int8" else None)
    return _compile(graph.model, precision)


def _compile(graph: ov.Model, precision: str) -> ov.InferRequest:
    from bge_integrations.backend.engines.openvino.engine import settings_of
    from bge_integrations.backend.engines.openvino.library import openvino_core

    settings = {**settings_of(precision, _THREADS), "PERF_COUNT": "YES"}
    with openvino_core() as core:
        return core.compile_model(graph, "CPU", settings).create_infer_request()


def _product_seconds(product: Product, precision: str, rounds: int) -> float:
    """Returns the processor time of one product alone, by the faster of OpenVINO and torch."""
    random = np.random.default_rng(0)
    rows = random.standard_normal((_PRODUCT_ROWS, product.wide), dtype=np.float32)
    weights = random.standard_normal((product.out, product.wide), dtype=np.float32)
    return min(
        _median_seconds(kernel(rows, weights, precision), rounds) for kernel in (_openvino_product, _torch_product)
    )


def _openvino_product(rows: NDArray[np.float32], weights: NDArray[np.float32], precision: str) -> Callable[[], object]:
    from bge_integrations.backend.engines.openvino.library import op, ov

    parameter = op.parameter(list(rows.shape), np.float32)
    product = op.matmul(parameter, op.constant(weights), False, True)
    request = _compile(ov.Model([product], [parameter]), precision)
    return lambda: request.infer({0: rows}, share_inputs=True)


def _torch_product(rows: NDArray[np.float32], weights: NDArray[np.float32], precision: str) -> Callable[[], object]:
    import torch

    left, right = (torch.from_numpy(array).to(getattr(torch, precision)) for array in (rows, weights))
    return lambda: torch.nn.functional.linear(left, right)


def _median_seconds(work: Callable[[], object], rounds: int) -> float:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(_THREADS)
    spent = []
    try:
        for _ in range(rounds + 1):
            start = time.process_time()
            for _ in range(_PRODUCT_REPETITIONS):
                work()
            spent.append((time.process_time() - start) / _PRODUCT_REPETITIONS)
    finally:
        torch.set_num_threads(threads)
    return statistics.median(spent[1:])


def _inputs(texts: int, tokens: int, width: int) -> dict[str, Any]:
    return {
        "words": np.random.default_rng(0).standard_normal((texts, tokens, width), dtype=np.float32),
        "positions": np.arange(tokens, dtype=np.int32)[None],
        "mask": np.zeros((texts, 1, 1, tokens), dtype=np.float32),
    }


def batch(value: str) -> tuple[int, int]:
    """Returns the two numbers of an option such as "4x128"."""
    texts, tokens = map(int, value.split("x"))
    return texts, tokens


def print_results(console: Console, results: Mapping[str, Any]) -> None:
    """Prints a table for each batch of each model."""
    for name, batches in results["shapes"].items():
        for found in batches:
            by_precision = found["results"]
            title = f"{name}, {found['texts']} texts of {found['tokens']} tokens: ms of processor time"
            table = make_table(title, *(column for precision in by_precision for column in (precision, "")))
            for kind in KINDS:
                cells = ((one["kinds"][kind], one["processor_ms"]) for one in by_precision.values())
                table.add_row(kind, *(text for ms, total in cells for text in (f"{ms:.2f}", f"{ms / total:.0%}")))
            table.add_row(
                "all, and part of the limit",
                *(
                    text
                    for one in by_precision.values()
                    for text in (f"{one['processor_ms']:.2f}", f"{one['achieved']:.0%}" if one["achieved"] else "–")
                ),
            )
            console.print(table)


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the options, measures, prints and saves."""
    parser = parser_of("benchmarks.operations", __doc__)
    add = parser.add_argument
    add("--shapes", type=names, default=["small-en", "small-zh", "base-en"], help=f"by commas: {', '.join(SHAPES)}")
    add("--precisions", type=names, default=list(PRECISIONS), help=f"by commas: {', '.join(PRECISIONS)}")
    add("--batches", type=batch, nargs="+", default=[(4, 128), (1, 20)], help="texts x tokens, such as 4x128 1x20")
    add("--rounds", type=int, default=20, help="how often each precision computes each batch")
    add("--output", type=Path, default=Path("benchmarks/operations.json"), help="where to save what was measured")
    options = parser.parse_args(arguments)
    for name, known in [(name, SHAPES) for name in options.shapes] + [
        (name, PRECISIONS) for name in options.precisions
    ]:
        if name not in known:
            parser.error(f"{name!r} is none of {', '.join(known)}")
    shapes = {
        name: measure(SHAPES[name], options.precisions, options.batches, rounds=options.rounds)
        for name in options.shapes
    }
    results = {"machine": machine.facts(), "rounds": options.rounds, "shapes": shapes}
    console = Console(width=100)
    print_results(console, results)
    save(results, options.output, console)


if __name__ == "__main__":
    main()
