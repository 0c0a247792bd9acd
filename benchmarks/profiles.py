"""How much is measured: everything in earnest, or a little of everything."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.contenders import BASELINE
from benchmarks.noise import REST_S

PARTS = ("cold", "memory", "throughput", "latency", "load", "limit")
"""In the order in which they run: fresh processes first, while this one holds no models."""


@dataclass(frozen=True, kw_only=True)
class Profile:
    """What a run measures unless told otherwise.

    Attributes:
        name: As on the command line.
        shapes: Models.
        mixes: Texts, and how many of each there are at most and how many each contender embeds at least.
        rounds: How often each contender is measured.
        seconds_a_round: What a contender may take in a round of throughput; a slow one gets fewer texts for it.
        warm_up_seconds: What each works before anything counts.
        queries_a_round: Distinct queries for latency.
        fresh_contenders: Who is started in fresh processes; None is everybody.
        fresh_repetitions: How often.
        peak_seconds: For each matrix shape and kernel when the machine's peak is measured.
        rest_seconds: Before each turn of a contender, see `noise`.
    """

    name: str
    shapes: tuple[str, ...]
    mixes: dict[str, tuple[int, int]]
    rounds: int
    seconds_a_round: float
    warm_up_seconds: float
    queries_a_round: int
    fresh_contenders: tuple[str, ...] | None
    fresh_repetitions: int
    peak_seconds: float
    rest_seconds: float = REST_S


PROFILES = {
    profile.name: profile
    for profile in (
        Profile(
            name="full",
            shapes=("small-en", "small-zh", "base-en", "large-en"),
            mixes={"queries": (2048, 32), "short": (2048, 32), "mixed": (1024, 64), "long": (192, 8)},
            rounds=5,
            seconds_a_round=4.0,
            warm_up_seconds=12.0,
            queries_a_round=60,
            fresh_contenders=None,
            fresh_repetitions=3,
            peak_seconds=1.0,
        ),
        Profile(
            name="standard",
            shapes=("small-en", "small-zh", "base-en"),
            mixes={"mixed": (384, 64), "long": (64, 8)},
            rounds=3,
            seconds_a_round=4.0,
            warm_up_seconds=12.0,
            queries_a_round=40,
            fresh_contenders=(
                "sentence-transformers",
                "langchain-huggingface",
                "llama-index-huggingface",
                "bge-openvino-float32",
                "bge-openvino-int8",
                "bge-torch-float16",
                "fastembed-float16",
                "onnxruntime-int8",
                "sentence-transformers-onnx",
                "sentence-transformers-openvino",
                "embed-anything",
                "embed-anything-onnx",
            ),
            fresh_repetitions=3,
            peak_seconds=0.5,
        ),
        Profile(
            name="gpu",
            shapes=("small-en", "base-en", "large-en"),
            mixes={"mixed": (20_000, 256), "long": (4000, 64)},
            rounds=3,
            seconds_a_round=0.5,
            warm_up_seconds=1.0,
            queries_a_round=50,
            fresh_contenders=(BASELINE, "bge-torch-float16"),
            fresh_repetitions=1,
            peak_seconds=0.05,
        ),
        Profile(
            name="quick",
            shapes=("tiny",),
            mixes={"queries": (32, 8), "mixed": (32, 8)},
            rounds=1,
            seconds_a_round=0.02,
            warm_up_seconds=0.0,
            queries_a_round=3,
            fresh_contenders=("langchain-huggingface", "bge-openvino-float32"),
            fresh_repetitions=1,
            peak_seconds=0.01,
            rest_seconds=0.0,
        ),
    )
}
