"""Shows what a call costs beside tokeniser and engine: time of one caller, and queries per second of many callers.

    python -m benchmarks.calls

The model has two layers of width 64, or is MODEL. Its engine is replaced by one that computes nothing. "Own" is the
median time of `embed_query` without the tokeniser's own time for that query. Where many ask, the stand-in takes half a
millisecond for each batch, in which it sleeps as if another device computed. Processor time, which includes the
tokeniser's, says more than time on a busy machine. The last line compares the model's own engine with a query.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks import machine
from benchmarks.isolation import isolate
from benchmarks.load import ask_from_coroutines, ask_from_threads
from benchmarks.shapes import SHAPES, checkpoint
from benchmarks.stats import interleaved
from benchmarks.table_parts import make_table
from benchmarks.texts import make_mix
from bge_integrations.adapters.lists import to_lists
from bge_integrations.backend.engines.interface import Computed, TokenBatch
from bge_integrations.langchain import HuggingFaceBgeEmbeddings

ALONE = ("main thread", "another thread", "event loop")
MANY = {"64 threads": 64, "256 tasks": 256}
COUNTS, WIDTHS = (1, 10_000), (384, 1024)

_QUERIES = 512
_STAND_IN_S = 0.0005

Samples = dict[str, list[float]]


class StandIn:
    """An engine that computes nothing, in a given time."""

    def __init__(self, width: int) -> None:
        self.seconds = 0.0
        self._row = np.ones((1, width), dtype=np.float32)

    def submit(self, batch: TokenBatch) -> Computed:
        """Gives every text the same vector; see `Engine.submit`."""
        if self.seconds:
            time.sleep(self.seconds)
        return Computed(np.repeat(self._row, len(batch.lengths), axis=0))


class Calls:
    """One model and the queries that it is asked."""

    def __init__(self, model: Path, queries: Sequence[str]) -> None:
        self.embeddings = HuggingFaceBgeEmbeddings(model_name=str(model), device="cpu", on_truncation="ignore")
        self.queries = queries
        self._backend = self.embeddings.encoder.backend
        self._prefix = self.embeddings.query_encoder.instruction("query").prefix
        self.embeddings.embed_query("the first one")

    @contextmanager
    def without_engine(self, seconds: float) -> Iterator[None]:
        """A block in which a stand-in replaces the engine; `seconds` for each batch."""
        stand_in, engine = StandIn(self._backend.facts.dimension), self._backend.engine
        stand_in.seconds, submit = seconds, engine.submit
        setattr(engine, "submit", stand_in.submit)  # noqa: B010 - an engine's own method
        try:
            yield
        finally:
            setattr(engine, "submit", submit)  # noqa: B010

    def tokenize(self, query: str) -> object:
        """Does what a query needs of the tokeniser."""
        return self._backend.tokenizer.contents([self._prefix + query])

    def compute(self, query: str) -> float:
        """Returns the seconds in which the engine alone computes a query."""
        tokens = self._backend.tokenizer.tokenize([self._prefix + query], self._backend.facts.max_tokens)
        batch = TokenBatch(tokens.ids, tokens.lengths)
        start = time.perf_counter()
        self._backend.engine.submit(batch).result()
        return time.perf_counter() - start


def alone(calls: Calls, rounds: int) -> Samples:
    """Times single queries while the engine is idle, in turns with the tokeniser; seconds by place."""
    times: Samples = {name: [] for name in ("tokeniser", *ALONE)}
    ask = calls.embeddings.embed_query
    places: dict[str, Callable[[Sequence[str]], list[float]]] = {
        "tokeniser": partial(_timed, calls.tokenize),
        "main thread": partial(_timed, ask),
        "another thread": lambda queries: _in_thread(partial(_timed, ask, queries)),
        "event loop": lambda queries: asyncio.run(_timed_async(calls.embeddings.aembed_query, queries)),
    }
    with calls.without_engine(0):
        for number, order in interleaved(list(places), rounds + 1):
            for name in order:
                times[name] += places[name](calls.queries)[: None if number else 0]  # the first round only warms up
    return times


def together(calls: Calls, rounds: int, seconds: float) -> dict[str, Samples]:
    """Has many ask at once; queries a second, and seconds of the processor for each query, by kind of caller."""
    found: dict[str, Samples] = {name: {"per_s": [], "processor_s": []} for name in MANY}
    with calls.without_engine(_STAND_IN_S):
        for _, order in interleaved(list(MANY), rounds):
            for name in order:
                start, before = time.perf_counter(), time.process_time()
                if name.endswith("threads"):
                    rate = ask_from_threads(calls.embeddings.embed_query, calls.queries, MANY[name], seconds)
                else:
                    ask = ask_from_coroutines(calls.embeddings.aembed_query, calls.queries, MANY[name], seconds)
                    rate = asyncio.run(ask)
                answered = rate * (time.perf_counter() - start)
                found[name]["per_s"].append(rate)
                found[name]["processor_s"].append((time.process_time() - before) / answered)
    return found


def lists(rounds: int) -> Samples:
    """Times the conversion of vectors to lists, by their number and width."""
    times: Samples = {}
    for count in COUNTS:
        for width in WIDTHS:
            vectors = np.random.default_rng(0).standard_normal((count, width), dtype=np.float32)
            repeated = [vectors] * (1 + 100 // count)
            times[f"{count:,} × {width}"] = [each for _ in range(rounds) for each in _timed(to_lists, repeated)]
    return times


def beside_engine(calls: Calls, rounds: int) -> Samples:
    """Times queries with the model's own engine, and the engine alone with other ones, in turns in one thread.

    OpenVINO takes longer for a length that differs from the one before, so neither side repeats the other's query.
    """
    queries = calls.queries[: 40 * rounds]

    def take_turns() -> list[float]:
        return [
            seconds
            for query, other in zip(queries, [*queries[1:], queries[0]], strict=True)
            for seconds in (*_timed(calls.embeddings.embed_query, [query]), calls.compute(other))
        ]

    taken = _in_thread(take_turns)
    return {"call": taken[::2], "engine": taken[1::2]}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints a table, and saves everything measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("model", nargs="?", type=Path, help="folder of an embedder; a random one of two layers unless given")
    add("--rounds", type=int, default=5, help="how often everything is measured")
    add("--seconds", type=float, default=2.0, help="how long many callers ask in a round")
    add("--output", type=Path, help="where to save what was measured")
    default = Path(tempfile.gettempdir()) / "bge-integrations-benchmarks"
    add("--workdir", type=Path, default=default, help="where the random model is kept for the next run")
    given = parser.parse_args(arguments)
    isolate(given.workdir.resolve())
    model = given.model or checkpoint(SHAPES["tiny"], given.workdir.resolve())
    calls = Calls(model, make_mix("queries", _QUERIES, model).texts)
    results: dict[str, Any] = {
        "machine": machine.facts(),
        "alone": alone(calls, given.rounds),
        "together": together(calls, given.rounds, given.seconds),
        "lists": lists(given.rounds),
        "engine": beside_engine(calls, given.rounds),
    }
    for table in tables(results):
        Console(width=100).print(table)
    if given.output:
        given.output.write_text(json.dumps(results, indent=1), encoding="utf-8")


def tables(results: dict[str, Any]) -> Iterator[Table]:
    """Returns what was measured as tables."""
    median = {name: statistics.median(seconds) * 1e6 for name, seconds in results["alone"].items()}
    table = make_table("one caller, idle engine that computes nothing", "µs a query", "own µs")
    for name, taken in median.items():
        own = "" if name == "tokeniser" else f"{taken - median['tokeniser']:.0f}"
        table.add_row(name, f"{taken:.0f}", own)
    yield table
    table = make_table("many callers, 0.5 ms a batch", "queries/s", "processor µs a query")
    for name, found in results["together"].items():
        rate, used = statistics.median(found["per_s"]), statistics.median(found["processor_s"]) * 1e6
        table.add_row(name, f"{rate:,.0f}", f"{used:.0f}")
    yield table
    table = make_table("vectors to lists", "ms")
    for name, seconds in results["lists"].items():
        table.add_row(name, f"{statistics.median(seconds) * 1000:.3f}")
    yield table
    call, engine = (statistics.median(results["engine"][name]) * 1000 for name in ("call", "engine"))
    table = make_table("one caller, the model's own engine", "ms a query", "engine alone", "ratio")
    table.add_row("another thread", f"{call:.2f}", f"{engine:.2f}", f"{call / engine:.2f}")
    yield table


def _timed(work: Callable[[Any], object], values: Sequence[Any]) -> list[float]:
    taken = []
    for value in values:
        start = time.perf_counter()
        work(value)
        taken.append(time.perf_counter() - start)
    return taken


async def _timed_async(work: Callable[[Any], Coroutine[Any, Any, object]], values: Sequence[Any]) -> list[float]:
    taken = []
    for value in values:
        start = time.perf_counter()
        await work(value)
        taken.append(time.perf_counter() - start)
    return taken


def _in_thread(work: Callable[[], list[float]]) -> list[float]:
    found: list[float] = []
    thread = threading.Thread(target=lambda: found.extend(work()))
    thread.start()
    thread.join()
    return found


if __name__ == "__main__":
    main()
