"""What a run of the bench found out: plain figures, no formatting."""

from __future__ import annotations

from dataclasses import dataclass

from bge_integrations.settings import EngineName, Precision

__all__ = ["BenchReport", "Combination", "Measured", "Recommendation"]


@dataclass(frozen=True, order=True)
class Combination:
    """An engine and a precision, by the names of the settings."""

    engine: EngineName
    precision: Precision

    @property
    def keywords(self) -> str:
        """How to ask for it, of `BgeEncoder` and of both adapters."""
        return f'engine="{self.engine}", precision="{self.precision}"'

    @property
    def is_exact(self) -> bool:
        """Whether it computes in float32, with which the others are compared."""
        return self.precision == "float32"


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
        threads: How many computed; None on a GPU.
        rounds: How often each combination was measured.
        seconds: How long all of it took.
        mean_tokens: Of the texts.
        measured: Fastest first.
        left_out: What could not be run, and why.
        exact: The fastest in float32; None where none ran.
        lossy: The fastest of the others, if it is faster than that.
        is_noisy: Whether rounds differ so much that the figures are to be taken with care.
        not_loaded: Those of `left_out` that there was no time to load; nothing is known of their speed.
    """

    model: str
    device: str
    threads: int | None
    rounds: int
    seconds: float
    mean_tokens: float
    measured: tuple[Measured, ...]
    left_out: dict[str, str]
    exact: Recommendation | None
    lossy: Recommendation | None
    is_noisy: bool
    not_loaded: tuple[Combination, ...] = ()
