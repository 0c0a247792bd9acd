"""How long a query takes, one at a time, each query another one so that nothing can answer from memory."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from benchmarks.contenders import BASELINE
from benchmarks.entrants import Loaded
from benchmarks.noise import Reference, judge
from benchmarks.stats import interleaved, percentile, ratio_of_medians, spread
from benchmarks.texts import TextMix


def measure(
    entrants: Mapping[str, Loaded], queries: TextMix, *, rounds: int, reference: Reference, baseline: str = BASELINE
) -> dict[str, Any]:
    """Measures everybody on the same queries, in turns.

    Args:
        entrants: Loaded contenders by name.
        queries: As many for each of the rounds, and for one before them that is not counted.
        rounds: How often each is measured.
        reference: Timed around every round.
        baseline: Whom the others are compared with.

    Returns:
        Plain data: `texts` (statistics of the queries), `noise`, and `results` by name.
    """
    a_round = len(queries.texts) // (rounds + 1)
    for loaded in entrants.values():
        for query in queries.texts[:a_round]:
            loaded.query(query)
    times: dict[str, list[list[float]]] = {name: [] for name in entrants}
    reference.seconds.clear()
    reference.time()
    for number, order in interleaved(list(entrants), rounds):
        asked = queries.texts[(number + 1) * a_round : (number + 2) * a_round]
        for name in reference.rested(order):
            times[name].append([_seconds(entrants[name], query) for query in asked])
        reference.time()
    results = summarize(times, baseline)
    noise = judge(reference.seconds, [result["spread"] for result in results.values()])
    return {"texts": queries.statistics(), "noise": asdict(noise), "results": results}


def summarize(times: Mapping[str, list[list[float]]], baseline: str = BASELINE) -> dict[str, dict[str, Any]]:
    """Turns seconds into latencies.

    Args:
        times: Of each query of each round, by contender.
        baseline: Whom they are compared with.

    Returns:
        By contender: `seconds`, `p50_ms`, `p95_ms`, `spread` (of the rounds' medians) and `ratio` (how many times as
        fast as the baseline).
    """
    all_times = {name: list(itertools.chain.from_iterable(rounds)) for name, rounds in times.items()}
    compared = all_times.get(baseline)
    return {
        name: {
            "seconds": times[name],
            "p50_ms": percentile(taken, 50) * 1000,
            "p95_ms": percentile(taken, 95) * 1000,
            "spread": spread([statistics.median(one_round) for one_round in times[name]]),
            "ratio": ratio_of_medians(taken, compared) if compared else None,
        }
        for name, taken in all_times.items()
    }


def _seconds(loaded: Loaded, query: str) -> float:
    start = time.perf_counter()
    loaded.query(query)
    return time.perf_counter() - start
