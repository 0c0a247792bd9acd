"""What a GPU gives: queries by graphs and by plain launches, the engine beside its products, calls beside the engine.

    python -m benchmarks.gpu
    python -m benchmarks.gpu --shapes large-en --precision bfloat16 --output gpu.json

Models have random weights of the true sizes. A share says what part of the speed is left: of the matrix products alone
for the engine alone, of the engine alone for whole calls.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from benchmarks.command import add_workdir, parser_of, require_device
from benchmarks.isolation import isolate
from benchmarks.shapes import SHAPES, Shape, checkpoint
from benchmarks.shares import engine_rate, products_rate, rate, shares_of, sizes_for
from benchmarks.stats import interleaved, percentile
from benchmarks.table_parts import make_table
from benchmarks.texts import TextMix, make_mix
from bge_integrations import BgeEncoder
from bge_integrations.backend.engines.interface import TokenBatch
from bge_integrations.backend.engines.torch.engine import TorchEngine
from bge_integrations.cli.bench.limit import measure_peaks

_QUERY_TOKENS = 24
_MOST_TEXTS = 20_000


def main() -> None:
    """Prints one table a model."""
    parser = parser_of("benchmarks.gpu", __doc__)
    add = parser.add_argument
    add("--shapes", default="small-en,base-en,large-en", help=f"by commas, of {', '.join(SHAPES)}")
    add("--device", default="cuda")
    add("--precision", default="auto", help="auto: float16 on CUDA")
    add("--seconds", type=float, default=3.0, help="for each figure")
    add("--queries", type=int, default=300, help="number of queries for each figure")
    add("--output", type=Path, help="file for the figures as JSON")
    add_workdir(parser, "models")
    options = parser.parse_args()
    options.device = require_device(parser, options.device)
    isolate(options.workdir.resolve())
    console = Console(width=100)
    results = {}
    for name in options.shapes.split(","):
        shape = SHAPES[name.strip()]
        results[shape.name] = measure(shape, options.workdir.resolve(), options)
        _print(console, shape.name, results[shape.name])
        if options.output:
            options.output.write_text(json.dumps(results, indent=1), encoding="utf-8")


def measure(shape: Shape, workdir: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Measures a model.

    Args:
        shape: Its shape.
        workdir: The folder where models are kept.
        options: `device`, `precision`, `seconds` and `queries` as on the command line.

    Returns:
        Plain data: `device`; `products`, `engine` and `call` in tokens a second, the first two by the tokens of a
        batch; `engine_query_ms` and `query_ms` (p50 and p95 by "graph" and "plain"); `beside_ms` (p50 and p95 of a
        query beside an ingestion).
    """
    folder = checkpoint(shape, workdir)
    settings = {"device": options.device, "precision": options.precision, "engine": "torch"}
    with BgeEncoder(folder, on_truncation="ignore", **settings) as encoder:
        engine = encoder.backend.engine
        if not isinstance(engine, TorchEngine):
            raise AssertionError("engine='torch' starts this engine")
        documents = make_mix("mixed", _MOST_TEXTS, folder)
        queries = make_mix("queries", options.queries, folder)
        rng = np.random.default_rng(0)
        sizes = sizes_for(engine)
        return {
            "device": _device_name(options.device),
            "products": {size: _products(shape, size, encoder, options.seconds / 4) for size in sizes},
            "engine": {size: engine_rate(engine, documents, size, options.seconds) for size in sizes},
            "engine_query_ms": _queries(engine, options.queries, lambda _: _submit_query(engine, rng)),
            "query_ms": _queries(engine, options.queries, lambda turn: _ask(encoder, queries, turn)),
            "call": _call(encoder, documents, options.seconds),
            "beside_ms": _beside(encoder, documents, queries, options.seconds),
        }


def _products(shape: Shape, rows: int, encoder: BgeEncoder, seconds: float) -> float:
    """Returns the tokens a second of the products of all layers; each product is measured for some seconds."""
    model = encoder.backend
    peaks = measure_peaks(shape.encoder, model.request.precision, model.device, rows=(rows,), seconds=seconds)
    return products_rate(shape.encoder, {name: peak.flops_per_s for name, peak in peaks.items()})


def _device_name(device: str) -> str:
    import torch

    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device


def _submit_query(engine: TorchEngine, rng: np.random.Generator) -> None:
    ids = rng.integers(1000, 20000, _QUERY_TOKENS).astype(np.int32)
    engine.submit(TokenBatch(ids, np.array([_QUERY_TOKENS]), priority="interactive")).result()


def _ask(encoder: BgeEncoder, queries: TextMix, turn: int) -> None:
    encoder.encode_queries([f"{turn} {queries.texts[turn % len(queries.texts)]}"])


def _queries(engine: TorchEngine, count: int, ask: Callable[[int], None]) -> dict[str, dict[str, float]]:
    """Returns the time of a query by each way of launching, in turns of ten queries."""
    ways = ["plain"] if engine.graphs is None else ["graph", "plain"]
    taken: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(count):  # graphs are captured
        ask(turn)
    was_on = engine.graphs is not None and engine.graphs.is_on
    for number, order in interleaved(ways, max(count // 10, 1)):
        for way in order:
            if engine.graphs is not None:
                engine.graphs.is_on = was_on and way == "graph"
            for turn in range(10):
                start = time.perf_counter()
                ask(10 * number + turn)
                taken[way].append(time.perf_counter() - start)
    if engine.graphs is not None:
        engine.graphs.is_on = was_on
    return {way: _percentiles(times) for way, times in taken.items()}


def _percentiles(times: list[float]) -> dict[str, float]:
    return {f"p{percent}": 1000 * percentile(times, percent) for percent in (50, 95)}


def _call(encoder: BgeEncoder, documents: TextMix, seconds: float) -> float:
    """Returns the tokens a second of `encode_documents`."""
    tokens = float(sum(documents.lengths))

    def work() -> float:
        encoder.encode_documents(documents.texts)
        return tokens

    return rate(work, seconds)


def _beside(encoder: BgeEncoder, documents: TextMix, queries: TextMix, seconds: float) -> dict[str, float]:
    """Returns the time of a query while another thread embeds documents."""
    ended = threading.Event()

    def ingest() -> None:
        while not ended.is_set():
            encoder.encode_documents(documents.texts)

    thread = threading.Thread(target=ingest)
    thread.start()
    times: list[float] = []
    try:
        for turn in range(int(seconds / 0.02)):
            time.sleep(0.02)
            start = time.perf_counter()
            _ask(encoder, queries, turn)
            times.append(time.perf_counter() - start)
    finally:
        ended.set()
        thread.join()
    return _percentiles(times)


def _print(console: Console, name: str, result: dict[str, Any]) -> None:
    table = make_table(f"{name} on {result['device']}", "", "share")
    for size, products in result["products"].items():
        engine = result["engine"][size]
        table.add_row(f"matrix products, {size:,} tokens", _thousands(products), "")
        table.add_row(f"engine alone, {size:,} tokens", _thousands(engine), f"{engine / products:.0%} of the products")
    best = {part: max(result[part].values()) for part in ("products", "engine")} | {"call": result["call"]}
    shares = shares_of(best)
    table.add_row("whole call", _thousands(result["call"]), f"{shares['whole call / engine alone']:.0%} of the engine")
    table.add_row("", "", f"{shares['whole call / products']:.0%} of the products")
    for title, key in ((f"engine alone, {_QUERY_TOKENS} tokens", "engine_query_ms"), ("query, whole call", "query_ms")):
        for way, times in result[key].items():
            table.add_row(f"{title}, {way}", f"p50 {times['p50']:.2f} ms, p95 {times['p95']:.2f} ms", "")
    beside = result["beside_ms"]
    table.add_row("query beside an ingestion", f"p50 {beside['p50']:.2f} ms, p95 {beside['p95']:.2f} ms", "")
    console.print(table)


def _thousands(rate: float) -> str:
    return f"{rate / 1000:,.0f} thousand tokens/s"


if __name__ == "__main__":
    main()
