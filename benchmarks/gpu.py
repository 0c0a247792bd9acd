"""What a GPU gives: queries by graphs and by plain launches, the engine beside its products, calls beside the engine.

    python -m benchmarks.gpu
    python -m benchmarks.gpu --shapes large-en --precision bfloat16 --output gpu.json

Models have random weights of the true sizes. A share says what part of the speed is left: of the matrix products alone
for the engine alone, of the engine alone for whole calls.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from benchmarks.isolation import isolate
from benchmarks.limit import products_of
from benchmarks.shapes import SHAPES, Shape, checkpoint
from benchmarks.stats import interleaved, percentile
from benchmarks.table_parts import make_table
from benchmarks.texts import TextMix, make_mix
from bge_integrations import BgeEncoder
from bge_integrations.backend.engines.interface import PendingRows, TokenBatch
from bge_integrations.backend.engines.torch.engine import TorchEngine

_ENGINE_TOKENS = (16384, 65536)
_QUERY_TOKENS = 24
_MOST_TEXTS = 20_000


def main() -> None:
    """Prints one table a model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--shapes", default="small-en,base-en,large-en", help=f"by commas, of {', '.join(SHAPES)}")
    add("--device", default="cuda")
    add("--precision", default="auto", help="auto: float16 on CUDA")
    add("--seconds", type=float, default=3.0, help="for each figure")
    add("--queries", type=int, default=300, help="number of queries for each figure")
    add("--output", type=Path, help="file for the figures as JSON")
    add("--workdir", type=Path, default=Path(tempfile.gettempdir()) / "bge-integrations-benchmarks")
    options = parser.parse_args()
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
        sizes = [size for size in _ENGINE_TOKENS if size <= engine.batch_tokens] or [engine.batch_tokens]
        return {
            "device": _device_name(options.device),
            "products": {size: _products(shape, size, encoder, options.seconds) for size in sizes},
            "engine": {size: _engine(engine, documents, size, rng, options.seconds) for size in sizes},
            "engine_query_ms": _queries(engine, options.queries, lambda _: _submit_query(engine, rng)),
            "query_ms": _queries(engine, options.queries, lambda turn: _ask(encoder, queries, turn)),
            "call": _call(encoder, documents, options.seconds),
            "beside_ms": _beside(encoder, documents, queries, options.seconds),
        }


def _device_name(device: str) -> str:
    import torch

    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device


def _rate(work: Callable[[], float], seconds: float) -> float:
    """Repeats some work, which returns what it has done, and returns the amount a second. The first time is not timed.

    Args:
        work: The work.
        seconds: The least time.
    """
    work()
    done, start = 0.0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        done += work()
    return done / (time.perf_counter() - start)


def _products(shape: Shape, rows: int, encoder: BgeEncoder, seconds: float) -> float:
    """Returns the tokens a second of the four products of all layers."""
    import torch

    device = torch.device(encoder.backend.device)
    dtype = getattr(torch, encoder.backend.request.precision)
    inputs = {
        wide: torch.randn(rows, wide, device=device).to(dtype)
        for wide in {one.wide for one in products_of(shape.width)}
    }
    weights = [(torch.randn(one.out, one.wide, device=device).to(dtype), one.wide) for one in products_of(shape.width)]

    @torch.inference_mode()
    def work() -> float:
        for _ in range(shape.layers):
            for weight, wide in weights:
                torch.nn.functional.linear(inputs[wide], weight)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return rows

    return _rate(work, seconds)


def _engine(engine: TorchEngine, documents: TextMix, size: int, rng: np.random.Generator, seconds: float) -> float:
    """Returns the tokens a second of the engine, which always has two batches of ready token ids."""
    lengths = np.sort(rng.choice(documents.lengths, size // min(documents.lengths)))[::-1].astype(np.int64)
    lengths = lengths[: max(int(np.searchsorted(np.cumsum(lengths), size, side="right")), 1)]
    batch = TokenBatch(rng.integers(1000, 20000, lengths.sum()).astype(np.int32), lengths)

    def work() -> float:
        pending: list[PendingRows] = []
        for _ in range(8):
            pending.append(engine.submit(batch))
            if len(pending) == engine.parallel_batches:
                pending.pop(0).result()
        for one in pending:
            one.result()
        return 8.0 * len(batch.ids)

    return _rate(work, seconds)


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

    return _rate(work, seconds)


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
    for size, rate in result["products"].items():
        table.add_row(f"matrix products, {size:,} tokens", f"{rate / 1000:,.0f} thousand tokens/s", "")
        engine = result["engine"][size]
        table.add_row(
            f"engine alone, {size:,} tokens", f"{engine / 1000:,.0f} thousand tokens/s", f"{engine / rate:.0%}"
        )
    share = result["call"] / max(result["engine"].values())
    table.add_row("whole call", f"{result['call'] / 1000:,.0f} thousand tokens/s", f"{share:.0%}")
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
