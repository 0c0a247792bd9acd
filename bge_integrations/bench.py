"""`bge bench`: which engine and precision are the fastest for a model here, and what the lossy ones cost."""

from __future__ import annotations

import contextlib
import itertools
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import get_args

import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bge_integrations.demo.corpus import collect
from bge_integrations.encoder import BgeEncoder
from bge_integrations.errors import ModelLoadError, PoolingMismatchError, SettingsError
from bge_integrations.settings import EngineName, Precision

__all__ = ["BenchReport", "Combination", "Measured", "Recommendation", "print_report", "recommend", "run_bench"]

EXACT = "float32"

_ROUNDS = 5
_LEAST_ROUNDS = 2
_LOADING_SHARE = 0.5
_QUERY_SHARE = 0.25
_LEAST_TEXTS, _LEAST_QUERIES, _MOST_QUERIES = 16, 3, 40
_PILOT_TEXTS = 16
_STEADY_SPREAD = 1.25


@dataclass(frozen=True, order=True)
class Combination:
    """An engine and a precision, by the names of the settings."""

    engine: EngineName
    precision: Precision

    @property
    def keywords(self) -> str:
        """How to ask for it, of `BgeEncoder` and of both adapters."""
        return f'engine="{self.engine}", precision="{self.precision}"'


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a combination achieved.

    Attributes:
        combination: Which it is.
        texts: How many it embedded in a round; a slow one is given fewer.
        documents_per_s: Of the median round.
        tokens_per_s: The same in tokens, padding not counted.
        slowest_documents_per_s: Of the worst round.
        fastest_documents_per_s: Of the best round.
        query_p50_ms: Median latency of a single query.
        query_p95_ms: Its 95th percentile.
        mean_cosine: Agreement of its document vectors with float32's; None where nothing ran in float32.
        least_cosine: Of the vector that agrees least.
    """

    combination: Combination
    texts: int
    documents_per_s: float
    tokens_per_s: float
    slowest_documents_per_s: float
    fastest_documents_per_s: float
    query_p50_ms: float
    query_p95_ms: float
    mean_cosine: float | None
    least_cosine: float | None

    @property
    def spread(self) -> float:
        """The best round over the worst."""
        return self.fastest_documents_per_s / self.slowest_documents_per_s

    def is_surely_faster_than(self, other: Measured) -> bool:
        """Whether its worst round beats the other's best one."""
        return self.slowest_documents_per_s > other.fastest_documents_per_s


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    """A combination to use.

    Attributes:
        combination: Which.
        keywords: How to ask for it.
        uncertain_against: Others that may be as fast, as far as rounds that differ so much can tell.
    """

    combination: Combination
    keywords: str
    uncertain_against: tuple[Combination, ...]


@dataclass(frozen=True, kw_only=True)
class BenchReport:
    """What `run_bench` found.

    Attributes:
        model: As it was named.
        device: What it ran on.
        rounds: How often each combination was measured.
        seconds: How long all of it took.
        mean_tokens: Of the texts.
        measured: Fastest first.
        left_out: What could not be run, and why.
        exact: The fastest in float32; None where none ran.
        lossy: The fastest of the others, if it is faster than that.
        is_noisy: Whether rounds differ so much that the figures are to be taken with care.
    """

    model: str
    device: str
    rounds: int
    seconds: float
    mean_tokens: float
    measured: tuple[Measured, ...]
    left_out: dict[str, str]
    exact: Recommendation | None
    lossy: Recommendation | None
    is_noisy: bool


@dataclass
class _Runner:
    """A combination with its model loaded."""

    combination: Combination
    encoder: BgeEncoder
    texts: list[str] = field(default_factory=list)
    tokens: int = 0
    queries_a_round: int = _LEAST_QUERIES
    documents_s: list[float] = field(default_factory=list)
    queries_s: list[float] = field(default_factory=list)
    vectors: NDArray[np.float32] | None = None


def run_bench(
    model: str,
    seconds: float = 120.0,
    *,
    device: str | None = None,
    engines: Sequence[EngineName] | None = None,
    precisions: Sequence[Precision] | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> BenchReport:
    """Compares everything that can run a model, in turns, on docstrings of Python's standard library.

    Args:
        model: Hub id, local folder, or prepared folder.
        seconds: About how long it may take. Half of it is for loading, which may take longer the first time, when
            graphs are made; what has not begun to load by then is left out.
        device: Where to run; None takes the first there is of cuda, mps and cpu.
        engines: Only these; None takes all.
        precisions: Only these; None takes float32, bfloat16 and, on a CPU, int8, elsewhere float16.
        tell: Is told what is going on.

    Raises:
        SettingsError: No combination can be run.
        ModelLoadError: The model can't be found or read.
        PoolingMismatchError: A BGE model whose own files ask for another pooling.
    """
    from bge_integrations.backend.request import LoadRequest
    from bge_integrations.settings import EncoderSettings

    started = time.monotonic()
    device = LoadRequest.from_settings(EncoderSettings(model_name=model, device=device)).device
    wanted = _combinations(device, engines, precisions)
    left_out: dict[str, str] = {}
    with contextlib.ExitStack() as encoders:
        runners: list[_Runner] = []
        for combination in wanted:
            if time.monotonic() - started > seconds * _LOADING_SHARE:
                left_out[combination.keywords] = f"no time left to load it; allow more than {seconds:g} seconds"
                continue
            tell(f"loading {combination.keywords}")
            try:
                runners.append(_Runner(combination, encoders.enter_context(_load(model, device, combination))))
            except (ModelLoadError, PoolingMismatchError):  # no engine can help that
                raise
            except Exception as error:  # engines on machines that we have not seen raise whatever they like
                left_out[combination.keywords] = str(error) or type(error).__name__
        if not runners:
            raise SettingsError(f"Nothing can run {model} on {device}: {' '.join(dict.fromkeys(left_out.values()))}")
        rounds = _race(runners, started + seconds, tell)
        measured, lengths = _evaluate(runners), _lengths(runners[0], runners[0].texts)
    return _report(model, device, rounds, time.monotonic() - started, float(lengths.mean()), measured, left_out)


def _combinations(
    device: str, engines: Sequence[EngineName] | None, precisions: Sequence[Precision] | None
) -> list[Combination]:
    """Lists what to try, float32 first since the others are compared with it, int8 last since it takes longest."""
    here: tuple[Precision, ...] = ("float32", "bfloat16", "int8" if device == "cpu" else "float16")
    chosen = engines or [engine for engine in get_args(EngineName) if engine != "auto"]
    return [Combination(engine, precision) for precision, engine in itertools.product(precisions or here, chosen)]


def _load(model: str, device: str, combination: Combination) -> BgeEncoder:
    encoder = BgeEncoder(
        model, device=device, engine=combination.engine, precision=combination.precision, on_truncation="ignore"
    )
    # Once through either way: what an engine compiles at its first use belongs to loading.
    encoder.encode_documents(["A first text.", "A second one."])
    encoder.encode_queries(["a query"])
    return encoder


def _race(runners: list[_Runner], deadline: float, tell: Callable[[str], None]) -> int:
    """Lets all take turns, a round that is not counted first, and returns the number of those that are."""
    shuffler = random.Random(0)
    entries = list(collect())
    shuffler.shuffle(entries)
    texts = [entry.text for entry in entries]
    queries = list(dict.fromkeys(entry.summary for entry in reversed(entries)))
    share = max(deadline - time.monotonic(), 0) / ((_ROUNDS + 2) * len(runners))  # one more for the pilots
    for runner in runners:
        _choose_texts(runner, texts, queries, share)
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


def _choose_texts(runner: _Runner, texts: list[str], queries: list[str], share: float) -> None:
    pilot = texts[:_PILOT_TEXTS]
    a_text = _seconds(partial(runner.encoder.encode_documents, pilot)) / len(pilot)
    a_query = _seconds(partial(runner.encoder.encode_queries, queries[:1]))
    runner.texts = texts[: max(_LEAST_TEXTS, int(share * (1 - _QUERY_SHARE) / a_text))]
    runner.tokens = int(_lengths(runner, runner.texts).sum())
    runner.queries_a_round = min(max(_LEAST_QUERIES, int(share * _QUERY_SHARE / a_query)), _MOST_QUERIES)


def _one_turn(runner: _Runner, queries: list[str], number: int) -> tuple[float, list[float]]:
    start = time.perf_counter()
    runner.vectors = runner.encoder.encode_documents(runner.texts)
    documents_s = time.perf_counter() - start
    first = number * runner.queries_a_round
    # Another query each time, so that nothing can answer from memory.
    asked = [queries[index % len(queries)] for index in range(first, first + runner.queries_a_round)]
    return documents_s, [_seconds(partial(runner.encoder.encode_queries, [query])) for query in asked]


def _evaluate(runners: list[_Runner]) -> list[Measured]:
    exact = next((runner.vectors for runner in runners if runner.combination.precision == EXACT), None)
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
    """Compares the texts that both embedded; everybody's are the first so many of one list."""
    if vectors is None or exact is None:
        return None, None
    count = min(len(vectors), len(exact))
    ours, theirs = vectors[:count].astype(np.float64), exact[:count].astype(np.float64)
    norms = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    cosines = np.einsum("td,td->t", ours, theirs) / norms
    return float(cosines.mean()), float(cosines.min())


def _report(
    model: str,
    device: str,
    rounds: int,
    seconds: float,
    mean_tokens: float,
    measured: list[Measured],
    left_out: dict[str, str],
) -> BenchReport:
    exact, lossy = recommend(measured)
    return BenchReport(
        model=model,
        device=device,
        rounds=rounds,
        seconds=seconds,
        mean_tokens=mean_tokens,
        measured=tuple(measured),
        left_out=left_out,
        exact=exact,
        lossy=lossy,
        is_noisy=statistics.median(one.spread for one in measured) > _STEADY_SPREAD,
    )


def recommend(measured: Sequence[Measured]) -> tuple[Recommendation | None, Recommendation | None]:
    """Chooses the fastest exact combination, and the fastest lossy one if it is faster than that.

    Args:
        measured: What took part.
    """
    ranked = sorted(measured, key=lambda one: -one.documents_per_s)
    exact = [one for one in ranked if one.combination.precision == EXACT]
    lossy = [one for one in ranked if one.combination.precision != EXACT]
    if exact and lossy and lossy[0].documents_per_s <= exact[0].documents_per_s:
        lossy = []
    return (
        _fastest(exact[0], exact[1:]) if exact else None,
        _fastest(lossy[0], [*lossy[1:], *exact]) if lossy else None,
    )


def _fastest(best: Measured, others: Sequence[Measured]) -> Recommendation:
    doubtful = tuple(other.combination for other in others if not best.is_surely_faster_than(other))
    return Recommendation(combination=best.combination, keywords=best.combination.keywords, uncertain_against=doubtful)


def print_report(report: BenchReport, console: Console) -> None:
    """Prints a table of what was measured, what was left out and why, and the settings to use."""
    console.print(
        f"{report.model} on {report.device}: {report.rounds} rounds in {report.seconds:.0f} s, docstrings of "
        f"{report.mean_tokens:.0f} tokens on average",
        markup=False,
        highlight=False,
    )
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("engine", no_wrap=True)
    table.add_column("precision", no_wrap=True)
    for column in ("documents/s", "tokens/s", "query p50 ms", "p95 ms", "mean cosine", "least cosine", "spread"):
        table.add_column(column, justify="right")
    for one in report.measured:
        cosines = (f"{value:.6f}" if value is not None else "–" for value in (one.mean_cosine, one.least_cosine))
        table.add_row(
            one.combination.engine,
            one.combination.precision,
            f"{one.documents_per_s:,.1f}",
            f"{one.tokens_per_s:,.0f}",
            f"{one.query_p50_ms:.1f}",
            f"{one.query_p95_ms:.1f}",
            *cosines,
            f"{one.spread:.2f}",
        )
    console.print(table)
    for keywords, why in report.left_out.items():
        console.print(f"left out: {keywords}: {why}", style="yellow", markup=False, highlight=False, soft_wrap=True)
    _print_recommendations(report, console)


def _print_recommendations(report: BenchReport, console: Console) -> None:
    cosines = {one.combination: one.mean_cosine for one in report.measured}
    for kind, recommendation in (("exact", report.exact), ("lossy", report.lossy)):
        if recommendation is None:
            console.print(f"fastest {kind}: none" + (" is faster than the exact one" if kind == "lossy" else " ran"))
            continue
        cosine = cosines[recommendation.combination]
        agreement = f" (mean cosine {cosine:.6f})" if kind == "lossy" and cosine is not None else ""
        console.print(f"fastest {kind}: [bold]{escape(recommendation.keywords)}[/]{agreement}", highlight=False)
        for other in recommendation.uncertain_against:
            console.print(f"  may be as fast: {other.keywords}; their rounds overlap", style="yellow", markup=False)
    if report.is_noisy:
        console.print("Rounds differ a lot: something else keeps the machine busy. Run it again.", style="yellow")


def _lengths(runner: _Runner, texts: list[str]) -> NDArray[np.int64]:
    return runner.encoder.backend.tokenizer.tokenize(texts, runner.encoder.max_length).lengths


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
