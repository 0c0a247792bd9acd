"""The results of `bge bench` as plain numbers, without formatting."""

from __future__ import annotations

from dataclasses import dataclass

from bge_integrations.settings import EngineName, Precision

__all__ = ["BenchReport", "Combination", "Measured", "Recommendation"]


@dataclass(frozen=True, order=True)
class Combination:
    """An engine and a precision, as in the settings."""

    engine: EngineName
    precision: Precision

    @property
    def keywords(self) -> str:
        """The keyword arguments for `BgeEncoder` and both adapters."""
        return f'engine="{self.engine}", precision="{self.precision}"'

    @property
    def is_exact(self) -> bool:
        """Whether it computes in float32, the reference for the others."""
        return self.precision == "float32"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The measurements of one combination.

    Attributes:
        combination: Engine and precision.
        texts: Number of texts in a round. A slow combination gets fewer texts.
        documents_per_s: Documents per second in the median round.
        tokens_per_s: Tokens per second in the median round, without padding.
        share_of_limit: `tokens_per_s` as a share of what the device could do in this precision if it computed nothing
            but the model's matrix products. `None`: for int8, and for models that the fast engines don't know.
        slowest_documents_per_s: Documents per second in the slowest round.
        fastest_documents_per_s: Documents per second in the fastest round.
        query_p50_ms: Median latency of a single query, in milliseconds.
        query_p95_ms: 95th percentile of that latency, in milliseconds.
        mean_cosine: Mean cosine of its document vectors with those of float32. `None`: nothing ran in float32.
        least_cosine: Least of these cosines.
    """

    combination: Combination
    texts: int
    documents_per_s: float
    tokens_per_s: float
    share_of_limit: float | None
    slowest_documents_per_s: float
    fastest_documents_per_s: float
    query_p50_ms: float
    query_p95_ms: float
    mean_cosine: float | None
    least_cosine: float | None

    @property
    def spread(self) -> float:
        """The speed of the fastest round divided by that of the slowest."""
        return self.fastest_documents_per_s / self.slowest_documents_per_s

    def is_surely_faster_than(self, other: Measured) -> bool:
        """Returns whether its slowest round is faster than the other's fastest round."""
        return self.slowest_documents_per_s > other.fastest_documents_per_s


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    """A combination to use.

    Attributes:
        combination: Engine and precision.
        keywords: Keyword arguments for this combination.
        uncertain_against: Other combinations that may be as fast, since their rounds overlap.
    """

    combination: Combination
    keywords: str
    uncertain_against: tuple[Combination, ...]


@dataclass(frozen=True, kw_only=True)
class BenchReport:
    """The result of `run_bench`.

    Attributes:
        model: Model name, as the user gave it.
        device: Device of the measurements.
        threads: Number of CPU threads, or `None` on a GPU.
        rounds: Number of measurements of each combination.
        seconds: Seconds of the whole run.
        mean_tokens: Mean number of tokens per text.
        measured: Measurements, fastest first.
        left_out: Reasons why combinations were not run, by their keywords.
        exact: Fastest combination in float32. `None`: nothing ran in float32.
        lossy: Fastest other combination, if it is faster than `exact`.
        is_noisy: Whether the rounds differ so much that the numbers are uncertain.
        not_loaded: Combinations of `left_out` that were not loaded for lack of time. Their speed is unknown.
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
