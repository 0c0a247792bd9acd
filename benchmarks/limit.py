"""How fast this machine could run a model if it did nothing but the model's matrix products, each at its best."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from benchmarks.noise import Reference, judge
from benchmarks.shapes import Shape
from bge_integrations.cli.bench.limit import Peak, flops_a_token, measure_peaks, rows_of, tokens_per_second

PRECISIONS = {"cpu": ("float32", "bfloat16"), "cuda": ("float16", "bfloat16", "float32")}


def measure(
    shape: Shape,
    mixes: Mapping[str, Mapping[str, float]],
    throughput: Mapping[str, Mapping[str, Any]],
    precisions: Mapping[str, str],
    *,
    kind: str,
    device: str,
    seconds: float,
    reference: Reference,
) -> dict[str, Any]:
    """Measures the peak, and sets what was achieved against it.

    Args:
        shape: The model's.
        mixes: Statistics of the texts of each mix.
        throughput: The throughput part by mix; those that were not measured are missing.
        precisions: How each contender computes. There is no limit for int8.
        kind: The kind of device whose precisions are measured: "cpu" or "cuda".
        device: The device.
        seconds: For each product, kernel and number of rows.
        reference: Timed around everything.

    Returns:
        Plain data: `noise`, `peaks` by precision and product, and by mix `flops_a_token`, `tokens_per_s` and `achieved`
        (a part of the limit, by contender).
    """
    reference.seconds.clear()
    reference.time()
    encoder = shape.encoder
    peaks: dict[str, dict[str, Peak]] = {}
    for precision in PRECISIONS[kind]:
        peaks[precision] = measure_peaks(encoder, precision, device, rows=rows_of(device), seconds=seconds)
        reference.time()
    limits = {}
    for mix, statistics in mixes.items():
        length = statistics["token_weighted_mean"]
        tokens = {
            precision: tokens_per_second(encoder, length, {name: peak.flops_per_s for name, peak in found.items()})
            for precision, found in peaks.items()
        }
        results = throughput.get(mix, {}).get("results", {})
        achieved = {
            name: result["tokens_per_s"] / tokens[precisions[name]]
            for name, result in results.items()
            if precisions[name] in tokens
        }
        limits[mix] = {"flops_a_token": flops_a_token(encoder, length), "tokens_per_s": tokens, "achieved": achieved}
    return {
        "noise": asdict(judge(reference.seconds)),
        "peaks": {
            precision: {name: asdict(peak) for name, peak in found.items()} for precision, found in peaks.items()
        },
        "mixes": limits,
    }
