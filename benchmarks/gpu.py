"""What a GPU gives: queries by graphs and by plain launches, the engine beside its products, calls beside the engine.

    python -m benchmarks.gpu
    python -m benchmarks.gpu --parts encoders --shapes large-en --precision bfloat16 --output gpu.json

A share says what part of a speed is left; see `shares`. Rerankers, bge-m3's three outputs and decoders are measured
beside other libraries; see `gpu_models`. Models have random weights of the true sizes, decoders few of their layers.
With the options as they come, it takes some five minutes on a large card.
"""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from benchmarks import gpu_models
from benchmarks.command import add_workdir, names, parser_of, require_device, save
from benchmarks.isolation import isolate
from benchmarks.shapes import DECODERS, SHAPES, Shape, checkpoint
from benchmarks.shares import engine_rate, products_rate, rate, shares_of, sizes_for
from benchmarks.stats import interleaved, percentile
from benchmarks.table_parts import make_table
from benchmarks.texts import TextMix, enlarged, make_mix
from bge_integrations import BgeEncoder
from bge_integrations.backend.engines.interface import TokenBatch
from bge_integrations.backend.engines.torch.engine import TorchEngine
from bge_integrations.backend.machine.devices import resolve_precision
from bge_integrations.cli.bench.limit import measure_peaks

PARTS = ("encoders", "rerankers", "m3", "decoders")

_WIDTH = 110
_QUERY_TOKENS = 24
_MOST_TEXTS = 20_000
_PAIRS, _TEXTS = 2048, 1024
_RERANKER, _M3 = "base", "large"


def main() -> None:
    """Reads the options, measures, prints one table a model, and saves."""
    parser = parser_of("benchmarks.gpu", __doc__)
    add = parser.add_argument
    add("--parts", type=names, default=list(PARTS), help=f"by commas: {', '.join(PARTS)}; all unless given")
    add("--shapes", type=names, default=["small-en", "base-en", "large-en"], help=f"of encoders: {', '.join(SHAPES)}")
    add("--decoders", type=names, default=list(DECODERS), help=f"by commas: {', '.join(DECODERS)}; all unless given")
    add("--device", default="cuda")
    add("--precision", default="auto", help="auto: float16 on CUDA")
    add("--seconds", type=float, default=2.0, help="for each figure")
    add("--queries", type=int, default=200, help="number of queries for each figure")
    add("--output", type=Path, help="file for the figures as JSON")
    add_workdir(parser, "models")
    options = parser.parse_args()
    for given, known in ((options.parts, PARTS), (options.shapes, SHAPES), (options.decoders, DECODERS)):
        for name in given:
            if name not in known:
                parser.error(f"{name!r} is unknown; there are {', '.join(known)}")
    options.device = require_device(parser, options.device)
    workdir = options.workdir.resolve()
    isolate(workdir)
    console = Console(width=_WIDTH)
    results: dict[str, Any] = {"device": _device_name(options.device), "encoders": {}, "models": []}
    for part in options.parts:
        for _ in _measured(part, workdir, options, results, console):
            if options.output:
                save(results, options.output)


def _measured(
    part: str, workdir: Path, options: argparse.Namespace, results: dict[str, Any], console: Console
) -> Iterator[None]:
    """Measures and prints the models of a part. Yields after each, when its figures are among the results."""
    if part == "encoders":
        for name in options.shapes:
            results["encoders"][name] = measure(SHAPES[name], workdir, options)
            _print(console, name, results["encoders"][name])
            yield
        return
    for race in _races(part, workdir, options):
        results["models"].append(gpu_models.measure(race, options.seconds))
        gpu_models.print_race(console, results["models"][-1])
        yield


def _races(part: str, workdir: Path, options: argparse.Namespace) -> Iterator[gpu_models.Race]:
    """Yields the races of a part. The models of each are made when it is asked for."""
    where = gpu_models.Where(workdir, options.device, resolve_precision(options.precision, options.device))
    if part == "rerankers":
        yield gpu_models.rerankers(where, _RERANKER, pairs=_PAIRS)
    elif part == "m3":
        yield gpu_models.m3(where, _M3, texts=_TEXTS)
    else:
        for name in options.decoders:
            yield gpu_models.decoders(where, DECODERS[name], texts=_TEXTS)


def measure(shape: Shape, workdir: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Measures a model.

    Args:
        shape: Its shape.
        workdir: The folder where models are kept.
        options: `device`, `precision`, `seconds` and `queries` as on the command line.

    Returns:
        Plain data: `device`; `products`, `engine` and `call` in tokens a second, the first two by the tokens of a
        batch; `engine_query_ms` and `query_ms` (p50 and p95 by "graph" and "plain"); `beside_ms` (p50 and p95 of a
        query beside an ingestion); `graphs` (their state at the end; `None` without graphs).
    """
    folder = checkpoint(shape, workdir)
    settings = {"device": options.device, "precision": options.precision, "engine": "torch"}
    with BgeEncoder(folder, on_truncation="ignore", **settings) as encoder:
        engine = encoder.backend.engine
        if not isinstance(engine, TorchEngine):
            raise AssertionError("engine='torch' starts this engine")
        documents = enlarged(make_mix("mixed", _MOST_TEXTS, folder), _MOST_TEXTS, folder)
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
            "graphs": asdict(state) if (state := encoder.stats().graphs) else None,
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
    graphs = result["graphs"]
    if graphs:
        table.add_row("graphs", f"{graphs['captured']} kept" if graphs["is_on"] else f"off: {graphs['fault']}", "")
    console.print(table)


def _thousands(rate: float) -> str:
    return f"{rate / 1000:,.0f} thousand tokens/s"


if __name__ == "__main__":
    main()
