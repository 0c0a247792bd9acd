"""From the start of a process to its first vector: imports, loading, one query."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from benchmarks.contenders import BASELINE, Contender
from benchmarks.entrants import ElsewhereError, Place
from benchmarks.fresh import FreshRun, run
from benchmarks.lineup import reason
from benchmarks.noise import Reference, judge
from benchmarks.stats import interleaved, ratio_of_medians, spread


def measure(contenders: Sequence[Contender], place: Place, *, repetitions: int, reference: Reference) -> dict[str, Any]:
    """Starts everybody in turns.

    Everybody with something to keep on disk (our graphs, the ONNX export) is started once before, uncounted; with more
    than one repetition everybody is, so that all find their files in the page cache.

    Args:
        contenders: Who is started, each by its own Python.
        place: Where the model is.
        repetitions: How often each is started.
        reference: Timed around every round.

    Returns:
        Plain data: `noise`, `results` and `left_out` by name.
    """
    left_out: dict[str, str] = {}
    by_name = {contender.name: contender for contender in contenders}

    def start(name: str) -> FreshRun | None:
        try:
            return run([name], place, python=by_name[name].python)
        except ElsewhereError as error:
            left_out[name] = reason(error)
            return None

    for name, contender in by_name.items():
        if contender.prepare and contender.python:
            contender.prepare(place)
        if repetitions > 1 or contender.keeps_files:
            start(name)
    runs: dict[str, list[FreshRun]] = {name: [] for name in by_name if name not in left_out}
    reference.seconds.clear()
    reference.time()
    for _, order in interleaved(list(runs), repetitions):
        for name in order:
            finished = start(name)
            if finished:
                runs[name].append(finished)
        reference.time()
    results = summarize({name: finished for name, finished in runs.items() if name not in left_out})
    noise = judge(reference.seconds, [result["spread"] for result in results.values()])
    return {"noise": asdict(noise), "results": results, "left_out": left_out}


def summarize(runs: dict[str, list[FreshRun]]) -> dict[str, dict[str, Any]]:
    """Turns runs into medians.

    Returns:
        By contender: `seconds` and `peak_mib` of each run, `median_s`, `median_peak_mib`, `spread` (of seconds) and
        `ratio` (how many times as fast as the baseline).
    """
    baseline = [one.seconds for one in runs.get(BASELINE, [])]
    results = {}
    for name, finished in runs.items():
        seconds, peaks = [one.seconds for one in finished], [one.peak_mib for one in finished]
        results[name] = {
            "seconds": seconds,
            "peak_mib": peaks,
            "median_s": statistics.median(seconds),
            "median_peak_mib": statistics.median(peaks),
            "spread": spread(seconds),
            "ratio": ratio_of_medians(seconds, baseline) if baseline else None,
        }
    return results
