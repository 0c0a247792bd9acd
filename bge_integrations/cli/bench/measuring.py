"""Measures loaded models in turns, with the same texts and queries."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray

from bge_integrations.backend.model.pooling import cosines
from bge_integrations.cli.bench.limit import measure_peaks, rows_of, tokens_per_second
from bge_integrations.cli.bench.results import Combination, Measured
from bge_integrations.cli.demo.corpus import collect
from bge_integrations.encoder import BgeEncoder

__all__ = ["Runner", "evaluate", "race"]

_ROUNDS = 5
_LEAST_ROUNDS = 2
_QUERY_SHARE = 0.25
_LEAST_TEXTS, _LEAST_QUERIES, _MOST_QUERIES = 16, 3, 40
_PILOT_TEXTS = 16
_LEAST_PILOT_S = 0.05
_SECONDS_A_PRODUCT = 0.02


@dataclass
class Runner:
    """A loaded combination, its work in a round, and its measurements.

    Attributes:
        combination: Engine and precision.
        encoder: The loaded model.
        limit: Tokens a second that the device's matrix products allow for `texts`; `None` if it is not known.
        texts: Documents of a round.
        tokens: Their tokens, without padding.
        queries_a_round: Number of queries.
        documents_s: Seconds for all documents, by round.
        queries_s: Seconds of each query.
        vectors: Vectors of the documents.
    """

    combination: Combination
    encoder: BgeEncoder
    limit: float | None = None
    texts: list[str] = field(default_factory=list)
    tokens: int = 0
    queries_a_round: int = _LEAST_QUERIES
    documents_s: list[float] = field(default_factory=list)
    queries_s: list[float] = field(default_factory=list)
    vectors: NDArray[np.float32] | None = None


def race(runners: list[Runner], deadline: float, tell: Callable[[str], None]) -> int:
    """Measures all runners in rounds, after one uncounted round. Returns the number of counted rounds."""
    shuffler = random.Random(0)
    entries = list(collect())
    shuffler.shuffle(entries)
    texts = [entry.text for entry in entries]
    queries = list(dict.fromkeys(entry.summary for entry in reversed(entries)))
    share = max(deadline - time.monotonic(), 0) / ((_ROUNDS + 2) * len(runners))  # with a warm-up and a pilot round
    rates: dict[str, dict[str, float]] = {}
    for runner in runners:
        _capture_graphs(runner, queries)
        lengths = _choose_texts(runner, texts, queries, share)
        runner.limit = _limit(runner, lengths, rates)
    for number in range(_ROUNDS + 1):
        if number > _LEAST_ROUNDS and time.monotonic() > deadline:
            return number - 1
        tell(f"round {number} of {_ROUNDS}" if number else "warming up")
        for runner in shuffler.sample(runners, len(runners)):
            documents_s, queries_s = _one_turn(runner, queries, number)
            if number:
                runner.documents_s.append(documents_s)
                runner.queries_s.extend(queries_s)
    return _ROUNDS


def _choose_texts(runner: Runner, texts: list[str], queries: list[str], share: float) -> NDArray[np.int64]:
    """Chooses as many texts and queries as fit into a share of the time, in seconds. Returns the texts' lengths."""
    encoder, count = runner.encoder, _PILOT_TEXTS
    while (seconds := _seconds(partial(encoder.encode_documents, texts[:count]))) < _LEAST_PILOT_S:
        if count >= len(texts):
            break
        count *= 4  # few texts take a GPU as long as many
    a_text = seconds / min(count, len(texts))
    a_query = _seconds(partial(encoder.encode_queries, queries[:1]))
    runner.texts = texts[: max(_LEAST_TEXTS, int(share * (1 - _QUERY_SHARE) / a_text))]
    lengths = encoder.backend.tokenizer.tokenize(runner.texts, encoder.max_length).lengths
    runner.tokens = int(lengths.sum())
    runner.queries_a_round = min(max(_LEAST_QUERIES, int(share * _QUERY_SHARE / a_query)), _MOST_QUERIES)
    return lengths


def _capture_graphs(runner: Runner, queries: list[str]) -> None:
    """Lets an engine with CUDA graphs capture those of all queries, so that no round counts that time."""
    if runner.encoder.stats().graphs is None:
        return
    lengths = runner.encoder.count_tokens(queries, role="query")
    one_a_length = dict(zip(lengths.tolist(), queries, strict=True)).values()
    for _ in range(2):  # a size is captured when it comes for the second time
        for query in one_a_length:
            runner.encoder.encode_queries([query])


def _limit(runner: Runner, lengths: NDArray[np.int64], rates: dict[str, dict[str, float]]) -> float | None:
    """Returns the limit of a runner. `rates` keeps the speed of each product by precision."""
    model, precision = runner.encoder.backend, runner.combination.precision
    device = model.device
    shape = model.facts.encoder
    if shape is None or precision == "int8":  # there is no product in int8 by itself to compare with
        return None
    if precision not in rates:
        peaks = measure_peaks(shape, precision, device, rows=rows_of(device)[:1], seconds=_SECONDS_A_PRODUCT)
        rates[precision] = {name: peak.flops_per_s for name, peak in peaks.items()}
    return tokens_per_second(shape, float((lengths**2).sum() / lengths.sum()), rates[precision])


def _one_turn(runner: Runner, queries: list[str], number: int) -> tuple[float, list[float]]:
    start = time.perf_counter()
    runner.vectors = runner.encoder.encode_documents(runner.texts)
    documents_s = time.perf_counter() - start
    first = number * runner.queries_a_round
    # Different queries each time, so that no cache can answer.
    asked = [queries[index % len(queries)] for index in range(first, first + runner.queries_a_round)]
    return documents_s, [_seconds(partial(runner.encoder.encode_queries, [query])) for query in asked]


def evaluate(runners: list[Runner]) -> list[Measured]:
    """Returns the results of all runners, fastest first."""
    exact = next((runner.vectors for runner in runners if runner.combination.is_exact), None)
    measured = []
    for runner in runners:
        mean_cosine, least_cosine = _agreement(runner.vectors, exact)
        count, median = len(runner.texts), statistics.median(runner.documents_s)
        p50, p95 = np.percentile(runner.queries_s, (50, 95)) * 1000
        measured.append(
            Measured(
                combination=runner.combination,
                texts=count,
                documents_per_s=count / median,
                tokens_per_s=runner.tokens / median,
                slowest_documents_per_s=count / max(runner.documents_s),
                fastest_documents_per_s=count / min(runner.documents_s),
                share_of_limit=runner.tokens / median / runner.limit if runner.limit else None,
                query_p50_ms=float(p50),
                query_p95_ms=float(p95),
                mean_cosine=mean_cosine,
                least_cosine=least_cosine,
            )
        )
    return sorted(measured, key=lambda one: -one.documents_per_s)


def _agreement(
    vectors: NDArray[np.float32] | None, exact: NDArray[np.float32] | None
) -> tuple[float | None, float | None]:
    """Compares the texts that both embedded. The texts of every runner are the start of one list."""
    if vectors is None or exact is None:
        return None, None
    count = min(len(vectors), len(exact))
    found = cosines(vectors[:count].astype(np.float64), exact[:count].astype(np.float64))
    return float(found.mean()), float(found.min())


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
