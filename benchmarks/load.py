"""What many callers get: threads and coroutines that query at once, and queries while documents are embedded."""

from __future__ import annotations

import asyncio
import itertools
import statistics
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

from benchmarks.contenders import BASELINE
from benchmarks.entrants import Loaded
from benchmarks.noise import Reference, judge
from benchmarks.stats import interleaved, percentile, spread
from benchmarks.texts import TextMix

THREADS, COROUTINES = 16, 256

_PAUSE_S = 0.1
"""Between the queries of the one who asks while documents are embedded."""

_TICK_S = 0.005

Numbers = dict[str, list[float]]


def measure(
    entrants: Mapping[str, Loaded],
    documents: TextMix,
    queries: TextMix,
    *,
    rounds: int,
    seconds: float,
    reference: Reference,
) -> dict[str, Any]:
    """Measures everybody that has methods to await, in turns.

    Args:
        entrants: Loaded contenders by name.
        documents: Texts to embed beside the queries; each gets as many as take it about twice `seconds`.
        queries: Distinct queries.
        rounds: How often each is measured.
        seconds: How long each of threads and coroutines may ask.
        reference: Timed around every round.

    Returns:
        Plain data: `noise`, and `results` by name; see `summarize`.
    """
    asking = {name: _Asking(loaded, documents, queries, seconds) for name, loaded in entrants.items() if loaded.aquery}
    numbers: dict[str, Numbers] = {name: {} for name in asking}
    reference.seconds.clear()
    reference.time()
    for _, order in interleaved(list(asking), rounds):
        for name in reference.rested(order):
            for key, values in asking[name].once().items():
                numbers[name].setdefault(key, []).extend(values)
        reference.time()
    results = summarize(numbers)
    noise = judge(reference.seconds, [result["spread"] for result in results.values()])
    return {"threads": THREADS, "coroutines": COROUTINES, "noise": asdict(noise), "results": results}


def summarize(numbers: Mapping[str, Numbers]) -> dict[str, dict[str, Any]]:
    """Turns what was measured into what is told.

    Args:
        numbers: By contender: `threads_per_s`, `coroutines_per_s` (queries a second), `alone_s` and `beside_s` (for the
            same documents without and with somebody who asks), `query_s` (his queries), `lag_s` (how much later than
            it should an event loop came back while documents were awaited).

    Returns:
        By contender: medians of the first two and their ratios to the baseline, `query_p50_ms`, `query_p95_ms` and
        `ratio` of the latter, `kept` (part of the speed alone that embedding keeps), `worst_lag_ms`, and `spread`.
    """
    results: dict[str, dict[str, Any]] = {}
    for name, of in numbers.items():
        results[name] = {
            "threads_per_s": statistics.median(of["threads_per_s"]),
            "coroutines_per_s": statistics.median(of["coroutines_per_s"]),
            "query_p50_ms": percentile(of["query_s"], 50) * 1000,
            "query_p95_ms": percentile(of["query_s"], 95) * 1000,
            "kept": statistics.median(of["alone_s"]) / statistics.median(of["beside_s"]),
            "worst_lag_ms": max(of["lag_s"]) * 1000,
            "spread": spread(of["threads_per_s"]),
            "seconds": of["alone_s"],
        }
    baseline = results.get(BASELINE)
    for result in results.values():
        for key in ("threads", "coroutines"):
            result[f"{key}_ratio"] = result[f"{key}_per_s"] / baseline[f"{key}_per_s"] if baseline else None
        result["ratio"] = baseline["query_p95_ms"] / result["query_p95_ms"] if baseline else None
    return results


def ask_from_threads(query: Callable[[str], Any], queries: Sequence[str], threads: int, seconds: float) -> float:
    """Has threads ask one query after the other, no two the same; returns queries a second of all of them.

    Args:
        query: Answers one.
        queries: The queries, which are told apart by a number.
        threads: Number of threads.
        seconds: How long each may ask.
    """
    stop = time.perf_counter() + seconds

    def ask(first: int) -> int:
        return sum(1 for text in _until(stop, queries, first, threads) if query(text) is not None)

    with ThreadPoolExecutor(threads) as pool:
        start = time.perf_counter()
        answered = sum(pool.map(ask, range(threads)))
    return answered / (time.perf_counter() - start)


async def ask_from_coroutines(
    query: Callable[[str], Awaitable[Any]], queries: Sequence[str], coroutines: int, seconds: float
) -> float:
    """Does the same as `ask_from_threads` with coroutines of one event loop."""
    stop = time.perf_counter() + seconds

    async def ask(first: int) -> int:
        answered = 0
        for text in _until(stop, queries, first, coroutines):
            await query(text)
            answered += 1
        return answered

    start = time.perf_counter()
    answered = sum(await asyncio.gather(*map(ask, range(coroutines))))
    return answered / (time.perf_counter() - start)


def _until(stop: float, queries: Sequence[str], first: int, step: int) -> Iterator[str]:
    for number in itertools.count(first, step):
        yield f"{number} {queries[number % len(queries)]}"
        if time.perf_counter() >= stop:  # after the first one: a busy machine may start a thread that late
            return


class _Asking:
    """One contender under load."""

    def __init__(self, loaded: Loaded, documents: TextMix, queries: TextMix, seconds: float) -> None:
        self._loaded = loaded
        self._queries = queries.texts
        self._seconds = seconds
        self._documents = documents.texts[:8]
        self._embed()
        # A GPU takes as long for few texts as for many, so the first estimate is too low there.
        while (taken := self._embed()) < seconds:
            wanted = max(len(self._documents) + 1, round(len(self._documents) * 2 * seconds / taken))
            repeated = itertools.islice(itertools.cycle(documents.texts), wanted)
            # Told apart, since repeated texts are computed once.
            self._documents = [f"{number} {text}" for number, text in enumerate(repeated)]

    def once(self) -> Numbers:
        alone = self._embed()
        beside, asked = self._ask_beside()
        return {
            "threads_per_s": [ask_from_threads(self._loaded.query, self._queries, THREADS, self._seconds)],
            "coroutines_per_s": [
                asyncio.run(
                    ask_from_coroutines(_required(self._loaded.aquery), self._queries, COROUTINES, self._seconds)
                )
            ],
            "alone_s": [alone],
            "beside_s": [beside],
            "query_s": asked,
            "lag_s": [asyncio.run(self._lag())],
        }

    def _embed(self) -> float:
        start = time.perf_counter()
        self._loaded.documents(self._documents)
        return time.perf_counter() - start

    def _ask_beside(self) -> tuple[float, list[float]]:
        taken: list[float] = []
        embedding = threading.Thread(target=lambda: taken.append(self._embed()))
        embedding.start()
        time.sleep(_PAUSE_S)
        asked = []
        for query in itertools.cycle(self._queries):
            start = time.perf_counter()
            self._loaded.query(query)
            asked.append(time.perf_counter() - start)
            if not embedding.is_alive():
                break
            time.sleep(_PAUSE_S)
        embedding.join()
        # The last one may have run alone.
        return taken[0], asked[:-1] or asked

    async def _lag(self) -> float:
        embedding = asyncio.ensure_future(_required(self._loaded.adocuments)(self._documents))
        worst = 0.0
        while not embedding.done():
            start = time.perf_counter()
            await asyncio.sleep(_TICK_S)
            worst = max(worst, time.perf_counter() - start - _TICK_S)
        await embedding
        return worst


def _required(method: Callable[[Any], Any] | None) -> Callable[[Any], Any]:
    if method is None:
        raise AssertionError("only contenders with methods to await take part")
    return method
