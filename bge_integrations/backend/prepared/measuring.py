"""Measures ways to compute one model, in turns: how near their vectors are to float32, and how fast they are here."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from bge_integrations.backend.engines.batching import plan_batches
from bge_integrations.backend.engines.interface import TokenBatch
from bge_integrations.backend.engines.openvino.engine import OpenVinoEngine
from bge_integrations.backend.engines.openvino.graph import EncoderGraph
from bge_integrations.backend.guarantees.logs import get_logger
from bge_integrations.backend.model.description import Description
from bge_integrations.backend.model.lookups import texts_with_embeddings
from bge_integrations.backend.model.pooling import cosines, one_row_a_text
from bge_integrations.backend.prepared.folder import Agreement, Quantization

logger = get_logger(__name__)

LEAST_COSINE = 0.99
"""With float32, for the fastest way to be chosen."""

_CLEARLY_FASTER = 1.05
_ROUNDS = 3
_LONGEST_SAMPLE = 256


@dataclass(frozen=True)
class Way:
    """A graph and the precision in which an engine computes it.

    Attributes:
        graph: The graph.
        precision: "float32", "bfloat16" or, for a quantised graph, "int8".
        quantization: Method of quantisation; `None` unless `precision` is "int8".
        calibration_texts: Number of texts that the ranges of activations were measured on; `None` without calibration.
    """

    graph: EncoderGraph
    precision: str
    quantization: Quantization | None = None
    calibration_texts: int | None = None

    @property
    def name(self) -> str:
        """The method of quantisation, or else the precision."""
        return self.quantization or self.precision


@dataclass(frozen=True)
class Measured:
    """A way, its agreement with float32, and its speed in tokens per second."""

    way: Way
    agreement: Agreement
    tokens_per_s: float


def batches_of(model: Description, texts: Sequence[str], batch_tokens: int) -> Iterator[TokenBatch]:
    """Yields batches of texts with similar lengths, some of them padded, like batches in use."""
    limit = min(_LONGEST_SAMPLE, model.facts.max_tokens)
    tokens = model.tokenizer.tokenize(texts, limit)
    usable = texts_with_embeddings(tokens, model.facts)
    if len(usable) < len(texts):
        logger.warning(
            "%d of %d texts have tokens that the model has no embedding for", len(texts) - len(usable), len(texts)
        )
    for indices in plan_batches(tokens.lengths[usable], batch_tokens=batch_tokens):
        yield TokenBatch(tokens.of(usable[indices]), tokens.lengths[usable[indices]])


def measure(model: Description, ways: Sequence[Way], texts: Sequence[str], threads: int) -> list[Measured]:
    """Computes the texts in each way, in turns.

    Args:
        model: Description of the model.
        ways: The ways. The first one is the reference.
        texts: The texts.
        threads: Number of threads.

    Returns:
        One measurement a way, in their order. Speeds are those of the fastest of three rounds.
    """
    engines = [
        OpenVinoEngine(way.graph, model.shape, rows=model.rows, precision=way.precision, threads=threads)
        for way in ways
    ]
    batches = list(batches_of(model, texts, engines[0].batch_tokens))
    vectors = [  # computed before anything is timed, so that every shape's kernels are there
        np.concatenate(
            [
                one_row_a_text(engine.rows, model.facts.pooling, batch, engine.submit(batch).result())
                for batch in batches
            ]
        )
        for engine in engines
    ]
    seconds = [float("inf")] * len(ways)
    for _ in range(_ROUNDS):
        for index, engine in enumerate(engines):
            start = time.perf_counter()
            for batch in batches:
                engine.submit(batch).result()
            seconds[index] = min(seconds[index], time.perf_counter() - start)
    count = sum(len(batch.ids) for batch in batches)
    found = [cosines(vectors[0], of_way) for of_way in vectors]
    return [
        Measured(
            way,
            Agreement(
                texts=len(near), mean_cosine=round(float(near.mean()), 6), least_cosine=round(float(near.min()), 6)
            ),
            round(count / of_way, 1),
        )
        for way, near, of_way in zip(ways, found, seconds, strict=True)
    ]


def fastest(measured: Sequence[Measured]) -> Measured:
    """Chooses the nearest to float32, unless the fastest one that is near enough is clearly faster."""
    nearest = max(measured, key=lambda one: one.agreement.least_cosine)
    near = [one for one in measured if one.agreement.least_cosine >= LEAST_COSINE]
    best = max(near, key=lambda one: one.tokens_per_s, default=nearest)
    return best if best.tokens_per_s > nearest.tokens_per_s * _CLEARLY_FASTER else nearest
