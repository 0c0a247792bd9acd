"""Statistics of a model, for `BgeEncoder.stats()`, and for OpenTelemetry if the application uses it."""

from __future__ import annotations

from dataclasses import dataclass

from bge_integrations.backend.engines.interface import GraphState, Priority
from bge_integrations.backend.guarantees.forks import ForkSafeLock
from bge_integrations.backend.scheduler import telemetry


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """The work of a loaded model so far, for all encoders and adapters that share it.

    Attributes:
        texts: Computed texts.
        tokens: Tokens of these texts, special tokens and instructions included.
        padding_tokens: Padding tokens, computed in addition to `tokens`.
        batches: Forward passes.
        truncated_texts: Truncated texts.
        failed_texts: Texts on which the engine failed even when they were alone in a batch.
        queue_seconds: Waiting time for an engine in seconds, summed over all texts.
        engine_seconds: Computing time in seconds, summed over all engines, also over parallel ones.
        graphs: The CUDA graphs now. `None`: the engine uses none, as on a CPU, in float32, or with torch before 2.10.
    """

    texts: int = 0
    tokens: int = 0
    padding_tokens: int = 0
    batches: int = 0
    truncated_texts: int = 0
    failed_texts: int = 0
    queue_seconds: float = 0.0
    engine_seconds: float = 0.0
    graphs: GraphState | None = None

    @property
    def batch_fill(self) -> float:
        """Share of computed tokens that are not padding, 0 to 1; 1 before the first batch."""
        computed = self.tokens + self.padding_tokens
        return self.tokens / computed if computed else 1.0


class Meter:
    """Adds up the statistics of one model. Thread-safe."""

    def __init__(self, model: str, device: str) -> None:
        """Starts at zero. The names of the model and its device are for telemetry."""
        self._attributes = {"bge.model": model, "bge.device": device}
        self._lock = ForkSafeLock()
        self._counted: dict[str, float] = {}

    def read(self, graphs: GraphState | None = None) -> Statistics:
        """Returns the statistics so far, with the state of the engine's graphs."""
        with self._lock:
            return Statistics(graphs=graphs, **self._counted)  # type: ignore[arg-type]  # counts of texts stay whole

    def add(self, *, priority: Priority | None = None, **amounts: float) -> None:
        """Adds amounts to the statistics.

        Args:
            priority: Priority of the texts; `None` if it is not known.
            **amounts: Amounts, each with the name of a field of `Statistics`.
        """
        with self._lock:
            for name, amount in amounts.items():
                self._counted[name] = self._counted.get(name, 0) + amount
        telemetry.record(amounts, {**self._attributes, "bge.priority": priority} if priority else self._attributes)
