"""Documents and tokens per second: everybody in every round, in an order that changes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from benchmarks.contenders import BASELINE
from benchmarks.entrants import Loaded
from benchmarks.noise import Reference, judge
from benchmarks.stats import interleaved, representative, spread
from benchmarks.texts import TextMix

_PILOT_TOKENS = 1500
_PILOT_PART = 1 / 32


def measure(
    entrants: Mapping[str, Loaded],
    mix: TextMix,
    *,
    rounds: int,
    seconds: float,
    least: int,
    warm_up: float,
    reference: Reference,
    baseline: str = BASELINE,
) -> dict[str, Any]:
    """Measures everybody on texts of one mix.

    A contender that would take longer than `seconds` for all texts is given fewer, picked so that they stand for all
    (see `representative`), but at least `least`.

    Args:
        entrants: Loaded contenders by name.
        mix: The texts.
        rounds: How often each is measured, after a round that is not counted.
        seconds: What each may take in a round.
        least: Texts that everybody gets.
        warm_up: Seconds of work that everybody does before it counts: whoever prepares for a long job may do so.
        reference: Timed around every round.
        baseline: Whom the others are compared with.

    Returns:
        Plain data: `texts` (statistics of all texts), `noise`, and `results` by name.
    """
    shares = {name: _share(loaded, mix, seconds, least) for name, loaded in entrants.items()}
    for name, loaded in entrants.items():
        start = time.perf_counter()
        loaded.documents(shares[name].texts)
        while time.perf_counter() - start < warm_up:
            loaded.documents(shares[name].texts)
    times: dict[str, list[float]] = {name: [] for name in entrants}
    reference.seconds.clear()
    reference.time()
    for _, order in interleaved(list(entrants), rounds):
        for name in reference.rested(order):
            start = time.perf_counter()
            entrants[name].documents(shares[name].texts)
            times[name].append(time.perf_counter() - start)
        reference.time()
    noise = judge(reference.seconds, [spread(taken) for taken in times.values()])
    return {"texts": mix.statistics(), "noise": asdict(noise), "results": summarize(times, shares, baseline)}


def summarize(
    times: Mapping[str, list[float]], shares: Mapping[str, TextMix], baseline: str = BASELINE
) -> dict[str, dict[str, Any]]:
    """Turns seconds into rates.

    Args:
        times: Of each round, by contender.
        shares: What each embedded in a round.
        baseline: Whom they are compared with.

    Returns:
        By contender: `texts`, `tokens`, `seconds`, `documents_per_s` and `tokens_per_s` (of the median round; only
        real tokens count, padding is nobody's achievement), `spread` and `ratio` to the baseline's tokens per second.
    """
    results: dict[str, dict[str, Any]] = {}
    for name, taken in times.items():
        texts, tokens, median = len(shares[name].texts), sum(shares[name].lengths), statistics.median(taken)
        results[name] = {
            "texts": texts,
            "tokens": tokens,
            "seconds": taken,
            "documents_per_s": texts / median,
            "tokens_per_s": tokens / median,
            "spread": spread(taken),
        }
    compared = results.get(baseline)
    for result in results.values():
        result["ratio"] = result["tokens_per_s"] / compared["tokens_per_s"] if compared else None
    return results


def _share(loaded: Loaded, mix: TextMix, seconds: float, least: int) -> TextMix:
    """Picks as many texts as a contender can embed in time, by how fast it is on a few.

    A GPU takes as long for few texts as for many, so more are tried until they take a part of the time.
    """
    mean = sum(mix.lengths) / len(mix.lengths)
    wanted, taken = max(2, min(least, round(_PILOT_TOKENS / mean))), 0.0
    pilot = mix.take([])
    while taken < _PILOT_PART * seconds and len(pilot.texts) < len(mix.texts):
        pilot = mix.take(representative(mix.lengths, wanted))
        loaded.documents(pilot.texts)
        start = time.perf_counter()
        loaded.documents(pilot.texts)
        taken = time.perf_counter() - start
        wanted *= 4
    tokens_per_s = sum(pilot.lengths) / taken
    return mix.take(representative(mix.lengths, max(least, round(seconds * tokens_per_s / mean))))
