"""What is left of the speed on the way to a user: of the products in the engine, of the engine in a whole call."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from benchmarks.texts import TextMix
from bge_integrations import BgeEncoder
from bge_integrations.backend.engines.architecture import EncoderShape
from bge_integrations.backend.engines.batching import plan_batches
from bge_integrations.backend.engines.interface import Engine, PendingRows, TokenBatch
from bge_integrations.cli.bench.limit import tokens_per_second

ENGINE_TOKENS = (16384, 65536)
"""Sizes of batches that fill a card."""

SHARES = {
    "engine alone / products": ("engine", "products"),
    "whole call / engine alone": ("call", "engine"),
    "whole call / products": ("call", "products"),
}
"""The two speeds that each share compares."""

_WORD_IDS = (1000, 20_000)
"""Ids of whole words in the vocabulary of the benchmarks' models."""

_SUBMISSIONS = 8


def products_rate(shape: EncoderShape, flops_per_s: Mapping[str, float]) -> float:
    """Returns the tokens a second of the matrix products of all layers alone, each at its own speed by name."""
    return tokens_per_second(shape, 0, flops_per_s)


def sizes_for(engine: Engine) -> tuple[int, ...]:
    """Returns the sizes of `ENGINE_TOKENS` that an engine takes, or else its own size."""
    return tuple(size for size in ENGINE_TOKENS if size <= engine.batch_tokens) or (engine.batch_tokens,)


def engine_rate(engine: Engine, documents: TextMix, size: int, seconds: float) -> float:
    """Returns the tokens a second of an engine that always has as many batches of token ids as it takes.

    Args:
        engine: The engine.
        documents: Texts, whose lengths count.
        size: Most tokens of a batch, padding included.
        seconds: Least time.
    """
    batches = _batches(documents, size, engine.max_texts)

    def work() -> float:
        pending: list[PendingRows] = []
        for batch in batches:
            pending.append(engine.submit(batch))
            if len(pending) == engine.parallel_batches:
                pending.pop(0).result()
        for one in pending:
            one.result()
        return float(sum(len(batch.ids) for batch in batches))

    return rate(work, seconds)


def _batches(documents: TextMix, size: int, most_texts: int | None) -> list[TokenBatch]:
    """Returns some of the full batches that a call with all documents makes: of long, middling and short texts."""
    rng, lengths = np.random.default_rng(0), np.array(documents.lengths, dtype=np.int64)
    planned = list(plan_batches(lengths, batch_tokens=size, max_texts=most_texts))
    planned = planned[:-1] or planned
    chosen = np.linspace(0, len(planned) - 1, _SUBMISSIONS).round().astype(int)
    own = [lengths[planned[place]] for place in chosen]
    return [TokenBatch(rng.integers(*_WORD_IDS, each.sum()).astype(np.int32), each) for each in own]


def rate(work: Callable[[], float], seconds: float) -> float:
    """Repeats some work, which returns what it has done, and returns the amount a second. The first time is not timed.

    Args:
        work: The work. It returns when it is finished, also on a GPU.
        seconds: The least time.
    """
    work()
    done, start = 0.0, time.perf_counter()
    while not done or time.perf_counter() - start < seconds:
        done += work()
    return done / (time.perf_counter() - start)


def measure(
    encoders: Mapping[str, BgeEncoder],
    documents: TextMix,
    peaks: Mapping[str, Mapping[str, Mapping[str, Any]]],
    calls: Mapping[str, Mapping[str, float]],
    *,
    seconds: float,
) -> dict[str, dict[str, float]]:
    """Measures the engines of this package's contenders alone.

    Args:
        encoders: The contenders by name.
        documents: The texts of the calls.
        peaks: The peak of each product by precision, as the limit part has measured them.
        calls: The results of the throughput part on these texts, by contender.
        seconds: For each size of batches.

    Returns:
        By contender, in tokens a second: `products`, `engine` (in its best size of batches), and `call`, if that was
        measured.
    """
    found: dict[str, dict[str, float]] = {}
    for name, encoder in encoders.items():
        shape, products = encoder.backend.facts.encoder, peaks.get(encoder.backend.request.precision)
        if shape is None or products is None:
            continue
        engine = encoder.backend.engine
        found[name] = {
            "products": products_rate(shape, {product: peak["flops_per_s"] for product, peak in products.items()}),
            "engine": max(engine_rate(engine, documents, size, seconds) for size in sizes_for(engine)),
        }
        if name in calls:
            found[name]["call"] = calls[name]["tokens_per_s"]
    return found


def shares_of(rates: Mapping[str, float]) -> dict[str, float]:
    """Returns the shares of `SHARES` whose speeds were measured."""
    return {
        title: rates[part] / rates[whole] for title, (part, whole) in SHARES.items() if {part, whole} <= rates.keys()
    }
